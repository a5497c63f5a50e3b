"""Resolvers: which servers the tree's queries go to, and in what order.

`--dns` names one; otherwise the host's `/etc/resolv.conf` does, looked at again when it has changed on disk (at most
one stat a second), so that a run survives a change of network. Loopback stubs (127.0.0.53) are as good as any: it is
childflow, on the host, who asks them. A server that did not answer lately is asked last, never not at all.

Invariants: there is always at least one resolver (resolv.conf(5): without any, the local host).
Not here:   asking them (`dns_service.py`).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import NamedTuple

from childflow.errors import UsageError
from childflow.settings import DNS_PORT

RESOLV_CONF = "/etc/resolv.conf"
LOOK_AGAIN_S = 1.0
AVOID_S = 10.0  # long enough that a dead first server costs one query in many, short enough to come back to it
_MAX_SERVERS = 8
_MAX_FILE_BYTES = 65536
_MAX_SEARCH = 64
_ATTEMPT_S = (1.0, 2.0)  # of `options timeout`: the child's own resolver gives up after 5 s in all
_ROUNDS = (1, 4)


class Resolver(NamedTuple):
    """One server: address family, the address that `connect` takes, and how the flow log writes it."""

    family: int
    sockaddr: tuple[str, int] | tuple[str, int, int, int]
    text: str


class Plan(NamedTuple):
    """Servers as configured; seconds to wait for one; rounds through the list; `rotate`: begin with the next.

    `search` are the domains that libc tries behind a name, in lower case, without dots at their ends.
    """

    servers: tuple[Resolver, ...]
    attempt_s: float = 1.0
    rounds: int = 2
    rotate: bool = False
    search: tuple[str, ...] = ()


def parse_resolver(text: str) -> Resolver:
    """The resolver that `--dns` names: `IP`, `IP:PORT`, `[IPv6]:PORT`, with a scope (`fe80::1%eth0`). UsageError."""
    resolver = _parse(text)
    if resolver is None:
        raise UsageError(f"--dns {text!r} is no resolver; give an IP address, IP:PORT or [IPv6]:PORT")
    return resolver


def _parse(text: str) -> Resolver | None:
    host, port = _split_port(text)
    if not 0 < port < 65536:
        return None
    resolver = _resolver4(host, port)
    return resolver if resolver is not None else _resolver6(host, port)


def _split_port(text: str) -> tuple[str, int]:
    """Host and port; a port that is none comes back as 0."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            return text, 0
        return host, _number(rest[1:]) if rest else DNS_PORT
    if text.count(":") == 1:
        host, _, port = text.partition(":")
        return host, _number(port)
    return text, DNS_PORT


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 5 else 0


def _resolver4(host: str, port: int) -> Resolver | None:
    try:
        socket.inet_pton(socket.AF_INET, host)
    except (OSError, ValueError):  # ValueError: a NUL
        return None
    return Resolver(socket.AF_INET, (host, port), f"{host}:{port}")


def _resolver6(host: str, port: int) -> Resolver | None:
    address, percent, scope = host.partition("%")
    try:
        socket.inet_pton(socket.AF_INET6, address)
        index = (_number(scope) or socket.if_nametoindex(scope)) if percent else 0
    except (OSError, ValueError):
        return None
    return Resolver(socket.AF_INET6, (address, port, 0, index), f"[{host}]:{port}")


def parse_resolv_conf(text: str) -> Plan:
    """The plan that resolv.conf(5) `text` asks for. Lines that make no sense are passed over, as libc does."""
    servers: list[Resolver] = []
    options: list[str] = []
    search = _own_domain()
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2 or line[0] in "#;":
            continue
        if words[0] == "nameserver" and (server := _nameserver(words[1])) is not None and server not in servers:
            servers.append(server)
        elif words[0] == "options":
            options += words[1:]
        elif words[0] in ("search", "domain"):  # the last one counts
            search = words[1:]
    plan = _with_options(tuple(servers[:_MAX_SERVERS]) or (parse_resolver("127.0.0.1"),), options)
    return plan._replace(search=tuple(word.strip(".").lower() for word in search[:_MAX_SEARCH] if word.strip(".")))


