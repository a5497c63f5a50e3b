"""Frames that no honest kernel sends: each is counted under one name, gets at most one answer, and opens nothing.

One function for each case of the catalogue's group A, in the order of the headers: virtio, Ethernet, IPv4, IPv6, ICMP,
TCP, UDP. What must hold around every frame is in `oracles.py`. The same list goes through a real kernel in
`tests/integration/test_injected_frames.py`."""

from __future__ import annotations

import resource
import socket
import struct
from collections.abc import Callable
from typing import NamedTuple

import pytest

from childflow.netstack.stack import Limits
from childflow.settings import ADDRESSES

from . import wire
from .oracles import flat
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
    (192, 0, 0, 7),
)  # fmt: skip
SPOOFED6 = (
    "00" * 16,
    "00" * 15 + "01",
    D6.hex(),
    GATEWAY[6].hex(),
    "fe80" + "00" * 13 + "02",
    "ff02" + "00" * 13 + "01",
    "00" * 10 + "ffff" + S4.hex(),
)
GROUPS4 = {
    "all hosts": (224, 0, 0, 1),
    "IGMPv3": (224, 0, 0, 22),
    "mDNS": (224, 0, 0, 251),
    "LLMNR": (224, 0, 0, 252),
    "SSDP": (239, 255, 255, 250),
    "broadcast": (255, 255, 255, 255),
    "broadcast of the link": (192, 0, 0, 7),
}
GROUPS6 = {"all nodes": "01", "all routers": "02", "MLDv2": "16", "mDNS": "fb"}
PAD = bytes((1, 4, 0, 0, 0, 0))

SYN4, SYN6 = ipv4(syn4(), wire.TCP), ipv6(syn6(), wire.TCP)


def group6(last: str) -> bytes:
    return bytes.fromhex("ff02" + "00" * 13 + last)


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


def a01() -> list[Case]:
    """Runts, down to a read that cuts the virtio header."""
    cases = []
    for family, packet in ((4, SYN4), (6, SYN6)):
        whole = frame(packet)
        cases += [Case(f"IPv{family} frame of {n}", whole[: 10 + n], "short_frame") for n in range(14)]
        cases += [Case(f"IPv{family} frame of {n}", whole[: 10 + n], "bad_ip_header") for n in (14, 15, 16, 33, 34, 53)]
    return cases + [Case(f"read of {n}", frame(SYN4)[:n], "short_frame") for n in (1, 9)]


def a02() -> list[Case]:
    cases = [Case(f"IPv4 IHL {n}", frame(ipv4(syn4(), 6, ihl=n)), "bad_ip_header") for n in range(5)]
    cut = ipv4(b"", 6, ihl=15, total=20)
    return [
        *cases,
        Case("IPv4 IHL 15 on 20 bytes", frame(cut), "bad_ip_header"),
        Case("IPv4 IHL 15, longer than total", frame(ipv4(syn4() + bytes(40), 6, ihl=15, total=40)), "bad_ip_header"),
    ]


def a03() -> list[Case]:
    tcp = syn4()
    cases = [Case(f"IPv4 total {n}", frame(ipv4(tcp, 6, total=n)), "bad_ip_header") for n in (0, 19, 40 + 1, 65535)]
    return cases + [Case(f"IPv4 total {n}", frame(ipv4(tcp, 6, total=n)), "bad_tcp_header") for n in range(20, 40)]


