"""What the child sends in pieces, in any order, overlapping, with different bytes for one place: the first ones count.

The plain reference is one dictionary from place to byte. The host reads at once, late or by a few bytes, so that text
goes straight to the socket, waits in the ring, or wraps in it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from . import wire
from .play import ACK, Play

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


@settings(max_examples=250, deadline=None, derandomize=True)
@given(pieces, st.sampled_from([0, 5000, 0xFFFFFFFF, 0xFFFFFA00, 0x7FFFFA00]))
def test_established_pieces_straight_to_the_host(parts, isn):
    check(parts, isn, None, 0, True)


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
