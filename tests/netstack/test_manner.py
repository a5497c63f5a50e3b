"""What of the child's IP header goes along: DF, DSCP and ECN, and what it is told when the path is too narrow.

The far ends are real sockets on loopback; a raw socket beside them shows the headers as they left. Addresses behind a
route with an MTU of its own stand for a path that the host's kernel knows to be narrow."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from childflow.netstack.events import End

from . import wire
from .play import CHILD_PORT, Play, text_of
from .test_udp import Peer
from .wire import TCP, UDP

IP_RECVTOS = 13
NARROW = {4: "192.0.2.9", 6: "2001:db8:9::9"}
NARROW_MTU = 1300
TOO_BIG = {4: (3, 4), 6: (2, 0)}
LEVEL = {4: socket.IPPROTO_IP, 6: socket.IPPROTO_IPV6}
NONLOCAL_BIND = Path("/proc/sys/net/ipv6/ip_nonlocal_bind")
PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


@pytest.fixture
def narrow(namespaces: None, family: int) -> Iterator[str]:
    """An address of ours behind a path of 1,300 bytes."""
    route = ["local", NARROW[family], "dev", "lo", "mtu", str(NARROW_MTU)]
    subprocess.run(["ip", f"-{family}", "route", "add", *route], check=True)
    NONLOCAL_BIND.write_text("1")  # IPv6 takes the route, but not as an address to bind to
    yield NARROW[family]
    NONLOCAL_BIND.write_text("0")
    subprocess.run(["ip", f"-{family}", "route", "del", *route], check=True)


class Tap:
    """Headers of one protocol on loopback, as they are on the wire (IPv4)."""

    def __init__(self, play: Play, protocol: int, port: int) -> None:
        self._sock = play.owns(socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol))
        self._sock.setblocking(False)
        self._port = port

    def to_port(self) -> list[bytes]:
        """All packets to the port that came until now."""
        found = []
        while True:
            try:
                packet = self._sock.recv(70_000)
            except BlockingIOError:
                return found
            if int.from_bytes(packet[22:24], "big") == self._port:
                found.append(packet)


def datagram(family: int, to: bytes, port: int, text: bytes, **fields: int) -> bytes:
    src = wire.CHILD[family]
    return wire.ip(wire.udp(src, to, CHILD_PORT, port, text), UDP, src, to, **fields)


@pytest.mark.case("C08", "C10")
def test_open_df_leaves_as_it_came(play: Play) -> None:
    peer = Peer(play)
    tap = Tap(play, UDP, peer.port)
    sent = [0x4000, 0, 0, 0x4000, 0, 0x4000, 0x4000]
    for number, flags in enumerate(sent):
        play.sends(datagram(4, peer.address, peer.port, b"%d" % number, fragment=flags))
        if number == 1:
            play.allow()
    for number in range(len(sent)):
        peer.gets(b"%d" % number)
    assert [packet[6] << 8 for packet in tap.to_port()] == sent


@pytest.mark.case("C10")
def test_open_too_big_for_the_path_is_told_with_its_mtu(stage, family: int, narrow: str) -> None:
    play = stage(family=family)
    peer = Peer(play, narrow)
    text = text_of(1400)
    for number in range(3):
        play.sends(datagram(family, peer.address, peer.port, text))
        if number == 0:
            play.allow()
        e = play.error()
        assert (e.type, e.code, e.extra) == (*TOO_BIG[family], NARROW_MTU)
        assert e.sender == {4: wire.ADDRESSES.gateway4, 6: wire.ADDRESSES.gateway6}[family]
        q = wire.quoted(e)
        assert q[:6] == (wire.CHILD[family], peer.address, UDP, CHILD_PORT, peer.port, 8 + 1400)
        assert text.startswith(q.text)
    peer.gets_nothing()
    peer.hears(CHILD_PORT, b"small")
    peer.gets(b"small")
    assert play.stack.counters() == {"too_big": 3}
    assert play.came() == 0


@pytest.mark.case("C08", "C10")
def test_open_what_may_be_cut_is_cut(stage, family: int, narrow: str) -> None:
    """A datagram that the child's kernel had cut, and in IPv4 one without DF, fits through any path."""
    play = stage(family=family)
    peer = Peer(play, narrow)
    loose = {} if family == 6 else {"fragment": 0}
    for number, length in enumerate((1400, 40_000, 10)):
        play.stack.input_ip(datagram(family, peer.address, peer.port, text_of(length), **loose))
        play.rest()
        if number == 0:
            play.allow()
        peer.gets(text_of(length))
    if family == 4:
        play.sends(datagram(4, peer.address, peer.port, text_of(1400), fragment=0))
        peer.gets(text_of(1400))
    assert play.stack.counters() == {}
    assert play.came() == 0


