"""ARP and neighbour discovery. The first byte chooses which, and whether the ICMPv6 checksum is made right.

What is answered is an address of the gateway's, asked by the child; the answer is one frame or packet, never more.
"""

from __future__ import annotations

from childflow.services import packets
from childflow.services.neighbours import answer_arp, answer_nd
from childflow.settings import ADDRESSES
from tests.netstack import wire


def one(data: bytes) -> None:
    how, data = data[:1], data[1:]
    if how and how[0] & 1:
        answer = answer_arp(data, ADDRESSES)
        if answer.frame is not None:
            assert len(answer.frame) == 42
            assert ADDRESSES.gateway4 in data
    else:
        answer = answer_nd(_mended(data) if how and how[0] & 2 else data, ADDRESSES)
        if answer.packet is not None:
            assert data[7] == 255
            assert ADDRESSES.gateway6 in data[40:]
            assert answer.packet[24:40] == data[8:24] != bytes(16), "the answer goes to whom asked"
    assert sum(part is not None for part in answer) <= 1


def _mended(packet: bytes) -> bytes:
    if len(packet) < 48:
        return packet
    body = packet[40 : 40 + int.from_bytes(packet[4:6], "big")]
    body = body[:2] + b"\0\0" + body[4:]
    return packet[:40] + packets.icmp6_with_checksum(packet[8:24], packet[24:40], body) + packet[40 + len(body) :]


def seeds() -> list[bytes]:
    from tests.netstack.test_slow_path import ARP_REQUEST, solicitation

    ether = b"\xff" * 6 + ADDRESSES.child_mac + b"\x08\x06"
    nd = solicitation()
    to_group = bytes.fromhex("ff0200000000000000000001ff000001")
    target = bytes(4) + ADDRESSES.gateway6
    made = [
        wire.ipv6(wire.icmp(135, 0, target + options, src=src, dst=to_group), 58, src=src, dst=to_group, hop_limit=255)
        for src in (ADDRESSES.child6, bytes(16))
        for options in (b"", b"\1\1" + bytes(6), b"\1\0", b"\1\xff", b"\1\1", b"\2\1abcdef\1\2" + bytes(14))
    ]
    router = wire.ipv6(wire.icmp(133, 0, bytes(4), src=ADDRESSES.child6, dst=to_group), 58, dst=to_group, hop_limit=255)
    return [b"\1" + ether + ARP_REQUEST, b"\1" + ether, b"\1", b"", *(b"\2" + p for p in (nd, router, *made))]