def a04() -> list[Case]:
    cases = [
        Case(f"IPv4 version {n}", frame(ipv4(syn4(), 6, version=n), kind=wire.IPV4), "bad_ip_header")
        for n in (0, 5, 6, 15)
    ]
    cases += [
        Case(f"IPv6 version {n}", frame(ipv6(syn6(), 6, version=n), kind=wire.IPV6), "bad_ip_header")
        for n in (0, 4, 5, 15)
    ]
    for kind in (0x0000, 0x0001, 0x05FF, 0x0600, 0x88CC, 0xFFFF):
        cases.append(Case(f"ethertype {kind:04x}", frame(SYN4, kind=kind), "bad_ethertype"))
    return [
        *cases,
        Case("IPv4 with IPv6's ethertype", frame(SYN4 + bytes(20), kind=wire.IPV6), "bad_ip_header"),
        Case("IPv6 with IPv4's ethertype", frame(SYN6, kind=wire.IPV4), "bad_ip_header"),
        Case("for another machine", frame(SYN4, to=bytes.fromhex("020000000099")), "wrong_mac"),
        Case("for the child itself", frame(SYN4, to=ADDRESSES.child_mac), "wrong_mac"),
    ]


def a05() -> list[Case]:
    """Tags are never parsed."""
    large = ipv4(syn4(text=bytes(4000), checksum="partial"), 6)
    head = vnet(NEEDS_CSUM, 1, 58, 1460, 38, 16)
    return [
        Case("VLAN tag", frame(struct.pack("!HH", 5, 0x0800) + SYN4, kind=0x8100), "bad_ethertype"),
        Case("priority tag", frame(struct.pack("!HH", 0, 0x0800) + SYN4, kind=0x8100), "bad_ethertype"),
        Case("QinQ", frame(struct.pack("!HHHH", 5, 0x8100, 5, 0x0800) + SYN4, kind=0x88A8), "bad_ethertype"),
        Case("VLAN with gso", frame(struct.pack("!HH", 5, 0x0800) + large, kind=0x8100, head=head), "bad_ethertype"),
        Case("VLAN cut", frame(b"", kind=0x8100), "bad_ethertype"),
    ]


def a07() -> list[Case]:
    """Every bit of the IPv4 checksum; the transport's, where no partial checksum is claimed."""
    right = struct.unpack_from("!H", SYN4, 10)[0]
    cases = [
        Case(f"IPv4 checksum, bit {n}", frame(ipv4(syn4(), 6, checksum=right ^ 1 << n)), "bad_ip_checksum")
        for n in range(16)
    ]
    echo4, echo6 = wire.icmp(8, 0, bytes(8)), wire.icmp(128, 0, bytes(8), src=S6, dst=D6)
    return [
        *cases,
        Case("TCP checksum", frame(ipv4(syn4(checksum="wrong"), 6)), "bad_tcp_checksum"),
        Case("TCP checksum 0", frame(ipv4(syn4(checksum="zero"), 6)), "bad_tcp_checksum"),
        Case("TCP checksum v6", frame(ipv6(syn6(checksum="wrong"), 6)), "bad_tcp_checksum"),
        Case("TCP partial without the flag", frame(ipv4(syn4(checksum="partial"), 6)), "bad_tcp_checksum"),
        Case("UDP checksum", frame(ipv4(udp4(checksum="wrong"), 17)), "bad_udp_checksum"),
        Case("UDP checksum v6", frame(ipv6(udp6(checksum="wrong"), 17)), "bad_udp_checksum"),
        Case("ICMP checksum", frame(ipv4(echo4[:2] + b"\x12\x34" + echo4[4:], 1)), "bad_icmp"),
        Case("ICMPv6 checksum", frame(ipv6(echo6[:2] + b"\x12\x34" + echo6[4:], 58)), "bad_icmp"),
        Case("ICMPv6 without the pseudo-header", frame(ipv6(wire.icmp(128, 0, bytes(8)), 58)), "bad_icmp"),
    ]


