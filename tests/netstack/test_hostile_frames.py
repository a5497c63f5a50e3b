"""Frames that no honest kernel sends: each is counted under one name, gets at most one answer, and opens nothing.

The rows follow the cases of group A in the order of the headers: virtio, Ethernet, IPv4, IPv6, ICMP, TCP, UDP."""

from __future__ import annotations

import resource
import struct
from typing import NamedTuple

import pytest

from childflow.netstack.stack import Limits
from childflow.settings import ADDRESSES

from . import wire
from .play import CHILD_PORT, REMOTE_PORT
from .wire import ACK, CHILD, GATEWAY, NEEDS_CSUM, REMOTE, RST, SYN, frame, ipv4, ipv6, vnet

S4, D4, S6, D6 = CHILD[4], REMOTE[4], CHILD[6], REMOTE[6]


def syn4(**fields: object) -> bytes:
    return wire.tcp(S4, D4, CHILD_PORT, REMOTE_PORT, 1, 0, SYN, **fields)  # type: ignore[arg-type]


def syn6(**fields: object) -> bytes:
    return wire.tcp(S6, D6, CHILD_PORT, REMOTE_PORT, 1, 0, SYN, **fields)  # type: ignore[arg-type]


def udp4(text: bytes = b"abc", **fields: object) -> bytes:
    return wire.udp(S4, D4, CHILD_PORT, 99, text, **fields)  # type: ignore[arg-type]


def udp6(text: bytes = b"abc", **fields: object) -> bytes:
    return wire.udp(S6, D6, CHILD_PORT, 99, text, **fields)  # type: ignore[arg-type]


PARTIAL_ELSEWHERE = (
    (100, 20), (34, 17), (34, 6), (0, 0), (73, 0), (65535, 0), (54, 16), (14, 10), (33, 16), (35, 16),
)  # fmt: skip
SPOOFED4 = (
    (203, 0, 113, 9), (192, 0, 0, 1), (192, 0, 0, 3), (0, 0, 0, 0), (127, 0, 0, 1), (224, 0, 0, 1), (255,) * 4,
)  # fmt: skip
SPOOFED6 = (
    "00" * 16,
    "00" * 15 + "01",
    D6.hex(),
    GATEWAY[6].hex(),
    "fe80" + "00" * 13 + "02",
    "ff02" + "00" * 13 + "01",
)
MLD_ROUTERS = bytes.fromhex("ff02" + "00" * 13 + "16")

SYN4, SYN6 = ipv4(syn4(), wire.TCP), ipv6(syn6(), wire.TCP)


class Answer(NamedTuple):
    """The one ICMP error that a frame may earn."""

    type: int
    code: int
    extra: int = 0


class Case(NamedTuple):
    name: str
    raw: bytes
    drop: str
    answer: Answer | None = None


def runts() -> list[Case]:
    whole = frame(SYN4)
    cases = [Case(f"runt of {n}", whole[:n], "short_frame") for n in (1, 9, 10, 11, 23)]
    return cases + [Case(f"cut to {n}", whole[:n], "bad_ip_header") for n in (24, 25, 26, 43, 44, 63)]


def virtio() -> list[Case]:
    part4 = ipv4(syn4(checksum="partial"), wire.TCP)
    cases = [
        Case(f"partial at {at}+{field}", frame(part4, head=vnet(NEEDS_CSUM, start=at, offset=field)), "bad_vnet_header")
        for at, field in PARTIAL_ELSEWHERE
    ]  # fmt: skip
    for gso in (2, 3, 5, 6, 127, 255):
        cases.append(
            Case(f"gso type {gso}", frame(part4, head=vnet(NEEDS_CSUM, gso, 54, 1460, 34, 16)), "bad_vnet_header")
        )
    return [
        *cases,
        Case("gso without a partial checksum", frame(SYN4, head=vnet(0, 1, 54, 1460)), "bad_vnet_header"),
        Case("partial without the flag", frame(part4), "bad_tcp_checksum"),
        Case("partial of UDP at TCP's place", frame(ipv4(udp4(), 17), head=vnet(NEEDS_CSUM, start=34, offset=16)),
             "bad_vnet_header"),
    ]  # fmt: skip


