"""The flow log's events: one struct for each kind of line.

These structs are the format: the log is their encoding and `docs/schema/` is generated from them. Within schema
version 1 a field may be added, never renamed or removed.

Not here: when an event happens (`flowlog.py`), where the lines go (`log_file.py`).
"""

from __future__ import annotations

from typing import Literal

import msgspec

SCHEMA_VERSION = 1


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event"):
    """What every line has: `ts_ms` is Unix time in milliseconds, `run_id` the same in all lines of one run."""

    ts_ms: int
    run_id: str
    schema_version: Literal[1] = 1


class DnsQuery(Event, frozen=True, kw_only=True, tag="dns_query"):
    """A DNS question of the tree, and the server that it went to first. `qname` is null where it did not parse."""

    protocol: Literal["udp", "tcp"]
    server: str
    server_ip: str
    server_port: int
    qname: str | None
    qtype: Literal["A", "AAAA", "other", "unknown"]
    qtype_name: str | None


class DnsAnswer(Event, frozen=True, kw_only=True, tag="dns_answer"):
    """What the tree got for a question: the server's answer, or one that childflow made without any record."""

    protocol: Literal["udp", "tcp"]
    server: str
    server_ip: str
    server_port: int
    qname: str | None
    qtype: Literal["A", "AAAA", "other", "unknown"]
    qtype_name: str | None
    mode: Literal["relayed", "synthetic_empty", "virtual"]
    bytes: int
    answer_ips: list[str]
    rcode: str
    duration_ms: int


class Process(msgspec.Struct, frozen=True, kw_only=True):
    """Who opened a flow: `pid` as the host counts, `pid_inside` as the tree does."""

    pid: int
    pid_inside: int
    exe: str
    argv0: str
    parents: list[int]


class Flow(Event, frozen=True, kw_only=True):
    """What the lines about a flow share. `flow_id` is the flow's own within a run."""

    flow_id: int
    protocol: Literal["tcp", "udp"]
    remote_addr: str
    remote_ip: str
    remote_port: int


class ConnectAttempt(Flow, frozen=True, kw_only=True, tag="connect_attempt"):
    """A flow that was let out. `names` led to this address in the answers so far; `rule` allowed it (null: no rule)."""

    via_proxy: bool
    names: list[str]
    rule: str | None
    evidence: Literal["address", "dns", "sni", "host", "quic", "virtual"]
    process: Process | None


class ConnectResult(Flow, frozen=True, kw_only=True, tag="connect_result"):
    """How the connect on the host side went."""

    via_proxy: bool
    names: list[str]
    rule: str | None
    evidence: Literal["address", "dns", "sni", "host", "quic", "virtual"]
    process: Process | None
    status: Literal["ok", "error"]
    error: str | None
    duration_ms: int


class PolicyViolation(Event, frozen=True, kw_only=True, tag="policy_violation"):
    """Something that was not let out, and why."""

    protocol: Literal["tcp", "udp", "dns", "icmpv4", "icmpv6"]
    remote: str
    remote_ip: str
    remote_port: int | None
    action: Literal["deny"]
    reason_code: Literal[
        "offline", "metadata", "private", "deny_cidr", "deny_domain", "deny_domain_exact", "default_deny", "proxy_only",
        "sni_mismatch", "quic_unreadable", "dns_malformed", "martian", "spoofed_source",
    ]  # fmt: skip
    control: str | None
    matched_cidr: str | None
    matched_domain: str | None
    reason: str


class FlowEnd(Flow, frozen=True, kw_only=True, tag="flow_end"):
    """A flow is over; `bytes_up` and `bytes_down` are payload, `names` those of its connect_attempt.

    `server_name` is what the first bytes of the child named (SNI or Host), where they were read; `evidence` is
    what the flow rests on at last.
    """

    names: list[str]
    bytes_up: int
    bytes_down: int
    duration_ms: int
    end: Literal["fin", "rst_child", "rst_host", "timeout", "idle", "killed"]
    server_name: str | None
    evidence: Literal["address", "dns", "sni", "host", "quic", "virtual"]


class RuntimeFailure(Event, frozen=True, kw_only=True, tag="runtime_failure"):
    """childflow itself failed."""

    phase: Literal["cli_validate", "preflight", "child_bootstrap", "run"]
    reason_code: Literal[
        "namespace_unshare_failed", "user_namespace_mapping_failed", "mount_propagation_blocked",
        "resolv_conf_bind_blocked", "hosts_bind_blocked", "rootless_bootstrap_sync_failed", "tap_create_blocked",
        "packet_capture_blocked", "runtime_shutdown_failed", "unknown_runtime_failure",
    ]  # fmt: skip
    detail: str


AnyEvent = DnsQuery | DnsAnswer | ConnectAttempt | ConnectResult | PolicyViolation | FlowEnd | RuntimeFailure

EVENT_NAMES = ("dns_query", "dns_answer", "connect_attempt", "connect_result", "policy_violation", "flow_end",
               "runtime_failure")  # fmt: skip