def a08() -> list[Case]:
    bad = {
        "07 00": b"\x07\0\0\0",
        "44 01": b"\x44\x01\0\0",
        "83 28": b"\x83\x28\0\0",
        "cut": b"\x01\x01\x01\x07",
        "past the header": b"\x07\x0b\x04" + bytes(5),
    }
    cases = [Case(f"IPv4 option {k}", frame(ipv4(syn4(), 6, options=v)), "bad_ip_options") for k, v in bad.items()]
    for name, kind in (("LSRR", 0x83), ("SSRR", 0x89)):
        route = bytes((kind, 7, 4, 10, 0, 0, 1, 0))
        cases.append(Case(f"IPv4 {name}", frame(ipv4(syn4(), 6, options=route)), "source_route"))
        cases.append(Case(f"IPv4 {name} behind NOP", frame(ipv4(syn4(), 6, options=b"\1" + route[:7])), "source_route"))
    return cases


def a09() -> list[Case]:
    """Protocols that are not carried; what is inside is nobody's."""
    inner = ipv4(syn4(), 6, dst=bytes((10, 0, 0, 1)))
    cases = []
    for protocol in (0, 2, 4, 41, 47, 50, 51, 58, 132, 255):
        cases.append(Case(f"IPv4 protocol {protocol}", frame(ipv4(inner, protocol)), "unknown_protocol", Answer(3, 2)))
    for protocol in (1, 4, 41, 47, 50, 51, 59, 132, 255):
        answer = Answer(4, 1, 6)
        cases.append(Case(f"IPv6 next header {protocol}", frame(ipv6(SYN6, protocol)), "unknown_protocol", answer))
    for chain, at in (([60], 40), ([0, 60], 48)):
        headers = b"".join(bytes((kind, 0)) + PAD for kind in (*chain[1:], 99))
        answer = Answer(4, 1, at)  # the number that is not known, behind its headers
        cases.append(Case(f"IPv6 next header at {at}", frame(ipv6(headers, chain[0])), "unknown_protocol", answer))
    return cases


def a10() -> list[Case]:
    large = syn4(doff=15, checksum="partial")
    head = vnet(NEEDS_CSUM, 1, 54, 1460, 34, 16)
    cases = [Case(f"TCP doff {n}", frame(ipv4(syn4(doff=n), 6)), "bad_tcp_header") for n in range(5)]
    cases += [Case(f"TCP of {n} bytes", frame(ipv4(syn4()[:n], 6)), "bad_tcp_header") for n in range(20)]
    cases += [Case(f"TCP of {n} bytes v6", frame(ipv6(syn6()[:n], 6)), "bad_tcp_header") for n in (1, 13, 19)]
    return [
        *cases,
        Case("TCP doff 15 on 20 bytes", frame(ipv4(syn4(doff=15), 6)), "bad_tcp_header"),
        Case("TCP doff 15 with gso", frame(ipv4(large, 6), head=head), "bad_tcp_header"),
    ]


def a16() -> list[Case]:
    stray = wire.tcp(S4, D4, 1, 2, 3, 4, RST | ACK)
    return [
        Case("TCP RST to nobody", frame(ipv4(stray, 6)), "no_flow"),
        Case("TCP SYN and FIN", frame(ipv4(wire.tcp(S4, D4, 1, 2, 3, 0, SYN | wire.FIN), 6)), "no_flow"),
        Case("TCP SYN and RST", frame(ipv4(wire.tcp(S4, D4, 1, 2, 3, 0, SYN | RST), 6)), "no_flow"),
    ]


