"""The same conversation with offload and without: cut the large frames as a kernel would, and the bytes must be equal.

What may differ is the initial sequence number, which is random; numbers are made relative before the comparison, and
the checksum is left out of it, since `wire.view` has verified each one."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import pytest

from childflow.netstack.events import Denial

from . import wire
from .play import ACK, FIN, PSH, Play, text_of
from .wire import Segment

SCALED = wire.mss(1460) + wire.NOP + wire.wscale(7)
IP_LEN = {4: 20, 6: 40}


def plain_segments(s: Segment, isn: int, family: int) -> list[bytes]:
    """Segment `s` as IP packets of at most one MSS, its sequence number relative, its checksums zero."""
    packet = s.frame[wire.VNET_LEN + wire.ETHERNET_LEN :]
    ip_len = IP_LEN[family]
    ip_head, tcp_head = packet[:ip_len], packet[ip_len : len(packet) - len(s.text)]
    size = s.gso_size or max(len(s.text), 1)
    out = []
    for at in range(0, max(len(s.text), 1), size):
        text = s.text[at : at + size]
        last = at + size >= len(s.text)
        flags = tcp_head[13] if last else tcp_head[13] & ~(PSH | FIN)
        seq = (s.seq - isn + at) & 0xFFFFFFFF
        head = tcp_head[:4] + struct.pack("!I", seq) + tcp_head[8:13] + bytes((flags,)) + tcp_head[14:16] + bytes(2)
        out.append(_lengths(ip_head, len(tcp_head) + len(text), family) + head + tcp_head[18:] + text)
    return out


def _lengths(head: bytes, payload: int, family: int) -> bytes:
    if family == 6:
        return head[:4] + struct.pack("!H", payload) + head[6:]
    return head[:2] + struct.pack("!H", 20 + payload) + head[4:10] + bytes(2) + head[12:]


def recorded(stage: Callable[..., Play], family: int, offload: bool, script: Callable[[Play], None]) -> list[bytes]:
    """All that `script` makes the stack say to its child, in plain segments."""
    play = stage(family=family, offload=offload)
    script(play)
    said = play.child.history
    return [p for s in said for p in plain_segments(s, said[0].seq, family)]


def bulk(play: Play) -> None:
    play.establish(options=SCALED, window=60_000)
    sent = 0
    while sent < 700_000:
        sent += play.host.sends(text_of(700_000)[sent : sent + 64_000], all_of_it=False)
        play.child.reads(sum(len(s.text) for s in play.child.inbox))
    play.host.closes()
    play.child.gets(FIN | ACK)
    play.child.sends(FIN | ACK)


def odd_pieces(play: Play) -> None:
    play.establish(options=SCALED)
    for i, size in enumerate((1, 2, 1459, 1460, 1461, 2920, 2921, 64_240, 65_475, 65_476, 99_999)):
        play.host.sends(text_of(size, i))
        play.child.sends(ACK, text=b"x" * i)
        while play.child.inbox:
            s = play.child.inbox.popleft()
            play.child._take(s)
            if s.text:
                play.child.sends(ACK)


def one_ack_for_many(play: Play) -> None:
    play.establish(options=wire.mss(536), window=40_000)
    for _ in range(10):
        play.host.sends(text_of(30_000))
        for s in play.child.forgets():
            play.child._take(s)
        play.child.sends(ACK)


def refused(play: Play) -> None:
    play.connect().opens()
    play.deny(Denial.RESET)


@pytest.mark.parametrize("script", [bulk, odd_pieces, one_ack_for_many, refused], ids=lambda f: f.__name__)
def test_plain_frames_are_the_large_ones_cut(stage, family, script):
    large = recorded(stage, family, True, script)
    plain = recorded(stage, family, False, script)
    assert b"".join(p[IP_LEN[family] + 20 :] for p in large) == b"".join(p[IP_LEN[family] + 20 :] for p in plain)
    assert merged(large, family) == merged(plain, family)


def merged(packets: list[bytes], family: int) -> list[bytes]:
    """Without the ACKs that carry nothing, whose number depends on how many frames the child answered."""
    head = IP_LEN[family]
    return [p for p in packets if len(p) > head + 20 or p[head + 13] & ~ACK]


def test_large_frames_are_large(stage):
    """What all of this is for: 64 KiB in one frame."""
    play = stage()
    play.establish(options=SCALED)
    play.host.sends(text_of(120_000), all_of_it=False)
    sizes = [len(s.text) for s in play.child.forgets()]
    assert sizes[0] == 65_475 // 1460 * 1460
    assert len(sizes) <= 3


@pytest.mark.parametrize("seed", range(3))
def test_stream_is_the_same_whatever_the_sizes(stage, family, seed):
    chance = random.Random(seed)
    sizes = [chance.choice((1, 100, 1460, 5000, 40_000)) for _ in range(60)]
    streams = []
    for offload in (True, False):
        play = stage(family=family, offload=offload)
        play.establish(options=SCALED)
        got, at = b"", 0
        for size in sizes:
            play.host.sends(text_of(size, at))
            at += size
            got += play.child.reads(sum(len(s.text) for s in play.child.inbox))
        streams.append(got)
    assert streams[0] == streams[1] == text_of(sum(sizes))
