"""Frames as a child's kernel, or a hostile child, writes them, and checked views of what the stack sends back.

What goes up is built here with plain `struct`, so that any field can be wrong; what comes down is parsed by dpkt, and
`view` refuses a frame that a kernel would not take: a wrong MAC, length, checksum or virtio header fails the test that
caused it. A packet for the stack is: 10 bytes of virtio header, Ethernet, IP, transport.

Not here: who says what when (`play.py`).
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import dpkt

from childflow.settings import ADDRESSES

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = 1, 2, 4, 8, 16, 32, 64, 128
TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
IPV4, ARP, IPV6 = 0x0800, 0x0806, 0x86DD
NEEDS_CSUM = 1
GSO_TCPV4, GSO_TCPV6 = 1, 4
ETHERNET_LEN, VNET_LEN = 14, 10

CHILD = {4: ADDRESSES.child4, 6: ADDRESSES.child6}
GATEWAY = {4: ADDRESSES.gateway4, 6: ADDRESSES.gateway6}
REMOTE = {4: bytes((203, 0, 113, 5)), 6: bytes.fromhex("20010db8000000000000000000000005")}
LOOPBACK = {4: bytes((127, 0, 0, 1)), 6: bytes(15) + b"\x01"}


# --- the plain reference ------------------------------------------------------------------------------------------


def plain_sum(data: bytes) -> int:
    """RFC 1071, one 16-bit word after the other; not inverted."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def plain_checksum(data: bytes) -> int:
    return plain_sum(data) ^ 0xFFFF


def pseudo_header(src: bytes, dst: bytes, protocol: int, length: int) -> bytes:
    if len(src) == 4:
        return src + dst + struct.pack("!BBH", 0, protocol, length)
    return src + dst + struct.pack("!IxxxB", length, protocol)


# --- up: building -------------------------------------------------------------------------------------------------


def vnet(flags: int = 0, gso: int = 0, hdr_len: int = 0, gso_size: int = 0, start: int = 0, offset: int = 0) -> bytes:
    """A virtio header, in the machine's byte order."""
    return struct.pack("=BBHHHH", flags, gso, hdr_len, gso_size, start, offset)


def frame(
    packet: bytes, *, head: bytes = bytes(10), kind: int | None = None, to: bytes = ADDRESSES.gateway_mac
) -> bytes:
    """What the child's kernel hands over for an IP packet."""
    if kind is None:
        kind = IPV6 if packet and packet[0] >> 4 == 6 else IPV4
    return head + to + ADDRESSES.child_mac + struct.pack("!H", kind) + packet


def ipv4(
    payload: bytes,
    protocol: int,
    *,
    src: bytes = CHILD[4],
    dst: bytes = REMOTE[4],
    hop_limit: int = 64,
    options: bytes = b"",
    fragment: int = 0x4000,
    total: int | None = None,
    ihl: int | None = None,
    version: int = 4,
    checksum: int | None = None,
    identification: int = 1,
    tos: int = 0,
) -> bytes:
    ihl = 5 + len(options) // 4 if ihl is None else ihl
    total = 20 + len(options) + len(payload) if total is None else total
    head = (
        struct.pack("!BBHHHBBH", version << 4 | ihl, tos, total, identification, fragment, hop_limit, protocol, 0)
        + src
        + dst
        + options
    )
    value = plain_checksum(head) if checksum is None else checksum
    return head[:10] + struct.pack("!H", value) + head[12:] + payload


def ipv6(
    payload: bytes,
    protocol: int,
    *,
    src: bytes = CHILD[6],
    dst: bytes = REMOTE[6],
    hop_limit: int = 64,
    length: int | None = None,
    version: int = 6,
    tos: int = 0,
) -> bytes:
    length = len(payload) if length is None else length
    return struct.pack("!IHBB", version << 28 | tos << 20, length, protocol, hop_limit) + src + dst + payload


def ip(payload: bytes, protocol: int, src: bytes, dst: bytes, **fields: Any) -> bytes:
    build = ipv4 if len(src) == 4 else ipv6
    return build(payload, protocol, src=src, dst=dst, **fields)


