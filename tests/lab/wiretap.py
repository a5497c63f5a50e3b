"""Every packet with its payload that arrives at a host: what really left, whatever a program or a log says about it.

    with Wiretap(internet.server, "to-laptop") as tap:
        ...
        packets = tap.packets(lab.laptop, lab.server_ip(4))     # all that the laptop has sent so far
    assert b"secret" not in payload(packets)

A packet socket on the device, before routing and firewall. `packets` sends a last datagram over the same wire and reads
up to it, so that nothing is still under way. Loss is an error, not a shorter list.

Not here:   headers in detail (`headers.py`), who listens (`serve.py`).
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable, Iterable
from typing import NamedTuple, Self, TypeVar

from . import namespaces as ns
from .headers import ETH_P_ALL, ETH_P_IP, ETH_P_IPV6, ICMP6, PACKET_OUTGOING, TCP, UDP, Header, read_header
from .hosts import Host

_SO_RCVBUFFORCE = 33
_ROOM = 64 << 20
_PACKET_STATISTICS = 6
_SOL_PACKET = 263
_END_PORT = 9
_LIMIT_S = 5.0
_NEIGHBOURS_AND_LISTENERS = (*range(130, 138), 143)  # ICMPv6 types that a kernel sends by itself

T = TypeVar("T")


class Packet(NamedTuple):
    """One packet to `address` and `port` (0 without one), and what stands behind its TCP, UDP or ICMP header."""

    protocol: int
    address: str
    port: int
    source: str
    text: bytes


def payload(packets: Iterable[Packet]) -> bytes:
    """All that was said. Streams are not put in order: what a token may be searched in."""
    return b"\n".join(packet.text for packet in packets)


def in_network(host: Host, make: Callable[[], T]) -> T:
    """What `make` returns when called in the network of `host` (a socket keeps the one it was made in)."""
    made: list[T] = []

    def enter() -> None:
        ns.setns(host.place.net, ns.CLONE_NEWNET)
        made.append(make())

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    return made[0]


class Wiretap:
    """What arrives at `host` on `device` while the block runs."""

    def __init__(self, host: Host, device: str) -> None:
        self._sock = in_network(host, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0))
        self._sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _ROOM)
        self._sock.settimeout(_LIMIT_S)
        self._device = device

    def __enter__(self) -> Self:
        self._sock.bind((self._device, ETH_P_ALL))
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def packets(self, sender: Host, address: str) -> list[Packet]:
        """All that `sender` has sent until now; a last datagram goes to `address`. A second call goes on from there."""
        mark = os.urandom(16)
        with in_network(sender, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
            sock.sendto(mark, (address, _END_PORT))
        found = []
        while (packet := self._next()) is None or packet.text != mark:
            if packet is not None:
                found.append(packet)
        lost = struct.unpack("II", self._sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))[1]
        assert not lost, f"{lost} packets were too many to be read"
        return found

    def _next(self) -> Packet | None:
        raw, where = self._sock.recvfrom(70_000)
        if where[2] == PACKET_OUTGOING or where[1] not in (ETH_P_IP, ETH_P_IPV6):
            return None
        header = read_header(raw)
        if header is None or _is_neighbourly(header, raw):
            return None
        return Packet(header.protocol, header.to, header.port, header.source, _text(header, raw))


def _is_neighbourly(header: Header, raw: bytes) -> bool:
    at = 40
    if header.version == 6 and raw[6] == 0 and len(raw) > 48:  # behind a router alert
        return raw[40] == ICMP6 and raw[48] in _NEIGHBOURS_AND_LISTENERS
    return header.protocol == ICMP6 and raw[at] in _NEIGHBOURS_AND_LISTENERS


def _text(header: Header, raw: bytes) -> bytes:
    head = (raw[0] & 15) * 4 if header.version == 4 else 40
    if header.offset:
        return raw[head : header.length]
    if header.protocol == TCP:
        return raw[head + (raw[head + 12] >> 4) * 4 : header.length]
    return raw[head + 8 : header.length] if header.protocol == UDP else raw[head : header.length]
