"""The TAP refuses (B31): full for a while, or a frame lost for good. Nothing counts as sent that the child can't have,
and all of it comes once the TAP takes it.

Here the TAP is one end of a socket pair with little room. EAGAIN is a full TAP; EMSGSIZE stands for the errors that
lose a frame (a TAP whose link is down says EIO: `tests/integration/test_link_down.py`)."""

from __future__ import annotations

import socket

import pytest

from childflow.netstack.events import Denial, End

from . import wire
from .play import ACK, FIN, RST, SO_SNDBUFFORCE, SYN, Play, text_of

pytestmark = pytest.mark.case("B31")

SMALL = 4608  # bytes of socket buffer: a few small frames
SCALED = wire.mss(1460) + wire.NOP + wire.wscale(7)


def widen(play: Play) -> None:
    """From now on the TAP takes any frame."""
    try:
        play._stack_end.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 1 << 22)
    except PermissionError:
        play._stack_end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)


def fill(play: Play) -> None:
    """Answers that nobody reads, until the TAP takes no more."""
    play.deaf = True
    play.connect(9)
    while not play.stack.counters().get("tap_full"):
        play.child.sends(ACK, seq=1)  # each is refused with an RST


def room(play: Play) -> int:
    """How many small frames the TAP takes."""
    fill(play)
    listen(play)
    return sum(s.flags == RST for s in play.child.forgets())


def fill_unnoticed(play: Play, frames: int) -> None:
    """The TAP is full, and the stack has yet to find out."""
    play.deaf = True
    play.connect(9)
    for _ in range(frames):
        play.child.sends(ACK, seq=1)
    assert not play.stack.counters().get("tap_full")


def listen(play: Play) -> None:
    play.deaf = False
    play.rest()


@pytest.mark.parametrize("mss", [100, 536, 1460])
def test_full_tap_nothing_counts_as_sent_that_it_did_not_take(stage, mss):
    """All of the text arrives in order and once, without the clock moving: no number was used up by a refused frame."""
    play = stage(offload=False, tap_buffer=SMALL)
    play.establish(options=wire.mss(mss) + wire.NOP + wire.wscale(7))
    play.deaf = True
    play.host.end.send(text_of(60_000))
    play.rest()
    assert play.stack.counters()["tap_full"] > 0
    listen(play)
    came = play.child.history[1:]
    assert [play.child.relative(s) for s in came if s.text] == list(range(1, 60_001, mss))
    assert play.child.reads(60_000) == text_of(60_000)


def test_full_tap_fin_is_still_to_be_sent(stage):
    play = stage(tap_buffer=SMALL)
    play.establish()
    child, host = play.child, play.host
    fill(play)
    host.closes()
    play.rest()
    listen(play)
    child.gets(FIN | ACK, seq=1)
    child.sends(FIN | ACK)
    child.gets(ACK, seq=2, ack=2)


def test_full_tap_syn_ack_is_repeated(stage):
    play = stage(tap_buffer=SMALL)
    fill(play)
    play.connect().opens()
    play.attach()
    listen(play)
    play.child.gets_nothing()
    play.clock.advance(ms=1000)
    play.child.gets(SYN | ACK, seq=0, ack=1, window=65_535)
    play.child.sends(ACK, text=b"x")
    play.child.gets(ACK, ack=2)


@pytest.mark.parametrize("how", [Denial.RESET, Denial.PROHIBITED])
def test_full_tap_refusal_is_lost_and_the_next_syn_is_asked_about_again(stage, how):
    play = stage(tap_buffer=SMALL)
    fill(play)
    play.connect().opens()
    play.deny(how)
    play.ended(End.KILLED)
    listen(play)
    play.child.gets_nothing()
    play.child.opens()
    play.deny(Denial.RESET)
    play.child.gets(RST | ACK, ack=1)


def test_full_tap_window_that_was_not_told_is_not_given(stage):
    """A refused update opens nothing: text beyond the edge that the child knows is beyond the window, as it was. Then
    the update comes, and with it the room."""
    frames = room(stage(tap_buffer=SMALL))
    play = stage(tap_buffer=SMALL)
    play.establish(buffer=4096)
    child, host, sent, window = play.child, play.host, 0, 65_535
    while window:
        size = min(1460, window)
        child.sends(ACK, text=text_of(size, sent))
        sent += size
        window = child.forgets()[-1].window
    fill_unnoticed(play, frames)
    got = host.reads()
    assert play.stack.counters()["tap_full"] == 1  # the update
    beyond = play.stack.counters().get("out_of_window", 0)
    child.sends(ACK, seq=sent + 1, text=b"too early")
    assert play.stack.counters()["out_of_window"] == beyond + 1
    listen(play)
    got += host.reads()
    assert got == text_of(sent)
    assert child.forgets()[-1].window >= 65_535 - 1460
    child.sends(ACK, seq=sent + 1, text=b"in time")
    host.gets(b"in time")


def test_full_tap_probe_is_due_again(stage):
    """A probe that was refused costs no byte and is no reason to stop probing."""
    play = stage(tap_buffer=SMALL)
    play.establish(window=0)
    child, host = play.child, play.host
    host.sends(text_of(3000))
    fill(play)
    for _ in range(6):
        play.clock.advance(ms=60_000)
    listen(play)
    play.clock.advance(ms=60_000)
    assert {s.text for s in child.forgets()} == {text_of(1)}
    child.window = 65_535
    child.sends(ACK)
    assert child.reads(3000) == text_of(3000)


def test_frames_lost_for_good_are_sent_again_when_the_tap_takes_them(stage):
    """EMSGSIZE for each large frame; the clock brings them back, from the first byte on."""
    play = stage(tap_buffer=SMALL)
    play.establish(options=SCALED)
    play.host.end.send(text_of(60_000))
    play.rest()
    assert play.stack.counters()["tap_full"] > 0
    play.child.gets_nothing()
    widen(play)
    came = b""
    for _ in range(20):
        play.clock.advance(ms=1000)
        came += play.child.reads(sum(len(s.text) for s in play.child.inbox))
    assert came == text_of(60_000)
    assert play.stack.buffered() == 0


def test_full_tap_costs_the_host_nothing(stage):
    """What the child sends while it does not read reaches its host, at once or when the TAP goes on."""
    play = stage(tap_buffer=SMALL)
    play.establish()
    child, host = play.child, play.host
    fill(play)
    for at in range(0, 30_000, 1000):
        child.sends(ACK, text=text_of(1000, at))
    listen(play)
    host.gets(text_of(30_000))
    assert child.acked(child.forgets()[-1]) == 30_001
