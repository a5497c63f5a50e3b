"""A liar on the path: `python -m tests.lab.claim_mtu 4|6 MTU` answers each datagram with "too big", claiming MTU.

Run on the server of `internet`; answers from the address that was asked, quoting the datagram.
"""

from __future__ import annotations

import socket
import struct
import sys

from tests.lab.headers import ETH_P_ALL, ETH_P_IP, ETH_P_IPV6, PACKET_OUTGOING, UDP, read_header
from tests.lab.serve import ECHO

IP_FREEBIND, IPV6_FREEBIND = 15, 78


def main() -> None:
    family, mtu = int(sys.argv[1]), int(sys.argv[2])
    ears = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
    ears.bind(("to-laptop", ETH_P_ALL))
    print("ready", flush=True)
    while True:
        packet, address = ears.recvfrom(70_000)
        if address[2] == PACKET_OUTGOING or address[1] != (ETH_P_IP if family == 4 else ETH_P_IPV6):
            continue
        header = read_header(packet)
        if header is not None and header.protocol == UDP and header.port == ECHO:
            claim(family, mtu, header.to, header.source, packet[:576])


def claim(family: int, mtu: int, source: str, to: str, quoted: bytes) -> None:
    if family == 4:
        kind, protocol, message = socket.AF_INET, socket.IPPROTO_ICMP, struct.pack("!BBHI", 3, 4, 0, mtu) + quoted
        message = message[:2] + checksum(message).to_bytes(2, "big") + message[4:]
    else:
        kind, protocol, message = socket.AF_INET6, socket.IPPROTO_ICMPV6, struct.pack("!BBHI", 2, 0, 0, mtu) + quoted
    with socket.socket(kind, socket.SOCK_RAW, protocol) as mouth:
        if family == 4:
            mouth.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
        else:
            mouth.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
        mouth.bind((source, 0))
        mouth.sendto(message, (to, 0))


def checksum(message: bytes) -> int:
    message += b"\0" * (len(message) % 2)
    total = sum(struct.unpack(f"!{len(message) // 2}H", message))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


if __name__ == "__main__":
    main()
