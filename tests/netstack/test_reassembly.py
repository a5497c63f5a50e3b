"""What the child sends in pieces, in any order, overlapping, with different bytes for one place: the first ones count.

The plain reference is one dictionary from place to byte. The host reads at once, late or by a few bytes, so that text
goes straight to the socket, waits in the ring, or wraps in it."""

from __future__ import annotations

import random
import struct
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from childflow.netstack.stack import Limits

from . import wire
from .play import ACK, Child, Play

SCALED = wire.mss(1460) + wire.NOP + wire.wscale(0)
PLACES = 3000

pieces = st.lists(
    st.tuples(st.integers(-50, PLACES), st.integers(1, 1460), st.integers(0, 255)), min_size=1, max_size=12
)


def filler(start: int, length: int, salt: int) -> bytes:
    return bytes((start + i) * 31 + salt & 0xFF for i in range(length))


def check(parts: list[tuple[int, int, int]], isn: int, buffer: int | None, before: int, reads_between: bool) -> None:
    play = Play()
    try:
        play.establish(options=SCALED, isn=isn, buffer=buffer)
        for at in range(0, before, 1460):
            play.child.sends(ACK, text=bytes(min(1460, before - at)))
        got = play.host.reads() if reads_between else b""
        base = before + 1
        first: dict[int, int] = {}
        for start, length, salt in parts:
            text = filler(start, length, salt)
            play.child.sends(ACK, seq=base + start, text=text)
            for i, byte in enumerate(text):
                if start + i >= 0:
                    first.setdefault(start + i, byte)
            if reads_between:
                got += play.host.reads(997)
        end = max(first, default=-1) + 1
        rest = filler(0, end, 1)
        for i, byte in enumerate(rest):
            first.setdefault(i, byte)
        for at in range(0, end, 1460):
            play.child.sends(ACK, seq=base + at, text=rest[at : at + 1460])
        got += play.host.reads()
        assert got == bytes(before) + bytes(first[i] for i in range(end))
        assert play.stack.buffered() == 0
        assert set(play.stack.counters()) <= {"duplicate"}
    except BaseException:
        play.abandon()
        raise
    play.close()


@pytest.mark.case("B21")
@settings(max_examples=250, deadline=None, derandomize=True)
@given(pieces, st.sampled_from([0, 5000, 0xFFFFFFFF, 0xFFFFFA00, 0x7FFFFA00]))
def test_established_pieces_straight_to_the_host(parts, isn):
    check(parts, isn, None, 0, True)


@pytest.mark.case("B21")
@settings(max_examples=100, deadline=None, derandomize=True)
@given(pieces, st.integers(0, 60_000), st.booleans())
def test_established_pieces_behind_a_slow_host(parts, before, reads_between):
    check(parts, 5000, 2304, before, reads_between)


def test_established_ring_wraps_under_the_pieces():
    """The ring's first byte is far into it when the pieces come, so that they lie across its end."""
    play = Play()
    play.establish(options=SCALED, buffer=2304)
    sent, got = 0, b""
    for round_ in range(1500):
        a, b = filler(sent, 700, 3), filler(sent + 700, 760, 4)
        play.child.sends(ACK, seq=1 + sent + 700, text=b)
        play.child.sends(ACK, seq=1 + sent, text=a)
        sent += 1460
        if round_ > 250:
            got += play.host.reads(1460 if round_ < 1400 else 1 << 20)
        play.child.forgets()
    got += play.host.reads()
    want = b"".join(filler(at, 700, 3) + filler(at + 700, 760, 4) for at in range(0, sent, 1460))
    assert got == want
    assert play.stack.buffered() == 0
    play.close()


# --- the catalogue's own words


def model_of(play: Play, parts: list[tuple[int, bytes]]) -> dict[int, int]:
    """Send `parts` (place, text) and note the first byte that the stack kept for each place."""
    first: dict[int, int] = {}
    for at, text in parts:
        refused = play.stack.counters().get("reassembly_full", 0)
        play.child.sends(ACK, seq=1 + at, text=text)
        if play.stack.counters().get("reassembly_full", 0) == refused:
            for i, byte in enumerate(text):
                first.setdefault(at + i, byte)
    return first


