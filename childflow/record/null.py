"""The recorder that records nothing: what the switchboard and the services tell of a run when nobody listens.

They report each event that matters to a recorder, if it is `active`. This one gathers nothing and costs nothing to
import; `recorder.py` has the one that counts and writes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from childflow import messages
from childflow.netstack.events import Denial
from childflow.policy.verdict import Action, Verdict
from childflow.services import dns

if TYPE_CHECKING:
    import asyncio

    from childflow.netstack.events import Connected, Ended, Question
    from childflow.settings import Settings

_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp"}
SPOOFED = Verdict(
    Action.DENY,
    Denial.PROHIBITED,
    reason_code="spoofed_source",
    sentence="a packet whose source is not the command's own address never leaves",
)
_BLOCKED_TOLD = 100  # destinations; a child could invent thousands
_NOTICES = 20  # lines of -v about single packets; the counters say the rest


class NullRecorder:
    """Records nothing; `notice` still speaks under `-v`. Everybody asks `active` before telling more."""

    active = False

    def __init__(self, settings: Settings) -> None:
        self._verbose = settings.verbose
        self._quiet = settings.quiet
        self._notices = 0
        self._told: set[tuple[str, bytes | str, int | None]] = set()
        self._told_all = False
        self.violations = 0  # of policy

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """The run begins."""

    def close(self) -> None:
        """The run is over: write what is left."""

    def notice(self, text: str) -> None:
        """One line for a user who asked for details."""
        self._notices += 1
        if self._verbose and self._notices <= _NOTICES:
            messages.say(text)

    def warn(self, text: str) -> None:
        """One line for every user."""
        if not self._quiet:
            messages.say(text)

    def denied(self, question: Question, verdict: Verdict) -> None:
        """A flow was refused. Told whether anybody records or not: the user hears of it, and `violations` counts it."""
        if verdict.reason_code is not None:
            self.blocked((_PROTOCOLS.get(question.protocol, "ip"), question.remote, question.remote_port), verdict)

    def spoofed(self, protocol: int, remote: bytes, port: int) -> None:
        """A packet came with a source that is not the child's; some of many are told of."""
        self.blocked((_PROTOCOLS.get(protocol, "ip"), remote, port or None), SPOOFED)

    def icmp_denied(self, protocol: int, remote: bytes, verdict: Verdict) -> None:
        """A ping was refused; told as `denied` is."""
        if verdict.reason_code is not None:
            self.blocked(("icmp", remote, None), verdict)

    def blocked(self, what: tuple[str, bytes | str, int | None], verdict: Verdict) -> None:
        """Something was refused by policy: a protocol's name, an address or a name, and a port. One line for each.

        What the child is not told of (multicast, the chatter of every desktop) the user is not, either.
        """
        if verdict.denial is Denial.SILENT:
            return
        self.violations += 1
        if self._quiet or what in self._told:
            return
        if len(self._told) < _BLOCKED_TOLD:
            self._told.add(what)
            messages.say(f"blocked {_destination(*what)}: {verdict.sentence}")
        elif not self._told_all:
            self._told_all = True
            messages.say("more destinations are blocked; a flow log has them all (--flow-log FILE)")

    def allowed(
        self, question: Question, verdict: Verdict, names: tuple[str, ...] = (), via_proxy: bool = False
    ) -> None: ...
    def judged(self, flow_id: int, verdict: Verdict, server_name: str | None) -> None: ...
    def ping_sent(self, remote: bytes) -> None: ...
    def ping_answered(self, remote: bytes) -> None: ...
    def ping_failed(self, remote: bytes, errno: int) -> None: ...
    def connected(self, event: Connected) -> None: ...
    def not_connected(self, flow: int, what: str, duration_s: float) -> None: ...
    def ended(self, event: Ended) -> None: ...
    def dns_query(self, protocol: str, server: str, query: dns.Query) -> None: ...
    def dns_refused(self, protocol: str, bad: dns.Bad, remote: bytes) -> None: ...

    def dns_blocked(self, protocol: str, remote: bytes, query: dns.Query, verdict: Verdict) -> None:
        """A query, or the answer to it, was refused; told as `denied` is."""
        self.blocked(("dns", dns.name_text(query.question), None), verdict)

    def dns_answer(
        self, protocol: str, server: str, query: dns.Query, answer: bytes, mode: str, duration_s: float
    ) -> None: ...
    def resolver_silent(self, server: str) -> None: ...
    def failure(self, phase: str, reason_code: str, detail: str) -> None: ...


def _destination(protocol: str, remote: bytes | str, port: int | None) -> str:
    from childflow.policy.verdict import address_text

    text = remote if isinstance(remote, str) else address_text(remote)
    if port is not None:
        text = f"[{text}]:{port}" if ":" in text else f"{text}:{port}"
    return f"{protocol} {text}"
