"""A server that is the whole Internet: it accepts for every address, says what arrived, and treats it as told.

    def test_metadata_is_an_ordinary_address(internet):
        internet.caller("ordinary").childflow("curl", "http://169.254.169.254/hello").ok()
        assert ("tcp", "169.254.169.254", 80) in internet.arrived()         # ("icmp", ADDRESS, 0) for a ping
        internet.treat("tcp dport 80", "host-unreachable")                  # undone after the test
        internet.treat("ip daddr 1.1.1.1", "lose 200")                      # per mille
    internet.zone({"good.test": {"A": "1.1.1.1"}, "www.good.test": {"CNAME": "good.test"}})      # until the test's end
    assert ("tcp", "1.1.1.1", 443) not in internet.spoke()              # not one byte of payload

`internet`: laptop and Internet on one wire. `narrow_internet`: a router between them passes 1280 bytes in each
direction and answers larger packets with "fragmentation needed" or "packet too big"; the links themselves, and so the
MTU that childflow takes for its own, have 1500.

The servers are those of `serve.py`, which also write where each connection was meant to go (`witness()`, field "to").
`arrived()` and `spoke()` are the kernel's own lists, made before any verdict: whatever the laptop sent to the
Internet's wire is there. What a proxy on the Internet's own host writes to is in `spoke_within()`.

Invariants: the lists are complete up to 65,535 destinations; multicast and neighbour discovery are not in it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from ipaddress import ip_address

from .hosts import FAR_SIDE, Wires
from .lab import Lab

NARROW = 1280
_VERBS = {
    "drop": ("drop", "drop"),
    "host-unreachable": ("reject with icmp host-unreachable", "reject with icmpv6 addr-unreachable"),
    "net-unreachable": ("reject with icmp net-unreachable", "reject with icmpv6 no-route"),
    "port-unreachable": ("reject with icmp port-unreachable", "reject with icmpv6 port-unreachable"),
    "admin-prohibited": ("reject with icmp admin-prohibited", "reject with icmpv6 admin-prohibited"),
    "reset": ("meta l4proto tcp reject with tcp reset", "meta l4proto tcp reject with tcp reset"),
}
_ARRIVED = ("four", "six", "portless_four", "portless_six")
_SPOKE = ("spoke_four", "spoke_six")
_WITHIN = ("within_four", "within_six")
_TABLES = """
table inet verbs {
  chain input { type filter hook input priority 10; }
}
table inet seen {
  set four { type ipv4_addr . inet_proto . inet_service; size 65535; flags dynamic; }
  set six { type ipv6_addr . inet_proto . inet_service; size 65535; flags dynamic; }
  set spoke_four { type ipv4_addr . inet_proto . inet_service; size 65535; flags dynamic; }
  set spoke_six { type ipv6_addr . inet_proto . inet_service; size 65535; flags dynamic; }
  set within_four { type ipv4_addr . inet_proto . inet_service; size 65535; flags dynamic; }
  set within_six { type ipv6_addr . inet_proto . inet_service; size 65535; flags dynamic; }
  set portless_four { type ipv4_addr . inet_proto; size 65535; flags dynamic; }
  set portless_six { type ipv6_addr . inet_proto; size 65535; flags dynamic; }
  chain within {
    meta l4proto { tcp, udp } @ih,0,8 { 0-127, 128-255 } add @within_four { ip daddr . meta l4proto . th dport }
    meta l4proto { tcp, udp } @ih,0,8 { 0-127, 128-255 } add @within_six { ip6 daddr . meta l4proto . th dport }
  }
  chain arrival {
    type filter hook prerouting priority -400;
    iifname lo goto within
    fib daddr type multicast accept
    meta l4proto { tcp, udp } @ih,0,8 { 0-127, 128-255 } add @spoke_four { ip daddr . meta l4proto . th dport }
    meta l4proto { tcp, udp } @ih,0,8 { 0-127, 128-255 } add @spoke_six { ip6 daddr . meta l4proto . th dport }
    icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit } accept
    meta l4proto { tcp, udp } add @four { ip daddr . meta l4proto . th dport } accept
    meta l4proto { tcp, udp } add @six { ip6 daddr . meta l4proto . th dport } accept
    add @portless_four { ip daddr . meta l4proto }
    add @portless_six { ip6 daddr . meta l4proto }
  }
}
"""


class Internet(Lab):
    """Laptop and Internet. `narrow`: what the router between them lets pass, 0 for no router."""

    def __init__(self, narrow: int = 0) -> None:
        wires = Wires.routed() if narrow else Wires.direct()
        wires.server.any_address()
        wires.server.nft(_TABLES)
        if narrow and wires.router:
            _narrow(wires, narrow)
        super().__init__(wires)

    def treat(self, match: str, verb: str) -> None:
        """What shall become of arrivals that `match` (nft's words): one of `_VERBS`, or "lose PER_MILLE"."""
        name, _, share = verb.partition(" ")
        if name == "lose":
            self.server.nft(f"add rule inet verbs input {match} numgen random mod 1000 < {share} drop\n")
            return
        for family, verdict in zip(("ipv4", "ipv6"), _VERBS[verb], strict=True):
            if match.startswith("ip6 " if family == "ipv4" else "ip "):
                continue
            self.server.nft(f"add rule inet verbs input meta nfproto {family} {match} {verdict}\n")

    def arrived(self) -> set[tuple[str, str, int]]:
        """(protocol, address, port) of all that has come since the test began; port 0 where there is none."""
        return self._listed(_ARRIVED)

    def spoke(self) -> set[tuple[str, str, int]]:
        """The same of what came with at least one byte behind its TCP or UDP header."""
        return self._listed(_SPOKE)

    def spoke_within(self) -> set[tuple[str, str, int]]:
        """The same of what programs on the Internet's host sent one another, answers included."""
        return self._listed(_WITHIN)

    def _listed(self, sets: Sequence[str]) -> set[tuple[str, str, int]]:
        found = set()
        for name in sets:
            listed = json.loads(self.server.run("nft", "-j", "list", "set", "inet", "seen", name))["nftables"]
            for entry in listed[1]["set"].get("elem", []):
                address, protocol, *port = entry["concat"]
                found.add((str(protocol), str(ip_address(address)), int(port[0]) if port else 0))
        return found

    def forget(self) -> None:
        """From here on nothing has arrived."""
        self.server.nft("".join(f"flush set inet seen {name}\n" for name in (*_ARRIVED, *_SPOKE, *_WITHIN)))

    def restore(self) -> None:
        super().restore()
        self.server.nft("flush chain inet verbs input\n")
        self.forget()


def _narrow(wires: Wires, mtu: int) -> None:
    """Locked path MTUs of the router's routes: its links stay wide."""
    router, laptop, server = wires.router, wires.laptop, wires.server
    assert router
    server.ip(
        *(f"route add {laptop.addresses[family]} via {FAR_SIDE[family]}" for family in FAR_SIDE)
    )  # its default is itself
    router.ip(
        f"route add default via {server.addresses[4]} mtu lock {mtu}",
        f"route add default via {server.addresses[6]} mtu lock {mtu}",
        f"route add {server.addresses[4]}/32 dev to-server mtu lock {mtu}",
        f"route add {server.addresses[6]}/128 dev to-server mtu lock {mtu}",
        f"route add {laptop.addresses[4]}/32 dev to-laptop mtu lock {mtu}",
        f"route add {laptop.addresses[6]}/128 dev to-laptop mtu lock {mtu}",
    )
