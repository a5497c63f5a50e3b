"""Frames of every kind with anything changed: whatever comes, the stack answers at most once, keeps its books, and
serves the next connection. `wire.view` holds every answer to what a kernel would take.

Bounded to a few seconds; `asan.py` runs the same under the sanitizers, and the fuzzer of a later day starts here."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from childflow.netstack.events import Denial, Ended, Question, SlowPacket

from . import wire
from .play import ACK, CHILD_PORT, FIN, REMOTE_PORT, RST, SYN, Play, text_of
from .test_hostile_frames import CASES
from .test_slow_path import ARP_REQUEST, echo, query, solicitation
from .wire import CHILD, NEEDS_CSUM, REMOTE, frame, ipv4, ipv6

S4, D4, S6, D6 = CHILD[4], REMOTE[4], CHILD[6], REMOTE[6]


def honest() -> list[bytes]:
    out = [frame(ARP_REQUEST, kind=wire.ARP), frame(solicitation()), frame(ipv4(bytes(24), 17, fragment=0x2000))]
    for family, src, dst in ((4, S4, D4), (6, S6, D6)):
        start = 34 if family == 4 else 54
        for flags in (SYN, ACK, FIN | ACK, RST, SYN | ACK):
            for text in (b"", text_of(100), text_of(3000)):
                options = wire.mss(1460) + wire.NOP + wire.wscale(7) if flags == SYN else b""
                segment = wire.tcp(src, dst, CHILD_PORT, REMOTE_PORT, 5001, 1, flags, text=text, options=options)
                out.append(frame(wire.ip(segment, wire.TCP, src, dst)))
        part = wire.tcp(src, dst, CHILD_PORT, REMOTE_PORT, 5001, 1, ACK, text=text_of(9000), checksum="partial")
        gso = wire.GSO_TCPV4 if family == 4 else wire.GSO_TCPV6
        out.append(frame(wire.ip(part, 6, src, dst), head=wire.vnet(NEEDS_CSUM, gso, start + 20, 1460, start, 16)))
        out.append(frame(wire.ip(wire.udp(src, dst, CHILD_PORT, 99, text_of(50)), 17, src, dst)))
        out.append(frame(query(family, text_of(40))))
        out.append(frame(echo(family, text_of(56))))
    out.append(frame(ipv6(bytes((6, 0, 1, 4, 0, 0, 0, 0)) + wire.tcp(S6, D6, 1, 2, 3, 0, SYN), 0)))
    return out + [c.raw for c in CASES]


SEEDS = honest()
EDGES = (0, 1, 2, 4, 5, 0x0F, 0x40, 0x45, 0x50, 0x60, 0x7F, 0x80, 0xF0, 0xFF)


def mutate(chance: random.Random, raw: bytes) -> bytes:
    data = bytearray(raw)
    for _ in range(chance.randint(1, 4)):
        match chance.randrange(7):
            case 0:
                data = data[: chance.randint(1, len(data))]
            case 1:
                data += chance.randbytes(chance.randint(1, 40))
            case 2:
                at = chance.randrange(min(len(data), 90))
                data[at] = chance.choice(EDGES)
            case 3:
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            case 4 if len(data) > 80:
                at = chance.randrange(10, 80)
                del data[at : at + chance.randint(1, 8)]
            case 5 if len(data) > 40:
                at = chance.randrange(10, 40)
                data[at:at] = chance.randbytes(chance.randint(1, 8))
            case _ if len(data) > 60:
                struct.pack_into(
                    "!H", data, chance.randrange(10, 58), chance.choice((0, 1, 7, 8, 19, 20, 0x7FFF, 0xFFFF))
                )
    return mend(bytes(data)) if chance.random() < 0.7 else bytes(data)


def mend(raw: bytes) -> bytes:
    """Make the IPv4 header checksum right again and leave the transport's to the virtio header, to reach deeper."""
    head, packet = raw[:24], raw[24:]
    if len(packet) < 40 or len(head) < 24:
        return raw
    if head[22:24] == b"\x08\x00":
        length = min((packet[0] & 15) * 4, len(packet))
        if length >= 20:
            packet = packet[:10] + bytes(2) + packet[12:]
            packet = packet[:10] + struct.pack("!H", wire.plain_checksum(packet[:length])) + packet[12:]
        start, protocol = 14 + length, packet[9]
    else:
        start, protocol = 54, packet[6]
    if protocol in (wire.TCP, wire.UDP):
        head = wire.vnet(NEEDS_CSUM, start=start, offset=16 if protocol == wire.TCP else 6) + head[10:]
    return head + packet