def a18() -> list[Case]:
    """Whose source is not the child's own address is served nothing; nor is who sends to itself."""
    tcp4, tcp6 = syn4(), syn6()
    cases = []
    for src4 in map(bytes, SPOOFED4):
        name = socket.inet_ntop(socket.AF_INET, src4)
        cases.append(Case(f"from {name}", frame(ipv4(tcp4, 6, src=src4)), "spoofed_source"))
        cases.append(Case(f"echo from {name}", frame(ipv4(wire.icmp(8, 0, bytes(4)), 1, src=src4)), "spoofed_source"))
        cases.append(Case(f"unknown from {name}", frame(ipv4(tcp4, 99, src=src4)), "spoofed_source"))
    for src6 in map(bytes.fromhex, SPOOFED6):
        name = socket.inet_ntop(socket.AF_INET6, src6)
        cases.append(Case(f"from {name}", frame(ipv6(tcp6, 6, src=src6)), "spoofed_source"))
        echo = wire.icmp(128, 0, bytes(4), src=src6, dst=D6)
        cases.append(Case(f"echo from {name}", frame(ipv6(echo, 58, src=src6)), "spoofed_source"))
    land4 = wire.tcp(S4, S4, 80, 80, 1, 0, SYN)
    land6 = wire.tcp(S6, S6, 80, 80, 1, 0, SYN)
    return [
        *cases,
        Case("LAND", frame(ipv4(land4, 6, dst=S4)), "spoofed_source"),
        Case("LAND v6", frame(ipv6(land6, 6, dst=S6)), "spoofed_source"),
        Case("LAND of another", frame(ipv4(tcp4, 6, src=D4, dst=D4)), "spoofed_source"),
        Case("spoofed fragment", frame(ipv4(tcp4, 6, src=D4, fragment=0x2000)), "spoofed_source"),
    ]


def a19() -> list[Case]:
    cases = [Case(f"UDP length {n}", frame(ipv4(udp4(length=n), 17)), "bad_udp_header") for n in (0, 7, 12, 65535)]
    cases += [Case(f"UDP length {n} v6", frame(ipv6(udp6(length=n), 17)), "bad_udp_header") for n in (0, 7, 12, 65535)]
    return cases + [Case(f"UDP of {n} bytes", frame(ipv4(udp4()[:n], 17)), "bad_udp_header") for n in range(8)]


def a20() -> list[Case]:
    """Errors are the gateway's to send, not the child's: whatever is inside is not looked at."""
    echo6 = wire.icmp(128, 0, bytes(4), src=S6, dst=D6)
    cases = [Case(f"ICMP of {n} bytes", frame(ipv4(wire.icmp(8, 0, bytes(4))[:n], 1)), "bad_icmp") for n in range(8)]
    cases += [Case(f"ICMPv6 of {n} bytes", frame(ipv6(echo6[:n], 58)), "bad_icmp") for n in range(1, 8)]
    quotes4 = {"": ipv4(syn4(), 6), " cut": SYN4[:19], " nothing": b"", " IHL 15": ipv4(syn4(), 6, ihl=15)}
    for kind in (3, 11, 12):
        for what, quote in quotes4.items():
            message = wire.icmp(kind, 0, bytes(4) + quote)
            cases.append(Case(f"ICMP error {kind}{what}", frame(ipv4(message, 1)), "icmp_ignored"))
    for kind in (1, 2, 3, 4):
        for what, quote in {"": SYN6, " cut": SYN6[:39], " nothing": b""}.items():
            message = wire.icmp(kind, 0, bytes(4) + quote, src=S6, dst=D6)
            cases.append(Case(f"ICMPv6 error {kind}{what}", frame(ipv6(message, 58)), "icmp_ignored"))
    return [*cases, Case("ICMP echo of another code", frame(ipv4(wire.icmp(8, 1, bytes(8)), 1)), "icmp_ignored")]


