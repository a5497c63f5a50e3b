"""The summary's JSON: its structs, and how they are filled from the tally.

The schema in `docs/schema/` is generated from these structs. Rankings are by descending count, then key.

Not here: the text for people (`summary.py`).
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Literal

import msgspec

from childflow.record.events import EVENT_NAMES
from childflow.record.recorder import Recorder
from childflow.record.summary import notes

if TYPE_CHECKING:
    from collections import Counter

    from childflow.record.tally import NameRow, Tally, TargetRow
    from childflow.settings import Settings


class Capture(msgspec.Struct, frozen=True, kw_only=True):
    """The packet capture that was asked for and made."""

    status: Literal["disabled", "enabled"] = "disabled"
    requested: str | None = None
    effective: str | None = None
    output: str | None = None
    child_output: str | None = None
    egress_output: str | None = None


class Name(msgspec.Struct, frozen=True, kw_only=True):
    """A DNS name: questions, answers, and addresses that it gave."""

    qname: str
    queries: int
    answers: int
    answer_ips: list[str]


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A `host:port` and what became of the connects to it."""

    target: str
    connect_attempts: int
    connect_ok: int
    connect_error: int
    flow_end: int
    matched_domains: list[str]
    dns_names: list[str]


class Correlation(msgspec.Struct, frozen=True, kw_only=True):
    """A DNS name and the targets that its answers led to."""

    qname: str
    queries: int
    answers: int
    answer_ips: list[str]
    targets: list[str]
    matched_domains: list[str]


class PolicyRow(msgspec.Struct, frozen=True, kw_only=True):
    """One pair of a DNS name and a target; `target` is null where no connect followed."""

    qname: str
    queries: int
    answers: int
    answer_ips: list[str]
    target: str | None
    target_ip: str | None
    connect_attempts: int
    connect_ok: int
    connect_error: int
    flow_end: int
    matched_domains: list[str]


class FlowLog(msgspec.Struct, frozen=True, kw_only=True):
    """What was counted, whether or not a log was written. `path` is null without one."""

    status: Literal["disabled", "available", "unavailable"]
    path: str | None
    event_counts: dict[str, int]
    top_dns_name: Name | None
    dns_policy_rows: list[PolicyRow]
    top_dns_policy_correlation: Correlation | None
    top_target: Target | None
    policy_violations: dict[str, int]
    policy_controls: dict[str, int]
    policy_matched_domains: dict[str, int]
    connect_errors: dict[str, int]
    runtime_failures: dict[str, int]
    runtime_failure_phases: dict[str, int]


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """Payload bytes of all flows; `flows` were let out; from start to end in milliseconds."""

    bytes_up: int
    bytes_down: int
    flows: int
    duration_ms: int


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The whole summary. `notes`: sentences about this run's rules, for people."""

    backend: str
    command: str
    exit_code: int
    sandbox_controls: list[str]
    notes: list[str]
    capture: Capture
    flow_log: FlowLog
    traffic: Traffic


def encode(settings: Settings, recorder: Recorder, status: int) -> str:
    """The summary's JSON, indented, with a newline at its end."""
    raw = msgspec.json.encode(summary(settings, recorder, status))
    return msgspec.json.format(raw, indent=2).decode() + "\n"


def summary(settings: Settings, recorder: Recorder, status: int) -> Summary:
    """The summary of the run that `recorder` saw."""
    tally = recorder.tally
    return Summary(
        backend=settings.backend,
        command=shlex.join(settings.command),
        exit_code=status,
        sandbox_controls=settings.controls(),
        notes=notes(settings),
        capture=Capture(),
        flow_log=_flow_log(settings, recorder, tally),
        traffic=Traffic(
            bytes_up=tally.bytes_up, bytes_down=tally.bytes_down, flows=tally.flows, duration_ms=recorder.duration_ms()
        ),
    )


def _flow_log(settings: Settings, recorder: Recorder, tally: Tally) -> FlowLog:
    names = sorted(tally.names.values(), key=lambda row: (-row.queries, -row.answers, row.qname))
    targets = sorted(tally.targets.values(), key=lambda row: (-row.attempts, -row.errors, -row.oks, row.target))
    by_name = _targets_by_name(targets)
    counts = {"total": tally.events.total(), **{name: tally.events[name] for name in EVENT_NAMES}, "unknown_event": 0}
    return FlowLog(
        status="disabled" if settings.flow_log is None else "available" if recorder.log_whole else "unavailable",
        path=settings.flow_log,
        event_counts=counts,
        top_dns_name=_name(names[0]) if names else None,
        dns_policy_rows=[row for name in names for row in _policy_rows(name, by_name.get(name.qname, []))],
        top_dns_policy_correlation=_correlation(names[0], by_name.get(names[0].qname, [])) if names else None,
        top_target=_target(targets[0]) if targets else None,
        policy_violations=_ranked(tally.violations),
        policy_controls=_ranked(tally.controls),
        policy_matched_domains=_ranked(tally.domains),
        connect_errors=_ranked(tally.connect_errors),
        runtime_failures=_ranked(tally.failures),
        runtime_failure_phases=_ranked(tally.failure_phases),
    )


def _targets_by_name(targets: list[TargetRow]) -> dict[str, list[TargetRow]]:
    by_name: dict[str, list[TargetRow]] = {}
    for target in targets:
        for name in target.names:
            by_name.setdefault(name, []).append(target)
    return by_name


def _policy_rows(name: NameRow, targets: list[TargetRow]) -> list[PolicyRow]:
    return [_policy_row(name, target) for target in targets] or [_policy_row(name, None)]


def _policy_row(name: NameRow, target: TargetRow | None) -> PolicyRow:
    return PolicyRow(
        qname=name.qname,
        queries=name.queries,
        answers=name.answers,
        answer_ips=list(name.addresses),
        target=target.target if target else None,
        target_ip=target.ip if target else None,
        connect_attempts=target.attempts if target else 0,
        connect_ok=target.oks if target else 0,
        connect_error=target.errors if target else 0,
        flow_end=target.ends if target else 0,
        matched_domains=[],
    )


def _name(row: NameRow) -> Name:
    return Name(qname=row.qname, queries=row.queries, answers=row.answers, answer_ips=list(row.addresses))


def _correlation(row: NameRow, targets: list[TargetRow]) -> Correlation:
    return Correlation(
        qname=row.qname,
        queries=row.queries,
        answers=row.answers,
        answer_ips=list(row.addresses),
        targets=[target.target for target in targets],
        matched_domains=[],
    )


def _target(row: TargetRow) -> Target:
    return Target(
        target=row.target,
        connect_attempts=row.attempts,
        connect_ok=row.oks,
        connect_error=row.errors,
        flow_end=row.ends,
        matched_domains=[],
        dns_names=list(row.names),
    )


def _ranked(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