def with_checksum(segment: bytes, at: int, src: bytes, dst: bytes, protocol: int, mode: str = "full") -> bytes:
    """`segment` with its checksum at byte `at`: full, partial (the pseudo-header only), wrong, or zero."""
    segment = segment[:at] + bytes(2) + segment[at + 2 :]
    pseudo = pseudo_header(src, dst, protocol, len(segment))
    value = {
        "full": lambda: plain_checksum(pseudo + segment),
        "partial": lambda: plain_sum(pseudo),
        "wrong": lambda: plain_checksum(pseudo + segment) ^ 0x0400,
        "zero": lambda: 0,
    }[mode]()
    if value == 0 and protocol == UDP and mode == "full":
        value = 0xFFFF
    return segment[:at] + struct.pack("!H", value) + segment[at + 2 :]


def tcp(
    src: bytes,
    dst: bytes,
    sport: int,
    dport: int,
    seq: int,
    ack: int,
    flags: int,
    *,
    window: int = 65535,
    options: bytes = b"",
    text: bytes = b"",
    urgent: int = 0,
    doff: int | None = None,
    checksum: str = "full",
) -> bytes:
    options += bytes(-len(options) % 4)
    doff = 5 + len(options) // 4 if doff is None else doff
    head = struct.pack(
        "!HHIIBBHHH", sport, dport, seq & 0xFFFFFFFF, ack & 0xFFFFFFFF, doff << 4, flags, window, 0, urgent
    )
    return with_checksum(head + options + text, 16, src, dst, TCP, checksum)


def udp(
    src: bytes, dst: bytes, sport: int, dport: int, text: bytes, *, length: int | None = None, checksum: str = "full"
) -> bytes:
    length = 8 + len(text) if length is None else length
    return with_checksum(struct.pack("!HHHH", sport, dport, length, 0) + text, 6, src, dst, UDP, checksum)


def icmp(kind: int, code: int, body: bytes, *, src: bytes = CHILD[4], dst: bytes = REMOTE[4]) -> bytes:
    """An ICMP or ICMPv6 message of `body` behind type, code and checksum."""
    message = bytes((kind, code, 0, 0)) + body
    pseudo = b"" if len(src) == 4 else pseudo_header(src, dst, ICMPV6, len(message))
    return message[:2] + struct.pack("!H", plain_checksum(pseudo + message)) + message[4:]


# TCP options
def mss(value: int) -> bytes:
    return struct.pack("!BBH", 2, 4, value)


def wscale(shift: int) -> bytes:
    return struct.pack("!BBB", 3, 3, shift)


SACK_PERMITTED = b"\x04\x02"
TIMESTAMPS = b"\x08\x0a" + bytes(8)
NOP = b"\x01"


# --- down: views --------------------------------------------------------------------------------------------------


class Segment(NamedTuple):
    """A TCP segment for the child, all numbers absolute. `gso_size` 0: a single segment."""

    remote: bytes
    remote_port: int
    child_port: int
    seq: int
    ack: int
    flags: int
    window: int
    options: bytes
    text: bytes
    gso_size: int
    frame: bytes


class Reply(NamedTuple):
    """A UDP datagram for the child."""

    remote: bytes
    remote_port: int
    child_port: int
    text: bytes
    tos: int


class IcmpError(NamedTuple):
    """An ICMP or ICMPv6 message for the child; `extra` is bytes 4 to 7, `quoted` what follows."""

    sender: bytes
    type: int
    code: int
    extra: int
    quoted: bytes


class Other(NamedTuple):
    """A frame that is not IP."""

    frame: bytes


def view(raw: bytes, offload: bool) -> Segment | Reply | IcmpError | Other:
    """Check everything that a kernel would check, and say what the frame is."""
    head, ether = raw[:VNET_LEN], dpkt.ethernet.Ethernet(raw[VNET_LEN:])
    assert ether.dst == ADDRESSES.child_mac
    assert ether.src == ADDRESSES.gateway_mac
    if ether.type not in (IPV4, IPV6):
        assert head == bytes(10)
        return Other(raw)
    packet = raw[VNET_LEN + ETHERNET_LEN :]
    src, dst, protocol, payload = _ip_parts(packet)
    assert dst == CHILD[4 if len(dst) == 4 else 6], "a frame for somebody else"
    return {TCP: _segment, UDP: _reply, ICMP: _icmp, ICMPV6: _icmp}[protocol](raw, head, src, dst, payload, offload)


