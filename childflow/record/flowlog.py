"""What the engine tells of a run, and who listens.

The switchboard and the services report each event that matters to a recorder, if it is `active`. When neither a flow
log nor a summary was asked for that is the NullRecorder here, which gathers nothing and costs nothing to import.

Not here: the recorder that does something (`recorder.py`), the lines' shape (`events.py`), the file (`log_file.py`).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

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
            print(f"childflow: {text}", file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        """One line for every user."""
        if not self._quiet:
            print(f"childflow: {text}", file=sys.stderr, flush=True)

    def allowed(self, question: Question, verdict: Verdict) -> None: ...
    def denied(self, question: Question, verdict: Verdict) -> None: ...
    def icmp_denied(self, protocol: int, remote: bytes, verdict: Verdict) -> None: ...
    def connected(self, event: Connected) -> None: ...
    def ended(self, event: Ended) -> None: ...
    def dns_query(self, protocol: str, server: str, query: dns.Query) -> None: ...
    def dns_refused(self, protocol: str, bad: dns.Bad) -> None: ...
    def dns_answer(
        self, protocol: str, server: str, query: dns.Query, answer: bytes, mode: str, duration_s: float
    ) -> None: ...
    def failure(self, phase: str, reason_code: str, detail: str) -> None: ...


def make_recorder(settings: Settings) -> NullRecorder:
    """The recorder that `settings` ask for. UsageError or ChildflowError when the flow log can't be written."""
    if settings.flow_log is None and not settings.summary:
        return NullRecorder(settings)
    from childflow.record.recorder import Recorder

    if settings.flow_log is None:
        return Recorder(settings, None)
    from childflow.record.log_file import LogFile

    return Recorder(settings, LogFile(settings.flow_log, NullRecorder(settings).warn))