def answer_questions(play: Play, chance: random.Random) -> None:
    while play._new:
        e = play._new.popleft()
        if not isinstance(e, Question):
            assert isinstance(e, Ended | SlowPacket) or e
            continue
        if e.protocol == wire.TCP and chance.random() < 0.5:
            play._new.appendleft(e)
            play.attach()
        elif chance.random() < 0.8:
            play.stack.deny(e.flow, chance.choice(list(Denial)))
            play.rest()


def settle(play: Play) -> None:
    """Forget every answer; they were checked when they came."""
    for queue in (play.replies, play.errors, play.others, play.strays):
        queue.clear()
    for child in play.talking.values():
        child.forgets()


def canary(play: Play, port: int) -> None:
    play.forgets_events()
    play.establish(port)
    play.child.sends(ACK, text=b"canary")
    play.child.gets(ACK, ack=7)
    play.host.gets(b"canary")
    play.host.sends(b"back")
    play.child.gets(ACK, text=b"back")
    play.child.sends(RST)
    play.forgets_events()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.case("A40")
def test_mutated_frames(stage, seed):
    """A thousand frames for each seed, with verdicts and time going by."""
    chance = random.Random(seed)
    play = stage(offload=bool(seed % 2))
    for i in range(1000):
        before = play.frames
        play.injects(mutate(chance, chance.choice(SEEDS)))
        assert play.frames - before <= 1, "more than one answer"
        answer_questions(play, chance)
        settle(play)
        if chance.random() < 0.02:
            play.clock.advance(ms=chance.choice((1, 200, 3000, 70_000)))
            settle(play)
        if i % 250 == 249:
            canary(play, 50_000 + i)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.case("A40")
def test_established_mutated_conversation(stage, seed):
    """Segments of one standing connection, numbers and flags at random, with a host that speaks, listens and leaves."""
    chance = random.Random(100 + seed)
    play = stage(offload=bool(seed % 2))
    for round_ in range(25):
        play.forgets_events()
        play.establish(
            1000 + round_, isn=chance.choice((0, 5000, 0xFFFFFFF0, 0x7FFFFFF0)), buffer=chance.choice((None, 2304)),
            options=chance.choice((b"", wire.mss(1460), wire.mss(88) + wire.NOP + wire.wscale(14))),
            window=chance.choice((0, 1, 1000, 65_535)),
        )  # fmt: skip
        for _ in range(30):
            near = chance.choice((0, 0, 0, 1, -1, 100, 5000, -5000, 70_000, 1 << 31))
            play.child.sends(
                chance.choice((ACK, ACK, ACK, ACK | wire.PSH, FIN | ACK, RST, SYN, chance.randrange(256))),
                seq=play.child.next + near if chance.random() < 0.4 else None,
                ack=play.child.got + chance.choice((0, 0, 0, 1, 1460, -1, 100_000)),
                text=text_of(chance.choice((0, 0, 1, 1460, 40_000))), urgent=chance.choice((0, 1, 65_535)),
                window=chance.choice((0, 1, 100, 65_535)),
            )  # fmt: skip
            for s in play.child.forgets():
                play.child._take(s)
            play.child.next = min(play.child.next, 300_000)
            verb = chance.randrange(12)
            if verb == 0 and play.host.end.fileno() >= 0:
                try:
                    play.host.end.send(text_of(chance.choice((1, 5000, 100_000))))
                except OSError:
                    pass
                play.rest()
            elif verb == 1 and play.host.end.fileno() >= 0:
                try:
                    play.host.end.recv(chance.choice((1, 100_000)))
                except OSError:
                    pass
                play.rest()
            elif verb == 2:
                play.clock.advance(ms=chance.choice((1, 200, 1000, 60_000)))
            elif verb == 3 and chance.random() < 0.2:
                play.host.closes()
        settle(play)
    canary(play, 50_000)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.sampled_from(SEEDS), st.integers(10, 120), st.binary(min_size=1, max_size=8))
def test_overwritten_frames(raw, at, patch):
    """The same by hypothesis, which shrinks what it finds to the byte that matters."""
    play = Play()
    try:
        at = min(at, len(raw))
        play.injects(mend(raw[:at] + patch + raw[at + len(patch) :]))
        assert play.frames <= 1
        play.forgets_events()
    except BaseException:
        play.abandon()
        raise
    play.close()
