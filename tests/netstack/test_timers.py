"""Deadlines of many flows at once: each ends when its time has come, whatever was set or taken away meanwhile."""

from __future__ import annotations

import random
import socket

import pytest

from childflow.netstack.events import Denial, Ended

from . import wire
from .play import ACK, SYN, Host, Play, text_of
from .wire import CHILD, REMOTE, UDP

SECOND = 1_000_000
PARKED_S, UNANSWERED_S = 60, 120


def datagram(port: int, remote_port: int) -> bytes:
    src, dst = CHILD[4], REMOTE[4]
    return wire.ipv4(wire.udp(src, dst, port, remote_port, b"x"), UDP)


def ended(play: Play) -> set[int]:
    flows = {e.flow for e in play._new if isinstance(e, Ended)}
    play.forgets_events()
    play.errors.clear()
    return flows


@pytest.mark.parametrize("seed", range(6))
def test_random_deadlines_come_when_due(stage, seed):
    """Parked for a minute, open for two; some denied before. The reference is a dict."""
    chance = random.Random(seed)
    play = stage()
    due: dict[int, int] = {}
    for port in range(1, 301):
        play.sends(datagram(port, 99))
        flow = play.question().flow
        due[flow] = play.clock.now_us + PARKED_S * SECOND
        if chance.random() < 0.7:
            play.stack.allow(flow)
            due[flow] = play.clock.now_us + UNANSWERED_S * SECOND
        for flow in chance.sample(sorted(due), min(len(due), 2)) if chance.random() < 0.4 else ():
            if due[flow] - play.clock.now_us > PARKED_S * SECOND or chance.random() < 0.5:
                continue
            try:
                play.stack.deny(flow, Denial.SILENT)
            except Exception:  # open, not parked
                continue
            del due[flow]
        play.rest()
        ended(play)
        play.clock.advance(ms=chance.randint(0, 900))
        now = {f for f, at in due.items() if at <= play.clock.now_us}
        assert ended(play) == now
        for f in now:
            del due[f]
    while due:
        at = min(due.values())
        play.clock.advance(ms=(at - play.clock.now_us - 1) / 1000)
        assert ended(play) == set()
        play.clock.advance(ms=0.001)
        now = {f for f, when in due.items() if when <= play.clock.now_us}
        assert ended(play) == now
        for f in now:
            del due[f]
    assert play.stack.flow_count() == 0


def test_deadlines_of_tcp_and_udp_in_one_heap(stage):
    """A SYN-ACK is repeated on time beside a thousand idle peers."""
    play = stage()
    for port in range(1, 1001):
        play.sends(datagram(port, 99))
        play.stack.allow(play.question().flow)
        play.errors.clear()
    play.connect().opens()
    play.attach()
    play.child.forgets()
    play.clock.advance(ms=999.999)
    play.child.gets_nothing()
    play.clock.advance(ms=0.001)
    assert play.child.inbox.popleft().flags & SYN
    play.child.sends(wire.RST, seq=1)
    play.clock.advance(ms=120_000)
    assert play.stack.flow_count() == 0


@pytest.mark.case("E12")
def test_clock_that_stands_still_or_jumps(stage):
    play = stage()
    play.establish()
    for _ in range(1000):
        play.clock.advance(ms=0)
    play.child.gets_nothing()
    play.clock.advance(ms=6 * 3600 * 1000)  # the machine slept
    assert len(play.child.forgets()) == 1  # one keep-alive, not a hundred
    play.child.sends(wire.ACK, text=b"awake")
    play.child.gets(wire.ACK, ack=6)
    play.host.gets(b"awake")


@pytest.mark.case("E12")
@pytest.mark.parametrize("hours", [1, 100])
def test_clock_that_jumps_with_everything_under_way(stage, hours):
    """Text that waits for its ACK is sent once more and no oftener; what is idle ends; new flows of both kinds work."""
    play = stage()
    play.establish()
    play.host.sends(text_of(1000))
    play.child.forgets()
    play.sends(datagram(7, 99))
    play.allow()
    play.sends(datagram(8, 99))
    play.question()  # is never answered
    play.errors.clear()
    play.clock.advance(ms=hours * 3_600_000)
    assert len(ended(play)) == 2
    again = play.child.forgets()
    assert [len(segment.text) for segment in again if segment.text] == [1000]
    assert len(again) <= 2  # after 100 hours it is time for a keep-alive as well
    assert play.stack.flow_count() == 1
    play.child.sends(wire.ACK, ack=1001, text=b"awake")
    play.host.gets(b"awake")
    play.sends(datagram(9, 99))
    play.allow()
    play.establish(40_001)
    play.host.sends(b"new")
    play.child.gets(wire.ACK, text=b"new")
    play.errors.clear()


@pytest.mark.parametrize("later_ms", [300, 5000])
def test_answer_long_after_the_question_starts_its_timers_then(stage, later_ms):
    """A connection through a proxy may take seconds without a turn: the SYN-ACK is not late because of that."""
    play = stage()
    child = play.connect()
    child.opens()
    q = play.question()
    play.clock.now_us += later_ms * 1000
    near, far = socket.socketpair()
    play.host = Host(play, play.owns(far))
    play.stack.attach(q.flow, near.detach())
    play.rest()
    assert play.connected().duration_us == later_ms * 1000
    child.gets(SYN | ACK)
    assert play.came() == 0
    play.clock.advance(999)
    assert play.came() == 0
    play.clock.advance(1)
    child.gets(SYN | ACK)  # RFC 6298, 2.1
