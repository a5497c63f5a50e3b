"""Packets: the few IP and ICMP headers that Python reads and writes, with plain `struct`.

Why not dpkt here: it costs 41 ms to import, which a first ping would show, and 30 µs a packet, which a datagram of 45
fragments would multiply. What comes from the stack has been checked by its parser (lengths, checksums, source).

Invariants: every function takes and gives whole IP packets; checksums that are written are complete.
Not here:   Ethernet (the stack adds it; `neighbours.py` for ARP).
"""

from __future__ import annotations

import struct

IP4_BYTES = 20
IP6_BYTES = 40
ICMP4 = 1
ICMP6 = 58
TTL = 64

_IP4 = struct.Struct("!BBHHHBBH4s4s")
_IP6 = struct.Struct("!IHBB16s16s")
_ICMP = struct.Struct("!BBHI")

ECHO_REQUEST4, ECHO_REPLY4 = 8, 0
ECHO_REQUEST6, ECHO_REPLY6 = 128, 129
UNREACHABLE4, TIME_EXCEEDED4 = 3, 11
UNREACHABLE6, TOO_BIG6, TIME_EXCEEDED6, PARAMETER6 = 1, 2, 3, 4
PROHIBITED4, PROHIBITED6 = 13, 1
FRAGMENTATION_NEEDED = 4

QUOTE4 = 576 - IP4_BYTES - 8  # RFC 1812 4.3.2.3
QUOTE6 = 1280 - IP6_BYTES - 8  # RFC 4443 2.4 (c)


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071) of `data` as it stands in a header read as a big-endian number."""
    if len(data) & 1:
        data += b"\0"
    number = int.from_bytes(data, "big")
    total = number % 0xFFFF  # the ones' complement sum, for 2**16 is 1 modulo 2**16 - 1
    return 0xFFFF - total if total or not number else 0


def ip4(protocol: int, source: bytes, to: bytes, payload: bytes, ttl: int = TTL, ident: int = 0) -> bytes:
    """An IPv4 packet without options."""
    head = _IP4.pack(0x45, 0, IP4_BYTES + len(payload), ident, 0, ttl, protocol, 0, source, to)
    return head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + payload


def ip6(next_header: int, source: bytes, to: bytes, payload: bytes, hop_limit: int = TTL) -> bytes:
    """An IPv6 packet without extension headers."""
    return _IP6.pack(0x60000000, len(payload), next_header, hop_limit, source, to) + payload


def icmp6_with_checksum(source: bytes, to: bytes, message: bytes) -> bytes:
    """`message` (its checksum field zero) with the checksum over the pseudo-header (RFC 4443 2.3)."""
    pseudo = source + to + struct.pack("!II", len(message), ICMP6)
    return message[:2] + checksum(pseudo + message).to_bytes(2, "big") + message[4:]


def icmp4_with_checksum(message: bytes) -> bytes:
    """`message` (its checksum field zero) with its checksum."""
    return message[:2] + checksum(message).to_bytes(2, "big") + message[4:]


def icmp_packet(source: bytes, to: bytes, message: bytes, ttl: int = TTL) -> bytes:
    """An IP packet of `source`'s family that carries the ICMP `message`, whose checksum field is zero."""
    if len(source) == 4:
        return ip4(ICMP4, source, to, icmp4_with_checksum(message), ttl)
    return ip6(ICMP6, source, to, icmp6_with_checksum(source, to, message), ttl)


def icmp_error(source: bytes, to: bytes, kind: int, code: int, quoted: bytes, rest: int = 0) -> bytes:
    """An ICMP error of `source`'s family to `to`, quoting what is allowed of `quoted`; `rest` ends the header."""
    limit = QUOTE4 if len(source) == 4 else QUOTE6
    return icmp_packet(source, to, _ICMP.pack(kind, code, 0, rest) + quoted[:limit])


TCP, UDP = 6, 17


def ends_of(packet: bytes) -> tuple[int, bytes, int] | None:
    """Protocol, destination address and port (0 where there is none) of an IP packet's head; None when it is too short.

    Extension headers are not followed: the protocol is then theirs.
    """
    if len(packet) >= IP4_BYTES and packet[0] >> 4 == 4:
        protocol, remote, rest = packet[9], packet[16:20], packet[(packet[0] & 15) * 4 :]
    elif len(packet) >= IP6_BYTES and packet[0] >> 4 == 6:
        protocol, remote, rest = packet[6], packet[24:40], packet[IP6_BYTES:]
    else:
        return None
    port = rest[2] << 8 | rest[3] if protocol in (TCP, UDP) and len(rest) >= 4 else 0
    return protocol, remote, port
