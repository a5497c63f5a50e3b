"""The recorder: what happened in a run, told once, to the flow log and to the summary.

Lines go out in batches, off the packets' way, at most FLUSH_S late.

Invariants: no method raises for a fault of the log; no method blocks but `close`.
            Tables are bounded: names by address (NAMED_ADDRESSES), open flows (OPEN_FLOWS).
Not here:   how a line is made (`lines.py`), the file (`log_file.py`), the summary's text (`summary.py`).
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from typing import TYPE_CHECKING

from childflow.netstack.events import Connected, Ended, Question
from childflow.policy.verdict import ICMP4, ICMP6, TCP, UDP, Action, Verdict, address_text
from childflow.record.null import SPOOFED, NullRecorder
from childflow.record.tally import MAX_ADDRESSES, OpenFlow, PingRow, Tally
from childflow.services import dns, dns_answer
from childflow.settings import DNS_PORT, Settings

if TYPE_CHECKING:
    from childflow.record.lines import Lines
    from childflow.record.log_file import LogFile

FLUSH_S = 0.2
NAMED_ADDRESSES = 4096
NAMES_PER_ADDRESS = 8
OPEN_FLOWS = 131072  # twice the flow table
_MALFORMED = Verdict(
    Action.DENY, reason_code="dns_malformed", sentence="what is no DNS query with one question is not passed on"
)


class Recorder(NullRecorder):
    """Counts for the summary, and lines for the flow log if there is one."""

    active = True

    def __init__(self, settings: Settings, log: LogFile | None) -> None:
        super().__init__(settings)
        self.tally = Tally()
        self.run_id = os.urandom(8).hex()
        self.started_at = time.monotonic()
        self.log = log
        self.log_whole = log is not None  # no line was lost
        self._lines = _lines(log, self.run_id) if log is not None else None
        self._flows: dict[int, OpenFlow] = {}
        self._names: dict[bytes, dict[str, None]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    def duration_ms(self) -> int:
        """From the start until now."""
        return int((time.monotonic() - self.started_at) * 1000)

    # Life.

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._flush_soon()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._loop = None
        if self.log is not None:
            self.log.close()
            self.log_whole = self.log.lost == 0
            self._lines = None
            self.log = None

    def _flush_soon(self) -> None:
        if self._timer is None and self._loop is not None and self.log is not None:
            self._timer = self._loop.call_later(FLUSH_S, self._flush)

    def _flush(self) -> None:
        self._timer = None
        if self.log is not None and not self.log.flush():
            self._flush_soon()  # a slow reader: try again, also when no event comes

    # Flows.

    def allowed(
        self, question: Question, verdict: Verdict, names: tuple[str, ...] = (), via_proxy: bool = False
    ) -> None:
        """A flow was let out; `names` led to its address, where that is known for certain."""
        flow = self._open_flow(question, verdict, list(names), via_proxy)
        flow.target.attempts += 1
        flow.host.attempts += 1
        self.tally.flows += 1
        self.tally.events["connect_attempt"] += 1
        if self._lines is not None:
            self._lines.connect_attempt(question.flow, flow)
            self._flush_soon()

    def denied(self, question: Question, verdict: Verdict) -> None:
        """A flow was refused: a violation of policy where the verdict has a reason for one, else a failed connect."""
        if verdict.reason_code is not None:
            super().denied(question, verdict)
            protocol = "tcp" if question.protocol == TCP else "udp"
            self._violation(protocol, question.remote, question.remote_port, verdict)
            return
        self.allowed(question, verdict)
        self._result(question.flow, self._flows.pop(question.flow), verdict.sentence, 0)

    def judged(self, flow_id: int, verdict: Verdict, server_name: str | None) -> None:
        """The first bytes of a flow that was let out were read: they bear the name `server_name`, or none."""
        flow = self._flows.get(flow_id)
        if flow is not None:
            flow.evidence, flow.server_name = verdict.evidence, server_name

    def spoofed(self, protocol: int, remote: bytes, port: int) -> None:
        """A packet came with a source that is not the child's."""
        super().spoofed(protocol, remote, port)
        word = {TCP: "tcp", UDP: "udp", ICMP4: "icmpv4", ICMP6: "icmpv6"}.get(protocol)
        if word is not None:
            self._violation(word, remote, port or None, SPOOFED)

    def icmp_denied(self, protocol: int, remote: bytes, verdict: Verdict) -> None:
        """A ping was refused."""
        super().icmp_denied(protocol, remote, verdict)
        if verdict.reason_code is not None:
            self._violation("icmpv4" if protocol == ICMP4 else "icmpv6", remote, None, verdict)

    def ping_sent(self, remote: bytes) -> None:
        """An echo request left the host. Pings are in the summary's text only: the log has no event for them."""
        self._ping(remote).sent += 1

    def ping_answered(self, remote: bytes) -> None:
        """An echo reply came; one that came twice counts once."""
        row = self._ping(remote)
        row.answered = min(row.answered + 1, row.sent)

    def ping_failed(self, remote: bytes, errno: int) -> None:
        """The host could not send an echo request."""
        self._ping(remote).failed[os.strerror(errno)] += 1

    def _ping(self, remote: bytes) -> PingRow:
        names = tuple(self._names.get(remote, ()))
        ip = address_text(remote)
        row = self.tally.ping(remote, f"{names[-1]} ({ip})" if names else ip)
        row.names = names
        return row

    def connected(self, event: Connected) -> None:
        """The connect of a TCP flow is over."""
        flow = self._flows.get(event.flow)
        if flow is None:
            return
        error = _errno_text(event.errno) if event.errno else None
        self._result(event.flow, flow, error, event.duration_us // 1000)

    def not_connected(self, flow: int, what: str, duration_s: float) -> None:
        """A TCP flow that was allowed got no connection: not the stack's failure, but the proxy's or a resolver's."""
        if (known := self._flows.get(flow)) is not None:
            self._result(flow, known, what, int(duration_s * 1000))

    def ended(self, event: Ended) -> None:
        """A flow is over."""
        flow = self._flows.pop(event.flow, None)
        if flow is None:
            return
        row = flow.target
        row.ends += 1
        row.bytes_up += event.bytes_up
        row.bytes_down += event.bytes_down
        flow.host.bytes_up += event.bytes_up
        flow.host.bytes_down += event.bytes_down
        if flow.protocol == "udp" and event.bytes_down > 0:
            flow.host.reached += 1
        self.tally.bytes_up += event.bytes_up
        self.tally.bytes_down += event.bytes_down
        self.tally.events["flow_end"] += 1
        if self._lines is not None:
            self._lines.flow_end(flow, event)
            self._flush_soon()

    def _open_flow(self, question: Question, verdict: Verdict, names: list[str], via_proxy: bool) -> OpenFlow:
        ip = address_text(question.remote)
        port = question.remote_port
        text = f"{ip}:{port}" if len(question.remote) == 4 else f"[{ip}]:{port}"
        names = names or list(self._names.get(question.remote, ()))
        target = self.tally.target(text, ip)
        if target.target == text:
            text, ip = target.target, target.ip  # one copy for thousands of flows to one place
        for name in names:
            if len(target.names) < NAMES_PER_ADDRESS:
                target.names[name] = None
        protocol = "tcp" if question.protocol == TCP else "udp"
        host = self.tally.host(f"{names[-1]}:{port}" if names else text, (len(question.remote), question.remote, port))
        flow = OpenFlow(protocol, (text, ip, port), names, verdict, via_proxy, target, host)
        if len(self._flows) >= OPEN_FLOWS:
            del self._flows[next(iter(self._flows))]
        self._flows[question.flow] = flow
        return flow

    def _result(self, flow_id: int, flow: OpenFlow, error: str | None, duration_ms: int) -> None:
        if error is None:
            flow.target.oks += 1
            flow.host.reached += 1
        else:
            flow.target.errors += 1
            flow.host.errors += 1
            self.tally.fail(flow.host.label, error)
            self.tally.connect_errors[error] += 1
        self.tally.events["connect_result"] += 1
        if self._lines is not None:
            self._lines.connect_result(flow_id, flow, error, duration_ms)
            self._flush_soon()

    def _violation(self, protocol: str, remote: bytes, port: int | None, verdict: Verdict) -> None:
        self.tally.events["policy_violation"] += 1
        self.tally.violations[verdict.reason_code or ""] += 1
        if verdict.control is not None:
            self.tally.controls[verdict.control] += 1
        if verdict.matched_domain is not None:
            self.tally.domains[verdict.matched_domain] += 1
        if self._lines is not None:
            self._lines.policy_violation(protocol, address_text(remote), port, verdict)
            self._flush_soon()

    # Names.

    def dns_query(self, protocol: str, server: str, query: dns.Query) -> None:
        """A question went to `server` (`ip:port`)."""
        name = dns.name_text(query.question)
        self.tally.name(name).queries += 1
        self.tally.events["dns_query"] += 1
        if self._lines is not None:
            self._lines.dns_query(protocol, server, name, query.qtype)
            self._flush_soon()

    def dns_refused(self, protocol: str, bad: dns.Bad, remote: bytes) -> None:
        """Something that was no query came to port 53 of `remote`, and was not passed on."""
        self.tally.events["dns_query"] += 1
        if self._lines is not None:
            text = address_text(remote)
            server = f"{text}:{DNS_PORT}" if len(remote) == 4 else f"[{text}]:{DNS_PORT}"
            self._lines.dns_query(protocol, server, None, None)
            self._flush_soon()
        if bad.reply is None or dns.rcode(bad.reply) == dns.FORMERR:
            self._violation("dns", remote, DNS_PORT, _MALFORMED)

    def dns_blocked(self, protocol: str, remote: bytes, query: dns.Query, verdict: Verdict) -> None:
        """A query to port 53 of `remote` was not passed on, or its answer was not: the policy denies it."""
        super().dns_blocked(protocol, remote, query, verdict)
        self._violation("dns", remote, DNS_PORT, verdict)

    def dns_answer(
        self, protocol: str, server: str, query: dns.Query, answer: bytes, mode: str, duration_s: float
    ) -> None:
        """The child got `answer`; the addresses in it are known by the question's name from here on."""
        name = dns.name_text(query.question)
        row = self.tally.name(name)
        row.answers += 1
        row.rcode = dns.rcode(answer)
        self.tally.events["dns_answer"] += 1
        addresses = []
        chain = dns_answer.read_chain(answer, query.question)
        for found in chain.addresses if chain is not None else ():
            self._learn(found.address, name)
            addresses.append(address_text(found.address))
        for text in addresses:
            if len(row.addresses) < MAX_ADDRESSES:
                row.addresses[text] = None
        if self._lines is not None:
            self._lines.dns_answer(protocol, server, query, answer, addresses, mode, duration_s)
            self._flush_soon()

    def resolver_silent(self, server: str) -> None:
        """`server` (`ip:port`) was asked a question and did not answer it in time, or nobody listens there."""
        self.tally.silent_resolvers[server] += 1

    def _learn(self, address: bytes, name: str) -> None:
        names = self._names.pop(address, None)
        if names is None:
            names = {}
            if len(self._names) >= NAMED_ADDRESSES:
                del self._names[next(iter(self._names))]
        self._names[address] = names  # last: it was confirmed just now
        names.pop(name, None)  # the most recent name is the last
        if len(names) >= NAMES_PER_ADDRESS:
            del names[next(iter(names))]
        names[name] = None

    # Faults of ours.

    def failure(self, phase: str, reason_code: str, detail: str) -> None:
        """childflow itself failed in `phase`."""
        self.tally.events["runtime_failure"] += 1
        self.tally.failures[reason_code] += 1
        self.tally.failure_phases[phase] += 1
        if self._lines is not None:
            self._lines.runtime_failure(phase, reason_code, detail)
            self._flush_soon()


def _errno_text(number: int) -> str:
    return f"{os.strerror(number)} ({errno.errorcode.get(number, number)})"


def _lines(log: LogFile, run_id: str) -> Lines:
    from childflow.record.lines import Lines

    return Lines(log, run_id)
