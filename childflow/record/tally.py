"""The tally of a run: counts by name, target and reason, from which the summary is made.

Invariants: every table is bounded: a child that invents names or targets ends up in one row, OTHERS.
Not here:   rendering (`summary.py`), the flow log (`flowlog.py`).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from childflow.policy.verdict import Verdict

MAX_ROWS = 4096
MAX_ADDRESSES = 64
OTHERS = "(others)"


class NameRow:
    """What is known about one DNS name: questions, answers, and the addresses they gave, in order of appearance."""

    __slots__ = ("addresses", "answers", "qname", "queries", "rcode")

    def __init__(self, qname: str) -> None:
        self.qname = qname
        self.queries = 0
        self.answers = 0
        self.rcode: int | None = None  # of the last answer
        self.addresses: dict[str, None] = {}


class TargetRow:
    """What is known about one `ip:port`: connects and how they ended, payload bytes, and the names that led there."""

    __slots__ = ("attempts", "bytes_down", "bytes_up", "ends", "errors", "ip", "names", "oks", "target")

    def __init__(self, target: str, ip: str) -> None:
        self.target = target
        self.ip = ip
        self.attempts = 0
        self.oks = 0
        self.errors = 0
        self.ends = 0
        self.bytes_up = 0
        self.bytes_down = 0
        self.names: dict[str, None] = {}


class HostRow:
    """What is known about one `name:port`, the name being the latest that led to the address when the flow began.

    Without a name it is the address. `reached` flows were connected (TCP) or answered (UDP), `errors` were refused;
    what is neither got no answer. `order` sorts by address, then port.
    """

    __slots__ = ("attempts", "bytes_down", "bytes_up", "errors", "label", "order", "reached")

    def __init__(self, label: str, order: tuple[int, bytes, int]) -> None:
        self.label = label
        self.order = order
        self.attempts = 0
        self.reached = 0
        self.errors = 0
        self.bytes_up = 0
        self.bytes_down = 0


class PingRow:
    """Echo requests to one address: how many were sent and answered, and how many could not be sent, by reason."""

    __slots__ = ("answered", "failed", "label", "names", "order", "sent")

    def __init__(self, label: str, order: tuple[int, bytes]) -> None:
        self.label = label
        self.order = order
        self.sent = 0
        self.answered = 0
        self.names: tuple[str, ...] = ()  # that led to the address when it was pinged last
        self.failed: Counter[str] = Counter()


class OpenFlow:
    """What later lines about a flow need of its first."""

    __slots__ = ("address", "evidence", "host", "names", "protocol", "rule", "server_name", "target", "via_proxy")

    def __init__(
        self,
        protocol: str,
        address: tuple[str, str, int],
        names: list[str],
        verdict: Verdict,
        via_proxy: bool,
        target: TargetRow,
        host: HostRow,
    ) -> None:
        self.protocol = protocol
        self.address = address  # remote_addr, remote_ip, remote_port
        self.names = names
        self.rule = verdict.rule
        by_default = verdict.rule is None and verdict.evidence == "address"
        self.evidence = "dns" if names and by_default else verdict.evidence
        self.server_name: str | None = None  # as the child said it on the wire
        self.via_proxy = via_proxy
        self.target = target
        self.host = host


class Tally:
    """Everything that is counted over a run."""

    def __init__(self) -> None:
        self.events: Counter[str] = Counter()
        self.names: dict[str, NameRow] = {}
        self.targets: dict[str, TargetRow] = {}
        self.hosts: dict[str, HostRow] = {}
        self.pings: dict[bytes, PingRow] = {}
        self.silent_resolvers: Counter[str] = Counter()  # queries that a resolver (`ip:port`) did not answer
        self.failed: Counter[tuple[str, str]] = Counter()  # by label of the destination and reason
        self.violations: Counter[str] = Counter()
        self.controls: Counter[str] = Counter()
        self.domains: Counter[str] = Counter()
        self.connect_errors: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.failure_phases: Counter[str] = Counter()
        self.bytes_up = 0
        self.bytes_down = 0
        self.flows = 0

    def name(self, qname: str) -> NameRow:
        """The row of `qname`, made if need be."""
        row = self.names.get(qname)
        if row is None:
            if len(self.names) >= MAX_ROWS:
                qname = OTHERS
            row = self.names.setdefault(qname, NameRow(qname))
        return row

    def target(self, target: str, ip: str) -> TargetRow:
        """The row of `target` (`ip:port`), made if need be."""
        row = self.targets.get(target)
        if row is None:
            if len(self.targets) >= MAX_ROWS:
                target, ip = OTHERS, ""
            row = self.targets.setdefault(target, TargetRow(target, ip))
        return row

    def host(self, label: str, order: tuple[int, bytes, int]) -> HostRow:
        """The row of `label` (`name:port` or `ip:port`), made if need be."""
        row = self.hosts.get(label)
        if row is None:
            if len(self.hosts) >= MAX_ROWS:
                label = OTHERS
            row = self.hosts.setdefault(label, HostRow(label, order))
        return row

    def ping(self, remote: bytes, label: str) -> PingRow:
        """The row of pings to the address `remote`, made if need be and called `label` then."""
        row = self.pings.get(remote)
        if row is None:
            if len(self.pings) >= MAX_ROWS:
                remote, label = b"", OTHERS
            row = self.pings.setdefault(remote, PingRow(label, (len(remote), remote)))
        return row

    def fail(self, label: str, reason: str) -> None:
        """`label` could not be reached, for `reason`."""
        if (label, reason) not in self.failed and len(self.failed) >= MAX_ROWS:
            label = OTHERS
        self.failed[label, reason] += 1