def _ip_parts(packet: bytes) -> tuple[bytes, bytes, int, bytes]:
    if packet[0] >> 4 == 4:
        v4 = dpkt.ip.IP(packet)
        assert v4.hl == 5
        assert v4.len == len(packet), "total length"
        assert plain_sum(packet[:20]) == 0xFFFF, "IPv4 header checksum"
        assert v4.ttl > 0
        return v4.src, v4.dst, v4.p, packet[20:]
    v6 = dpkt.ip6.IP6(packet)
    assert v6.plen == len(packet) - 40, "payload length"
    assert v6.hlim > 0
    return v6.src, v6.dst, v6.nxt, packet[40:]


def _check_transport(
    head: bytes, src: bytes, dst: bytes, protocol: int, payload: bytes, at: int, offload: bool
) -> None:
    """The checksum is complete, or partial as the virtio header then says."""
    flags, _, _, _, start, offset = struct.unpack("=BBHHHH", head)
    pseudo = pseudo_header(src, dst, protocol, len(payload))
    stored = struct.unpack_from("!H", payload, at)[0]
    if not flags & NEEDS_CSUM:
        assert plain_sum(pseudo + payload) == 0xFFFF, "transport checksum"
        return
    assert offload, "a partial checksum without offload"
    assert start == ETHERNET_LEN + (20 if len(src) == 4 else 40)
    assert offset == at
    assert stored == plain_sum(pseudo), "partial checksum"


def _segment(raw: bytes, head: bytes, src: bytes, dst: bytes, payload: bytes, offload: bool) -> Segment:
    _check_transport(head, src, dst, TCP, payload, 16, offload)
    t = dpkt.tcp.TCP(payload)
    _, gso, hdr_len, gso_size, start, _ = struct.unpack("=BBHHHH", head)
    text = payload[t.off * 4 :]
    if gso:
        assert gso == (GSO_TCPV4 if len(src) == 4 else GSO_TCPV6)
        assert hdr_len == start + t.off * 4, "hdr_len"
        assert 0 < gso_size < len(text), "a segment to cut must be longer than one piece"
    else:
        assert gso_size == hdr_len == 0
    options = payload[20 : t.off * 4]
    return Segment(src, t.sport, t.dport, t.seq, t.ack, t.flags, t.win, options, text, gso_size, raw)


def _reply(raw: bytes, head: bytes, src: bytes, dst: bytes, payload: bytes, offload: bool) -> Reply:
    _check_transport(head, src, dst, UDP, payload, 6, offload)
    u = dpkt.udp.UDP(payload)
    assert u.ulen == len(payload), "UDP length"
    assert u.sum != 0, "a UDP checksum of zero says that there is none"
    packet = raw[VNET_LEN + ETHERNET_LEN :]
    tos = packet[1] if len(src) == 4 else (packet[0] << 8 | packet[1]) >> 4 & 0xFF
    return Reply(src, u.sport, u.dport, payload[8:], tos)


def _icmp(raw: bytes, head: bytes, src: bytes, dst: bytes, payload: bytes, offload: bool) -> IcmpError:
    assert head == bytes(10), "ICMP is always complete"
    pseudo = b"" if len(src) == 4 else pseudo_header(src, dst, ICMPV6, len(payload))
    assert plain_sum(pseudo + payload) == 0xFFFF, "ICMP checksum"
    kind, code, _, extra = struct.unpack_from("!BBHI", payload)
    return IcmpError(src, kind, code, extra, payload[8:])


class Quoted(NamedTuple):
    """The packet inside an ICMP error: the child's own, or the error helps nobody."""

    src: bytes
    dst: bytes
    protocol: int
    child_port: int
    remote_port: int
    seq_or_length: int
    text: bytes


def quoted(error: IcmpError) -> Quoted:
    """Parse what an ICMP error quotes; its IP header must be a right one."""
    packet = error.quoted
    if packet[0] >> 4 == 4:
        assert plain_sum(packet[:20]) == 0xFFFF, "checksum of the quoted header"
        src, dst, protocol, payload = packet[12:16], packet[16:20], packet[9], packet[20:]
    else:
        src, dst, protocol, payload = packet[8:24], packet[24:40], packet[6], packet[40:]
    sport, dport = struct.unpack_from("!HH", payload)
    if protocol == TCP:
        return Quoted(src, dst, protocol, sport, dport, struct.unpack_from("!I", payload, 4)[0], payload[20:])
    return Quoted(src, dst, protocol, sport, dport, struct.unpack_from("!H", payload, 4)[0], payload[8:])