def a25() -> list[Case]:
    tcp = syn6()
    cases = [Case(f"IPv6 payload length {n}", frame(ipv6(tcp, 6, length=n)), "bad_ip_header") for n in (0, 21, 65535)]
    cases += [Case(f"IPv6 payload length {n}", frame(ipv6(tcp, 6, length=n)), "bad_tcp_header") for n in (1, 19)]
    jumbo = bytes((6, 0)) + bytes.fromhex("c204000186a0")
    extensions = {
        "options header cut": (ipv6(bytes((6, 0, 1)), 0), "bad_extension_header"),
        "options header past the packet": (ipv6(bytes((6, 200)) + bytes(30), 0), "bad_extension_header"),
        "option past the header": (ipv6(bytes((6, 0, 5, 9)) + bytes(4) + tcp, 60), "bad_extension_header"),
        "jumbogram": (ipv6(jumbo + tcp, 0), "bad_extension_header"),
        "jumbogram of length 0": (ipv6(jumbo + tcp, 0, length=0), "bad_ip_header"),
        "routing header": (ipv6(bytes((6, 2, 0, 1)) + bytes(20) + tcp, 43), "source_route"),
        "fragment header cut": (ipv6(bytes((6, 0, 0, 1)), 44), "bad_extension_header"),
        "nine option headers": (ipv6((bytes((60, 0)) + PAD) * 9 + tcp, 60), "bad_extension_header"),
        "TCP header behind options is cut": (ipv6(bytes((6, 0)) + PAD + tcp[:10], 0), "bad_tcp_header"),
    }
    cases += [Case(f"IPv6 {k}", frame(packet), why) for k, (packet, why) in extensions.items()]
    return [
        *cases,
        Case("IPv6 hop limit 1", frame(ipv6(tcp, 6, hop_limit=1)), "hop_limit", Answer(3, 0)),
        Case("IPv6 hop limit 0", frame(ipv6(tcp, 6, hop_limit=0)), "hop_limit", Answer(3, 0)),
        Case("IPv4 hop limit 1", frame(ipv4(syn4(), 6, hop_limit=1)), "hop_limit", Answer(11, 0)),
        Case("IPv4 hop limit 0", frame(ipv4(syn4(), 6, hop_limit=0)), "hop_limit", Answer(11, 0)),
    ]


def a32() -> list[Case]:
    """A partial checksum counts only at the place where the parse finds it."""
    part4, part6 = ipv4(syn4(checksum="partial"), wire.TCP), ipv6(syn6(checksum="partial"), wire.TCP)
    cases = [
        Case(f"partial at {at}+{field}", frame(part4, head=vnet(NEEDS_CSUM, start=at, offset=field)), "bad_vnet_header")
        for at, field in PARTIAL_ELSEWHERE
    ]  # fmt: skip
    udp, elsewhere = ipv4(udp4(), 17), vnet(NEEDS_CSUM, start=34, offset=16)
    return [
        *cases,
        Case("partial at the frame's end", frame(part4, head=vnet(NEEDS_CSUM, start=53)), "bad_vnet_header"),
        Case("partial of IPv6 at IPv4's place", frame(part6, head=elsewhere), "bad_vnet_header"),
        Case("partial of UDP at TCP's place", frame(udp, head=elsewhere), "bad_vnet_header"),
        Case("gso without a partial checksum", frame(SYN4, head=vnet(0, 1, 54, 1460)), "bad_vnet_header"),
    ]


def a34() -> list[Case]:
    """UDP segmentation (5) is not offered, so a frame that claims it is a lie, as any other type that is not TCP's."""
    part4 = ipv4(syn4(checksum="partial"), wire.TCP)
    cases = [
        Case(f"gso type {gso}", frame(part4, head=vnet(NEEDS_CSUM, gso, 54, 1460, 34, 16)), "bad_vnet_header")
        for gso in (2, 3, 5, 6, 127, 133, 255)
    ]
    for length in (0, 8, 4008, 65535):
        datagram = ipv4(udp4(bytes(4000), length=length, checksum="partial"), 17)
        head = vnet(NEEDS_CSUM, 5, 42, 1400, 34, 6)
        cases.append(Case(f"UDP segmentation of length {length}", frame(datagram, head=head), "bad_vnet_header"))
    return cases


def c02() -> list[Case]:
    return [Case("UDP without a checksum v6", frame(ipv6(udp6(checksum="zero"), 17)), "bad_udp_checksum")]


