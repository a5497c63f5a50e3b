"""The recorder: what happened in a run, told once, to the flow log and to the summary.

The switchboard and the services call it at each event that matters, if it is `active`; when neither a flow log nor a
summary was asked for there is a NullRecorder instead and nothing is gathered. Lines go out in batches, off the
packets' way, at most FLUSH_S late.

Invariants: no method raises for a fault of the log; no method blocks but `close`.
            Tables are bounded: names by address (NAMED_ADDRESSES), open flows (OPEN_FLOWS).
Not here:   the lines' shape (`events.py`), the file (`log_file.py`), the summary's text (`summary.py`).
"""

from __future__ import annotations

import asyncio
import errno
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from childflow.netstack.events import Connected, Ended, Question
from childflow.policy.verdict import ICMP4, TCP, Verdict, address_text
from childflow.record.tally import MAX_ADDRESSES, Tally, TargetRow
from childflow.services import dns
from childflow.settings import ADDRESSES, DNS_PORT, Settings

if TYPE_CHECKING:
    from childflow.record import events
    from childflow.record.log_file import LogFile

FLUSH_S = 0.2
NAMED_ADDRESSES = 4096
NAMES_PER_ADDRESS = 8
OPEN_FLOWS = 131072  # twice the flow table
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


class OpenFlow:
    """What later lines about a flow need of its first."""

    __slots__ = ("address", "names", "protocol", "rule", "target")

    def __init__(
        self, protocol: str, address: tuple[str, str, int], names: list[str], rule: str | None, target: TargetRow
    ) -> None:
        self.protocol = protocol
        self.address = address  # remote_addr, remote_ip, remote_port
        self.names = names
        self.rule = rule
        self.target = target


