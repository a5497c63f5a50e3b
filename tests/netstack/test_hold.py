"""Held flows: the child talks and nothing of it leaves, until Python has seen what it says and passes or denies it."""

from __future__ import annotations

import socket

import pytest

from childflow.errors import StackError
from childflow.limits import Limits
from childflow.netstack.events import Connected, Denial, End, Flight

from . import wire
from .play import ACK, FIN, RST, SYN, Play, text_of
from .test_udp import CHILD_PORT, Peer, child_gets
from .wire import PSH, UDP


@pytest.fixture
def held(stage, family) -> Play:
    """An established connection of which nothing leaves."""
    play: Play = stage(family=family)
    play.establish(held=True)
    return play


def says(play: Play, text: bytes, size: int = 1460) -> None:
    """The child sends `text` in segments of `size` bytes, and each is acknowledged."""
    for at in range(0, len(text), size):
        play.child.sends(ACK | PSH, text=text[at : at + size])
        play.child.gets(ACK, ack=play.child.next)


# --- TCP: what is held


def test_held_text_is_acknowledged_and_does_not_leave(held):
    says(held, b"GET / ")
    assert held.flight() == Flight(held.flow, False)
    assert held.stack.held(held.flow) == b"GET / "
    says(held, b"HTTP/1.1")
    assert held.flight() == Flight(held.flow, False)
    assert held.stack.held(held.flow) == b"GET / HTTP/1.1"
    assert held.stack.held(held.flow, 1) == b""
    held.host.gets_nothing()
    held.passes()
    held.host.gets(b"GET / HTTP/1.1")
    says(held, b" more")
    held.host.gets(b" more")
    held.no_event()
    assert held.stack.buffered() == 0


@pytest.mark.parametrize("size", [1, 17, 1460, 8192, 40_000])
def test_held_any_split(stage, size):
    """Short segments, which are batched, and long ones, which go straight: all of it is there, in order."""
    play = stage()
    play.establish(options=wire.mss(65_000) + wire.NOP + wire.wscale(7), held=True)
    text = text_of(min(40 * size, 120_000))
    says(play, text, size)
    assert play.stack.held(play.flow) == text
    assert play.host.reads() == b""
    play.passes()
    play.host.gets(text)


def test_held_text_ahead_of_a_gap_is_no_flight(held):
    held.child.sends(ACK, seq=4, text=b"def")
    held.child.gets(ACK, ack=1)
    held.no_event()
    assert held.stack.held(held.flow) == b""
    held.child.sends(ACK, seq=1, text=b"abc")
    assert held.flight() == Flight(held.flow, False)
    assert held.stack.held(held.flow) == b"abcdef"
    held.child.gets(ACK, ack=7)
    held.host.gets_nothing()
    held.passes()
    held.host.gets(b"abcdef")


def test_held_flights_are_told_once_a_turn(play):
    """One event however many segments came: it is a bit, and what is held is looked at as a whole."""
    play.establish(held=True)
    for at in range(0, 600, 2):
        play._tap.send(wire.frame(play.child.packet(ACK, text=text_of(2, at))))
    play.stack.turn(play.clock.now_us)
    flights = [e for e in play.stack.events() if isinstance(e, Flight)]
    assert len(flights) == 1
    play.rest()
    play.child.forgets()
    assert play.stack.held(play.flow) == text_of(600)


def test_held_fin_is_kept_back(held):
    says(held, b"bye")
    held.flight()
    held.child.sends(FIN | ACK)
    held.child.gets(ACK, ack=5)
    assert held.flight() == Flight(held.flow, True)
    held.host.gets_nothing()
    held.passes()
    held.host.gets(b"bye")
    held.host.gets_eof()
    held.host.closes()
    held.child.gets(FIN | ACK, seq=1, ack=5)
    held.child.sends(ACK)
    held.ended(End.FIN)


def test_held_fin_alone(held):
    held.child.sends(FIN | ACK)
    held.child.gets(ACK, ack=2)
    assert held.flight() == Flight(held.flow, True)
    held.host.gets_nothing()
    held.passes()
    held.host.gets_eof()