@pytest.mark.case("C03", "C10")
def test_open_too_big_among_errors_of_other_peers(stage, family: int, narrow: str) -> None:
    """Each error goes to whom it concerns, though the MTU is read from the same queue."""
    play = stage(family=family)
    dead, far = Peer(play), Peer(play, narrow)
    dead.end.close()
    for peer in (dead, far):
        peer.hears(CHILD_PORT, b"0")
        play.allow()
    play.until(lambda: play.errors)
    play.errors.clear()
    dead.hears(CHILD_PORT, b"1")
    far.hears(CHILD_PORT, text_of(1400))
    play.until(lambda: len(play.errors) == 2)
    kinds = {wire.quoted(e).remote_port: (e.type, e.code, e.extra) for e in play.errors}
    assert kinds == {dead.port: (*{4: (3, 3), 6: (1, 4)}[family], 0), far.port: (*TOO_BIG[family], NARROW_MTU)}
    play.errors.clear()


def tos_of(peer: Peer) -> int:
    _, control, _, sender = peer.end.recvmsg(2000, 100)
    peer.heard_from = sender[:2]
    return int.from_bytes(control[0][2][:4], "little")


@pytest.mark.case("C15")
def test_open_dscp_and_ecn_go_along_both_ways(stage, family: int) -> None:
    play = stage(family=family)
    peer = Peer(play)
    ask, send = {4: (IP_RECVTOS, socket.IP_TOS), 6: (socket.IPV6_RECVTCLASS, socket.IPV6_TCLASS)}[family]
    peer.end.setsockopt(LEVEL[family], ask, 1)
    for tos in [*(dscp << 2 | dscp & 3 for dscp in range(64)), 0, 1, 2, 3, 255]:
        play.sends(datagram(family, peer.address, peer.port, b"up", tos=tos, hop_limit=64 if tos % 2 else 9))
        if tos == 0 and not peer.heard_from[1]:
            play.allow()
        play.until(peer._readable)
        assert tos_of(peer) == tos
        peer.end.setsockopt(LEVEL[family], send, tos)
        peer.answers(b"down")
        play.until(lambda: play.replies)
        reply = play.replies.popleft()
        assert (reply.text, reply.tos) == (b"down", tos)


@pytest.mark.case("C15")
def test_tcp_dscp_goes_along_and_ecn_stays(stage) -> None:
    """The host's own TCP decides on ECN; a program (ssh) changes the class of its traffic as it goes."""
    play = stage()
    listener = play.owns(socket.create_server(("127.0.0.1", 0)))
    port = listener.getsockname()[1]
    tap = Tap(play, TCP, port)
    child = play.connect(CHILD_PORT, remote=socket.inet_aton("127.0.0.1"), remote_port=port)

    def says(flags: int, tos: int, text: bytes = b"") -> None:
        packet = child.packet(flags, text=text, options=wire.mss(1460) if flags & wire.SYN else b"")
        body = packet[20:]
        play.sends(wire.ip(body, TCP, child.address, child.remote, tos=tos))

    says(wire.SYN, 0x48)
    play.allow()
    play.until(lambda: child.inbox)
    child.gets(wire.SYN | wire.ACK)
    end = play.owns(listener.accept()[0])
    for number, tos in enumerate((0x4A, 0x4B, 0x20, 0x20, 0x00)):
        says(wire.ACK, tos, b"%d" % number)
        assert end.recv(10) == b"%d" % number
    syn, *rest = tap.to_port()
    assert syn[1] == 0x48
    texts = [packet for packet in rest if len(packet) > 20 + (packet[32] >> 4) * 4]
    assert [packet[1] for packet in texts] == [0x48, 0x48, 0x20, 0x20, 0x00]
    child.forgets()


@pytest.mark.case("E15")
def test_no_port_left_is_told_and_recovers(stage, family: int) -> None:
    """The host has 20 ports: the 21st child port is refused, the others work; when some are free again, new ones do."""
    before = PORT_RANGE.read_text()
    play = stage(family=family)
    peer = Peer(play)
    play.stack.turn(play.clock.now_us)
    PORT_RANGE.write_text("50000 50019")
    try:
        for port in range(1001, 1021):
            peer.hears(port, b"in")
            play.allow()
            peer.gets(b"in")
        for port in (1021, 1022):
            peer.hears(port, b"one too many")
            play.allow()
            assert (play.errors[-1].type, play.errors[-1].code) == {4: (3, 13), 6: (1, 1)}[family]
            assert wire.quoted(play.error()).child_port == port
            play.ended(End.KILLED)
        assert play.stack.counters() == {"no_port": 2}
        peer.hears(1001, b"still")
        peer.gets(b"still")
        play.clock.advance(ms=120_000)
        for _ in range(20):
            play.ended(End.IDLE)
        peer.hears(1022, b"again")
        play.allow()
        peer.gets(b"again")
    finally:
        PORT_RANGE.write_text(before)