@pytest.mark.case("B21")
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("isn", [5000, 0xFFFF8000])
def test_established_64_segments_shuffled_doubled_overlapping_and_different(stage, isn, seed):
    """Each overlaps its neighbour by 1 to 1459 bytes of other text, a tenth comes twice and different the second time;
    what arrives is the first byte that was kept for each place."""
    chance = random.Random(seed)
    play = stage()
    play.establish(options=SCALED, isn=isn, window=65_535)
    play.child.sends(ACK)
    parts = []
    for i in range(64):
        start = max(0, i * 1460 - chance.randint(1, 1459))
        parts.append((start, filler(start, (i + 1) * 1460 - start, i)))
    chance.shuffle(parts)
    for _ in range(6):
        at, text = chance.choice(parts)
        parts.insert(chance.randrange(len(parts)), (at, bytes(b ^ 0xFF for b in text)))
    first = model_of(play, parts)
    rest = filler(0, 64 * 1460, 99)
    for at in range(0, len(rest), 1460):  # what was refused comes again
        for i in range(at, at + 1460):
            first.setdefault(i, rest[i])
        play.child.sends(ACK, seq=1 + at, text=rest[at : at + 1460])
    assert play.host.reads() == bytes(first[i] for i in range(64 * 1460))
    assert play.child.acked(play.child.forgets()[-1]) == 64 * 1460 + 1
    assert play.stack.buffered() == 0


@pytest.mark.case("B21")
@pytest.mark.parametrize("overlap", [1, 2, 730, 1458, 1459])
def test_established_every_overlap_in_order(stage, overlap):
    play = stage()
    play.establish(options=SCALED)
    want = bytearray(filler(0, 1460, 0))
    play.child.sends(ACK, seq=1, text=bytes(want))
    for i in range(1, 64):
        start = len(want) - overlap
        text = filler(start, 1460, i)
        play.child.sends(ACK, seq=1 + start, text=text)
        want += text[overlap:]
    play.host.gets(bytes(want))


def flood_frames(child: Child, places: list[int]) -> list[bytes]:
    """One-byte segments at `places`, made by patching the number into one frame: a hundred thousand in a moment."""
    raw = bytearray(
        wire.frame(
            child.packet(ACK, seq=1, text=b"x", checksum="partial"), head=wire.vnet(wire.NEEDS_CSUM, 0, 0, 0, 34, 16)
        )
    )
    out = []
    for at in places:
        struct.pack_into("!I", raw, 38 + wire.VNET_LEN, (child.isn + 1 + at) & 0xFFFFFFFF)
        out.append(bytes(raw))
    return out


def spend(play: Play, frames: list[bytes]) -> float:
    """CPU seconds for these frames, the answers thrown away unread."""
    play.deaf = True
    begin = time.process_time()
    for at in range(0, len(frames), 64):
        for raw in frames[at : at + 64]:
            play._tap.send(raw)
        play.rest()
        for _ in range(64):
            try:
                play._tap.recv(2048)
            except BlockingIOError:
                break
    spent = time.process_time() - begin
    play.deaf = False
    return spent


@pytest.mark.case("B22")
@pytest.mark.parametrize("order", ["rising", "falling", "shuffled"])
def test_established_single_bytes_over_a_window_of_4_mib_are_bounded_and_cost_the_same_each(stage, order):
    """CVE-2018-6922, 5390: a hundred thousand bytes with gaps between, over the whole window. One buffer, a bounded
    number of gaps; a later tenth costs no more than the first ones."""
    window = 4 << 20
    play = stage(limits=Limits(flow_window=window, buffer_limit=window))
    play.establish(options=wire.mss(1460) + wire.NOP + wire.wscale(14))
    places = [1 + 2 * i * (window // 2 // 100_000) for i in range(100_000)]
    if order == "falling":
        places.reverse()
    elif order == "shuffled":
        random.Random(1).shuffle(places)
    frames = flood_frames(play.child, places)
    spend(play, frames[:10_000])
    costs = [spend(play, frames[at : at + 10_000]) for at in range(10_000, 100_000, 10_000)]
    assert min(costs[-3:]) < 3 * min(costs[:3]) + 0.05, costs
    assert play.stack.buffered() <= window
    assert set(play.stack.counters()) <= {"reassembly_full", "out_of_window"}
    play.host.gets_nothing()
    text = filler(0, 60_000, 5)
    play.child.sends(ACK, seq=1, text=b"x" + text)
    came = play.host.reads()
    assert came[:1] == b"x"
    assert len(came) >= 60_001


@pytest.mark.case("B22")
def test_established_every_second_byte_is_mended_by_one_retransmission(stage):
    """What is not kept is not acknowledged, so the child's own retransmission mends it."""
    play = stage()
    play.establish(options=SCALED)
    for at in range(1, 4000, 2):
        play.child.sends(ACK, seq=1 + at, text=filler(at, 1, 0))
    assert play.stack.counters()["reassembly_full"] > 0
    play.child.sends(ACK, seq=1, text=filler(0, 4000, 0))
    play.host.gets(filler(0, 4000, 0))
    assert play.child.acked(play.child.forgets()[-1]) == 4001
    assert play.stack.buffered() == 0
