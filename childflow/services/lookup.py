"""Lookup: the addresses of a name, for a flow that goes to a name (a virtual one) and begins now.

The host's /etc/hosts first, then the run's resolvers, through the same sockets and with the same fail-over as the
tree's own queries: nothing here ever calls getaddrinfo. A and AAAA are asked at the same time; an answer that came
truncated is asked for again over TCP. No search list: a virtual name is whole.

Invariants: one lookup of a name at a time, whose result all callers share; MAX_OPEN in all; each ends within LIMIT_S.
            Results are kept for their TTL, at most KEEP_S; failures are not kept.
Not here:   whether an address may be reached (`policy/verdict.py`, by whoever asked), the asking (`dns_udp.py`).
"""

from __future__ import annotations

import asyncio
from struct import Struct
from typing import NamedTuple

from childflow.services import dns, dns_answer, dns_reply
from childflow.services.dns_tcp import TcpForwarder
from childflow.services.dns_udp import UdpForwarder
from childflow.services.hosts_file import HostsFile, packed

MAX_OPEN = 256
MAX_KEPT = 4096
KEEP_S = 300
LIMIT_S = 5.0
OTHER_FAMILY_S = 0.5  # how long IPv4 addresses wait for the IPv6 ones
_LOOPBACK = [bytes((127, 0, 0, 1)), bytes(15) + b"\x01"]
_HEADER = Struct("!HHHHHH")
_TAIL = Struct("!HH")
_RECURSION = 0x0100
_NXDOMAIN = 3
_TC = 0x02


class LookupFailed(Exception):
    """There are no addresses; `str()` says why."""


class NoSuchName(LookupFailed):
    """The name does not exist, or has no address."""


class LookupTimeout(LookupFailed):
    """No resolver has answered in time."""


class Found(NamedTuple):
    """The packed addresses of a name, IPv4 first, and the names that stood between it and them (CNAME)."""

    addresses: list[bytes]
    aliases: tuple[str, ...] = ()


class _Answer(NamedTuple):
    """What was learned of one family; `silent`: no resolver has said anything."""

    code: int
    chain: dns_answer.Chain
    silent: bool = False


class Lookup:
    """Looks names up, and remembers for a while."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        udp: UdpForwarder,
        tcp: TcpForwarder,
        has_ipv6: bool = True,
        hosts: HostsFile | None = None,
    ) -> None:
        self._loop = loop
        self._udp = udp
        self._tcp = tcp
        self._has_ipv6 = has_ipv6
        self._hosts = hosts or HostsFile(loop.time)
        self._open: dict[str, asyncio.Task[Found]] = {}
        self._kept: dict[str, tuple[float, Found]] = {}

    async def addresses(self, name: str) -> list[bytes]:
        """The packed addresses of `name`, at least one. LookupFailed."""
        return (await self.find(name)).addresses

    async def find(self, name: str) -> Found:
        """The addresses of `name` (text as `dns.name_text` writes it, or an address). LookupFailed."""
        name = name.lower().removesuffix(".")
        known = self._known(name)
        if known is not None:
            return known
        task = self._open.get(name)
        if task is None:
            if len(self._open) >= MAX_OPEN:
                raise LookupFailed(f"{name} is not looked up: {MAX_OPEN} names are being looked up already")
            task = self._open[name] = self._loop.create_task(self._resolve(name))
            task.add_done_callback(lambda done: self._over(name, done))
        return await asyncio.shield(task)

    def close(self) -> None:
        """Give up what is open. The loop may have stopped already: then it runs once more for its sake."""
        tasks = list(self._open.values())
        for task in tasks:
            task.cancel()
        if tasks and not self._loop.is_running():
            self._loop.run_until_complete(asyncio.wait(tasks))

    def _over(self, name: str, task: asyncio.Task[Found]) -> None:
        del self._open[name]
        if not task.cancelled():
            task.exception()  # seen: the callers have it, if there are any left

    def _known(self, name: str) -> Found | None:
        literal = packed(name)
        if literal is not None:
            return Found([literal])
        local = self._hosts.addresses(name)
        if not local and name.rpartition(".")[2] == "localhost":
            local = _LOOPBACK  # RFC 6761 6.3: nobody is asked
        if local:
            return Found(list(local))
        until, found = self._kept.get(name, (0.0, None))
        return found if self._loop.time() < until else None

    def _keep(self, name: str, found: Found, ttl: int) -> None:
        self._kept.pop(name, None)
        if ttl <= 0:
            return
        if len(self._kept) >= MAX_KEPT:
            del self._kept[next(iter(self._kept))]
        self._kept[name] = (self._loop.time() + min(ttl, KEEP_S), found)

    # Asking.

    async def _resolve(self, name: str) -> Found:
        try:
            wire = dns_reply.wire_name(name)
        except ValueError as error:
            raise NoSuchName(f"{name}: {error}") from None
        try:
            async with asyncio.timeout(LIMIT_S):
                answers = await self._both(wire)
        except TimeoutError:
            raise LookupTimeout(f"{name}: no resolver has answered in {LIMIT_S:.0f} s") from None
        records = [record for answer in answers for record in answer.chain.addresses]
        if not records:
            raise _failure(name, answers)
        aliases = tuple(dict.fromkeys(alias for answer in answers for alias in answer.chain.names))
        found = Found([record.address for record in records], aliases)
        self._keep(name, found, min(record.ttl for record in records))
        return found

    async def _both(self, wire: bytes) -> list[_Answer]:
        """What is known of A and, where the host has IPv6, of AAAA, in this order."""
        four = self._loop.create_task(self._ask(wire, dns.TYPE_A))
        tasks = [four, *([self._loop.create_task(self._ask(wire, dns.TYPE_AAAA))] if self._has_ipv6 else [])]
        try:
            answers = [await four]
            if answers[0].chain.addresses and len(tasks) > 1:
                await asyncio.wait(tasks[1:], timeout=OTHER_FAMILY_S)
                return answers + [task.result() for task in tasks[1:] if task.done()]
            return answers + [await task for task in tasks[1:]]
        finally:
            for task in tasks:
                task.cancel()

    async def _ask(self, wire: bytes, qtype: int) -> _Answer:
        question = wire + _TAIL.pack(qtype, dns.CLASS_IN)
        message = _HEADER.pack(0, _RECURSION, 1, 0, 0, 0) + question
        landed: asyncio.Future[tuple[bytes, str]] = self._loop.create_future()
        self._udp.ask(message, question, lambda answer, mode: _settle(landed, (answer, mode)))
        answer, mode = await landed
        if answer[2] & _TC:
            answer = await self._tcp.ask(message, question) or answer
        chain = dns_answer.read_chain(answer, question)
        if chain is None:
            return _Answer(dns.SERVFAIL, dns_answer.Chain((), []))
        return _Answer(dns.rcode(answer), chain, mode != "relayed")


def _settle(landed: asyncio.Future[tuple[bytes, str]], result: tuple[bytes, str]) -> None:
    if not landed.done():
        landed.set_result(result)


def _failure(name: str, answers: list[_Answer]) -> LookupFailed:
    if all(answer.code in (dns.NOERROR, _NXDOMAIN) for answer in answers):
        what = "has no address" if answers[0].code == dns.NOERROR else "does not exist"
        return NoSuchName(f"{name} {what}")
    if any(answer.silent for answer in answers):
        return LookupTimeout(f"{name}: no resolver answers")
    code = max(answer.code for answer in answers)
    return LookupFailed(f"{name}: the resolver says {dns.RCODE_NAMES.get(code, code)}")