def ethernet() -> list[Case]:
    return [
        Case("ethertype of 802.3", frame(SYN4, kind=0x0001), "bad_ethertype"),
        Case("ethertype of LLDP", frame(SYN4, kind=0x88CC), "bad_ethertype"),
        Case("ethertype ffff", frame(SYN4, kind=0xFFFF), "bad_ethertype"),
        Case("VLAN tag", frame(struct.pack("!HH", 5, 0x0800) + SYN4, kind=0x8100), "bad_ethertype"),
        Case("priority tag", frame(struct.pack("!HH", 0, 0x0800) + SYN4, kind=0x8100), "bad_ethertype"),
        Case("QinQ", frame(struct.pack("!HHHH", 5, 0x8100, 5, 0x0800) + SYN4, kind=0x88A8), "bad_ethertype"),
        Case("for another machine", frame(SYN4, to=bytes.fromhex("020000000099")), "wrong_mac"),
        Case("for the child itself", frame(SYN4, to=ADDRESSES.child_mac), "wrong_mac"),
        Case("IPv4 with IPv6's ethertype", frame(SYN4 + bytes(20), kind=wire.IPV6), "bad_ip_header"),
        Case("IPv6 with IPv4's ethertype", frame(SYN6, kind=wire.IPV4), "bad_ip_header"),
    ]


def internet4() -> list[Case]:
    tcp = syn4()
    cases = [Case(f"IPv4 IHL {n}", frame(ipv4(tcp, 6, ihl=n)), "bad_ip_header") for n in range(5)]
    cases += [
        Case(f"IPv4 version {n}", frame(ipv4(tcp, 6, version=n), kind=wire.IPV4), "bad_ip_header") for n in (0, 5, 15)
    ]
    cases += [Case(f"IPv4 total {n}", frame(ipv4(tcp, 6, total=n)), "bad_ip_header") for n in (0, 19, 41 + 1, 65535)]
    cases += [Case(f"IPv4 total {n}", frame(ipv4(tcp, 6, total=n)), "bad_tcp_header") for n in (20, 30, 39)]
    bad_options = {
        "07 00": b"\x07\0\0\0",
        "44 01": b"\x44\x01\0\0",
        "83 28": b"\x83\x28\0\0",
        "cut": b"\x01\x01\x01\x07",
    }
    cases += [
        Case(f"IPv4 option {k}", frame(ipv4(tcp, 6, options=v)), "bad_ip_options") for k, v in bad_options.items()
    ]
    for name, kind in (("LSRR", 0x83), ("SSRR", 0x89)):
        route = bytes((kind, 7, 4, 10, 0, 0, 1, 0))
        cases.append(Case(f"IPv4 {name}", frame(ipv4(tcp, 6, options=route)), "source_route"))
    for protocol in (0, 2, 4, 41, 47, 50, 51, 58, 132, 255):
        cases.append(Case(f"IPv4 protocol {protocol}", frame(ipv4(SYN4, protocol)), "unknown_protocol", Answer(3, 2)))
    return [
        *cases,
        Case("IPv4 IHL 15 on 20 bytes", frame(ipv4(b"", 6, ihl=15, total=20)), "bad_ip_header"),
        Case("IPv4 checksum", frame(ipv4(tcp, 6, checksum=0x1234)), "bad_ip_checksum"),
        Case("IPv4 hop limit 1", frame(ipv4(tcp, 6, hop_limit=1)), "hop_limit", Answer(11, 0)),
        Case("IPv4 hop limit 0", frame(ipv4(tcp, 6, hop_limit=0)), "hop_limit", Answer(11, 0)),
        Case("IPv4 multicast", frame(ipv4(udp4(), 17, dst=bytes((224, 0, 0, 251)))), "multicast"),
        Case("IPv4 multicast, last", frame(ipv4(udp4(), 17, dst=bytes((239, 255, 255, 250)))), "multicast"),
        Case("IPv4 broadcast", frame(ipv4(udp4(), 17, dst=b"\xff" * 4), to=b"\xff" * 6), "multicast"),
        Case("IPv4 broadcast of the link", frame(ipv4(udp4(), 17, dst=bytes((192, 0, 0, 7)))), "multicast"),
        *(
            Case(f"IPv4 from {'.'.join(map(str, src))}", frame(ipv4(tcp, 6, src=bytes(src))), "spoofed_source")
            for src in SPOOFED4
        ),
        Case("IPv4 LAND", frame(ipv4(tcp, 6, src=D4, dst=D4)), "spoofed_source"),
        Case("IPv4 spoofed fragment", frame(ipv4(tcp, 6, src=D4, fragment=0x2000)), "spoofed_source"),
    ]  # fmt: skip


