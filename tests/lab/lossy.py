"""A wire that loses, between a command and what is in front of it: childflow's engine, or a plain veth pair.

    with childflow_leg(caller) as leg:                      # or plain_leg(caller): the control, without childflow
        leg.lose(up=10, down=10)                            # per mille, of frames
        leg.caller.direct("curl", lab.url("/hello"))        # the workload runs behind the leg

        inner (leg.caller) ---veth--- outer ---tap0--- engine ... server         childflow_leg
        inner (leg.caller) ---veth--- laptop --veth--- server                    plain_leg

`outer` is the network namespace of a command that childflow runs and that only sleeps. It forwards and masquerades, so
that the engine sees one host. Loss is at the arrival on either end of the veth pair, whose ends send no frame above the
MTU: the sender's kernel has cut the 64 KiB frames before, so a loss is one segment. `counted()` proves it: "oversized"
are frames above the MTU that came to the place of the loss.

`what` may be lost: "all", "data" (frames above 100 bytes) or "acks" (TCP frames up to 100 bytes without SYN, FIN, RST).

Invariants: what a leg sets up is gone with it. The workload is as near to its own kernel as without a leg: its options,
its congestion control (`leg.sysctl`) and its retransmissions are those of the inner namespace.
Not here:   loss between engine and server, which is the host's kernel's affair; reordering and delay (tests/netstack).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from . import namespaces as ns
from .engine import Engine, sleeping
from .hosts import Host, prepared, wire
from .lab import Caller
from .processes import Place, Running

_INNER = {4: "10.77.0.2", 6: "fd77::2"}
_OUTER = {4: "10.77.0.1", 6: "fd77::1"}
_TO_INNER, _TO_OUTER = "to-inner", "to-outer"
_WHAT = {
    "all": "",
    "data": "meta length > 100",
    "acks": "meta length <= 100 tcp flags & (fin | syn | rst) == 0",
}


@dataclass(frozen=True)
class Leg:
    """The lossy piece of wire: `caller` works behind it, `outer` is in front; `running` is the childflow, if any."""

    caller: Caller
    inner: Host
    outer: Host
    mtu: int
    running: Running | None = None

    def lose(self, up: int = 0, down: int = 0, what: str = "all") -> None:
        """From now on lose `up` and `down` per mille of these frames, chosen at random; counters begin at zero."""
        for host, device, share in ((self.outer, _TO_INNER, up), (self.inner, _TO_OUTER, down)):
            chance = f"numgen random mod 1000 < {share}" if share < 1000 else ""
            host.nft(
                f"table netdev loss {{}}\ndelete table netdev loss\ntable netdev loss {{\n"
                f"chain arrival {{ type filter hook ingress device {device} priority 0;\n"
                f"meta length > {self.mtu} counter\n"
                f"{_WHAT[what]} {chance} counter drop\n"
                "counter\n}\n}\n"
            )

    def counted(self) -> dict[str, dict[str, int]]:
        """Frames since `lose`, by direction: {"up": {"oversized": 0, "lost": .., "passed": ..}, "down": ...}."""
        return {"up": _counters(self.outer), "down": _counters(self.inner)}

    def sysctl(self, name: str, value: str) -> None:
        """A setting of the workload's own kernel."""
        self.inner.sysctl(name, value)


def _counters(host: Host) -> dict[str, int]:
    listing = host.run("nft", "list", "table", "netdev", "loss")
    return dict(zip(("oversized", "lost", "passed"), map(int, re.findall(r"packets (\d+)", listing)), strict=True))


@contextmanager
def childflow_leg(caller: Caller, flags: tuple[str, ...] = (), mtu: int = 1500) -> Iterator[Leg]:
    """The leg in front of childflow's engine. `caller` is who runs childflow and, behind the leg, the workload."""
    with sleeping(caller, ("--mtu", str(mtu), *flags)) as (running, net):
        with _leg(caller, Host("outer", Place(net)), "tap0", mtu, running) as leg:
            yield leg


@contextmanager
def leg_before(engine: Engine, mtu: int = 1500) -> Iterator[Leg]:
    """The leg in front of an engine under watch."""
    with _leg(engine.inside, engine.sandbox, "tap0", mtu, engine.running) as leg:
        yield leg


@contextmanager
def plain_leg(caller: Caller, laptop: Host, mtu: int = 1500) -> Iterator[Leg]:
    """The same leg in front of the laptop's plain wire."""
    with _leg(caller, laptop, "to-server", mtu, None) as leg:
        yield leg


@contextmanager
def _leg(caller: Caller, outer: Host, way_out: str, mtu: int, running: Running | None) -> Iterator[Leg]:
    net = ns.new_network()
    try:
        inner = prepared(Host("inner", Place(net), _INNER))
        front = replace(outer, addresses=_OUTER)
        wire(inner, front, _TO_OUTER, _TO_INNER)
        for host, device in ((inner, _TO_OUTER), (front, _TO_INNER)):
            host.ip(f"link set {device} mtu {mtu}")
            host.run("ethtool", "-K", device, "tso", "off", "tx-udp-segmentation", "off")
        _forward(front, way_out)
        leg = Leg(replace(caller, place=Place(net, caller.place.mounts)), inner, front, mtu, running)
        leg.lose()
        yield leg
    finally:
        if running is None:
            _forget(outer)
        os.close(net)


def _forward(host: Host, way_out: str) -> None:
    host.sysctl("net.ipv4.ip_forward", "1")
    host.sysctl("net.ipv6.conf.all.forwarding", "1")
    host.nft(
        "table inet leg { chain leaving { type nat hook postrouting priority srcnat;\n"
        f"oifname {way_out} masquerade\n}}\n}}\n"
    )
    # Else a segment that comes twice, or late, counts as invalid and leaves with the inner address.
    host.sysctl("net.netfilter.nf_conntrack_tcp_be_liberal", "1")
    for state in (
        "close_wait",
        "fin_wait",
        "last_ack",
        "unacknowledged",
        "max_retrans",
    ):  # a timer may run for a minute
        host.sysctl(f"net.netfilter.nf_conntrack_tcp_timeout_{state}", "3600")


def _forget(laptop: Host) -> None:
    """The laptop outlives its leg."""
    laptop.ip(f"link del {_TO_INNER}")
    laptop.nft("table inet leg {}\ndelete table inet leg\ntable netdev loss {}\ndelete table netdev loss\n")
    laptop.sysctl("net.ipv4.ip_forward", "0")
    laptop.sysctl("net.ipv6.conf.all.forwarding", "0")
