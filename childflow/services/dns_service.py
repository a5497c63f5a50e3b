"""The DNS service: what port 53 is, the gateway's and everybody else's, over UDP and TCP.

One set of resolvers, two forwarders. The switchboard hands datagrams to `query` and splices connections onto what
`open_connection` gives.

Invariants: nothing that does not parse as one query is ever sent on.
Not here:   the message format (`dns.py`), the two transports (`dns_udp.py`, `dns_tcp.py`).
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from childflow.netstack.events import Datagram
from childflow.services.dns_tcp import TcpForwarder
from childflow.services.dns_udp import UdpForwarder
from childflow.services.name_policy import NamePolicy
from childflow.services.resolvers import Resolvers
from childflow.services.watch import Watch

if TYPE_CHECKING:
    from childflow.limits import Limits
    from childflow.netstack.stack import Stack
    from childflow.record.null import NullRecorder
    from childflow.services.lookup import Lookup


class DnsService:
    """Answers the tree's DNS questions with the host's resolvers."""

    def __init__(
        self,
        stack: Stack,
        loop: asyncio.AbstractEventLoop,
        watch: Watch,
        resolvers: Resolvers,
        recorder: NullRecorder,
        policy: NamePolicy,
        limits: Limits | None = None,
    ) -> None:
        """`limits` None: each forwarder's own."""
        self._udp = UdpForwarder(stack, loop, watch, resolvers, recorder, policy, limits and limits.dns_queries)
        self._lookup: Lookup | None = None
        self._loop, self._has_ipv6 = loop, policy.has_ipv6
        self._tcp = TcpForwarder(loop, resolvers, recorder, policy, limits and limits.dns_connections)

    def query(self, datagram: Datagram) -> None:
        """Answer `datagram` with `stack.reply_datagram`, now or later."""
        self._udp.query(datagram)

    def open_connection(self, remote: bytes) -> socket.socket | None:
        """The stack's end of a DNS connection to `remote`, non-blocking, the caller's to close; None: too many."""
        return self._tcp.open(remote)

    def lookup(self) -> Lookup:
        """Lookups of our own, by the same resolvers."""
        if self._lookup is None:
            from childflow.services.lookup import Lookup

            self._lookup = Lookup(self._loop, self._udp, self._tcp, self._has_ipv6)
        return self._lookup

    def close(self) -> None:
        """Drop what is open; nothing is answered any more."""
        if self._lookup is not None:
            self._lookup.close()
        self._udp.close()
        self._tcp.close()
