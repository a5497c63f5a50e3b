"""Services on demand: each is imported and made when the first flow or packet needs it.

A command that uses no network pays for none. Not here: what they do.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from childflow.errors import StackError

if TYPE_CHECKING:
    from childflow.limits import Limits
    from childflow.netstack.stack import Stack
    from childflow.policy.policy import Policy
    from childflow.record.null import NullRecorder
    from childflow.services.dial import Dialer
    from childflow.services.dns_service import DnsService
    from childflow.services.echo import Echo
    from childflow.services.fragments import Reassembler
    from childflow.services.lookup import Lookup
    from childflow.services.name_policy import NamePolicy
    from childflow.services.resolvers import Resolvers
    from childflow.services.socks_udp import Associations
    from childflow.services.watch import Watch
    from childflow.settings import Settings


class OnDemand:
    """The services of one run."""

    def __init__(
        self,
        stack: Stack,
        loop: asyncio.AbstractEventLoop,
        recorder: NullRecorder,
        settings: Settings,
        policy: Policy,
        limits: Limits,
        resolvers: Resolvers | None = None,
        has_ipv6: bool = True,
    ) -> None:
        """`resolvers` None: those of `settings.dns` or the host, UsageError for a `settings.dns` that is none.

        `has_ipv6`: the host has a way out for it.
        """
        self._has_ipv6 = has_ipv6
        self._stack = stack
        self._loop = loop
        self._recorder = recorder
        self._settings = settings
        self._policy = policy
        self._limits = limits
        self._resolvers = resolvers
        self._watch: Watch | None = None
        self._dns: DnsService | None = None
        self._dialer: Dialer | None = None
        self._associations: Associations | None = None
        self._echo: Echo | None = None
        self._fragments: Reassembler | None = None
        if settings.dns is not None and resolvers is None:
            self.resolvers()

    def close(self) -> None:
        """Close every socket of those that were made."""
        for service in (self._dns, self._associations, self._dialer, self._echo, self._watch):
            if service is not None:
                service.close()

    def resolvers(self) -> Resolvers:
        """Who is asked for names."""
        if self._resolvers is None:
            from childflow.services.resolvers import Resolvers

            self._resolvers = Resolvers(self._settings.dns, self._loop.time)
        return self._resolvers

    def watch(self) -> Watch:
        """Many small sockets behind one descriptor."""
        if self._watch is None:
            from childflow.services.watch import Watch

            self._watch = Watch(self._loop)
        return self._watch

    def dns(self) -> DnsService:
        """Queries of the tree."""
        if self._dns is None:
            from childflow.services.dns_service import DnsService

            watch, resolvers, names = self.watch(), self.resolvers(), self._name_policy()
            self._dns = DnsService(self._stack, self._loop, watch, resolvers, self._recorder, names, self._limits)
        return self._dns

    def _name_policy(self) -> NamePolicy:
        from childflow.services.name_policy import NamePolicy

        rules, link, names, virtual, clock = self._policy
        resolvers = self.resolvers()
        return NamePolicy(
            rules, names, self._recorder, link, clock,
            server=resolvers.fixed(), virtual=virtual, has_ipv6=self._has_ipv6, search=resolvers.search,
        )  # fmt: skip

    def lookup(self) -> Lookup:
        """Names that are resolved when a flow to them begins."""
        return self.dns().lookup()

    def dialer(self) -> Dialer:
        """Connections through the proxy."""
        if self._dialer is None:
            from childflow.services.dial import Dialer
            from childflow.services.proxy import parse_proxy

            given = self._settings
            assert given.proxy is not None, "nothing is proxied without a proxy"
            proxy = parse_proxy(given.proxy, given.proxy_user, given.proxy_password, given.proxy_insecure)
            self._dialer = Dialer(self._loop, proxy, self._recorder.warn)
        return self._dialer

    def flow_ended(self, flow: int) -> None:
        """A flow is over: what served it alone ends."""
        if self._associations is not None:
            self._associations.ended(flow)

    def associations(self) -> Associations:
        """Datagrams through a SOCKS5 proxy."""
        if self._associations is None:
            from childflow.services.socks_udp import Associations

            self._associations = Associations(self.dialer(), self.watch(), self._forget)
        return self._associations

    def _forget(self, flow: int) -> None:
        try:
            self._stack.forget(flow)
        except StackError:
            pass  # it is over already

    def echo(self) -> Echo:
        """Pings."""
        if self._echo is None:
            from childflow.services.echo import Echo

            self._echo = Echo(
                self._stack, self._loop.time, self.watch(), self._recorder, self._policy, self._limits.ping_sessions
            )
        return self._echo

    def fragments(self) -> Reassembler:
        """Datagrams that come in pieces."""
        if self._fragments is None:
            from childflow.services.fragments import Reassembler

            self._fragments = Reassembler(self._limits.fragment_datagrams, self._limits.fragment_bytes)
        return self._fragments

    def expire(self, now: float) -> bool:
        """End what has been idle too long; True while there is more that will be."""
        waiting = False
        if self._fragments is not None:
            for _ in range(self._fragments.expire(now)):
                self._stack.drop("fragment_timeout")
            waiting = len(self._fragments) > 0
        if self._echo is not None:
            waiting = self._echo.expire(now) or waiting
        return waiting
