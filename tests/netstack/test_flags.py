"""Every flag byte in every state: what RFC 9293, 3.10.7 (and RFC 5961) says, one answer at most, none to an RST."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from . import wire
from .play import ACK, FIN, RST, SYN, Play

pytestmark = pytest.mark.case("A16")

FAR = 200_000  # beyond any window here


def syn_received(play: Play, port: int) -> None:
    play.connect(port).opens()
    play.attach()
    play.child.gets(SYN | ACK)


def established(play: Play, port: int) -> None:
    play.establish(port)


def fin_wait_1(play: Play, port: int) -> None:
    play.establish(port)
    play.host.half_closes()
    play.child.gets(FIN | ACK)
    play.child.got = 1  # not acknowledged yet


def fin_wait_2(play: Play, port: int) -> None:
    play.establish(port)
    play.host.half_closes()
    play.child.gets(FIN | ACK)
    play.child.sends(ACK)


def close_wait(play: Play, port: int) -> None:
    play.establish(port)
    play.child.sends(FIN | ACK)
    play.child.gets(ACK)


def closing(play: Play, port: int) -> None:
    fin_wait_1(play, port)
    play.child.sends(FIN | ACK)
    play.child.gets(ACK)


def last_ack(play: Play, port: int) -> None:
    close_wait(play, port)
    play.host.half_closes()
    play.child.gets(FIN | ACK)
    play.child.got = 1


def time_wait(play: Play, port: int) -> None:
    fin_wait_2(play, port)
    play.child.sends(FIN | ACK)
    play.child.gets(ACK)


SYNCHRONIZED = (established, fin_wait_1, fin_wait_2, close_wait, closing, last_ack, time_wait)
TAKES_FIN = (established, fin_wait_1, fin_wait_2)


def end(play: Play) -> None:
    """Clear the stage for the next flag byte."""
    play.child.forgets()
    for back in range(3):  # the stack may not have taken the SYN or the FIN that this child counts
        play.child.sends(RST, seq=play.child.next - back)
    play.host.end.close()
    play.rest()
    play.child.forgets()
    play.forgets_events()


def answer(play: Play) -> int | None:
    """The flags of the one answer, None for silence."""
    came = play.child.forgets()
    assert len(came) <= 1, "more than one answer"
    assert not play.errors
    return came[0].flags if came else None


def expected_exact(state: Callable[..., None], flags: int) -> int | None:
    """An empty segment with the number that is next."""
    if flags & RST:
        return None
    if flags & SYN:
        return ACK
    if not flags & ACK:
        return None
    return ACK if flags & FIN and state in TAKES_FIN else None


@pytest.mark.parametrize("state", SYNCHRONIZED, ids=lambda f: f.__name__)
def test_synchronized_any_flags_at_the_next_number(stage, state):
    play = stage()
    for flags in range(256):
        state(play, 1000 + flags)
        play.child.sends(flags, seq=play.child.next)
        assert answer(play) == expected_exact(state, flags), f"flags {flags:#04x}"
        end(play)
    play.clock.advance(ms=5000)
    assert play.stack.flow_count() == 0


@pytest.mark.parametrize("state", [syn_received, *SYNCHRONIZED], ids=lambda f: f.__name__)
def test_synchronized_any_flags_beyond_the_window(stage, state):
    play = stage()
    for flags in range(256):
        state(play, 1000 + flags)
        next_before = play.child.next
        if state is time_wait and flags & (SYN | ACK | RST) == SYN:
            end(play)  # a new connection (MAY-2): test_close.py
            continue
        play.child.sends(flags, seq=FAR)
        assert answer(play) == (None if flags & RST else ACK), f"flags {flags:#04x}"
        play.child.next = next_before
        end(play)
    play.clock.advance(ms=5000)
    assert play.stack.flow_count() == 0


def test_syn_received_any_flags_at_the_next_number(stage):
    play = stage()
    for flags in range(256):
        syn_received(play, 1000 + flags)
        play.child.sends(flags, seq=1)
        if flags & RST:
            assert answer(play) is None
            assert play.stack.flow_count() == 0
        elif flags & SYN:
            assert answer(play) == ACK
        elif flags & ACK:
            assert answer(play) == (ACK if flags & FIN else None)
        else:
            assert answer(play) is None
        end(play)
    assert play.stack.flow_count() == 0


def test_parked_any_flags(stage):
    """Waiting for a verdict, nothing is answered; a right RST ends it."""
    play = stage()
    for flags in range(256):
        play.connect(1000 + flags).opens()
        play.question()
        play.child.sends(flags, seq=1)
        assert answer(play) is None
        assert play.stack.flow_count() == (0 if flags & RST else 1)
        play.child.sends(RST, seq=1)
        assert play.stack.flow_count() == 0
        play.child.forgets()
        play.forgets_events()


def test_closed_any_flags(stage):
    """RFC 9293, 3.10.7.1; SYN with FIN or RST opens nothing and gets no answer."""
    play = stage()
    for flags in range(256):
        child = play.connect(1000 + flags)
        child.sends(flags, seq=7, ack=9, text=b"abc")
        if flags & (SYN | ACK | RST | FIN) == SYN:
            play.question()
            assert answer(play) is None
            child.sends(RST, seq=8)
            child.forgets()
            play.forgets_events()
        elif flags & RST or (flags & SYN and flags & FIN):
            assert answer(play) is None
        elif flags & ACK:
            s = child.gets(RST)
            assert s.seq == 9
        else:
            s = child.gets(RST | ACK)
            assert (s.seq, child.acked(s)) == (0, 10 + bool(flags & FIN))
        assert play.stack.flow_count() == 0


@pytest.mark.parametrize("flags", [0, 0x3F, 0xFF, FIN | wire.PSH | wire.URG, SYN | FIN])
def test_established_odd_flags_deliver_nothing(stage, flags):
    """NULL, XMAS and the like with text: no byte of it reaches the host unless it is a plain ACK."""
    play = stage()
    play.establish()
    play.child.sends(flags, seq=1, text=b"smuggled")
    play.host.gets_nothing() if not flags & RST else play.host.gets_reset()
