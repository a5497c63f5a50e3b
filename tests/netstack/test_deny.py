"""PARKED, refused: each denial as the child's kernel sees it."""

from __future__ import annotations

import pytest

from childflow.netstack.events import Denial, End

from . import wire
from .play import ACK, CHILD_ISN, CHILD_PORT, REMOTE_PORT, RST, text_of

ICMP_OF = {
    4: {
        Denial.UNREACHABLE_NET: (3, 0),
        Denial.UNREACHABLE_HOST: (3, 1),
        Denial.PORT: (3, 3),
        Denial.PROHIBITED: (3, 13),
    },
    6: {
        Denial.UNREACHABLE_NET: (1, 0),
        Denial.UNREACHABLE_HOST: (1, 3),
        Denial.PORT: (1, 4),
        Denial.PROHIBITED: (1, 1),
    },
}
BY_ICMP = (Denial.UNREACHABLE_NET, Denial.UNREACHABLE_HOST, Denial.PORT, Denial.PROHIBITED)


def datagram(family: int, text: bytes, port: int = CHILD_PORT, remote_port: int = REMOTE_PORT) -> bytes:
    src, dst = wire.CHILD[family], wire.REMOTE[family]
    return wire.ip(wire.udp(src, dst, port, remote_port, text), wire.UDP, src, dst)


@pytest.mark.parametrize("how", BY_ICMP)
def test_tcp_denied_by_icmp(stage, family, how):
    play = stage(family=family)
    play.connect().opens()
    play.deny(how)
    e = play.error()
    assert (e.sender, e.type, e.code, e.extra) == (wire.GATEWAY[family], *ICMP_OF[family][how], 0)
    q = wire.quoted(e)
    assert q[:6] == (wire.CHILD[family], wire.REMOTE[family], wire.TCP, CHILD_PORT, REMOTE_PORT, CHILD_ISN)
    assert play.came() == 0
    assert play.ended(End.KILLED).bytes_up == 0
    assert play.stack.flow_count() == 0
    assert play.stack.counters() == {"flow_denied": 1}


def test_tcp_denied_by_reset(stage, family, offload):
    play = stage(family=family, offload=offload)
    play.connect().opens()
    play.deny(Denial.RESET)
    s = play.child.gets(RST | ACK, ack=1)
    assert (s.seq, s.window, s.options, s.text) == (0, 0, b"", b"")
    assert play.came() == 0
    play.ended(End.KILLED)


def test_tcp_denied_silently_asks_again_at_the_next_syn(play):
    play.connect().opens()
    first = play.deny(Denial.SILENT)
    assert play.came() == 0
    play.ended(End.KILLED)
    play.child.opens()
    assert play.deny(Denial.RESET) != first
    play.child.gets(RST | ACK, ack=1)


@pytest.mark.parametrize("how", BY_ICMP)
def test_udp_denied_by_icmp(stage, family, how):
    play = stage(family=family)
    play.sends(datagram(family, b"first"))
    play.sends(datagram(family, b"second"))
    play.deny(how)
    e = play.error()
    assert (e.sender, e.type, e.code) == (wire.GATEWAY[family], *ICMP_OF[family][how])
    q = wire.quoted(e)
    assert q == (wire.CHILD[family], wire.REMOTE[family], wire.UDP, CHILD_PORT, REMOTE_PORT, 13, b"first")
    assert play.came() == 0
    play.ended(End.KILLED)
    assert play.stack.buffered() == 0


def test_udp_denied_by_reset_is_port_unreachable(stage, family):
    play = stage(family=family)
    play.sends(datagram(family, b"x"))
    play.deny(Denial.RESET)
    e = play.error()
    assert (e.type, e.code) == ICMP_OF[family][Denial.PORT]


def test_udp_denied_silently(play):
    play.sends(datagram(4, b"x"))
    play.deny(Denial.SILENT)
    assert play.came() == 0
    play.ended(End.KILLED)


@pytest.mark.parametrize("length", [0, 1, 483, 484, 485, 1472, 9000])
def test_udp_denied_quotes_no_more_than_576_bytes_in_all(stage, family, length):
    """RFC 1812, 4.3.2.3; the lengths that are quoted are the datagram's own, not the quote's."""
    play = stage(family=family)
    play.sends(datagram(family, text_of(length)))
    play.deny(Denial.PROHIBITED)
    e = play.error()
    q = wire.quoted(e)
    assert len(e.quoted) <= 576 - 28
    assert text_of(length).startswith(q.text)
    assert len(q.text) == length or len(e.quoted) >= 512
    assert q.seq_or_length == 8 + length
    total = int.from_bytes(e.quoted[2:4] if family == 4 else e.quoted[4:6], "big")
    assert total == 8 + length + (20 if family == 4 else 0)


def test_icmp_errors_are_rate_limited(play):
    """RFC 4443, 2.4 (f): a thousand a second, then counted silence, then a thousand again."""
    for port in range(1, 1101):
        play.sends(datagram(4, b"x", port))
        play.deny(Denial.PORT)
        play.ended(End.KILLED)
    assert len(play.errors) == 1000
    assert play.stack.counters() == {"flow_denied": 1100, "icmp_rate": 100}
    play.errors.clear()
    play.clock.advance(ms=10)
    for port in range(2001, 2021):
        play.sends(datagram(4, b"x", port))
        play.deny(Denial.PORT)
        play.ended(End.KILLED)
    assert len(play.errors) == 10
