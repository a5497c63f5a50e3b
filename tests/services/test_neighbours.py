"""ARP and neighbour discovery: who is answered, and what is dropped."""

from __future__ import annotations

import struct

import dpkt
import pytest

from childflow.services import packets
from childflow.services.neighbours import BAD_ARP, BAD_ND, IGNORED, answer_arp, answer_nd
from childflow.services.packets import icmp6_with_checksum
from childflow.settings import ADDRESSES as LINK
from tests.services.play import plain_checksum

BROADCAST = b"\xff" * 6
SNM = bytes.fromhex("ff0200000000000000000001ff000001")


def arp(op: int = 1, spa: bytes = LINK.child4, tpa: bytes = LINK.gateway4, head: bytes = b"\0\1\x08\0\6\4") -> bytes:
    body = head + op.to_bytes(2, "big") + LINK.child_mac + spa + bytes(6) + tpa
    return BROADCAST + LINK.child_mac + b"\x08\x06" + body


@pytest.mark.case("C19")
def test_arp_request_for_the_gateway() -> None:
    frame = answer_arp(arp(), LINK).frame
    assert frame is not None
    reply = dpkt.ethernet.Ethernet(frame)
    assert (reply.dst, reply.src, reply.arp.op) == (LINK.child_mac, LINK.gateway_mac, 2)
    assert (reply.arp.sha, reply.arp.spa, reply.arp.tha, reply.arp.tpa) == (
        LINK.gateway_mac, LINK.gateway4, LINK.child_mac, LINK.child4,
    )  # fmt: skip


IGNORED_ARP = {
    "probe": arp(spa=bytes(4)),
    "probe for the own address": arp(spa=bytes(4), tpa=LINK.child4),
    "gratuitous": arp(tpa=LINK.child4),
    "another host": arp(tpa=bytes((192, 0, 0, 3))),
    "a reply": arp(op=2),
    "another sender": arp(spa=bytes((192, 0, 0, 4))),
    "reverse": arp(op=3),
}


@pytest.mark.parametrize("what", IGNORED_ARP)
@pytest.mark.case("C19")
def test_arp_that_is_passed_over(what: str) -> None:
    assert answer_arp(IGNORED_ARP[what], LINK) == IGNORED


@pytest.mark.parametrize(
    "frame", [arp()[:14], arp()[:41], arp(head=b"\0\2\x08\0\6\4"), arp(head=b"\0\1\x08\0\6\x10"), b""]
)
@pytest.mark.case("C19")
def test_arp_that_is_malformed(frame: bytes) -> None:
    assert answer_arp(frame, LINK) == BAD_ARP


OWN_MAC = b"\1\1" + LINK.child_mac


def solicitation(
    target: bytes = LINK.gateway6, options: bytes = OWN_MAC, source: bytes = LINK.child6, to: bytes = SNM,
    hop: int = 255, code: int = 0, kind: int = 135,
) -> bytes:  # fmt: skip
    body = icmp6_with_checksum(source, to, bytes((kind, code)) + bytes(6) + target + options)
    return struct.pack("!IHBB16s16s", 6 << 28, len(body), 58, hop, source, to) + body


def test_solicitation_for_the_gateway() -> None:
    packet = answer_nd(solicitation(), LINK).packet
    assert packet is not None
    ip = dpkt.ip6.IP6(packet)
    assert (ip.src, ip.dst, ip.hlim, ip.nxt) == (LINK.gateway6, LINK.child6, 255, 58)
    body = packet[40:]
    assert (body[0], body[1], body[4]) == (136, 0, 0xE0)
    assert body[8:] == LINK.gateway6 + b"\2\1" + LINK.gateway_mac
    assert plain_checksum(ip.src + ip.dst + struct.pack("!II", len(body), 58) + body) == 0


@pytest.mark.case("A18")
def test_solicitation_from_a_link_local_address() -> None:
    """What a kernel uses where it has no other yet; the answer goes back to it, on this link."""
    source = bytes.fromhex("fe80" + "00" * 13 + "02")
    packet = answer_nd(solicitation(source=source), LINK).packet
    assert packet is not None
    assert packet[24:40] == source


BAD_SOLICITATIONS = {
    "hop limit": solicitation(hop=254),
    "code": solicitation(code=1),
    "target multicast": solicitation(target=SNM),
    "option length 0": solicitation(options=b"\1\0" + bytes(6)),
    "option past the end": solicitation(options=b"\1\2" + bytes(6)),
    "option cut": solicitation(options=OWN_MAC + b"\1"),
    "link address of 254 bytes": solicitation(options=b"\1\x20" + bytes(254)),
    "link address without a source": solicitation(source=bytes(16)),
    "no source, not to the solicited node": solicitation(source=bytes(16), options=b"", to=LINK.gateway6),
    "somebody else's address": solicitation(source=bytes.fromhex("20010db8" + "00" * 11 + "07")),
    "the gateway's own address": solicitation(source=LINK.gateway6),
    "a group's address": solicitation(source=SNM),
    "IPv4-mapped": solicitation(source=bytes(10) + b"\xff\xff" + LINK.child4),
    "short target": solicitation(target=bytes(8), options=b""),
    "bad checksum": solicitation()[:-1] + b"\0",
    "cut": solicitation()[:45],
    "router advertisement": solicitation(kind=134),
    "neighbour advertisement": solicitation(kind=136),
    "redirect": solicitation(kind=137),
    "behind a fragment header and options": packets.ip6(44, LINK.child6, SNM, bytes(16) + solicitation()[40:], 255),
    "behind a header of options": packets.ip6(0, LINK.child6, SNM, b"\x3a\0\1\4\0\0\0\0" + solicitation()[40:], 255),
    "empty": b"",
}


@pytest.mark.parametrize("what", BAD_SOLICITATIONS)
@pytest.mark.case("A18", "A28", "C17")
def test_nd_that_is_malformed(what: str) -> None:
    assert answer_nd(BAD_SOLICITATIONS[what], LINK) == BAD_ND


IGNORED_ND = {
    "duplicate address detection": solicitation(target=LINK.child6, source=bytes(16), options=b""),
    "another host": solicitation(target=LINK.child6),
    "router solicitation": solicitation(kind=133),
}


@pytest.mark.parametrize("what", IGNORED_ND)
@pytest.mark.case("A28", "C28")
def test_nd_that_is_passed_over(what: str) -> None:
    assert answer_nd(IGNORED_ND[what], LINK) == IGNORED