def _own_domain() -> list[str]:
    """Without a search list, libc takes the host name's domain."""
    return [socket.gethostname().partition(".")[2]]


def _nameserver(word: str) -> Resolver | None:
    """resolv.conf knows no ports: an address, with a scope or without."""
    return _resolver4(word, DNS_PORT) or _resolver6(word, DNS_PORT)


def _with_options(servers: tuple[Resolver, ...], options: list[str]) -> Plan:
    plan = Plan(servers)
    for option in options:
        name, _, value = option.partition(":")
        number = _number(value)
        if name == "timeout" and number:
            plan = plan._replace(attempt_s=min(max(float(number), _ATTEMPT_S[0]), _ATTEMPT_S[1]))
        elif name == "attempts" and number:
            plan = plan._replace(rounds=min(max(number, _ROUNDS[0]), _ROUNDS[1]))
        elif name == "rotate":
            plan = plan._replace(rotate=True)
    return plan


class Resolvers:
    """The servers to ask now. `clock` gives seconds and never goes back."""

    def __init__(self, dns: str | None, clock: Callable[[], float], path: str = RESOLV_CONF) -> None:
        """`dns` is `--dns` or None for the file at `path`. Raises UsageError."""
        self._clock = clock
        self._path = path
        self._fixed = dns is not None
        self._plan = Plan((parse_resolver(dns),)) if dns is not None else parse_resolv_conf("")
        self._seen: tuple[int, ...] | None = None
        self._look_at = 0.0 if not self._fixed else float("inf")
        self._avoid: dict[Resolver, float] = {}
        self._turn = 0
        self._host: Resolvers | None = None

    def plan(self) -> Plan:
        """The plan in force; reads the file again where it has changed."""
        now = self._clock()
        if now >= self._look_at:
            self._look_again()
            self._look_at = now + LOOK_AGAIN_S  # only now: a failure of ours, as no memory, is not what the file says
        return self._plan

    def fixed(self) -> Resolver | None:
        """The server that `--dns` names, or None."""
        return self._plan.servers[0] if self._fixed else None

    def search(self) -> tuple[str, ...]:
        """The host's search domains, whichever servers are asked: the child's libc has them from the same file."""
        if not self._fixed:
            return self.plan().search
        if self._host is None:
            self._host = Resolvers(None, self._clock, self._path)
        return self._host.plan().search

    def in_order(self) -> tuple[Resolver, ...]:
        """The servers in the order in which one query asks them."""
        plan = self.plan()
        servers = plan.servers
        if len(servers) == 1:
            return servers
        if plan.rotate:
            self._turn = (self._turn + 1) % len(servers)
            servers = servers[self._turn :] + servers[: self._turn]
        if self._avoid:
            servers = self._avoided_last(servers)
        return servers

    def avoid(self, server: Resolver) -> None:
        """`server` did not answer: ask it last for a while."""
        if server in self._plan.servers:  # not one that the child chose: those could be any number
            self._avoid[server] = self._clock() + AVOID_S

    def answered(self, server: Resolver) -> None:
        """`server` is well."""
        if self._avoid:
            self._avoid.pop(server, None)

    def _avoided_last(self, servers: tuple[Resolver, ...]) -> tuple[Resolver, ...]:
        now = self._clock()
        self._avoid = {server: until for server, until in self._avoid.items() if until > now}
        return tuple(sorted(servers, key=self._avoid.__contains__))

    def _look_again(self) -> None:
        try:
            stat = os.stat(self._path)
        except OSError:
            return  # between two networks the file may be gone for a moment: what was known stays
        seen = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if seen != self._seen and self._read():
            self._seen = seen

    def _read(self) -> bool:
        try:
            with open(self._path, encoding="utf-8", errors="replace") as file:
                text = file.read(_MAX_FILE_BYTES)
        except OSError:
            return False
        self._plan = parse_resolv_conf(text)
        return True
