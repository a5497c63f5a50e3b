"""Limits: the one too many is refused or the oldest forgotten, is counted, and everything else goes on.

Sockets of the host are pairs or loopback ones, in the tests' own network namespace."""

from __future__ import annotations

import os
import resource
import socket

import pytest

from childflow.errors import StackError
from childflow.limit_table import TABLE
from childflow.limits import Limits
from childflow.netstack.events import Denial, End, Ended, Question
from childflow.netstack.stack import Stack
from childflow.settings import ADDRESSES

from . import wire
from .play import ACK, FIN, RST, SYN, Play, text_of
from .test_slow_path import ARP_REQUEST, echo, query
from .test_udp import Peer, child_gets

S4, D4 = wire.CHILD[4], wire.REMOTE[4]


def syn(port: int, remote_port: int = 443) -> bytes:
    segment = wire.tcp(S4, D4, port, remote_port, 1000, 0, SYN, window=65535, options=wire.mss(1460))
    return wire.frame(wire.ip(segment, wire.TCP, S4, D4))


def datagram(port: int, remote_port: int = 99) -> bytes:
    return wire.frame(wire.ip(wire.udp(S4, D4, port, remote_port, b"x"), wire.UDP, S4, D4))


def feed(play: Play, frames: list[bytes]) -> None:
    """Many frames, as fast as they are taken; nobody looks at what comes of each."""
    for i in range(0, len(frames), 200):
        for raw in frames[i : i + 200]:
            play._tap.send(raw)
        play.rest()


# --- half-open


@pytest.mark.case("B33")
def test_half_open_the_oldest_makes_room_in_silence(stage):
    play = stage(limits=Limits(max_half_open=2))
    children = [play.connect(port) for port in (1, 2, 3)]
    for child in children:
        child.opens()  # and the question is read, each time
    flows = [play.question().flow for _ in range(2)]
    ended = play.event(Ended)
    assert (ended.flow, ended.end) == (flows[0], End.KILLED)
    play.question()
    assert play.came() == 0
    assert play.stack.counters() == {"half_open_evicted": 1}
    assert play.stack.flow_count() == 2
    with pytest.raises(StackError):
        play.stack.allow(flows[0])
    children[0].opens()  # as its kernel does after a second
    assert play.event(Ended).flow == flows[1]
    play.child = children[0]
    play.attach()
    children[0].gets(SYN | ACK, ack=1)


@pytest.mark.case("B33")
def test_half_open_established_does_not_count_and_stays(stage):
    play = stage(limits=Limits(max_half_open=1))
    for port in (1, 2, 3):
        play.establish(port)
    established = play.child, play.host
    for port in range(10, 20):
        play.connect(port).opens()
    assert play.stack.counters() == {"half_open_evicted": 9}
    assert play.stack.flow_count() == 4
    established[0].sends(ACK, text=b"fine")
    established[0].gets(ACK, ack=5)
    established[1].gets(b"fine")


@pytest.mark.case("B33")
def test_half_open_syn_received_is_forgotten_and_its_host_reset(stage):
    """It has been answered: the host socket is reset, and what the child says next is told that nobody is there."""
    play = stage(limits=Limits(max_half_open=1))
    first = play.connect(1)
    first.opens()
    play.attach("tcp")
    host = play.host
    first.gets(SYN | ACK, ack=1)
    play.connect(2).opens()
    play.rest()
    host.gets_reset()
    first.gets_nothing()
    first.sends(ACK)
    first.gets(RST, seq=1)


@pytest.mark.case("B33")
@pytest.mark.parametrize("state", ["parked", "syn_received"])
@pytest.mark.parametrize("times", [5_000, pytest.param(100_000, marks=pytest.mark.soak)])
def test_half_open_a_reset_gives_the_place_back(stage, state, times):
    """SYN, SYN-ACK, RST, as scanners do, again and again: nothing stays, and nobody had to make room."""
    play = stage(limits=Limits(max_half_open=2))
    keeper, before = play.connect(1), len(os.listdir("/proc/self/fd"))
    keeper.opens()
    play.question()
    for i in range(times):
        port = 2 + i % 60_000
        play._tap.send(syn(port))
        play.stack.turn(play.clock.now_us)
        (question,) = play.stack.events()
        if state == "syn_received":
            near, far = socket.socketpair()
            play.stack.attach(question.flow, near.detach())
            far.close()
        rst = wire.tcp(S4, D4, port, 443, 1001, 0, RST)
        play._tap.send(wire.frame(wire.ip(rst, wire.TCP, S4, D4)))
        play.stack.turn(play.clock.now_us)
        assert isinstance(play.stack.events()[-1], Ended)
        if i % 100 == 99:
            play._drain()
            play.strays.clear()
    assert play.stack.flow_count() == 1
    assert play.stack.counters() == {}
    assert len(os.listdir("/proc/self/fd")) == before
    play.rest()
    play.strays.clear()


