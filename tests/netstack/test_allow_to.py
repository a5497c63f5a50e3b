"""`allow_to`: the host side of a flow is another address than the one the child uses, and the child sees only its own.

The hosts are real sockets on loopback, inside the tests' own network namespace."""

from __future__ import annotations

import fcntl
import os
import random
import socket
import struct

import pytest

from childflow.errors import StackError
from childflow.netstack.events import Denial, End, Flight

from . import wire
from .play import ACK, CHILD_PORT, FIN, REMOTE_PORT, RST, SYN, Child, Play, text_of
from .test_udp import FAMILY, NAME, child_gets
from .wire import LOOPBACK, UDP

VIRTUAL = {4: bytes((198, 18, 0, 7)), 6: bytes.fromhex("fdcf000000000000000000000000 0007".replace(" ", ""))}
OTHER = {4: bytes((198, 18, 0, 8)), 6: bytes.fromhex("fdcf0000000000000000000000000008")}
IP_RECVTOS, IPV6_RECVTCLASS = 13, 66

FAMILIES = [(4, 4), (4, 6), (6, 4), (6, 6)]
families = pytest.mark.parametrize(("inside", "outside"), FAMILIES, ids=[f"{i} to {o}" for i, o in FAMILIES])


# --- TCP


def listen(play: Play, family: int) -> socket.socket:
    return play.owns(socket.create_server((NAME[family], 0), family=FAMILY[family]))


def dial(play: Play, to: bytes, port: int, remote: bytes) -> Child:
    """The child connects to `remote`, and is let out to `to`."""
    child = play.connect(remote=remote)
    child.opens()
    play.flow = play.question().flow
    play.stack.allow_to(play.flow, to, port)
    play.rest()
    return child


@families
def test_tcp_connects_elsewhere_and_looks_the_same(stage, inside, outside):
    """Every segment comes from the address and port that the child used, to the last one."""
    play = stage(family=inside)
    listener = listen(play, outside)
    child = dial(play, LOOPBACK[outside], listener.getsockname()[1], VIRTUAL[inside])
    play.until(lambda: child.inbox)
    assert play.connected().errno == 0
    child.gets(SYN | ACK, seq=0, ack=1)
    far, address = listener.accept()
    play.owns(far)
    assert socket.inet_pton(FAMILY[outside], address[0]) == LOOPBACK[outside]
    child.sends(ACK, text=b"question")
    child.gets(ACK, ack=9)
    assert far.recv(100) == b"question"
    far.sendall(b"answer")
    play.until(lambda: child.inbox)
    child.gets(ACK, seq=1, text=b"answer")
    child.sends(FIN | ACK)
    child.gets(ACK)
    assert far.recv(100) == b""
    far.close()
    play.until(lambda: child.inbox)
    child.gets(FIN | ACK)
    child.sends(ACK)
    e = play.ended(End.FIN)
    assert (e.bytes_up, e.bytes_down) == (8, 6)
    assert not play.strays


@families
def test_tcp_refused_elsewhere_is_refused_here(stage, inside, outside):
    play = stage(family=inside)
    listener = listen(play, outside)
    port = listener.getsockname()[1]
    listener.close()
    child = dial(play, LOOPBACK[outside], port, VIRTUAL[inside])
    play.until(lambda: child.inbox)
    child.gets(RST | ACK, ack=1)
    assert play.connected().errno == 111
    play.ended(End.RST_HOST)
    assert play.came() == 0


@families
def test_tcp_no_route_elsewhere_quotes_what_the_child_sent(stage, inside, outside):
    """There is no route out of the tests' namespace."""
    play = stage(family=inside)
    dial(play, wire.REMOTE[outside], 80, VIRTUAL[inside])
    e = play.error()
    assert (e.type, e.code) == {4: (3, 0), 6: (1, 0)}[inside]
    assert wire.quoted(e)[:5] == (wire.CHILD[inside], VIRTUAL[inside], wire.TCP, CHILD_PORT, REMOTE_PORT)
    play.connected()
    play.ended(End.RST_HOST)


