"""Neighbours: the gateway answers for its own link addresses, with ARP (RFC 826) and neighbour discovery (RFC 4861).

Rare: the child's kernel has permanent entries for the gateway. Only the gateway's addresses are answered for; probes,
gratuitous announcements and questions about anybody else are passed over, so the child's duplicate address detection
sees nobody. Router solicitations get no answer: addresses and routes are static.

Invariants: what is malformed is dropped under a name; no state is kept.
Not here:   the rate limit (the stack's).
"""

from __future__ import annotations

from typing import NamedTuple

import dpkt

from childflow.services import packets
from childflow.settings import Addresses

_SOLICITATION = 135
_ADVERTISEMENT = 136
_ROUTER_SOLICITATION = 133
_SOURCE_LINK_ADDRESS = 1
_TARGET_LINK_ADDRESS = 2
_HOP_LIMIT = 255  # RFC 4861 7.1.1: proof that no router forwarded it
_ROUTER_SOLICITED_OVERRIDE = 0xE0
_UNSPECIFIED6 = bytes(16)


class Answer(NamedTuple):
    """What comes of a neighbour's packet: an Ethernet frame or an IP packet to send, a drop to count, or nothing."""

    frame: bytes | None = None
    packet: bytes | None = None
    drop: str | None = None


IGNORED = Answer()
BAD_ARP = Answer(drop="bad_arp")
BAD_ND = Answer(drop="bad_nd")


def answer_arp(frame: bytes, link: Addresses) -> Answer:
    """The reply to the ARP packet in the Ethernet `frame`."""
    try:
        arp = dpkt.arp.ARP(frame[14:])
    except dpkt.UnpackError:
        return BAD_ARP
    if (arp.hrd, arp.pro, arp.hln, arp.pln) != (1, 0x0800, 6, 4):
        return BAD_ARP
    asks_for_gateway = arp.op == dpkt.arp.ARP_OP_REQUEST and arp.tpa == link.gateway4
    if not asks_for_gateway or arp.spa != link.child4:
        return IGNORED
    reply = dpkt.arp.ARP(
        op=dpkt.arp.ARP_OP_REPLY, sha=link.gateway_mac, spa=link.gateway4, tha=link.child_mac, tpa=link.child4
    )
    return Answer(frame=link.child_mac + link.gateway_mac + b"\x08\x06" + bytes(reply))


def answer_nd(packet: bytes, link: Addresses) -> Answer:
    """The reply to the neighbour discovery message in the IPv6 `packet`."""
    try:
        ip = dpkt.ip6.IP6(packet)
    except dpkt.UnpackError:
        return BAD_ND
    body = packet[packets.IP6_BYTES : packets.IP6_BYTES + ip.plen]
    if ip.nxt != packets.ICMP6 or ip.hlim != _HOP_LIMIT or len(body) < 8 or body[1] != 0:
        return BAD_ND
    if packets.icmp6_with_checksum(ip.src, ip.dst, body[:2] + b"\0\0" + body[4:]) != body:
        return BAD_ND
    if body[0] == _SOLICITATION:
        return _answer_solicitation(ip.src, ip.dst, body, link)
    return IGNORED if body[0] == _ROUTER_SOLICITATION else BAD_ND


def _answer_solicitation(source: bytes, to: bytes, body: bytes, link: Addresses) -> Answer:
    target = body[8:24]
    options = _options(body[24:])
    if len(target) < 16 or options is None or target[0] == 0xFF:
        return BAD_ND
    if _SOURCE_LINK_ADDRESS in options and len(options[_SOURCE_LINK_ADDRESS]) != 6:
        return BAD_ND
    if source == _UNSPECIFIED6:  # a probe for a duplicate: RFC 4861 7.1.1 says what it must look like
        probe = to[:13] == bytes.fromhex("ff0200000000000000000001ff") and _SOURCE_LINK_ADDRESS not in options
        return IGNORED if probe else BAD_ND
    if target != link.gateway6:
        return IGNORED
    if source != link.child6 and (source[0] != 0xFE or source[1] & 0xC0 != 0x80):
        return BAD_ND  # an answer would go to somebody else's address
    return Answer(packet=_advertisement(source, link))


def _options(data: bytes) -> dict[int, bytes] | None:
    """The options by type, without type and length; None where a length is zero or runs past the end."""
    options = {}
    while data:
        if len(data) < 8 or data[1] == 0 or data[1] * 8 > len(data):
            return None
        options[data[0]] = data[2 : data[1] * 8]
        data = data[data[1] * 8 :]
    return options


def _advertisement(to: bytes, link: Addresses) -> bytes:
    head = bytes((_ADVERTISEMENT, 0, 0, 0, _ROUTER_SOLICITED_OVERRIDE, 0, 0, 0))
    message = head + link.gateway6 + bytes((_TARGET_LINK_ADDRESS, 1)) + link.gateway_mac
    return packets.icmp_packet(link.gateway6, to, message, ttl=_HOP_LIMIT)