@pytest.mark.case("B33")
def test_half_open_flood_that_python_answers_late_is_bounded(play):
    """Whatever Python has not read yet takes a bounded number of places, and all is well once it reads."""
    play.establish(1)
    stack = play.stack
    slots, sent = 65_536 + 1_024 - 1, 70_000
    for i in range(sent):
        play._tap.send(syn(1 + i % 65_000, 1 + i // 65_000))
        if i % 200 == 199:
            stack.turn(play.clock.now_us)
            play._drain()
    assert stack.flow_count() <= 4_096 + 1
    assert stack.counters() == {"half_open_evicted": slots - 4_095, "flow_table_full": sent - slots}
    assert len(play.strays) == sent - slots  # refused with an RST
    play.strays.clear()
    events = stack.events()
    play._hear(events)
    assert len(events) == 4_095  # of those that are over before Python read their question it hears nothing
    for question in events:
        stack.deny(question.flow, Denial.SILENT)
    play.rest()
    play.forgets_events()
    play.child.sends(ACK, text=b"fine")
    play.child.gets(ACK, ack=5)
    assert stack.flow_count() == 1


# --- the table


@pytest.mark.case("B33")
def test_table_full_time_wait_makes_room(stage):
    """Nobody waits for a flow in TIME-WAIT: the oldest goes before a new one is refused."""
    play = stage(limits=Limits(max_flows=4))
    for port in (1, 2):
        play.establish(port)
        play.host.half_closes()  # host first: TIME-WAIT is ours
        play.child.gets(FIN | ACK)
        play.child.sends(FIN | ACK)
        play.child.gets(ACK)
        play.ended(End.FIN)
    assert play.stack.flow_count() == 2
    for port in (5, 6, 7, 8):
        play.establish(port)
        play.forgets_events()
    assert play.stack.counters() == {"time_wait_evicted": 2}
    refused = play.connect(9)
    refused.opens()
    refused.gets(RST | ACK, ack=1)
    assert play.stack.counters() == {"time_wait_evicted": 2, "flow_table_full": 1}
    assert play.stack.flow_count() == 4


def test_no_socket_left_refuses_tcp_and_makes_room_for_udp(stage):
    """TCP: RST. UDP: the child port that was silent longest gives its socket up."""
    play = stage(limits=Limits(max_sockets=2))
    play.establish(1)
    old, old_host = play.child, play.host
    first, second = Peer(play), Peer(play)
    first.hears(10, b"1")
    play.allow()
    first.gets(b"1")
    second.hears(11, b"2")
    play.allow()
    second.gets(b"2")
    assert play.ended(End.IDLE).bytes_up == 1
    play.connect(2, remote=wire.LOOPBACK[4]).opens()
    play.allow()
    play.child.gets(RST | ACK)
    assert play.stack.counters() == {"udp_socket_evicted": 1, "no_descriptor": 1}
    old.sends(ACK, text=b"on")
    old.gets(ACK, ack=3)
    old_host.gets(b"on")
    old.sends(RST)
    play.forgets_events()
    play.establish(3)


# --- UDP


@pytest.mark.case("C07")
def test_udp_peers_leave_room_for_tcp(stage):
    play = stage(limits=Limits(max_flows=10))
    for port in range(1, 9):
        play.injects(datagram(port))
    assert play.stack.counters() == {"udp_peer_evicted": 3}
    assert play.stack.flow_count() == 5
    assert play.came() == 0
    play.forgets_events()
    for port in range(1, 6):
        play.establish(port)
    assert play.stack.flow_count() == 10


@pytest.mark.case("C07")
def test_udp_peer_that_was_used_least_recently_is_forgotten(stage):
    play = stage(limits=Limits(max_udp_peers=3))
    a, b, c, d = (Peer(play) for _ in range(4))
    for peer in (a, b, c):
        peer.hears(7, b"hi")
        play.allow()
        peer.gets(b"hi")
    a.hears(7, b"again")  # up
    a.gets(b"again")
    b.answers(b"down")  # and down
    child_gets(play, b, 7, b"down")
    d.hears(7, b"hi")
    ended = play.ended(End.IDLE)
    assert ended.bytes_up == 2  # c's
    play.allow()
    d.gets(b"hi")
    c.answers(b"forgotten")
    play.until(lambda: play.stack.counters().get("unknown_peer"))
    a.answers(b"known")
    child_gets(play, a, 7, b"known")
    assert play.came() == 0
    assert play.stack.counters() == {"udp_peer_evicted": 1, "unknown_peer": 1}


@pytest.mark.case("C07")
def test_udp_socket_that_was_used_least_recently_is_closed_with_all_its_peers(stage, family):
    play = stage(family=family, limits=Limits(max_udp_sockets=2))
    a, b, c = (Peer(play) for _ in range(3))
    for peer, port in ((a, 1), (b, 1), (c, 2)):
        peer.hears(port, b"hi")
        play.allow()
        peer.gets(b"hi")
    c.answers(b"x")
    child_gets(play, c, 2, b"x")
    a.answers(b"x")
    child_gets(play, a, 1, b"x")
    a.hears(3, b"third")
    assert play.stack.counters() == {}
    play.allow()
    play.ended(End.IDLE)
    assert play.stack.counters() == {"udp_socket_evicted": 1}
    a.gets(b"third")
    c.answers(b"to nobody")
    a.hears(1, b"still there")
    a.gets(b"still there")
    b.hears(4, b"fourth")  # port 3 was used before port 1: it goes
    play.allow()
    play.ended(End.IDLE)
    b.hears(5, b"fifth")  # and now port 1 with both its peers
    play.allow()
    assert [play.event(Ended).end for _ in range(2)] == [End.IDLE] * 2
    assert play.stack.counters()["udp_socket_evicted"] == 3
    assert play.stack.flow_count() == 2


@pytest.mark.case("B34", "C07")
def test_udp_takes_the_oldest_socket_when_descriptors_run_out(play):
    old, young, new = Peer(play), Peer(play), Peer(play)
    for peer, port in ((old, 1), (young, 2)):
        peer.hears(port, b"hi")
        play.allow()
        peer.gets(b"hi")
    new.hears(3, b"hi")
    flow = play.question().flow
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC) for _ in range(50)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken) + 1, hard))
    try:
        play.stack.allow(flow)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in taken:
            os.close(fd)
    play.rest()
    new.gets(b"hi")
    play.ended(End.IDLE)
    assert play.stack.counters() == {"udp_socket_evicted": 1}
    young.answers(b"still here")
    child_gets(play, young, 2, b"still here")


