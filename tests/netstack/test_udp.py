"""UDP: parked, ruled once, carried both ways through one host socket for each child port, errors as ICMP, idle ends.

The hosts are real sockets on loopback, inside the tests' own network namespace."""

from __future__ import annotations

import socket

import pytest

from childflow.limits import Limits
from childflow.netstack.events import Denial, End, Question

from . import wire
from .play import CHILD_PORT, Play, text_of
from .wire import LOOPBACK, UDP

FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
IP_RECVTTL = 12  # socket has it from Python 3.12 on
NAME = {4: "127.0.0.1", 6: "::1"}


class Peer:
    """A UDP socket on loopback that the child may talk to."""

    def __init__(self, play: Play, name: str | None = None) -> None:
        self.play, self.family = play, play.family
        self.end = play.owns(socket.socket(FAMILY[self.family], socket.SOCK_DGRAM))
        self.end.bind((name or NAME[self.family], 0))
        self.end.setblocking(False)
        self.port = self.end.getsockname()[1]
        self.address = socket.inet_pton(FAMILY[self.family], self.end.getsockname()[0])
        self.heard_from: tuple[str, int] = ("", 0)

    def hears(self, port: int, text: bytes, hop_limit: int = 64, checksum: str = "full", cut: bool = False) -> None:
        """The child sends this peer a datagram from `port`; `cut`: in fragments, put together again."""
        src = wire.CHILD[self.family]
        packet = wire.udp(src, self.address, port, self.port, text, checksum=checksum)
        packet = wire.ip(packet, UDP, src, self.address, hop_limit=hop_limit)
        if not cut:
            self.play.sends(packet)
            return
        self.play.stack.input_ip(packet)
        self.play.rest()

    def gets(self, text: bytes) -> None:
        self.play.until(self._readable)
        came, sender = self.end.recvfrom(70_000)
        assert came == text, (len(came), len(text))
        self.heard_from = sender[:2]

    def _readable(self) -> bool:
        try:
            self.end.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        return True

    def gets_nothing(self) -> None:
        assert not self._readable()

    def answers(self, text: bytes) -> None:
        self.end.sendto(text, self.heard_from)


def child_gets(play: Play, peer: Peer, port: int, text: bytes) -> None:
    play.until(lambda: play.replies)
    r = play.replies.popleft()
    assert (r.remote, r.remote_port, r.child_port) == (peer.address, peer.port, port)
    assert r.text == text, (len(r.text), len(text))


def test_parked_datagrams_leave_in_order_after_the_verdict(stage, family):
    play = stage(family=family)
    peer = Peer(play)
    for i in range(3):
        peer.hears(CHILD_PORT, b"%d" % i)
    peer.gets_nothing()
    q = play.question()
    assert q == Question(q.flow, UDP, CHILD_PORT, peer.address, peer.port)
    play.no_event()
    assert play.stack.buffered() >= 3
    play.stack.allow(q.flow)
    assert play.stack.buffered() == 0
    for i in range(3):
        peer.gets(b"%d" % i)
    peer.hears(CHILD_PORT, b"more")
    peer.gets(b"more")
    play.no_event()  # UDP has no Connected, and each peer is ruled once


def test_parked_datagrams_are_bounded(play):
    peer = Peer(play)
    for i in range(70):
        peer.hears(CHILD_PORT, b"%d" % i)
    assert play.stack.counters() == {"parked_full": 6}
    play.allow()
    for i in range(64):
        peer.gets(b"%d" % i)
    peer.gets_nothing()


def test_parked_bytes_of_all_peers_are_bounded(play):
    peer = Peer(play)
    for port in range(1, 201):
        peer.hears(port, bytes(60_000))
    assert play.stack.buffered() <= 4 << 20
    assert play.stack.counters()["parked_full"] == 200 - (4 << 20) // 60_000


def test_parked_empty_datagrams_take_memory_too(stage):
    play = stage(limits=Limits(parked_bytes=64 << 10))
    peer = Peer(play)
    for port in range(1, 101):
        for _ in range(64):
            peer.hears(port, b"")
    assert 32 << 10 < play.stack.buffered() <= 64 << 10
    assert play.stack.counters()["parked_full"] > 0


def test_parked_no_verdict_is_given_up_after_a_minute(play):
    peer = Peer(play)
    peer.hears(CHILD_PORT, b"x")
    play.question()
    play.clock.advance(ms=59_999)
    play.no_event()
    play.clock.advance(ms=1)
    play.ended(End.TIMEOUT)
    assert play.stack.buffered() == 0
    assert play.came() == 0