def test_held_fin_with_the_text(held):
    held.child.sends(FIN | ACK | PSH, text=b"all of it")
    held.child.gets(ACK, ack=11)
    assert held.flight() == Flight(held.flow, True)
    held.host.gets_nothing()
    held.passes()
    held.host.gets(b"all of it")
    held.host.gets_eof()


def test_held_window_is_what_the_ring_holds(stage):
    """What is told must fit, and does; then the window is zero, a probe is refused, and passing opens it again."""
    play = stage(limits=Limits(flow_window=65536))
    play.establish(held=True)
    says(play, text_of(64_240), 1_460)
    play.child.sends(ACK, text=text_of(1_295, 64_240))
    play.child.gets(ACK, ack=65_536, window=0)
    play.child.sends(ACK, seq=65_536, text=b"x")
    play.child.gets(ACK, ack=65_536, window=0)
    assert play.stack.held(play.flow) == text_of(65_535)
    play.host.gets_nothing()
    play.passes()
    play.child.gets(ACK, ack=65_536)
    play.host.gets(text_of(65_535))


def test_held_with_a_window_that_wraps_in_the_ring(stage):
    """After a pass nothing is held again; before it, the ring may stand anywhere: it starts at its first byte."""
    play = stage(limits=Limits(flow_window=65536))
    play.establish(held=True)
    play.child.sends(ACK, seq=30_001, text=text_of(1_000, 30_000))
    for at in range(0, 30_000, 1_000):
        play.child.sends(ACK, seq=at + 1, text=text_of(1_000, at))
    assert play.stack.held(play.flow) == text_of(31_000)
    play.child.forgets()


def test_held_without_a_ring_is_not_acknowledged(stage):
    """All large rings are held, a small one takes what it can; what it does not take the child sends again later."""
    play = stage(limits=Limits(flow_window=65536, buffer_limit=65536))
    play.establish(port=1, held=True)
    first, flow = play.child, play.flow
    first.sends(ACK, text=b"x")
    first.gets(ACK, ack=2)
    play.flight()
    play.establish(port=2, held=True)
    play.child.sends(ACK, text=text_of(8_000))
    play.child.gets(ACK, ack=4_097)
    assert play.stack.held(play.flow) == text_of(4_096)
    assert play.stack.held(flow) == b"x"
    play.passes()
    play.host.gets(text_of(4_096))


def test_held_server_that_speaks_first_is_heard(held):
    held.host.sends(b"220 hello\r\n")
    held.child.gets(ACK, seq=1, text=b"220 hello\r\n")
    held.child.sends(ACK)
    held.no_event()
    says(held, b"EHLO")
    assert held.stack.held(held.flow) == b"EHLO"
    held.host.gets_nothing()
    held.passes()
    held.host.gets(b"EHLO")


def test_held_host_that_ends_is_told(held):
    held.host.closes()
    held.child.gets(FIN | ACK, seq=1)
    held.child.sends(ACK)
    says(held, b"still here")
    held.child.sends(FIN | ACK)
    held.child.gets(ACK)
    assert [held.flight() for _ in range(2)][-1] == Flight(held.flow, True)
    held.clock.advance(ms=10_000)  # longer than TIME-WAIT: it waits for an answer
    held.no_event()
    assert held.stack.held(held.flow) == b"still here"
    held.refuses()
    held.child.gets_nothing()  # it is done
    assert held.ended(End.KILLED).bytes_up == 0


def test_held_time_wait_with_nothing_held_is_kept_until_the_answer(held):
    held.host.half_closes()
    held.child.gets(FIN | ACK, seq=1)
    held.child.sends(FIN | ACK)
    held.child.gets(ACK)
    assert held.flight() == Flight(held.flow, True)
    held.clock.advance(ms=10_000)
    held.no_event()
    held.host.gets_nothing()
    held.passes()
    held.host.gets_eof()
    held.ended(End.FIN)


def test_held_host_that_resets_is_told(stage):
    play = stage()
    play.establish(host="tcp", held=True)
    says(play, b"secret")
    play.flight()
    play.host.resets()
    play.until(lambda: play.child.inbox)
    play.child.gets(RST | ACK)
    assert play.ended(End.RST_HOST).bytes_up == 0
    with pytest.raises(StackError):
        play.stack.held(play.flow)
    with pytest.raises(StackError):
        play.stack.pass_on(play.flow)
    with pytest.raises(StackError):
        play.stack.deny(play.flow, Denial.RESET)


