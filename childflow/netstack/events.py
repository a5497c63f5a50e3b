"""What the C stack tells Python: small typed records, and the words for answers.

Addresses are packed bytes (4 for IPv4, 16 for IPv6); ports are host-order ints; times are microseconds. The numbers of
the enums are those of `api.h`.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class Denial(IntEnum):
    """How a refused flow looks to the child."""

    SILENT = 0
    RESET = 1
    UNREACHABLE_NET = 2
    UNREACHABLE_HOST = 3
    PORT = 4
    PROHIBITED = 5


class End(IntEnum):
    """Why a flow is over."""

    FIN = 0
    RST_CHILD = 1
    RST_HOST = 2
    TIMEOUT = 3
    IDLE = 4
    KILLED = 5


class SlowKind(IntEnum):
    """What a slow-path packet is: ARP is a whole Ethernet frame, the others are IP packets.

    An echo request that may not be cut on its way is ECHO, another one ECHO_FRAGMENTABLE. SPOOFED is the head of a
    packet that was dropped since its source is not the child's; at most one a second is told of.
    """

    ARP = 0
    ND = 1
    ECHO = 2
    FRAGMENT = 3
    ECHO_FRAGMENTABLE = 4
    SPOOFED = 5


class Question(NamedTuple):
    """A new flow is parked: may it leave?"""

    flow: int
    protocol: int
    child_port: int
    remote: bytes
    remote_port: int


class Connected(NamedTuple):
    """The host side of a TCP flow is connected (`errno` 0) or could not be."""

    flow: int
    errno: int
    duration_us: int


class Flight(NamedTuple):
    """More of what the child says is held (`Stack.held`); `ended`: it has said all, a FIN came behind it (TCP)."""

    flow: int
    ended: bool


class Ended(NamedTuple):
    """A flow is over; the bytes are payload that reached the host (`up`) or was read from it (`down`)."""

    flow: int
    end: End
    bytes_up: int
    bytes_down: int
    duration_us: int


class Datagram(NamedTuple):
    """UDP payload from the child's `child_port` to the DNS port of any host, the gateway or another."""

    remote: bytes
    child_port: int
    remote_port: int
    payload: bytes


class SlowPacket(NamedTuple):
    """A packet that Python handles."""

    kind: SlowKind
    packet: bytes


Event = Question | Connected | Flight | Ended | Datagram | SlowPacket
