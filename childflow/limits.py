"""Limits: how much of everything a run may use.

Invariants: annotations are evaluated here: as texts, each of a NamedTuple's fields would be compiled, 0.5 ms in all.
Not here:   what each is for, and what the one too many gets (`limit_table.py`); who keeps them (stack, services).
"""

from typing import NamedTuple, Self

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


class Limits(NamedTuple):
    """What a stack and its services may use; `limit_table.TABLE` says what each of these is."""

    max_flows: int = 65_536
    max_half_open: int = 4_096
    max_udp_peers: int = 32_768
    max_sockets: int = 65_536
    max_udp_sockets: int = 8_192
    flow_window: int = 512 * KIB
    buffer_limit: int = GIB
    parked_datagrams: int = 64
    parked_bytes: int = 4 * MIB
    slow_packets: int = 4_096
    slow_bytes: int = MIB
    control_rate: int = 10_000
    fragment_rate: int = 400_000
    icmp_error_rate: int = 1_000
    challenge_ack_rate: int = 1_000
    fragment_datagrams: int = 256
    fragment_bytes: int = 4 * MIB
    ping_sessions: int = 256
    dns_queries: int = 4_096
    dns_connections: int = 64

    def fitted(self) -> Self:
        """The same with every part of a whole no greater than the whole leaves room for."""
        return self._replace(
            max_half_open=min(self.max_half_open, self.max_sockets // 2),
            max_udp_peers=min(self.max_udp_peers, self.max_flows // 2),
            max_udp_sockets=min(self.max_udp_sockets, self.max_sockets // 2),
            buffer_limit=max(self.buffer_limit, self.flow_window),
        )

    def within(self, descriptors: int) -> Self:
        """The same for an engine that may still open so many descriptors: some are left for DNS, pings and logs."""
        reserve = reserved(descriptors)
        return self._replace(
            max_sockets=max(min(self.max_sockets, descriptors - reserve), 2),
            ping_sessions=min(self.ping_sessions, max(reserve // 4, 2)),
            dns_connections=min(self.dns_connections, max(reserve // 8, 1)),
        ).fitted()


RESERVED = 512  # pings (128), DNS over TCP (64 times 2), DNS over UDP (some 32), logs, and as much again
RESERVED_LEAST = 16


def reserved(descriptors: int) -> int:
    """How many of `descriptors` no flow of the command may take: a third, and no more than the services can use."""
    return min(RESERVED, max(descriptors // 3, RESERVED_LEAST))