def test_open_many_each_way(stage, family, offload):
    play = stage(family=family, offload=offload)
    peer = Peer(play)
    peer.hears(CHILD_PORT, b"go")
    play.allow()
    peer.gets(b"go")
    for i in range(300):
        peer.hears(CHILD_PORT, text_of(100, i))
        peer.gets(text_of(100, i))
        peer.answers(text_of(200, i))
        child_gets(play, peer, CHILD_PORT, text_of(200, i))


def test_open_a_burst_comes_in_order(play):
    peer = Peer(play)
    peer.hears(CHILD_PORT, b"go")
    play.allow()
    peer.gets(b"go")
    for i in range(200):
        peer.answers(b"%d" % i)
    play.until(lambda: len(play.replies) == 200)
    assert [r.text for r in play.replies] == [b"%d" % i for i in range(200)]
    play.replies.clear()


@pytest.mark.case("C01")
@pytest.mark.parametrize("length", [0, 1, 2, 7, 1471, 1472, 1473, 8192, 65_507])
def test_open_lengths_both_ways(stage, family, offload, length):
    """C01: one frame holds any datagram; zero length is a datagram and no end."""
    play = stage(family=family, offload=offload)
    peer = Peer(play)
    peer.hears(CHILD_PORT, text_of(length), cut=length > 65_000)
    play.allow()
    peer.gets(text_of(length))
    peer.answers(text_of(length, 9))
    child_gets(play, peer, CHILD_PORT, text_of(length, 9))
    peer.answers(b"after")
    child_gets(play, peer, CHILD_PORT, b"after")


@pytest.mark.parametrize("length", range(40))
def test_open_checksums_of_every_short_length(stage, family, length):
    play = stage(family=family, offload=False)
    peer = Peer(play)
    peer.hears(CHILD_PORT, text_of(length))
    play.allow()
    peer.gets(text_of(length))
    peer.answers(text_of(length, length))
    child_gets(play, peer, CHILD_PORT, text_of(length, length))


@pytest.mark.case("C02")
def test_open_checksum_that_computes_to_zero_is_sent_as_ffff(stage):
    """RFC 768: 0 says that there is none. Two bytes of text are chosen so that the sum comes out as ffff."""
    play = stage(offload=False)
    peer = Peer(play)
    peer.hears(CHILD_PORT, b"go")
    play.allow()
    peer.gets(b"go")
    segment = wire.udp(peer.address, wire.CHILD[4], peer.port, CHILD_PORT, b"\0\0", checksum="zero")
    text = wire.plain_checksum(wire.pseudo_header(peer.address, wire.CHILD[4], UDP, 10) + segment).to_bytes(2, "big")
    peer.answers(text)
    child_gets(play, peer, CHILD_PORT, text)  # `wire.view` refuses a field of zero


@pytest.mark.case("C02")
def test_open_no_checksum_is_taken_over_ipv4_only(stage, family):
    """C02, RFC 8200, 8.1."""
    play = stage(family=family)
    peer = Peer(play)
    peer.hears(CHILD_PORT, b"bare", checksum="zero")
    if family == 6:
        play.no_event()
        assert play.stack.counters() == {"bad_udp_checksum": 1}
        return
    play.allow()
    peer.gets(b"bare")


def test_open_partial_checksum_is_taken(stage, family):
    play = stage(family=family)
    peer = Peer(play)
    src, start = wire.CHILD[family], 34 if family == 4 else 54
    packet = wire.ip(
        wire.udp(src, peer.address, CHILD_PORT, peer.port, b"p", checksum="partial"), UDP, src, peer.address
    )
    play.injects(wire.frame(packet, head=wire.vnet(wire.NEEDS_CSUM, start=start, offset=6)))
    play.allow()
    peer.gets(b"p")


@pytest.mark.case("C05")
def test_open_one_host_port_for_many_peers(stage, family):
    """RFC 4787, REQ-1, C05: endpoint-independent mapping."""
    play = stage(family=family)
    peers = [Peer(play) for _ in range(100)]
    ports = set()
    for p in peers:
        p.hears(CHILD_PORT, b"hi")
        play.allow()
        p.gets(b"hi")
        ports.add(p.heard_from)
    assert len(ports) == 1
    for p in reversed(peers):
        p.answers(b"%d" % p.port)
        child_gets(play, p, CHILD_PORT, b"%d" % p.port)


def test_open_two_child_ports_have_two_host_ports(play):
    peer = Peer(play)
    peer.hears(1111, b"one")
    play.allow()
    peer.gets(b"one")
    first = peer.heard_from
    peer.hears(2222, b"two")
    play.allow()
    peer.gets(b"two")
    assert peer.heard_from != first
    peer.answers(b"to two")
    child_gets(play, peer, 2222, b"to two")
    peer.heard_from = first
    peer.answers(b"to one")
    child_gets(play, peer, 1111, b"to one")