def internet6() -> list[Case]:
    tcp = syn6()
    cases = [
        Case(f"IPv6 version {n}", frame(ipv6(tcp, 6, version=n), kind=wire.IPV6), "bad_ip_header") for n in (0, 4, 15)
    ]
    cases += [Case(f"IPv6 payload length {n}", frame(ipv6(tcp, 6, length=n)), "bad_ip_header") for n in (0, 21, 65535)]
    cases += [Case(f"IPv6 payload length {n}", frame(ipv6(tcp, 6, length=n)), "bad_tcp_header") for n in (1, 19)]
    jumbo = bytes((6, 0, 0xC2, 4)) + struct.pack("!I", 100_000)
    extensions = {
        "options header cut": (ipv6(bytes((6, 0, 1)), 0), "bad_extension_header"),
        "options header past the packet": (ipv6(bytes((6, 200)) + bytes(30), 0), "bad_extension_header"),
        "option past the header": (ipv6(bytes((6, 0, 5, 9)) + bytes(4) + tcp, 60), "bad_extension_header"),
        "jumbogram": (ipv6(jumbo + tcp, 0), "bad_extension_header"),
        "routing header": (ipv6(bytes((6, 2, 0, 1)) + bytes(20) + tcp, 43), "source_route"),
        "fragment header cut": (ipv6(bytes((6, 0, 0, 1)), 44), "bad_extension_header"),
        "nine option headers": (ipv6(bytes((60, 0, 1, 4, 0, 0, 0, 0)) * 9 + tcp, 60), "bad_extension_header"),
        "TCP header behind options is cut": (ipv6(bytes((6, 0, 1, 4, 0, 0, 0, 0)) + tcp[:10], 0), "bad_tcp_header"),
    }
    cases += [Case(f"IPv6 {k}", frame(packet), why) for k, (packet, why) in extensions.items()]
    for protocol in (1, 4, 41, 47, 50, 51, 59, 132, 255):
        cases.append(
            Case(f"IPv6 next header {protocol}", frame(ipv6(SYN6, protocol)), "unknown_protocol", Answer(4, 1, 6))
        )
    return [
        *cases,
        Case("IPv6 hop limit 1", frame(ipv6(tcp, 6, hop_limit=1)), "hop_limit", Answer(3, 0)),
        Case("IPv6 hop limit 0", frame(ipv6(tcp, 6, hop_limit=0)), "hop_limit", Answer(3, 0)),
        Case("IPv6 multicast", frame(ipv6(udp6(), 17, dst=bytes.fromhex("ff02" + "00" * 13 + "fb"))), "multicast"),
        *(
            Case(f"IPv6 from {src}", frame(ipv6(tcp, 6, src=bytes.fromhex(src))), "spoofed_source")
            for src in SPOOFED6
        ),
    ]  # fmt: skip


def messages() -> list[Case]:
    quote = ipv4(syn4(), 6)
    ignored4 = (0, 3, 4, 5, 10, 11, 12, 13, 17, 255)
    cases = [Case(f"ICMP of {n} bytes", frame(ipv4(wire.icmp(8, 0, bytes(4))[:n], 1)), "bad_icmp") for n in range(8)]
    cases += [
        Case(f"ICMP type {n}", frame(ipv4(wire.icmp(n, 0, bytes(4) + quote), 1)), "icmp_ignored") for n in ignored4
    ]
    for n in (1, 2, 3, 4, 129, 130, 143, 255):
        message = wire.icmp(n, 0, bytes(4) + SYN6, src=S6, dst=D6)
        cases.append(Case(f"ICMPv6 type {n}", frame(ipv6(message, 58)), "icmp_ignored"))
    echo4, echo6 = wire.icmp(8, 0, bytes(8)), wire.icmp(128, 0, bytes(8), src=S6, dst=D6)
    return [
        *cases,
        Case("ICMP checksum", frame(ipv4(echo4[:2] + b"\x12\x34" + echo4[4:], 1)), "bad_icmp"),
        Case("ICMPv6 checksum", frame(ipv6(echo6[:2] + b"\x12\x34" + echo6[4:], 58)), "bad_icmp"),
        Case("ICMPv6 without the pseudo-header", frame(ipv6(wire.icmp(128, 0, bytes(8)), 58)), "bad_icmp"),
        Case("ICMP echo of another code", frame(ipv4(wire.icmp(8, 1, bytes(8)), 1)), "icmp_ignored"),
        Case("ICMP echo to a group", frame(ipv4(echo4, 1, dst=bytes((224, 0, 0, 1)))), "multicast"),
        Case("MLD report", frame(ipv6(wire.icmp(143, 0, bytes(4), src=S6, dst=D6), 58, dst=MLD_ROUTERS)), "multicast"),
    ]  # fmt: skip