@pytest.mark.case("C07")
@pytest.mark.parametrize("what", ["ports", "peers"])
def test_udp_spray_takes_its_own_share_only(play, what):
    """60,000 source ports or destinations: sockets and peers stay at their limits, TCP and DNS have all of theirs."""
    limits, before = play.stack.limits, len(os.listdir("/proc/self/fd"))
    play.establish(1)
    stack, frames = play.stack, []
    for i in range(60_000):
        frames.append(datagram(*((1024 + i, 99) if what == "ports" else (7, 1024 + i))))
    for i in range(0, len(frames), 200):
        for raw in frames[i : i + 200]:
            play._tap.send(raw)
        stack.turn(play.clock.now_us)
        events = stack.events()
        play._hear(events)
        for e in events:
            if isinstance(e, Question):
                stack.allow(e.flow)
    assert stack.flow_count() <= limits.max_udp_peers + 1
    assert len(os.listdir("/proc/self/fd")) <= before + limits.max_udp_sockets + 2
    counted = stack.counters()
    if what == "ports":
        assert counted["udp_socket_evicted"] == 60_000 - limits.max_udp_sockets
    else:
        assert counted["udp_peer_evicted"] == 60_000 - limits.max_udp_peers
    play.rest()
    play.errors.clear()
    play.forgets_events()
    play.child.sends(ACK, text=b"fine")
    play.child.gets(ACK, ack=5)
    play.establish(2)
    play.sends(query(4, b"who is"))
    assert play.datagram().payload == b"who is"


# --- rates


def test_challenge_acks_are_limited(stage):
    """RFC 5961, 7: a SYN in a connection, an RST that is not exact, an ACK of what was never sent."""
    play = stage(limits=Limits(challenge_ack_rate=30))
    play.establish()
    for i in range(60):
        kind = i % 3
        if kind == 0:
            play.child.sends(SYN, seq=1)
        elif kind == 1:
            play.child.sends(RST, seq=100)
        else:
            play.child.sends(ACK, ack=1_000_000)
    assert len(play.child.forgets()) == 30
    assert play.stack.counters() == {"bad_flags": 20, "bad_reset": 20, "old_ack": 20}
    play.clock.advance(ms=100)
    play.child.next = 1
    for _ in range(10):
        play.child.sends(RST, seq=100)
    assert len(play.child.forgets()) == 3
    play.child.sends(ACK, text=b"fine", seq=1)
    play.child.gets(ACK, ack=5)