@pytest.mark.case("C05")
def test_open_stranger_is_not_let_in(play):
    """RFC 4787, REQ-8: only who was written to may answer, from the very address and port."""
    peer, stranger = Peer(play), Peer(play)
    other = play.owns(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    other.bind(("127.0.0.2", peer.port))
    peer.hears(CHILD_PORT, b"hi")
    play.allow()
    peer.gets(b"hi")
    stranger.heard_from = peer.heard_from
    stranger.answers(b"let me in")
    other.sendto(b"me too", peer.heard_from)
    play.until(lambda: play.stack.counters().get("unknown_peer") == 2)
    assert play.stack.counters() == {"unknown_peer": 2}
    assert play.came() == 0


def test_parked_and_denied_peer_is_not_let_in_by_another_peers_socket(play):
    peer, parked = Peer(play), Peer(play)
    peer.hears(CHILD_PORT, b"hi")
    play.allow()
    peer.gets(b"hi")
    parked.hears(CHILD_PORT, b"may I")
    flow = play.question().flow
    parked.heard_from = peer.heard_from
    parked.answers(b"too early")
    play.until(play.stack.counters)
    assert play.came() == 0
    play.stack.deny(flow, Denial.PROHIBITED)
    play.rest()
    assert play.error().code == 13
    parked.answers(b"never")
    play.until(lambda: play.stack.counters()["unknown_peer"] == 2)
    assert play.came() == 0
    peer.answers(b"still fine")
    child_gets(play, peer, CHILD_PORT, b"still fine")


# --- errors


def closed_port(play: Play) -> Peer:
    """A peer whose socket is gone."""
    peer = Peer(play)
    peer.end.close()
    return peer


@pytest.mark.case("C03")
def test_open_closed_port_is_port_unreachable(stage, family):
    """C03: the quote has the child's own addresses and ports, or its kernel finds no socket for it."""
    play = stage(family=family)
    peer = closed_port(play)
    peer.hears(CHILD_PORT, b"anybody there?")
    play.allow()
    play.until(lambda: play.errors)
    e = play.error()
    assert (e.type, e.code) == {4: (3, 3), 6: (1, 4)}[family]
    assert e.sender == LOOPBACK[family]
    q = wire.quoted(e)
    assert q[:6] == (wire.CHILD[family], peer.address, UDP, CHILD_PORT, peer.port, 8 + 14)
    assert b"anybody there?".startswith(q.text)
    assert play.came() == 0


def test_open_error_of_one_peer_leaves_the_others_alone(stage, family):
    play = stage(family=family)
    dead, alive = closed_port(play), Peer(play)
    alive.hears(CHILD_PORT, b"0")
    play.allow()
    alive.gets(b"0")
    dead.hears(CHILD_PORT, b"x")
    play.allow()
    for i in range(1, 20):
        dead.hears(CHILD_PORT, b"x")
        alive.hears(CHILD_PORT, b"%d" % i)
        alive.gets(b"%d" % i)
        alive.answers(b"re %d" % i)
        child_gets(play, alive, CHILD_PORT, b"re %d" % i)
    assert len(play.errors) >= 10
    play.errors.clear()


def test_open_no_route_is_net_unreachable(stage, family):
    play = stage(family=family)
    src, dst = wire.CHILD[family], wire.REMOTE[family]
    packet = wire.ip(wire.udp(src, dst, CHILD_PORT, 9, b"out"), UDP, src, dst)
    play.sends(packet)
    play.allow()
    e = play.error()
    assert (e.type, e.code) == {4: (3, 0), 6: (1, 0)}[family]
    assert wire.quoted(e).text == b"out"
    assert play.stack.counters() == {"host_send_failed": 1}


def test_open_too_large_for_ipv4_is_counted(play):
    """65,507 bytes is what IPv4 holds; a jumbo from IPv6's side of the house can't be said in IPv4 at all."""
    peer = Peer(play)
    peer.hears(CHILD_PORT, text_of(65_507))
    play.allow()
    peer.gets(text_of(65_507))
    assert play.stack.counters() == {}


@pytest.mark.case("C01")
def test_open_ipv6_largest(stage):
    play = stage(family=6)
    peer = Peer(play)
    peer.hears(CHILD_PORT, text_of(65_527), cut=True)
    play.allow()
    peer.gets(text_of(65_527))


# --- time


@pytest.mark.case("C06")
@pytest.mark.parametrize(("answered", "idle_s"), [(False, 120), (True, 300)])
def test_open_idle_is_ended(play, answered, idle_s):
    """RFC 4787, REQ-5; C06."""
    peer = Peer(play)
    peer.hears(CHILD_PORT, b"hi")
    play.allow()
    peer.gets(b"hi")
    if answered:
        peer.answers(b"ho")
        child_gets(play, peer, CHILD_PORT, b"ho")
    play.clock.advance(ms=idle_s * 1000 - 1)
    play.no_event()
    play.clock.advance(ms=1)
    e = play.ended(End.IDLE)
    assert (e.bytes_up, e.bytes_down) == (2, 2 if answered else 0)
    assert play.stack.flow_count() == 0
    peer.answers(b"late")
    play.rest()
    assert play.came() == 0


@pytest.mark.case("C06")
def test_open_idle_is_put_off_by_traffic_either_way(play):
    peer = Peer(play)
    peer.hears(CHILD_PORT, b"hi")
    play.allow()
    peer.gets(b"hi")
    for _ in range(3):
        play.clock.advance(ms=100_000)
        peer.hears(CHILD_PORT, b"hi")
        peer.gets(b"hi")
    for _ in range(3):
        peer.answers(b"ho")
        child_gets(play, peer, CHILD_PORT, b"ho")
        play.clock.advance(ms=290_000)
    play.no_event()
    play.clock.advance(ms=10_000)
    e = play.ended(End.IDLE)
    assert (e.bytes_up, e.bytes_down) == (8, 6)


@pytest.mark.case("C06")
def test_open_dns_has_no_mapping(play):
    """A query is one datagram for Python, to any address; nothing stays behind that could be long or short."""
    peer = Peer(play)
    src, dst = wire.CHILD[4], peer.address
    play.sends(wire.ip(wire.udp(src, dst, CHILD_PORT, 53, b"q"), UDP, src, dst))
    assert play.datagram().remote == dst
    assert play.stack.flow_count() == 0
    play.no_event()


@pytest.mark.case("C06")
def test_open_port_used_again_gets_no_old_answers(play):
    """C06: a new socket, so what the old peer still sends goes nowhere."""
    peer = Peer(play)
    peer.hears(CHILD_PORT, b"hi")
    play.allow()
    peer.gets(b"hi")
    old = peer.heard_from
    play.clock.advance(ms=120_000)
    play.ended(End.IDLE)
    peer.hears(CHILD_PORT, b"hi again")
    play.allow()
    peer.gets(b"hi again")
    assert peer.heard_from != old
    fresh, peer.heard_from = peer.heard_from, old
    peer.answers(b"to the old")
    peer.heard_from = fresh
    peer.answers(b"to the new")
    child_gets(play, peer, CHILD_PORT, b"to the new")
    assert play.came() == 0


def test_open_one_peer_ends_and_the_socket_stays_for_the_other(play):
    one, two = Peer(play), Peer(play)
    for p in (one, two):
        p.hears(CHILD_PORT, b"hi")
        play.allow()
        p.gets(b"hi")
    play.clock.advance(ms=60_000)
    two.hears(CHILD_PORT, b"hi")
    two.gets(b"hi")
    play.clock.advance(ms=60_000)
    play.ended(End.IDLE)
    two.answers(b"here")
    child_gets(play, two, CHILD_PORT, b"here")
    one.answers(b"gone")
    play.until(play.stack.counters)
    assert play.stack.counters() == {"unknown_peer": 1}


@pytest.mark.case("C14", "C15")
@pytest.mark.parametrize("hop_limit", [2, 5, 200, 255])
def test_open_hop_limit_is_one_less(stage, family, hop_limit):
    """Traceroute: a hop limit that is not the default was asked for, and this gateway is a hop."""
    play = stage(family=family)
    peer = Peer(play)
    if family == 4:
        peer.end.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)
    else:
        peer.end.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
    peer.hears(CHILD_PORT, b"x", hop_limit=hop_limit)
    play.allow()
    play.until(peer._readable)
    _, control, _, _ = peer.end.recvmsg(100, 100)
    assert int.from_bytes(control[0][2], "little") == hop_limit - 1


@pytest.mark.case("C06")
def test_open_port_used_again_after_its_socket_was_evicted_gets_no_old_answers(stage):
    """The limit, not the clock, has closed the socket: the same holds."""
    play = stage(limits=Limits(max_udp_sockets=1))
    peer = Peer(play)
    peer.hears(1, b"old")
    play.allow()
    peer.gets(b"old")
    old = peer.heard_from
    peer.hears(2, b"other")
    play.allow()
    play.ended(End.IDLE)
    peer.gets(b"other")
    peer.hears(1, b"new")
    play.allow()
    play.ended(End.IDLE)
    peer.gets(b"new")
    assert peer.heard_from != old
    fresh, peer.heard_from = peer.heard_from, old
    peer.answers(b"to the old")
    peer.heard_from = fresh
    peer.answers(b"to the new")
    child_gets(play, peer, 1, b"to the new")
    assert play.came() == 0
