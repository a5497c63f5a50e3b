"""IP headers as they arrive at a host: `python -m tests.lab.headers DEVICE`, read by `Headers`.

    with Headers(internet.server, "to-laptop") as headers:
        ...
        assert [h.df for h in headers.of(UDP, port=7)] == [True]

A packet socket on the device, before routing and firewall. Fragments beyond the first have ports 0.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import time
from typing import NamedTuple, Self

from .enter import PROJECT
from .hosts import SYSTEM_PATH, Host
from .processes import Running, environment, start

TCP, UDP, ICMP, ICMP6 = 6, 17, 1, 58
ETH_P_IP, ETH_P_IPV6, ETH_P_ALL = 0x0800, 0x86DD, 3
PACKET_OUTGOING = 4
_FRAGMENT = 44


class Header(NamedTuple):
    """One packet. `length` of it all; `offset` of a fragment; `text`: at most 32 bytes behind a UDP or ICMP header."""

    version: int
    protocol: int
    source: str
    to: str
    source_port: int
    port: int
    tos: int
    hop_limit: int
    df: bool
    more: bool
    offset: int
    length: int
    text: str


def read_header(packet: bytes) -> Header | None:
    """IPv4, IPv6 with at most a fragment header; None for others."""
    if packet[0] >> 4 == 4:
        head, place = (packet[0] & 15) * 4, packet[6] << 8 | packet[7]
        addresses = [socket.inet_ntop(socket.AF_INET, packet[at : at + 4]) for at in (12, 16)]
        df, more, offset = bool(place & 0x4000), bool(place & 0x2000), (place & 0x1FFF) * 8
        protocol, tos, hop_limit, length = packet[9], packet[1], packet[8], packet[2] << 8 | packet[3]
    elif packet[0] >> 4 == 6:
        head, more, offset, protocol, df = 40, False, 0, packet[6], True
        addresses = [socket.inet_ntop(socket.AF_INET6, packet[at : at + 16]) for at in (8, 24)]
        tos, hop_limit, length = (packet[0] << 8 | packet[1]) >> 4 & 0xFF, packet[7], 40 + (packet[4] << 8 | packet[5])
        if protocol == _FRAGMENT:
            protocol, _, place = struct.unpack_from("!BBH", packet, 40)
            head, df, more, offset = 48, False, bool(place & 1), place & 0xFFF8
    else:
        return None
    ports = struct.unpack_from("!HH", packet, head) if protocol in (TCP, UDP) and not offset else (0, 0)
    text = packet[head + 8 : head + 40].decode("latin-1")
    return Header(packet[0] >> 4, protocol, *addresses, *ports, tos, hop_limit, df, more, offset, length, text)


class Headers:
    """What arrives at `host` on `device` while the block runs."""

    def __init__(self, host: Host, device: str) -> None:
        argv = [sys.executable, "-m", "tests.lab.headers", device]
        env = environment("root", SYSTEM_PATH)
        self._running: Running = start(argv, host.place, "root", cwd=PROJECT, env=env)
        self._running.says("ready")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._running.kill()

    def of(self, protocol: int, port: int = 0, at_least: int = 0) -> list[Header]:
        """Those of `protocol` (and `port`) so far; waits a while for `at_least` of them."""
        end = time.monotonic() + 3
        while True:
            said = self._running.so_far()[0].splitlines()[1:]
            found = [header for line in said if (header := Header(*json.loads(line))).protocol == protocol]
            found = [header for header in found if not port or header.port == port]
            if len(found) >= at_least or time.monotonic() > end:
                return found
            time.sleep(0.02)


def main() -> None:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    sock.bind((sys.argv[1], ETH_P_ALL))
    print("ready", flush=True)
    while True:
        packet, address = sock.recvfrom(70_000)
        if address[2] == PACKET_OUTGOING or address[1] not in (ETH_P_IP, ETH_P_IPV6):
            continue
        header = read_header(packet)
        if header is not None:
            sys.stdout.write(json.dumps(header) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
