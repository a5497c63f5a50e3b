"""Sequence numbers at their edges (B23): both ends start just before 2^32 or 2^31, and all that a connection does
happens across the wrap: text both ways, out of order, lost, the FINs, a reset, probes and keep-alives.

The stack's own number is a keyed hash of the connection plus a clock that ticks every 4 microseconds (RFC 6528), and
time is ours to say: `numbered` asks once, and comes back when the clock makes it what it should be."""

from __future__ import annotations

import random

import pytest

from childflow.netstack.events import End

from . import wire
from .play import ACK, CHILD_PORT, FIN, RST, SYN, Play, text_of

pytestmark = pytest.mark.case("B23")

EDGES = [0xFFFFFFF0, 0xFFFFFFFF, 0x7FFFFFF0]
SCALED = wire.mss(1460) + wire.NOP + wire.wscale(7)
TICK_US = 4


def numbered(play: Play, ours: int, childs: int, **how: object) -> None:
    """Establish a connection whose first numbers are `ours` on the stack's side and `childs` on the child's."""
    play.connect(CHILD_PORT, isn=childs).opens()
    play.attach()
    now = play.child.gets(SYN | ACK).seq
    play.child.sends(RST, seq=1)
    play.ended(End.RST_CHILD)
    play.clock.advance(ms=((ours - now) & 0xFFFFFFFF) * TICK_US / 1000)
    play.establish(CHILD_PORT, isn=childs, **how)  # type: ignore[arg-type]
    assert play.child.peer_isn == ours


@pytest.mark.parametrize("childs", EDGES)
@pytest.mark.parametrize("ours", EDGES)
def test_text_and_fins_both_ways(stage, offload, ours, childs):
    play = stage(offload=offload)
    numbered(play, ours, childs, options=SCALED)
    for i in range(30):
        play.child.sends(ACK, text=text_of(1, i))
        play.host.gets(text_of(1, i))
        play.host.sends(text_of(1, i))
        assert b"".join(s.text for s in play.child.inbox) == text_of(1, i)
        play.child.reads(1)
    for at in range(0, 150_000, 30_000):
        play.child.sends(ACK, text=text_of(30_000, at))
        play.host.gets(text_of(30_000, at))
        play.child.forgets()
        play.host.sends(text_of(30_000, at))
        assert play.child.reads(30_000) == text_of(30_000, at)
    play.child.sends(FIN | ACK)
    play.host.gets_eof()
    play.child.gets(ACK)
    play.host.closes()
    play.child.gets(FIN | ACK)
    play.child.sends(ACK)
    e = play.ended(End.FIN)
    assert (e.bytes_up, e.bytes_down) == (150_030, 150_030)
    assert play.stack.counters() == {}


@pytest.mark.parametrize("first", ["child", "host"])
@pytest.mark.parametrize("length", range(13, 18))
@pytest.mark.parametrize("edge", [0xFFFFFFF0, 0x7FFFFFF0])
def test_fin_exactly_at_the_wrap(stage, edge, length, first):
    """Both FINs take the last number before it, the first behind it, and their neighbours."""
    play = stage()
    numbered(play, edge, edge)

    def by_child() -> None:
        play.child.sends(FIN | ACK, text=text_of(length))
        play.child.gets(ACK, ack=length + 2)
        play.host.gets(text_of(length))
        play.host.gets_eof()

    def by_host() -> None:
        play.host.end.send(text_of(length))
        play.host.half_closes()
        came = play.child.forgets()
        assert b"".join(s.text for s in came) == text_of(length)
        assert came[-1].flags & FIN
        assert (came[-1].seq + len(came[-1].text)) & 0xFFFFFFFF == (edge + 1 + length) & 0xFFFFFFFF
        play.child.got = length + 2
        play.child.sends(ACK)

    for closes in (by_child, by_host) if first == "child" else (by_host, by_child):
        closes()
    e = play.ended(End.FIN)
    assert (e.bytes_up, e.bytes_down) == (length, length)
    play.clock.advance(ms=5000)
    assert play.stack.flow_count() == 0