def c17() -> list[Case]:
    """What only routers and far hosts say: redirect, mask, timestamp, source quench, advertisements."""
    cases = [
        Case(f"ICMP type {n}", frame(ipv4(wire.icmp(n, 0, bytes(4) + SYN4), 1)), "icmp_ignored")
        for n in (0, 4, 5, 9, 10, 13, 14, 15, 17, 18, 255)
    ]
    for n in (129, 130, 138, 143, 255):
        message = wire.icmp(n, 0, bytes(4) + SYN6, src=S6, dst=D6)
        cases.append(Case(f"ICMPv6 type {n}", frame(ipv6(message, 58)), "icmp_ignored"))
    return cases


def c20() -> list[Case]:
    """Groups and broadcasts get silence."""
    cases = []
    for name, address in GROUPS4.items():
        dst = bytes(address)
        mac = b"\xff" * 6 if dst[0] != 224 else bytes((1, 0, 0x5E, dst[1] & 127, dst[2], dst[3]))
        for port in (53, 67, 1900, 5353, 5355):
            datagram = wire.udp(S4, dst, port, port, b"who")
            cases.append(Case(f"{name} port {port}", frame(ipv4(datagram, 17, dst=dst), to=mac), "multicast"))
        cases.append(Case(f"{name} echo", frame(ipv4(wire.icmp(8, 0, bytes(8)), 1, dst=dst), to=mac), "multicast"))
        cases.append(Case(f"{name} TCP", frame(ipv4(syn4(), 6, dst=dst), to=mac), "multicast"))
    for name, mac in {"broadcast": b"\xff" * 6, "group": bytes.fromhex("01005e0000fb")}.items():
        for what, packet in {"SYN": SYN4, "unknown": ipv4(SYN4, 47), "hop limit": ipv4(syn4(), 6, hop_limit=1)}.items():
            cases.append(Case(f"{what} to one in a {name} frame", frame(packet, to=mac), "multicast"))
    report = struct.pack("!BBHHH", 0x22, 0, 0, 0, 0)
    report = report[:2] + struct.pack("!H", wire.plain_checksum(report)) + report[4:]
    igmp = ipv4(report, 2, dst=bytes((224, 0, 0, 22)), hop_limit=1, options=b"\x94\x04\0\0")
    everybody6 = bytes.fromhex("333300000001")
    cases.append(Case("IPv6 SYN to one in a group frame", frame(SYN6, to=everybody6), "multicast"))
    cases.append(Case("IGMPv3 report", frame(igmp, to=bytes.fromhex("01005e000016")), "multicast"))
    discover = wire.udp(bytes(4), b"\xff" * 4, 68, 67, bytes(240))
    cases.append(Case("DHCP", frame(ipv4(discover, 17, src=bytes(4), dst=b"\xff" * 4), to=b"\xff" * 6), "multicast"))
    for name, last in GROUPS6.items():
        dst6, mac = group6(last), bytes.fromhex("3333000000" + last)
        for port in (53, 547, 5353, 5355):
            datagram = wire.udp(S6, dst6, port, port, b"who")
            cases.append(Case(f"{name} v6 port {port}", frame(ipv6(datagram, 17, dst=dst6), to=mac), "multicast"))
        echo = wire.icmp(128, 0, bytes(8), src=S6, dst=dst6)
        cases.append(Case(f"{name} v6 echo", frame(ipv6(echo, 58, dst=dst6), to=mac), "multicast"))
    mld = wire.icmp(143, 0, bytes(4), src=bytes(16), dst=group6("16"))
    alert = bytes.fromhex("3a00050200000100") + mld
    packet = ipv6(alert, 0, src=bytes(16), dst=group6("16"), hop_limit=1)
    return [*cases, Case("MLDv2 report", frame(packet, to=bytes.fromhex("333300000016")), "multicast")]


CATALOGUE: tuple[Callable[[], list[Case]], ...] = (
    a01, a02, a03, a04, a05, a07, a08, a09, a10, a16, a18, a19, a20, a25, a32, a34, c02, c17, c20,
)  # fmt: skip
CASES = [case for make in CATALOGUE for case in make()]
MARKED = [
    pytest.param(case, id=f"{make.__name__}-{case.name}", marks=pytest.mark.case(make.__name__.upper()))
    for make in CATALOGUE
    for case in make()
]