def test_segments_of_no_flow_are_all_answered(play):
    """One RST for each, no more: an answer is no larger than the question, and an honest program waits for it."""
    for i in range(5_000):
        segment = wire.tcp(S4, D4, 1 + i, 443, 1000, 77, ACK, window=1000)
        play._tap.send(wire.frame(wire.ip(segment, wire.TCP, S4, D4)))
        if i % 200 == 199:
            play.rest()
    assert len(play.strays) == 5_000
    assert {(s.flags, s.seq) for s in play.strays} == {(RST, 77)}
    assert play.stack.counters() == {"no_flow": 5_000}
    play.strays.clear()


def test_rates_and_queues_are_as_they_were_set(stage):
    play = stage(limits=Limits(control_rate=50, fragment_rate=100, icmp_error_rate=7, slow_packets=20))
    for _ in range(30):
        play._tap.send(wire.frame(ARP_REQUEST, kind=wire.ARP))
    play.rest()
    assert play.stack.counters() == {"slow_path_rate": 25}
    for _ in range(30):
        play._tap.send(wire.frame(wire.ipv4(bytes(24), wire.UDP, fragment=0x2000)))
    play.rest()
    assert play.stack.counters() == {"slow_path_rate": 45}
    play.forgets_events()
    for port in range(1, 21):
        play.injects(datagram(port))
        play.deny(Denial.PORT)
        play.ended(End.KILLED)
    assert len(play.errors) == 7
    play.errors.clear()
    for _ in range(30):
        play.stack.input_ip(query(4, b"q"))
    assert play.stack.counters()["slow_path_full"] == 10
    assert len(play.stack.events()) == 20


def test_parked_datagrams_and_bytes_are_as_they_were_set(stage):
    play = stage(limits=Limits(parked_datagrams=2, parked_bytes=100_000))
    for _ in range(3):
        play.injects(datagram(1))
    assert play.stack.counters() == {"parked_full": 1}
    src, dst = S4, D4
    for port in (2, 3):
        play.sends(wire.ip(wire.udp(src, dst, port, 99, text_of(60_000)), wire.UDP, src, dst))
    assert play.stack.counters() == {"parked_full": 2}


def test_control_flood_of_every_kind_leaves_a_connection_alone(play):
    play.establish()
    frames = [wire.frame(ARP_REQUEST, kind=wire.ARP), wire.frame(echo(4, b"x"))] * 2_000
    feed(play, frames)
    play.forgets_events()
    play.child.sends(ACK, text=b"fine")
    play.child.gets(ACK, ack=5)
    play.host.gets(b"fine")


# --- what may be set


@pytest.mark.parametrize("name", Limits._fields)
def test_every_limit_may_be_set_to_its_least_and_greatest(name):
    """`--limit` takes what the table says; what does not fit the others is fitted, and a stack can be made of it."""
    bound = TABLE[name]
    for value in (bound.low, min(bound.high, 1 << 20)):
        with socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)[0] as tap:
            stack = Stack(tap.fileno(), ADDRESSES, limits=Limits(**{name: value}))
            assert getattr(stack.limits, name) <= max(value, getattr(Limits(), name))
            stack.close()


@pytest.mark.parametrize(("field", "value"), [("max_flows", 0), ("flow_window", 65537), ("icmp_error_rate", 0)])
def test_what_no_stack_can_be_made_of_is_refused(field, value):
    with socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)[0] as tap, pytest.raises(OSError, match="Invalid"):
        Stack(tap.fileno(), ADDRESSES, limits=Limits(**{field: value}))


def test_table_tells_of_every_limit():
    assert tuple(TABLE) == Limits._fields
    for name, bound in TABLE.items():
        assert bound.low <= getattr(Limits(), name) <= bound.high


@pytest.mark.case("B34")
@pytest.mark.parametrize("descriptors", [8, 24, 42, 100, 1_000, 4_000, 500_000])
def test_some_descriptors_are_left_for_the_services(descriptors):
    limits = Limits().within(descriptors)
    services = limits.ping_sessions + 2 * limits.dns_connections + 8
    assert limits.max_sockets + services <= descriptors or limits.max_sockets == 2
    assert limits.max_half_open <= limits.max_sockets // 2 >= limits.max_udp_sockets
    assert limits.max_sockets >= descriptors // 2 or descriptors < 40 or limits.max_sockets == 65_536
