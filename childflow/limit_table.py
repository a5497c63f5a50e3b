"""The table of limits: what each may be set to, why its default is what it is, and what happens to the one too many.

Each limit refuses or forgets one thing and leaves all else working. `--limit NAME=N` sets any of them;
`docs/behaviour.md` has this table for users.

Invariants: imported only when `--limit` was given, so that it costs nothing otherwise.
Not here:   the defaults (`limits.py`).
"""

from __future__ import annotations

from typing import NamedTuple

from childflow.errors import UsageError
from childflow.limits import GIB, KIB, MIB, Limits


class Bound(NamedTuple):
    """The least and the greatest value, the unit, why the default is what it is, and what the one too many gets."""

    low: int
    high: int
    unit: str
    reason: str
    too_many: str


TABLE: dict[str, Bound] = {
    "max_flows": Bound(
        2, 1 << 24, "flows", "TCP connections and UDP peers; 272 bytes each, made as they are needed",
        "TCP: RST, once the oldest in TIME-WAIT made room; UDP: the least recently used peer makes room",
    ),
    "max_half_open": Bound(
        1, 1 << 23, "flows", "Linux's own backlog of a listening socket; at most half of max_sockets",
        "the oldest is forgotten in silence: its child sends the SYN again",
    ),
    "max_udp_peers": Bound(
        1, 1 << 23, "peers", "half of max_flows, so that UDP leaves room for TCP",
        "the least recently used is forgotten; its next datagram is ruled afresh",
    ),
    "max_sockets": Bound(
        2, 1 << 24, "sockets", "as max_flows; never more than the open files limit less a reserve",
        "TCP: RST; UDP: the least recently used socket makes room",
    ),
    "max_udp_sockets": Bound(
        1, 1 << 23, "sockets", "each takes one of the host's 28,232 ephemeral ports; at most half of max_sockets",
        "the least recently used is closed and its peers forgotten",
    ),
    "flow_window": Bound(
        64 * KIB, 256 * MIB, "bytes, a power of two", "of one flow and direction: 40 ms at 100 Mbit/s",
        "a closed window",
    ),
    "buffer_limit": Bound(
        64 * KIB, 1 << 40, "bytes", "payload of all flows: 2,048 that move bytes at once",
        "4 KiB (or a 16384th) in place of flow_window: the flow is slow, not stuck",
    ),
    "parked_datagrams": Bound(
        1, 255, "datagrams", "of one UDP peer before its verdict: a burst of small ones", "dropped (parked_full)",
    ),
    "parked_bytes": Bound(64 * KIB, GIB, "bytes", "of all UDP peers before their verdicts", "dropped (parked_full)"),
    "slow_packets": Bound(
        1, 1 << 20, "packets", "for Python between two turns: DNS, ARP, ND, echo, fragments",
        "dropped (slow_path_full)",
    ),
    "slow_bytes": Bound(128 * KIB, GIB, "bytes", "the same in bytes", "dropped (slow_path_full)"),
    "control_rate": Bound(
        1, 10**9, "packets a second", "ARP, ND, echo: ten times `ping -f`; bursts of a tenth",
        "dropped (slow_path_rate)",
    ),
    "fragment_rate": Bound(
        1, 10**9, "packets a second", "6 Gbit/s of them: a bound, not a brake; bursts of a tenth",
        "dropped (slow_path_rate)",
    ),
    "icmp_error_rate": Bound(1, 10**9, "packets a second", "to the child (RFC 4443, 2.4 f)", "silence (icmp_rate)"),
    "challenge_ack_rate": Bound(1, 10**9, "packets a second", "RFC 5961, section 7: as Linux had it", "silence"),
    "fragment_datagrams": Bound(1, 65_536, "datagrams", "being put together", "the oldest is dropped (fragment_limit)"),
    "fragment_bytes": Bound(128 * KIB, GIB, "bytes", "being put together", "the oldest is dropped (fragment_limit)"),
    "ping_sessions": Bound(
        1, 65_536, "ids", "one socket each; at most a quarter of the reserved descriptors",
        "the least recently used is forgotten",
    ),
    "dns_queries": Bound(1, 65_536, "queries", "over UDP, unanswered", "the oldest is forgotten"),
    "dns_connections": Bound(
        1, 4_096, "connections", "DNS over TCP to the gateway; at most an eighth of the reserved descriptors",
        "the longest idle is closed; RST when all are busy",
    ),
}  # fmt: skip


def parse(texts: list[str]) -> tuple[tuple[str, int], ...]:
    """`NAME=N` texts to pairs; the last of a name counts. UsageError for what is none."""
    found: dict[str, int] = {}
    for text in texts:
        name, equals, number = text.partition("=")
        name = name.strip().replace("-", "_")
        if name not in TABLE:
            raise UsageError(_unknown(name))
        if not equals:
            raise UsageError(f"--limit {name} needs a number; write --limit {name}={Limits._field_defaults[name]}")
        found[name] = _number(name, number.strip())
    return tuple(found.items())


def _unknown(name: str) -> str:
    import difflib

    near = difflib.get_close_matches(name, TABLE, 1, 0.4)
    return f"--limit {name!r} is unknown; {f'did you mean {near[0]}?' if near else 'choose of ' + ', '.join(TABLE)}"


def _number(name: str, text: str) -> int:
    bound = TABLE[name]
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 14 else -1
    if not bound.low <= number <= bound.high or (name == "flow_window" and number & (number - 1)):
        raise UsageError(f"--limit {name} can't be {text!r}; give {bound.unit}, from {bound.low} to {bound.high}")
    return number