def test_tcp_held_and_let_out_elsewhere(stage, family):
    play = stage(family=family)
    listener = listen(play, 4)
    child = play.connect(remote=VIRTUAL[family])
    child.opens()
    flow = play.hold()
    play.stack.allow_to(flow, LOOPBACK[4], listener.getsockname()[1])
    play.until(lambda: child.inbox)
    play.connected()
    child.gets(SYN | ACK)
    child.sends(ACK, text=b"hello")
    child.gets(ACK, ack=6)
    assert play.flight() == Flight(flow, False)
    far, _ = listener.accept()
    play.owns(far).setblocking(False)
    with pytest.raises(BlockingIOError):
        far.recv(1)
    play.stack.deny(flow, Denial.RESET)
    play.rest()
    child.gets(RST | ACK)
    play.ended(End.KILLED)
    far.setblocking(True)
    with pytest.raises(ConnectionResetError):
        far.recv(1)


@families
def test_tcp_class_of_traffic_goes_along(stage, inside, outside):
    """Set on the socket that there is, whichever family the child's is of."""
    play = stage(family=inside)
    listener = listen(play, outside)
    play.sends(syn_with_tos(inside, 0x28))
    flow = play.question().flow
    play.stack.allow_to(flow, LOOPBACK[outside], listener.getsockname()[1])
    play.until(lambda: play.strays)
    play.strays.clear()
    assert sorted(stream_classes(outside)) == [0, 0x28]  # the listener, the stack's socket


def syn_with_tos(family: int, tos: int) -> bytes:
    src, dst = wire.CHILD[family], VIRTUAL[family]
    syn = wire.tcp(src, dst, CHILD_PORT, REMOTE_PORT, 1, 0, SYN, options=wire.mss(1460))
    return wire.ip(syn, wire.TCP, src, dst, tos=tos)


def stream_classes(family: int) -> list[int]:
    """What the TCP sockets of this process, the stack's among them, put in their packets' headers."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        link = f"/proc/self/fd/{name}"
        if not os.path.lexists(link) or not os.readlink(link).startswith("socket:"):
            continue
        with socket.socket(fileno=os.dup(int(name))) as s:
            if s.family == FAMILY[family] and s.type == socket.SOCK_STREAM:
                level, option = {4: (0, socket.IP_TOS), 6: (41, socket.IPV6_TCLASS)}[family]
                found.append(s.getsockopt(level, option))
    return found


# --- UDP


class Far:
    """A UDP socket on loopback that stands for an address of the child's."""

    def __init__(self, play: Play, outside: int, address: bytes, port: int = REMOTE_PORT) -> None:
        self.play, self.outside = play, outside
        self.address, self.port = address, port  # as the child knows it
        self.end = play.owns(socket.socket(FAMILY[outside], socket.SOCK_DGRAM))
        self.end.bind((NAME[outside], 0))
        self.end.setblocking(False)
        self.real_port = self.end.getsockname()[1]
        self.heard_from: tuple[str, int] = ("", 0)

    def hears(self, text: bytes, port: int = CHILD_PORT, tos: int = 0) -> None:
        src = wire.CHILD[4 if len(self.address) == 4 else 6]
        packet = wire.udp(src, self.address, port, self.port, text)
        self.play.sends(wire.ip(packet, UDP, src, self.address, tos=tos))

    def allowed(self) -> int:
        flow = self.play.question().flow
        self.play.stack.allow_to(flow, LOOPBACK[self.outside], self.real_port)
        self.play.rest()
        return flow

    def gets(self, text: bytes) -> None:
        self.play.until(self.readable)
        came, sender = self.end.recvfrom(70_000)
        assert came == text, (len(came), len(text))
        self.heard_from = sender[:2]

    def readable(self) -> bool:
        try:
            self.end.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        return True

    def answers(self, text: bytes) -> None:
        self.end.sendto(text, self.heard_from)


@families
@pytest.mark.parametrize("length", [0, 1, 1400, 9000])
def test_udp_is_sent_elsewhere_and_answered_from_where_it_was_sent(stage, inside, outside, length):
    play = stage(family=inside)
    far = Far(play, outside, VIRTUAL[inside])
    far.hears(text_of(length))
    far.hears(b"parked, too")
    far.allowed()
    far.gets(text_of(length))
    far.gets(b"parked, too")
    far.hears(b"and later")
    far.gets(b"and later")
    far.answers(text_of(length, 5))
    child_gets(play, far, CHILD_PORT, text_of(length, 5))
    play.no_event()
    assert play.stack.counters() == {}