def test_held_child_that_resets_is_over(stage):
    play = stage()
    play.establish(host="tcp", held=True)
    says(play, b"secret")
    play.flight()
    play.child.sends(RST, ack=0)
    assert play.ended(End.RST_CHILD).bytes_up == 0
    play.until(lambda: True)
    play.host.gets_reset()


def test_held_child_that_resets_after_its_fin_still_waits_for_the_answer(held):
    """What was acknowledged with the FIN is delivered to a host as a whole, or, denied, not at all."""
    says(held, b"text")
    held.child.sends(FIN | ACK)
    held.child.gets(ACK)
    held.child.sends(RST, ack=0)
    held.host.gets_nothing()
    held.forgets_events()
    held.passes()
    held.host.gets(b"text")
    held.host.gets_eof()
    held.ended(End.FIN)


def test_held_new_connection_from_the_same_port_leaves_it_alone(held):
    """TIME-WAIT is taken over by a new SYN; what the old connection holds still waits for its own answer."""
    held.host.half_closes()
    held.child.gets(FIN | ACK, seq=1)
    held.child.sends(FIN | ACK)
    held.child.gets(ACK)
    held.forgets_events()
    old, host = held.flow, held.host
    held.connect(isn=held.child.isn + 100_000).opens()
    held.attach()
    assert held.flow != old
    held.child.gets(SYN | ACK)
    host.gets_nothing()
    held.stack.deny(old, Denial.RESET)
    held.rest()
    assert held.ended(End.KILLED).flow == old
    held.child.gets_nothing()
    host.gets_eof()  # a socket pair has no reset


# --- TCP: denied


def test_held_deny_resets_both_and_nothing_has_left(stage, family):
    play = stage(family=family)
    play.establish(host="tcp", held=True)
    says(play, b"ClientHello")
    play.flight()
    play.refuses()
    play.child.gets(RST | ACK, seq=1, ack=12)
    e = play.ended(End.KILLED)
    assert (e.bytes_up, e.bytes_down) == (0, 0)
    assert play.stack.counters() == {"flow_denied": 1}
    play.until(lambda: True)
    play.host.gets_reset()


@pytest.mark.parametrize("how", [Denial.SILENT, Denial.PROHIBITED, Denial.RESET])
def test_held_deny_after_the_handshake_is_a_reset_however_it_is_asked(play, how):
    play.establish(held=True)
    play.stack.deny(play.flow, how)
    play.rest()
    play.child.gets(RST | ACK)
    play.ended(End.KILLED)
    assert play.came() == 0


def test_held_deny_while_parked(play):
    play.connect().opens()
    flow = play.hold()
    play.stack.deny(flow, Denial.RESET)
    play.rest()
    play.child.gets(RST | ACK, seq=None, ack=1)
    play.ended(End.KILLED)


def test_held_deny_half_open(play):
    play.connect().opens()
    play.attach(held=True)
    play.child.gets(SYN | ACK)
    play.refuses()
    play.child.gets(RST | ACK)
    play.ended(End.KILLED)
    play.host.gets_eof()


def test_held_deny_after_the_childs_fin(held):
    says(held, b"all")
    held.child.sends(FIN | ACK)
    held.child.gets(ACK)
    held.forgets_events()
    held.refuses()
    held.child.gets(RST | ACK)
    assert held.ended(End.KILLED).bytes_up == 0


def test_passed_flow_can_neither_be_denied_nor_held_again(held):
    held.passes()
    for again in (
        lambda: held.stack.deny(held.flow, Denial.RESET),
        lambda: held.stack.pass_on(held.flow),
        lambda: held.stack.hold(held.flow),
        lambda: held.stack.held(held.flow),
    ):
        with pytest.raises(StackError):
            again()


def test_hold_comes_before_the_answer(play):
    """Not of a flow that was let out: what it has said may have left."""
    play.establish()
    with pytest.raises(StackError):
        play.stack.hold(play.flow)