def transport() -> list[Case]:
    cases = [Case(f"TCP doff {n}", frame(ipv4(syn4(doff=n), 6)), "bad_tcp_header") for n in range(5)]
    cases += [Case(f"TCP of {n} bytes", frame(ipv4(syn4()[:n], 6)), "bad_tcp_header") for n in (0, 1, 13, 19)]
    cases += [Case(f"UDP length {n}", frame(ipv4(udp4(length=n), 17)), "bad_udp_header") for n in (0, 7, 12, 65535)]
    cases += [Case(f"UDP of {n} bytes", frame(ipv4(udp4()[:n], 17)), "bad_udp_header") for n in (0, 1, 7)]
    return [
        *cases,
        Case("TCP doff 15 on 20 bytes", frame(ipv4(syn4(doff=15), 6)), "bad_tcp_header"),
        Case(
            "TCP doff 15 with gso",
            frame(ipv4(syn4(doff=15, checksum="partial"), 6), head=vnet(NEEDS_CSUM, 1, 54, 1460, 34, 16)),
            "bad_tcp_header",
        ),
        Case("TCP checksum", frame(ipv4(syn4(checksum="wrong"), 6)), "bad_tcp_checksum"),
        Case("TCP checksum 0", frame(ipv4(syn4(checksum="zero"), 6)), "bad_tcp_checksum"),
        Case("TCP checksum v6", frame(ipv6(syn6(checksum="wrong"), 6)), "bad_tcp_checksum"),
        Case("UDP checksum", frame(ipv4(udp4(checksum="wrong"), 17)), "bad_udp_checksum"),
        Case("UDP checksum v6", frame(ipv6(udp6(checksum="wrong"), 17)), "bad_udp_checksum"),
        Case("UDP without a checksum v6", frame(ipv6(udp6(checksum="zero"), 17)), "bad_udp_checksum"),
        Case("TCP RST to nobody", frame(ipv4(wire.tcp(S4, D4, 1, 2, 3, 4, RST | ACK), 6)), "no_flow"),
    ]  # fmt: skip


CASES = [*runts(), *virtio(), *ethernet(), *internet4(), *internet6(), *messages(), *transport()]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_hostile_frame(play, case):
    play.injects(case.raw)
    assert play.stack.counters() == {case.drop: 1}
    play.no_event()
    assert play.stack.flow_count() == 0
    assert play.stack.buffered() == 0
    if case.answer:
        e = play.error()
        assert Answer(e.type, e.code, e.extra) == case.answer
        assert e.sender in (GATEWAY[4], GATEWAY[6])
        packet = case.raw[wire.VNET_LEN + wire.ETHERNET_LEN :]
        assert packet.startswith(e.quoted)
        assert len(e.quoted) == min(len(packet), 512)
    assert play.came() == 0
    play.establish()  # and the next connection works
    play.child.sends(ACK, text=b"canary")
    play.child.gets(ACK, ack=7)
    play.host.gets(b"canary")


@pytest.mark.parametrize("hdr_len", [0, 14, 54, 2000, 65535])
@pytest.mark.parametrize("gso_size", [1, 8, 1460, 65535])
def test_established_lies_about_lengths_in_the_virtio_header_change_nothing(established, hdr_len, gso_size):
    """A31: headers are found by parsing alone."""
    packet = established.child.packet(ACK, text=bytes(3000), checksum="partial")
    established.injects(frame(packet, head=vnet(NEEDS_CSUM, 1, hdr_len, gso_size, 34, 16)))
    established.child.gets(ACK, ack=3001)
    established.host.gets(bytes(3000))


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(b"\x01" * 40, id="40 NOP"),
        pytest.param(b"\x07\x07\x04" + bytes(5), id="record route"),
        pytest.param(b"\x44\x08\x05\x00" + bytes(4), id="timestamp"),
        pytest.param(b"\x94\x04\x00\x00", id="router alert"),
        pytest.param(b"\x00\xff\xff\xff", id="rubbish behind the end"),
    ],
)
def test_closed_syn_with_harmless_ip_options_opens(play, options):
    play.connect()
    play.sends(ipv4(syn4(), 6, options=options))
    play.question()


