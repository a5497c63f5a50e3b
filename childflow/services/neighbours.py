"""Neighbours: the gateway answers for its own link addresses, with ARP (RFC 826) and neighbour discovery (RFC 4861).

Rare: the child's kernel has permanent entries for the gateway. Only the gateway's addresses are answered for; probes,
gratuitous announcements and questions about anybody else are passed over, so the child's duplicate address detection
sees nobody. Router solicitations get no answer: addresses and routes are static.

Why not dpkt here: its import takes 41 ms, which any command could have all other flows wait for with one frame.

Invariants: what is malformed is dropped under a name; no state is kept.
Not here:   the rate limit (the stack's).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from childflow.services import packets
from childflow.settings import Addresses

_ETHERNET_BYTES = 14
_ARP = struct.Struct("!HHBBH6s4s6s4s")  # RFC 826: kinds and lengths of addresses, operation, sender, target
_ETHERNET_AND_IPV4 = [1, 0x0800, 6, 4]
_ARP_REQUEST, _ARP_REPLY = 1, 2

_IP6 = struct.Struct("!xxxxHBB16s16s")
_ND_BYTES = 8  # what every message has
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
    if len(frame) < _ETHERNET_BYTES + _ARP.size:
        return BAD_ARP
    *kinds, operation, _sender_mac, sender, _target_mac, target = _ARP.unpack_from(frame, _ETHERNET_BYTES)
    if kinds != _ETHERNET_AND_IPV4:
        return BAD_ARP
    if operation != _ARP_REQUEST or target != link.gateway4 or sender != link.child4:
        return IGNORED
    ends = (link.gateway_mac, link.gateway4, link.child_mac, link.child4)
    reply = _ARP.pack(*_ETHERNET_AND_IPV4, _ARP_REPLY, *ends)
    return Answer(frame=link.child_mac + link.gateway_mac + b"\x08\x06" + reply)


def answer_nd(packet: bytes, link: Addresses) -> Answer:
    """The reply to the neighbour discovery message in the IPv6 `packet`."""
    if len(packet) < packets.IP6_BYTES + _ND_BYTES or packet[0] >> 4 != 6:
        return BAD_ND
    length, next_header, hop_limit, source, to = _IP6.unpack_from(packet)
    body = packet[packets.IP6_BYTES : packets.IP6_BYTES + length]
    if next_header != packets.ICMP6 or hop_limit != _HOP_LIMIT or len(body) < _ND_BYTES or body[1] != 0:
        return BAD_ND
    if packets.icmp6_with_checksum(source, to, body[:2] + b"\0\0" + body[4:]) != body:
        return BAD_ND
    if body[0] == _SOLICITATION:
        return _answer_solicitation(source, to, body, link)
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