@families
def test_udp_answers_are_taken_from_the_host_side_only(stage, inside, outside):
    play = stage(family=inside)
    far, stranger = Far(play, outside, VIRTUAL[inside]), Far(play, outside, OTHER[inside])
    far.hears(b"hi")
    far.allowed()
    far.gets(b"hi")
    stranger.heard_from = far.heard_from
    stranger.answers(b"not asked")
    play.until(play.stack.counters)
    assert play.stack.counters() == {"unknown_peer": 1}
    assert play.came() == 0
    far.answers(b"asked")
    child_gets(play, far, CHILD_PORT, b"asked")


def test_udp_the_address_that_the_child_used_is_not_heard(play):
    """The child wrote to this host, and was let out to another: what this one says is not an answer."""
    used = Far(play, 4, LOOPBACK[4])
    used.port = used.real_port
    instead = Far(play, 4, VIRTUAL[4])
    used.hears(b"hi")
    flow = play.question().flow
    play.stack.allow_to(flow, LOOPBACK[4], instead.real_port)
    play.rest()
    instead.gets(b"hi")
    assert not used.readable()
    used.heard_from = instead.heard_from
    used.answers(b"me, too")
    play.until(play.stack.counters)
    assert play.stack.counters() == {"unknown_peer": 1}
    instead.answers(b"I am it")
    child_gets(play, used, CHILD_PORT, b"I am it")


@families
def test_udp_peers_of_one_child_port_share_a_socket_and_are_told_apart(stage, inside, outside):
    """RFC 4787, REQ-1, by the family outside; direct peers and several virtual ones beside each other."""
    play = stage(family=inside)
    fars = [Far(play, outside, VIRTUAL[inside][:-1] + bytes((i,)), 1000 + i) for i in range(20)]
    for i, far in enumerate(fars):
        far.hears(b"%d" % i)
        far.allowed()
        far.gets(b"%d" % i)
    assert len({far.heard_from for far in fars}) == 1
    direct = Far(play, inside, LOOPBACK[inside])
    direct.port = direct.real_port
    direct.hears(b"direct")
    play.allow()
    direct.gets(b"direct")
    for i, far in enumerate(fars):
        far.answers(b"re %d" % i)
        child_gets(play, far, CHILD_PORT, b"re %d" % i)
    direct.answers(b"re direct")
    child_gets(play, direct, CHILD_PORT, b"re direct")


def test_udp_two_addresses_of_one_host_answers_go_to_the_last_that_sent(play):
    """Two names may lead to one host; of one child port its socket can't tell them apart, so the talk decides."""
    one = Far(play, 4, VIRTUAL[4])
    one.hears(b"1")
    one.allowed()
    one.gets(b"1")
    two = Far(play, 4, OTHER[4])
    two.end, two.real_port = one.end, one.real_port
    two.hears(b"2")
    two.allowed()
    two.gets(b"2")
    two.answers(b"to two")
    child_gets(play, two, CHILD_PORT, b"to two")
    one.hears(b"1 again")
    one.gets(b"1 again")
    one.answers(b"to one")
    child_gets(play, one, CHILD_PORT, b"to one")
    two.hears(b"from another port", port=CHILD_PORT + 1)
    two.allowed()
    two.gets(b"from another port")
    two.answers(b"there")
    child_gets(play, two, CHILD_PORT + 1, b"there")


def test_udp_one_of_two_addresses_of_a_host_ends(play):
    """Its place is taken out of the chain, wherever it stands there."""
    fars = [Far(play, 4, bytes((198, 18, 0, 10 + i))) for i in range(3)]
    for far in fars:
        far.end, far.real_port = fars[0].end, fars[0].real_port
        far.hears(b"hi")
        far.allowed()
        far.gets(b"hi")
        play.clock.advance(ms=30_000)
    for _ in range(2):
        fars[0].hears(b"still")
        fars[0].gets(b"still")
        play.clock.advance(ms=60_000)
    assert play.stack.flow_count() == 1
    fars[0].answers(b"yes")
    child_gets(play, fars[0], CHILD_PORT, b"yes")
    play.forgets_events()