@pytest.mark.parametrize("case", MARKED)
def test_hostile_frame(oracle, case):
    oracle.takes(case.raw, drop=case.drop, answers=1 if case.answer else 0)
    if case.answer:
        e = oracle.play.error()
        assert Answer(e.type, e.code, e.extra) == case.answer
        assert e.sender in (GATEWAY[4], GATEWAY[6])
        packet = case.raw[wire.VNET_LEN + wire.ETHERNET_LEN :]
        assert packet.startswith(e.quoted)
        assert len(e.quoted) == min(len(packet), 512)
    assert oracle.play.came() == 0
    oracle.still_sings()
    play = oracle.play
    play.establish()  # and the next connection works
    play.child.sends(ACK, text=b"canary")
    play.child.gets(ACK, ack=7)
    play.host.gets(b"canary")


def test_many_bad_frames_are_each_counted_once(play):
    for case in CASES:
        play._tap.send(case.raw)
    play.rest()
    assert sum(play.stack.counters().values()) == len(CASES)
    assert play.came() == sum(1 for c in CASES if c.answer)
    assert play.stack.flow_count() == 0
    assert len(play.spoofed()) == 1
    play.no_event()


def test_hundred_thousand_bad_frames_leave_nothing_behind(oracle):
    """I3: memory and descriptors are flat; the counters say exactly what came."""
    play, rounds = oracle.play, 100_000 // len(CASES) + 1

    def once() -> None:
        for case in CASES:
            play._tap.send(case.raw)
        play.clock.advance(ms=200)  # the ICMP errors of one round
        play.errors.clear()
        oracle.still_sings()

    once()
    before = play.stack.counters()
    with flat(play):
        for _ in range(rounds):
            once()
    wanted: dict[str, int] = {}
    for case in CASES:
        wanted[case.drop] = wanted.get(case.drop, 0) + rounds
    after = play.stack.counters()
    assert {name: after[name] - before[name] for name in after} == wanted


@pytest.mark.case("A09")
def test_unknown_protocols_are_answered_at_a_bounded_rate(play):
    for _ in range(1500):
        play._tap.send(frame(ipv4(SYN4, 47)))
    play.rest()
    assert len(play.errors) == 1000
    assert play.stack.counters() == {"unknown_protocol": 1500, "icmp_rate": 500}
    play.errors.clear()


@pytest.mark.case("A31", "A30")
@pytest.mark.parametrize("hdr_len", [0, 14, 54, 2000, 3054, 65535])
@pytest.mark.parametrize("gso_size", [0, 1, 8, 1460, 65535])
def test_established_lies_about_lengths_in_the_virtio_header_change_nothing(established, hdr_len, gso_size):
    """A31: headers are found by parsing alone."""
    packet = established.child.packet(ACK, text=bytes(3000), checksum="partial")
    established.injects(frame(packet, head=vnet(NEEDS_CSUM, 1, hdr_len, gso_size, 34, 16)))
    established.child.gets(ACK, ack=3001)
    established.host.gets(bytes(3000))


@pytest.mark.case("A31")
@pytest.mark.parametrize("gso", [0x81, 0x84])
def test_established_ecn_bit_of_the_segmentation_type_is_taken(established, gso):
    packet = established.child.packet(ACK, text=bytes(3000), checksum="partial")
    established.injects(frame(packet, head=vnet(NEEDS_CSUM, gso, 54, 1460, 34, 16)))
    established.child.gets(ACK, ack=3001)
    established.host.gets(bytes(3000))


@pytest.mark.case("A03")
@pytest.mark.parametrize("padding", [6, 1, 20, 1460])
def test_established_padded_ack_delivers_nothing(established, padding):
    """A pure ACK on an Ethernet that pads to 60 bytes: the IP length decides, payload length 0."""
    established.injects(frame(established.child.packet(ACK) + b"P" * padding))
    established.child.gets_nothing()
    established.host.gets_nothing()
    assert established.stack.counters() == {}
    established.child.sends(ACK, text=b"next")
    established.child.gets(ACK, ack=5)
    established.host.gets(b"next")