class Recorder(NullRecorder):
    """Counts for the summary, and lines for the flow log if there is one."""

    active = True

    def __init__(self, settings: Settings, log: LogFile | None) -> None:
        super().__init__(settings)
        self.tally = Tally()
        self.run_id = os.urandom(8).hex()
        self.started_at = time.monotonic()
        self.log = log
        self._lines = Lines(log, self.run_id) if log is not None else None
        self._flows: dict[int, OpenFlow] = {}
        self._names: dict[bytes, dict[str, None]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

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

    def allowed(self, question: Question, verdict: Verdict) -> None:
        """A flow was let out."""
        flow = self._open_flow(question, verdict.rule)
        flow.target.attempts += 1
        self.tally.flows += 1
        self.tally.events["connect_attempt"] += 1
        if self._lines is not None:
            self._lines.connect_attempt(question.flow, flow)
            self._flush_soon()

    def denied(self, question: Question, verdict: Verdict) -> None:
        """A flow was refused: a violation of policy where the verdict has a reason for one, else a failed connect."""
        protocol = "tcp" if question.protocol == TCP else "udp"
        if verdict.reason_code is not None:
            self._violation(protocol, question.remote, question.remote_port, verdict)
            return
        self.allowed(question, verdict)
        self._result(question.flow, self._flows.pop(question.flow), verdict.sentence, 0)

    def icmp_denied(self, protocol: int, remote: bytes, verdict: Verdict) -> None:
        """A ping was refused."""
        if verdict.reason_code is not None:
            self._violation("icmpv4" if protocol == ICMP4 else "icmpv6", remote, None, verdict)

    def connected(self, event: Connected) -> None:
        """The connect of a TCP flow is over."""
        flow = self._flows.get(event.flow)
        if flow is None:
            return
        error = _errno_text(event.errno) if event.errno else None
        self._result(event.flow, flow, error, event.duration_us // 1000)

    def ended(self, event: Ended) -> None:
        """A flow is over."""
        flow = self._flows.pop(event.flow, None)
        if flow is None:
            return
        row = flow.target
        row.ends += 1
        row.bytes_up += event.bytes_up
        row.bytes_down += event.bytes_down
        self.tally.bytes_up += event.bytes_up
        self.tally.bytes_down += event.bytes_down
        self.tally.events["flow_end"] += 1
        if self._lines is not None:
            self._lines.flow_end(flow, event)
            self._flush_soon()

    def _open_flow(self, question: Question, rule: str | None) -> OpenFlow:
        ip = address_text(question.remote)
        port = question.remote_port
        text = f"{ip}:{port}" if len(question.remote) == 4 else f"[{ip}]:{port}"
        names = list(self._names.get(question.remote, ()))
        target = self.tally.target(text, ip)
        for name in names:
            if len(target.names) < NAMES_PER_ADDRESS:
                target.names[name] = None
        protocol = "tcp" if question.protocol == TCP else "udp"
        flow = OpenFlow(protocol, (text, ip, port), names, rule, target)
        if len(self._flows) >= OPEN_FLOWS:
            del self._flows[next(iter(self._flows))]
        self._flows[question.flow] = flow
        return flow

    def _result(self, flow_id: int, flow: OpenFlow, error: str | None, duration_ms: int) -> None:
        if error is None:
            flow.target.oks += 1
        else:
            flow.target.errors += 1
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

    def dns_refused(self, protocol: str, bad: dns.Bad) -> None:
        """Something that was no query came to the gateway's port 53, and was not passed on."""
        self.tally.events["dns_query"] += 1
        if self._lines is not None:
            self._lines.dns_query(protocol, f"{address_text(ADDRESSES.gateway4)}:{DNS_PORT}", None, None)
            self._flush_soon()

    def dns_answer(
        self, protocol: str, server: str, query: dns.Query, answer: bytes, mode: str, duration_s: float
    ) -> None:
        """The child got `answer`; the addresses in it are known by the question's name from here on."""
        name = dns.name_text(query.question)
        row = self.tally.name(name)
        row.answers += 1
        self.tally.events["dns_answer"] += 1
        addresses = []
        for found in dns.answer_addresses(answer, query.question):
            self._learn(found.address, name)
            addresses.append(address_text(found.address))
        for text in addresses:
            if len(row.addresses) < MAX_ADDRESSES:
                row.addresses[text] = None
        if self._lines is not None:
            self._lines.dns_answer(protocol, server, query, answer, addresses, mode, duration_s)
            self._flush_soon()

    def _learn(self, address: bytes, name: str) -> None:
        names = self._names.pop(address, None)
        if names is None:
            names = {}
            if len(self._names) >= NAMED_ADDRESSES:
                del self._names[next(iter(self._names))]
        self._names[address] = names  # last: it was confirmed just now
        if name not in names and len(names) >= NAMES_PER_ADDRESS:
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


class Lines:
    """Makes the flow log's lines. Only here is msgspec needed.

    The closed sets of words in `events.py` are not checked again here: tests decode each kind of line against them.
    """

    def __init__(self, log: LogFile, run_id: str) -> None:
        import msgspec

        from childflow.record import events

        self._log = log
        self._run_id = run_id
        self._events: Any = events
        self._encode = msgspec.json.Encoder().encode

    def _write(self, event: events.Event) -> None:
        self._log.write(self._encode(event))

    def connect_attempt(self, flow_id: int, flow: OpenFlow) -> None:
        addr, ip, port = flow.address
        self._write(
            self._events.ConnectAttempt(
                ts_ms=_now_ms(), run_id=self._run_id, flow_id=flow_id, protocol=flow.protocol, remote_addr=addr,
                remote_ip=ip, remote_port=port, via_proxy=False, names=flow.names, rule=flow.rule,
                evidence="dns" if flow.names else "address", process=None,
            )
        )  # fmt: skip

    def connect_result(self, flow_id: int, flow: OpenFlow, error: str | None, duration_ms: int) -> None:
        addr, ip, port = flow.address
        self._write(
            self._events.ConnectResult(
                ts_ms=_now_ms(), run_id=self._run_id, flow_id=flow_id, protocol=flow.protocol, remote_addr=addr,
                remote_ip=ip, remote_port=port, via_proxy=False, names=flow.names, rule=flow.rule,
                evidence="dns" if flow.names else "address", process=None,
                status="ok" if error is None else "error", error=error, duration_ms=duration_ms,
            )
        )  # fmt: skip

    def flow_end(self, flow: OpenFlow, event: Ended) -> None:
        addr, ip, port = flow.address
        self._write(
            self._events.FlowEnd(
                ts_ms=_now_ms(), run_id=self._run_id, flow_id=event.flow, protocol=flow.protocol, remote_addr=addr,
                remote_ip=ip, remote_port=port, bytes_up=event.bytes_up, bytes_down=event.bytes_down,
                duration_ms=event.duration_us // 1000, end=event.end.name.lower(), server_name=None,
            )
        )  # fmt: skip

    def policy_violation(self, protocol: str, ip: str, port: int | None, verdict: Verdict) -> None:
        host = f"[{ip}]" if ":" in ip else ip
        self._write(
            self._events.PolicyViolation(
                ts_ms=_now_ms(), run_id=self._run_id, protocol=protocol,
                remote=ip if port is None else f"{host}:{port}", remote_ip=ip, remote_port=port, action="deny",
                reason_code=verdict.reason_code, control=verdict.control, matched_cidr=verdict.matched_cidr,
                matched_domain=verdict.matched_domain, reason=verdict.sentence,
            )
        )  # fmt: skip

    def dns_query(self, protocol: str, server: str, name: str | None, qtype: int | None) -> None:
        ip, port = _split(server)
        self._write(
            self._events.DnsQuery(
                ts_ms=_now_ms(), run_id=self._run_id, protocol=protocol, server=server, server_ip=ip,
                server_port=port, qname=name, qtype=_short_type(qtype),
                qtype_name=None if qtype is None else dns.type_name(qtype),
            )
        )  # fmt: skip

    def dns_answer(
        self, protocol: str, server: str, query: dns.Query, answer: bytes, ips: list[str], mode: str, duration_s: float
    ) -> None:
        ip, port = _split(server)
        code = dns.rcode(answer)
        self._write(
            self._events.DnsAnswer(
                ts_ms=_now_ms(), run_id=self._run_id, protocol=protocol, server=server, server_ip=ip,
                server_port=port, qname=dns.name_text(query.question), qtype=_short_type(query.qtype),
                qtype_name=dns.type_name(query.qtype), mode=mode,
                bytes=len(answer), answer_ips=ips, rcode=dns.RCODE_NAMES.get(code, f"RCODE{code}"),
                duration_ms=int(duration_s * 1000),
            )
        )  # fmt: skip

    def runtime_failure(self, phase: str, reason_code: str, detail: str) -> None:
        self._write(
            self._events.RuntimeFailure(
                ts_ms=_now_ms(), run_id=self._run_id, phase=phase, reason_code=reason_code, detail=detail
            )
        )


def make_recorder(settings: Settings) -> NullRecorder:
    """The recorder that `settings` ask for. UsageError or ChildflowError when the flow log can't be written."""
    if settings.flow_log is None and not settings.summary:
        return NullRecorder(settings)
    if settings.flow_log is None:
        return Recorder(settings, None)
    from childflow.record.log_file import LogFile

    return Recorder(settings, LogFile(settings.flow_log, NullRecorder(settings).warn))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _split(server: str) -> tuple[str, int]:
    host, _, port = server.rpartition(":")
    return host.strip("[]"), int(port)


def _short_type(qtype: int | None) -> str:
    if qtype is None:
        return "unknown"
    return {dns.TYPE_A: "A", dns.TYPE_AAAA: "AAAA"}.get(qtype, "other")


def _errno_text(number: int) -> str:
    return f"{os.strerror(number)} ({errno.errorcode.get(number, number)})"