def test_held_and_passed_while_parked_is_as_if_never_held(play):
    play.connect().opens()
    q = play.question()
    play.stack.hold(q.flow)
    play.stack.pass_on(q.flow)
    play.rest()
    play.no_event()
    with pytest.raises(StackError):
        play.stack.held(q.flow)
    play.stack.deny(q.flow, Denial.RESET)
    play.rest()
    play.child.gets(RST | ACK)


def test_held_through_a_real_connect(stage):
    """Allowed, so that C connects: held until it is passed."""
    play = stage()
    listener = play.owns(socket.create_server(("127.0.0.1", 0)))
    play.connect(remote=wire.LOOPBACK[4], remote_port=listener.getsockname()[1]).opens()
    flow = play.hold()
    play.stack.allow(flow)
    play.until(lambda: play.child.inbox)
    assert isinstance(play.connected(), Connected)
    play.child.gets(SYN | ACK)
    says(play, b"through")
    assert play.flight() == Flight(flow, False)
    far, _ = listener.accept()
    play.owns(far).setblocking(False)
    with pytest.raises(BlockingIOError):
        far.recv(1)
    play.stack.pass_on(flow)
    play.rest()
    far.setblocking(True)
    assert far.recv(100) == b"through"


def test_held_at_the_end_of_the_run_is_thrown_away(play):
    """`close_all` ends it as killed, and the far host sees no end that looks whole."""
    play.establish(host="tcp", held=True)
    says(play, b"whole")
    play.child.sends(FIN | ACK)
    play.child.gets(ACK)
    play.forgets_events()
    assert play.stack.unfinished() == 1
    play.stack.close_all()
    play._hear(play.stack.events())
    play.ended(End.KILLED)
    play.host.gets_reset()


# --- UDP


def test_udp_held_peer_stays_parked(stage, family):
    play = stage(family=family)
    peer = Peer(play)
    peer.hears(CHILD_PORT, b"one")
    flow = play.hold()
    assert play.flight() == Flight(flow, False)
    peer.hears(CHILD_PORT, b"two")
    assert play.flight() == Flight(flow, False)
    assert [play.stack.held(flow, i) for i in range(3)] == [b"one", b"two", b""]
    peer.gets_nothing()
    play.stack.allow(flow)
    play.rest()
    peer.gets(b"one")
    peer.gets(b"two")
    peer.hears(CHILD_PORT, b"three")
    peer.gets(b"three")
    peer.answers(b"four")
    child_gets(play, peer, CHILD_PORT, b"four")
    play.no_event()


def test_udp_held_empty_datagrams_are_passed_over(play):
    """So that b"" means that there is none; they leave with the others."""
    peer = Peer(play)
    for text in (b"", b"x", b"", b"y"):
        peer.hears(CHILD_PORT, text)
    flow = play.hold()
    assert [play.stack.held(flow, i) for i in range(3)] == [b"x", b"y", b""]
    play.flight()
    play.stack.allow(flow)
    play.rest()
    for text in (b"", b"x", b"", b"y"):
        peer.gets(text)


def test_udp_held_denied(play):
    peer = Peer(play)
    peer.hears(CHILD_PORT, b"secret")
    flow = play.hold()
    play.flight()
    play.stack.deny(flow, Denial.PROHIBITED)
    play.rest()
    assert wire.quoted(play.error())[:6] == (wire.CHILD[4], peer.address, UDP, CHILD_PORT, peer.port, 14)
    peer.gets_nothing()
    assert play.ended(End.KILLED).bytes_up == 0
    assert play.stack.counters() == {"flow_denied": 1}


def test_udp_held_is_bounded(play):
    peer = Peer(play)
    peer.hears(CHILD_PORT, b"0")
    flow = play.hold()
    for _ in range(70):
        peer.hears(CHILD_PORT, b"x")
    assert play.stack.counters() == {"parked_full": 7}
    assert play.stack.held(flow, 63) == b"x"
    assert play.stack.held(flow, 64) == b""


def test_udp_held_without_an_answer_ends_closed(play):
    peer = Peer(play)
    peer.hears(CHILD_PORT, b"x")
    flow = play.hold()
    play.flight()
    with pytest.raises(StackError):
        play.stack.pass_on(flow)  # of a peer there is no half way
    play.clock.advance(ms=60_000)
    play.ended(End.TIMEOUT)
    peer.gets_nothing()
    assert play.stack.buffered() == 0