@families
def test_udp_closed_port_is_told_as_the_child_would_see_it(stage, inside, outside):
    """The error comes from the address that the child used, and quotes its own datagram."""
    play = stage(family=inside)
    far = Far(play, outside, VIRTUAL[inside])
    far.end.close()
    far.hears(b"anybody there?")
    far.allowed()
    play.until(lambda: play.errors)
    e = play.error()
    assert (e.type, e.code) == {4: (3, 3), 6: (1, 4)}[inside]
    assert e.sender == (VIRTUAL if inside == outside else wire.GATEWAY)[inside]
    q = wire.quoted(e)
    assert q[:5] == (wire.CHILD[inside], VIRTUAL[inside], UDP, CHILD_PORT, REMOTE_PORT)
    assert b"anybody there?".startswith(q.text)
    assert play.came() == 0


@families
def test_udp_too_big_names_an_mtu_of_the_childs_family(stage, inside, outside):
    """With DF: loopback takes 65,536 bytes; in the other family's header that is twenty more or less."""
    play = stage(family=inside, mtu=65_521)
    far = Far(play, outside, VIRTUAL[inside])
    narrow_loopback(3000)
    try:
        packet = wire.udp(wire.CHILD[inside], far.address, CHILD_PORT, far.port, text_of(5000))
        play.sends(
            wire.ip(packet, UDP, wire.CHILD[inside], far.address, **({"fragment": 0x4000} if inside == 4 else {}))
        )
        far.allowed()
        e = play.error()
    finally:
        narrow_loopback(65_536)
    assert (e.type, e.code) == {4: (3, 4), 6: (2, 0)}[inside]
    assert e.extra == 3000 + {(4, 6): -20, (6, 4): 20}.get((inside, outside), 0)
    assert wire.quoted(e)[:5] == (wire.CHILD[inside], VIRTUAL[inside], UDP, CHILD_PORT, REMOTE_PORT)
    assert play.stack.counters() == {"too_big": 1}


def narrow_loopback(mtu: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        fcntl.ioctl(s, 0x8922, struct.pack("16si12x", b"lo", mtu))


@families
def test_udp_class_of_traffic_goes_both_ways(stage, inside, outside):
    play = stage(family=inside)
    far = Far(play, outside, VIRTUAL[inside])
    if outside == 4:
        far.end.setsockopt(socket.IPPROTO_IP, IP_RECVTOS, 1)
    else:
        far.end.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVTCLASS, 1)
    far.hears(b"x", tos=0x2A)
    far.allowed()
    play.until(far.readable)
    _, control, _, sender = far.end.recvmsg(100, 100)
    assert control[0][2][0] == 0x2A
    far.heard_from = sender[:2]
    if outside == 4:
        far.end.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0x48)
    else:
        far.end.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, 0x48)
    far.answers(b"y")
    play.until(lambda: play.replies)
    assert play.replies.popleft().tos == 0x48


def test_udp_answer_that_ipv4_has_no_room_for_is_counted(stage):
    """65,527 bytes are a datagram of IPv6; the child's IPv4 can't say it."""
    play = stage(family=4)
    far = Far(play, 6, VIRTUAL[4])
    far.hears(b"go")
    far.allowed()
    far.gets(b"go")
    far.answers(text_of(65_508))
    play.until(play.stack.counters)
    assert play.stack.counters() == {"too_big": 1}
    far.answers(text_of(65_507))
    child_gets(play, far, CHILD_PORT, text_of(65_507))


def test_udp_held_and_let_out_elsewhere(play):
    far = Far(play, 6, VIRTUAL[4])
    far.hears(b"Initial")
    flow = play.hold()
    assert play.flight() == Flight(flow, False)
    assert play.stack.held(flow) == b"Initial"
    play.stack.allow_to(flow, LOOPBACK[6], far.real_port)
    play.rest()
    far.gets(b"Initial")
    with pytest.raises(StackError):
        play.stack.held(flow)