@pytest.mark.parametrize("edge", EDGES)
def test_lost_text_is_repeated_across_the_wrap(stage, edge):
    play = stage()
    numbered(play, edge, edge)
    play.host.sends(text_of(40))
    assert play.child.forgets()
    play.clock.advance(ms=200)
    assert play.child.reads(40) == text_of(40)
    for i in range(5):
        play.host.sends(text_of(1000, i * 1000))
    play.child.forgets()
    for _ in range(4):
        play.child.sends(ACK, ack=41)
    s = play.child.inbox.popleft()
    assert (play.child.relative(s), s.text[:1000]) == (41, text_of(1000))


@pytest.mark.parametrize("edge", EDGES)
def test_text_out_of_order_across_the_wrap(stage, edge):
    play = stage()
    numbered(play, edge, edge)
    pieces = list(range(64))
    random.Random(edge).shuffle(pieces)
    for i in pieces:
        play.child.sends(ACK, seq=1 + i, text=text_of(1, i))
    play.host.gets(text_of(64))
    assert play.child.acked(play.child.forgets()[-1]) == 65
    assert play.stack.buffered() == 0


@pytest.mark.parametrize("edge", EDGES)
def test_old_text_across_the_wrap_is_not_new(stage, edge):
    play = stage()
    numbered(play, edge, edge)
    play.child.sends(ACK, text=text_of(40))
    play.host.gets(text_of(40))
    for at in (1, 15, 16, 17, 40):
        play.child.sends(ACK, seq=at, text=b"X" * (41 - at))
    play.child.sends(ACK, seq=-100, text=b"Y" * 100)
    play.host.gets_nothing()
    assert play.stack.counters() == {"duplicate": 6}


@pytest.mark.parametrize("edge", EDGES)
def test_resets_across_the_wrap(stage, edge):
    """Only the exact number resets (RFC 5961), wherever the window lies."""
    play = stage()
    numbered(play, edge, edge)
    play.child.sends(ACK, text=text_of(10))
    play.child.forgets()
    play.child.sends(RST, seq=40)
    play.child.gets(ACK, ack=11)
    play.child.sends(RST, seq=3)
    play.child.gets_nothing()
    play.child.sends(RST, seq=11)
    play.ended(End.RST_CHILD)


@pytest.mark.parametrize("edge", EDGES)
def test_window_and_probes_across_the_wrap(stage, edge):
    play = stage()
    numbered(play, edge, edge, window=10)
    play.host.sends(text_of(100))
    play.child.gets(ACK, seq=1, text=text_of(10))
    play.child.sends(ACK, window=0)
    for i in range(10, 20):  # each probe's byte is taken
        play.clock.advance(ms=60_000)
        play.child.gets(ACK, seq=1 + i, text=text_of(1, i))
        play.child.sends(ACK, window=0)
    play.child.sends(ACK, window=65_535)
    assert play.child.reads(80) == text_of(80, 20)


@pytest.mark.parametrize("edge", EDGES)
def test_keep_alive_at_the_wrap(stage, edge):
    """The number before the next one, which may be the last before zero."""
    for length in (0, 14, 15, 16):
        play = stage()
        numbered(play, edge, edge)
        if length:
            play.host.sends(text_of(length))
            play.child.reads(length)
        play.clock.advance(ms=7_200_000)
        s = play.child.gets(ACK, seq=length, text=b"")
        assert s.seq == (edge + length) & 0xFFFFFFFF
        play.child.sends(ACK)
        play.child.sends(ACK, seq=0, text=b"?")  # the child's own
        play.child.gets(ACK, ack=1)
        play.host.gets_nothing()


@pytest.mark.parametrize("edge", EDGES)
def test_syn_ack_lost_at_the_wrap(stage, edge):
    play = stage()
    play.connect(CHILD_PORT, isn=edge).opens()
    play.attach()
    now = play.child.gets(SYN | ACK).seq
    play.child.sends(RST, seq=1)
    play.ended(End.RST_CHILD)
    play.clock.advance(ms=((edge - now) & 0xFFFFFFFF) * TICK_US / 1000)
    play.connect(CHILD_PORT, isn=edge).opens()
    play.attach()
    assert play.child.gets(SYN | ACK, ack=1).seq == edge
    play.clock.advance(ms=1000)
    assert play.child.gets(SYN | ACK, ack=1).seq == edge
    play.child.sends(ACK, ack=2)
    play.child.gets(RST, seq=2)
    play.child.sends(ACK, text=b"x")
    play.child.gets(ACK, ack=2)