@pytest.mark.case("A25")
def test_established_padding_behind_ipv6_is_trimmed(stage):
    play = stage(family=6)
    play.establish()
    play.injects(frame(play.child.packet(ACK, text=b"abc") + b"PADDING"))
    play.child.gets(ACK, ack=4)
    play.host.gets(b"abc")
    play.host.gets_nothing()


@pytest.mark.case("A03")
@pytest.mark.parametrize("length", [4000, 60_000])
def test_established_total_length_of_40_on_a_large_frame_carries_nothing(established, length):
    """M1: the kernel passes it. What the IP header does not cover is padding."""
    packet = established.child.packet(ACK, text=bytes(length), checksum="partial")
    head = packet[:2] + struct.pack("!H", 40) + packet[4:10] + bytes(2) + packet[12:20]
    packet = head[:10] + struct.pack("!H", wire.plain_checksum(head)) + head[12:] + packet[20:]
    established.injects(frame(packet, head=vnet(NEEDS_CSUM, 1, 54, 1460, 34, 16)))
    established.child.gets_nothing()
    established.host.gets_nothing()


@pytest.mark.case("A07")
def test_syn_with_any_partial_checksum_opens(stage, family, offload):
    """M16: what a real kernel sends; the transport checksum is only begun, and is not verified."""
    play = stage(family=family, offload=offload)
    start = 34 if family == 4 else 54
    segment = (syn4 if family == 4 else syn6)(checksum="partial", options=wire.mss(65_480))
    packet = wire.ip(segment, wire.TCP, CHILD[family], REMOTE[family])
    play.injects(frame(packet, head=vnet(NEEDS_CSUM, 0, 0, 0, start, 16)))
    play.question()


@pytest.mark.case("A08")
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
def test_closed_syn_with_harmless_ip_options_opens_without_them(play, options):
    """The policy sees the destination alone, and the host's connection has no options."""
    listener = play.owns(socket.create_server(("127.0.0.1", 0)))
    child = play.connect(remote=wire.LOOPBACK[4], remote_port=listener.getsockname()[1])
    packet = child.packet(SYN, seq=0, options=wire.mss(1460))
    play.sends(ipv4(packet[20:], 6, dst=wire.LOOPBACK[4], options=options))
    question = play.question()
    assert question.remote == wire.LOOPBACK[4]
    play.stack.allow(question.flow)
    play.until(lambda: child.inbox)
    far = play.owns(listener.accept()[0])
    assert far.getsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, 40) == b""


@pytest.mark.parametrize("chain", [[0], [60], [0, 60], [60] * 7])
def test_closed_syn_behind_extension_headers_opens(stage, chain):
    play = stage(family=6)
    packet = b"".join(bytes(((*chain[1:], 6)[i], 0, 1, 4, 0, 0, 0, 0)) for i in range(len(chain))) + syn6()
    play.sends(ipv6(packet, chain[0]))
    play.question()


@pytest.mark.case("A19")
def test_udp_length_shorter_than_the_packet_cuts(play):
    """The UDP length decides what the far host gets."""
    far = play.owns(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    far.bind(("127.0.0.1", 0))
    far.settimeout(5)
    to = (S4, wire.LOOPBACK[4], CHILD_PORT, far.getsockname()[1])
    segment = wire.with_checksum(wire.udp(*to, b"abcdef", length=11)[:11], 6, S4, wire.LOOPBACK[4], wire.UDP)
    play.sends(ipv4(segment + b"JUNK", 17, dst=wire.LOOPBACK[4]))
    play.allow()
    assert far.recv(100) == b"abc"


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


@pytest.mark.case("B34")
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
