"""Lines: one method for each kind of event, which writes it to the flow log. Only here is msgspec needed for the log.

The closed sets of words in `events.py` are not checked again here: tests decode each kind of line against them.

Not here: the fields (`events.py`), the counting (`recorder.py`).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from childflow.record import events
from childflow.services import dns

if TYPE_CHECKING:
    from childflow.netstack.events import Ended
    from childflow.policy.verdict import Verdict
    from childflow.record.log_file import LogFile
    from childflow.record.tally import OpenFlow


class Lines:
    """Makes the lines of one run and hands them to its log."""

    def __init__(self, log: LogFile, run_id: str) -> None:
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
                remote_ip=ip, remote_port=port, via_proxy=flow.via_proxy, names=flow.names, rule=flow.rule,
                evidence=flow.evidence, process=None,
            )
        )  # fmt: skip

    def connect_result(self, flow_id: int, flow: OpenFlow, error: str | None, duration_ms: int) -> None:
        addr, ip, port = flow.address
        self._write(
            self._events.ConnectResult(
                ts_ms=_now_ms(), run_id=self._run_id, flow_id=flow_id, protocol=flow.protocol, remote_addr=addr,
                remote_ip=ip, remote_port=port, via_proxy=flow.via_proxy, names=flow.names, rule=flow.rule,
                evidence=flow.evidence, process=None,
                status="ok" if error is None else "error", error=error, duration_ms=duration_ms,
            )
        )  # fmt: skip

    def flow_end(self, flow: OpenFlow, event: Ended) -> None:
        addr, ip, port = flow.address
        self._write(
            self._events.FlowEnd(
                ts_ms=_now_ms(), run_id=self._run_id, flow_id=event.flow, protocol=flow.protocol, remote_addr=addr,
                remote_ip=ip, remote_port=port, names=flow.names, bytes_up=event.bytes_up, bytes_down=event.bytes_down,
                duration_ms=event.duration_us // 1000, end=event.end.name.lower(),
                server_name=flow.server_name, evidence=flow.evidence,
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


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _split(server: str) -> tuple[str, int]:
    host, _, port = server.rpartition(":")
    return host.strip("[]"), int(port)


def _short_type(qtype: int | None) -> str:
    if qtype is None:
        return "unknown"
    return {dns.TYPE_A: "A", dns.TYPE_AAAA: "AAAA"}.get(qtype, "other")