def test_udp_idle_ends_and_may_come_again_with_another_host(play):
    """The tuple is new then, and is judged anew."""
    one, two = Far(play, 4, VIRTUAL[4]), Far(play, 4, VIRTUAL[4])
    one.hears(b"1")
    one.allowed()
    one.gets(b"1")
    play.clock.advance(ms=120_000)
    play.ended(End.IDLE)
    two.hears(b"2")
    two.allowed()
    two.gets(b"2")
    one.heard_from = two.heard_from
    one.answers(b"late")
    play.until(play.stack.counters)
    assert play.stack.counters() == {"unknown_peer": 1}
    two.answers(b"here")
    child_gets(play, two, CHILD_PORT, b"here")


# --- both


NO_HOST = [bytes(4), bytes((224, 0, 0, 1)), bytes((239, 1, 2, 3)), b"\xff" * 4, bytes(16), b"\xff\2" + bytes(14), b"",
           b"abc", bytes(17)]  # fmt: skip


@pytest.mark.parametrize("address", NO_HOST, ids=[a.hex() or "none" for a in NO_HOST])
def test_address_that_is_no_host_is_the_callers_fault(play, address):
    """The flow stays parked, and can be answered still."""
    play.connect().opens()
    flow = play.question().flow
    with pytest.raises(StackError):
        play.stack.allow_to(flow, address, 80)
    play.no_event()
    play.stack.deny(flow, Denial.RESET)
    play.rest()
    play.child.gets(RST | ACK)


def test_flow_that_does_not_wait_is_not_let_out_elsewhere(play):
    play.establish()
    with pytest.raises(StackError):
        play.stack.allow_to(play.flow, LOOPBACK[4], 80)
    with pytest.raises(StackError):
        play.stack.allow_to(12345 << 32, LOOPBACK[4], 80)


def test_same_address_is_as_if_allowed(stage, family):
    play = stage(family=family)
    far = Far(play, family, LOOPBACK[family])
    far.port = far.real_port
    far.hears(b"hi")
    far.allowed()
    far.gets(b"hi")
    far.answers(b"ho")
    child_gets(play, far, CHILD_PORT, b"ho")


# --- a host side that is gone


@families
@pytest.mark.parametrize("others", [0, 1])
def test_udp_forgotten_peer_sends_nothing_more_and_is_asked_about_anew(stage, inside, outside, others):
    """Whoever binds the port of a host side that was closed hears nothing of the child."""
    play = stage(family=inside)
    far, other = Far(play, outside, VIRTUAL[inside]), Far(play, outside, OTHER[inside])
    for one in (far, other)[: 1 + others]:
        one.hears(b"hi")
        one.flow = one.allowed()
        one.gets(b"hi")
    play.stack.forget(far.flow)
    play.rest()
    play.ended(End.IDLE)
    far.hears(b"to whom?")
    assert not far.readable()
    far.flow = play.question().flow
    play.stack.forget(far.flow)  # parked
    play.rest()
    play.ended(End.KILLED)
    with pytest.raises(StackError):
        play.stack.forget(far.flow)
    if others:
        other.hears(b"still here")
        other.gets(b"still here")
    assert play.came() == 0


def test_tcp_is_not_forgotten(play):
    play.establish()
    with pytest.raises(StackError):
        play.stack.forget(play.flow)


@pytest.mark.parametrize("seed", range(3))
def test_udp_many_peers_with_one_host_side_come_and_go(play, seed):
    """Whatever the order: what comes from there is for the one that has sent last."""
    rng = random.Random(seed)
    far = Far(play, 4, VIRTUAL[4])
    names = [bytes((198, 18, 1, i)) for i in range(30)]
    flows: dict[bytes, int] = {}
    for _ in range(400):
        far.address = rng.choice(names)
        if far.address in flows and rng.random() < 0.4:
            play.stack.forget(flows.pop(far.address))
            play.rest()
            play.ended(End.IDLE)
            continue
        far.hears(far.address)
        if far.address not in flows:
            flows[far.address] = far.allowed()
        far.gets(far.address)
        far.answers(b"for the last one")
        child_gets(play, far, CHILD_PORT, b"for the last one")
    assert play.stack.flow_count() == len(flows)
    play.no_event()
