"""The recorder that records nothing: what the switchboard and the services tell of a run when nobody listens.

They report each event that matters to a recorder, if it is `active`. This one gathers nothing and costs nothing to
import; `recorder.py` has the one that counts and writes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from childflow import messages

if TYPE_CHECKING:
    import asyncio

    from childflow.netstack.events import Connected, Ended, Question
    from childflow.policy.verdict import Verdict
    from childflow.services import dns
    from childflow.settings import Settings

_NOTICES = 20  # lines of -v about single packets; the counters say the rest


class NullRecorder:
    """Records nothing; `notice` still speaks under `-v`. Everybody asks `active` before telling more."""

    active = False

    def __init__(self, settings: Settings) -> None:
        self._verbose = settings.verbose
        self._quiet = settings.quiet
        self._notices = 0

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

    def allowed(self, question: Question, verdict: Verdict) -> None: ...
    def denied(self, question: Question, verdict: Verdict) -> None: ...
    def icmp_denied(self, protocol: int, remote: bytes, verdict: Verdict) -> None: ...
    def ping_sent(self, remote: bytes) -> None: ...
    def ping_answered(self, remote: bytes) -> None: ...
    def ping_failed(self, remote: bytes, errno: int) -> None: ...
    def connected(self, event: Connected) -> None: ...
    def ended(self, event: Ended) -> None: ...
    def dns_query(self, protocol: str, server: str, query: dns.Query) -> None: ...
    def dns_refused(self, protocol: str, bad: dns.Bad, remote: bytes) -> None: ...
    def dns_blocked(self, protocol: str, remote: bytes, query: dns.Query, verdict: Verdict) -> None: ...
    def dns_answer(
        self, protocol: str, server: str, query: dns.Query, answer: bytes, mode: str, duration_s: float
    ) -> None: ...
    def resolver_silent(self, server: str) -> None: ...
    def failure(self, phase: str, reason_code: str, detail: str) -> None: ...