@pytest.mark.parametrize("chain", [[0], [60], [0, 60], [60] * 7])
def test_closed_syn_behind_extension_headers_opens(stage, chain):
    play = stage(family=6)
    packet = b"".join(bytes(((*chain[1:], 6)[i], 0, 1, 4, 0, 0, 0, 0)) for i in range(len(chain))) + syn6()
    play.sends(ipv6(packet, chain[0]))
    play.question()


def test_udp_length_shorter_than_the_packet_cuts(play):
    """A19: the UDP length decides."""
    segment = wire.with_checksum(udp4(b"abcdef", length=11)[:11], 6, S4, D4, wire.UDP)
    play.sends(ipv4(segment + b"JUNK", 17))
    play.question()
    assert play.stack.buffered() == 3


def test_many_bad_frames_are_each_counted_once(play):
    for case in CASES:
        play._tap.send(case.raw)
    play.rest()
    assert sum(play.stack.counters().values()) == len(CASES)
    assert play.came() == sum(1 for c in CASES if c.answer)
    assert play.stack.flow_count() == 0
    play.no_event()


def test_tap_gone_is_said_once_and_stops(play):
    """The other end of the TAP is closed: nothing spins, the stack says so."""
    play._tap.close()
    assert play.stack.turn(play.clock.now_us) is False
    assert play.stack.tap_gone
    assert play.stack.turn(play.clock.now_us) is False


def test_flow_table_full_refuses_the_new_flow_only(stage):
    play = stage(limits=Limits(max_flows=3))
    for port in (1, 2, 3):
        play.establish(port)
    first = play.child
    play.connect(4).opens()
    play.child.gets(RST | ACK, ack=1)
    play.sends(ipv4(udp4(), 17))
    assert play.error().code == 13
    assert play.stack.counters() == {"flow_table_full": 2}
    first.sends(ACK, text=b"fine")
    first.gets(ACK, ack=5)
    first.sends(RST)
    play.forgets_events()
    play.establish(4)


def test_no_descriptor_refuses_the_new_flow_only(play):
    """B34: at the limit of descriptors a new flow is refused and counted, an old one goes on, and it passes."""
    play.establish()
    old, old_host = play.child, play.host
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    play.connect(2, remote=wire.LOOPBACK[4]).opens()
    flow = play.question().flow
    play.sends(ipv4(udp4(), 17))
    datagram = play.question().flow
    resource.setrlimit(resource.RLIMIT_NOFILE, (4, hard))
    try:
        play.stack.allow(flow)
        play.stack.allow(datagram)
        play.rest()
        old.sends(ACK, text=b"on")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    play.child.gets(RST | ACK)
    assert play.error().code == 13
    assert play.stack.counters() == {"no_descriptor": 2}
    old.gets(ACK, ack=3)
    old_host.gets(b"on")
    play.forgets_events()
    play.sends(ipv4(udp4(), 17))
    play.allow()
    play.errors.clear()
    assert play.stack.flow_count() == 2


def test_no_socket_left_refuses_the_new_flow_only(stage):
    """A stack's own limit of host sockets, half of it for UDP, does what the kernel's limit of descriptors does."""
    play = stage(limits=Limits(max_sockets=2))
    play.establish(1)
    old, old_host = play.child, play.host
    for port, code in ((10, 0), (11, 13)):  # no route; prohibited
        play.sends(ipv4(wire.udp(S4, D4, port, 99, b"x"), 17))
        play.allow()
        play.forgets_events()
        assert play.error().code == code
    play.connect(2, remote=wire.LOOPBACK[4]).opens()
    play.allow()
    play.child.gets(RST | ACK)
    assert play.stack.counters() == {"host_send_failed": 1, "no_descriptor": 2}
    old.sends(ACK, text=b"on")
    old.gets(ACK, ack=3)
    old_host.gets(b"on")
    old.sends(RST)
    play.forgets_events()
    play.clock.advance(ms=200_000)
    play.forgets_events()
    play.establish(3)


def test_udp_peers_leave_room_for_tcp(stage):
    play = stage(limits=Limits(max_flows=10))
    for port in range(1, 9):
        play.sends(ipv4(wire.udp(S4, D4, port, 99, b"x"), 17))
    assert play.stack.counters() == {"flow_table_full": 3}
    assert play.stack.flow_count() == 5
    assert len(play.errors) == 3
    play.errors.clear()
    play.forgets_events()
    play.establish(1)
