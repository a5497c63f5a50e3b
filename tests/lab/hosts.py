"""The lab's hosts and wires: network namespaces, veth pairs, addresses from the documentation ranges, nft verbs.

Two maps, made by `Wires.direct()` and `Wires.routed()`; nothing in either leads out of them:

    laptop 198.51.100.2, 2001:db8:64::2  ---  198.51.100.1, 2001:db8:64::1 server
    laptop 198.51.100.2, 2001:db8:64::2  ---  ….1 router ….1  ---  203.0.113.2, 2001:db8:113::2 server

The laptop has default routes for both families, its own mounts and its own /etc/resolv.conf.
Each host is a descriptor of this process, so nothing has to be taken down.

Firewall: on the server, what comes for these TCP and UDP ports has a fixed fate (`FATES`), so tests change no state:
8101 dropped, 8102 host unreachable, 8103 port unreachable, 8104 administratively prohibited, 8105 reset, 8106 net
unreachable. On port 8100 nobody listens. Destinations in UNROUTED have no route on the laptop, DEAF answers no DNS.

Not here:   the programs that serve (`serve.py`), who runs what (`processes.py`), the whole (`lab.py`).
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from . import namespaces as ns
from .enter import SCRATCH
from .processes import Place, environment, start

FAMILIES = (4, 6)
PREFIX = {4: 24, 6: 64}
CLOSED_PORT = 8100
FATES = {
    8101: ("drop", "drop"),
    8102: ("reject with icmp host-unreachable", "reject with icmpv6 addr-unreachable"),
    8103: ("reject with icmp port-unreachable", "reject with icmpv6 port-unreachable"),
    8104: ("reject with icmp admin-prohibited", "reject with icmpv6 admin-prohibited"),
    8105: ("reject with tcp reset", "reject with tcp reset"),
    8106: ("reject with icmp net-unreachable", "reject with icmpv6 no-route"),
}
DROPPED_PORT, HOST_UNREACHABLE_PORT, PORT_UNREACHABLE_PORT, PROHIBITED_PORT, RESET_PORT, NET_UNREACHABLE_PORT = FATES
UNROUTED = {4: "203.0.113.254", 6: "2001:db8:dead::1"}
DEAF = {4: "198.51.100.53", 6: "2001:db8:64::53"}
FAR_SIDE = {4: "203.0.113.1", 6: "2001:db8:113::1"}
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Host:
    """One machine of the lab: a network namespace and, for the laptop, mounts of its own."""

    name: str
    place: Place
    addresses: dict[int, str] = field(default_factory=dict)

    def run(self, *argv: str, stdin: str = "", timeout: float = 20.0) -> str:
        """Run an administrator's command here, as root; returns its standard output."""
        running = start(argv, self.place, "root", cwd="/", env=environment("root", SYSTEM_PATH), stdin=stdin.encode())
        return running.wait(timeout).ok().stdout

    def ip(self, *commands: str) -> None:
        """`ip` commands, one a string, as one batch."""
        self.run("ip", "-batch", "-", stdin="\n".join(commands) + "\n")

    def nft(self, rules: str) -> None:
        self.run("nft", "-f", "-", stdin=rules)

    def sysctl(self, name: str, value: str) -> None:
        self.run("/bin/sh", "-c", 'printf "%s" "$2" > "/proc/sys/$1"', "sh", name.replace(".", "/"), value)

    @contextmanager
    def receiving_on(self, device: str, cpu: int) -> Iterator[None]:
        """Meanwhile this processor handles what arrives on `device`. Else a veth pair handles a packet within the very
        system call that sent it, and TCP can't take an ICMP error then: the connect waits for its second SYN."""
        self._set_receivers(device, 1 << cpu)
        try:
            yield
        finally:
            self._set_receivers(device, 0)

    def _set_receivers(self, device: str, cpus: int) -> None:
        """A network namespace shows its devices in its own sysfs only."""
        setting = f"echo {cpus:x} >/sys/class/net/{device}/queues/rx-0/rps_cpus"
        self.run("unshare", "--mount", "sh", "-c", f"mount -t sysfs none /sys && {setting}")

    def any_address(self) -> None:
        """From now on every address that arrives here is this host's own: its servers play the whole Internet."""
        self.sysctl("net.ipv6.ip_nonlocal_bind", "1")  # else a UDP server can't answer from the address asked
        self.ip("route replace local default dev lo table main", "route replace local ::/0 dev lo table main")


@dataclass(frozen=True)
class Wires:
    """The hosts of one map."""

    laptop: Host
    server: Host
    router: Host | None = None

    @classmethod
    def direct(cls) -> Wires:
        laptop, server = _laptop(), _host("server", {4: "198.51.100.1", 6: "2001:db8:64::1"})
        wire(laptop, server)
        _dress_server(server, DEAF)
        return cls(laptop, server)

    @classmethod
    def routed(cls) -> Wires:
        laptop, router = _laptop(), _host("router", {4: "198.51.100.1", 6: "2001:db8:64::1"})
        far = _host("router", FAR_SIDE, router.place)
        server = _host("server", {4: "203.0.113.2", 6: "2001:db8:113::2"})
        wire(laptop, router)
        wire(server, far)
        router.sysctl("net.ipv4.ip_forward", "1")
        router.sysctl("net.ipv6.conf.all.forwarding", "1")
        _tell_every_error(router)
        _dress_server(server, {})
        return cls(laptop, server, router)


def _host(name: str, addresses: dict[int, str], place: Place | None = None) -> Host:
    if place is None:
        place = Place(net=ns.new_network())
    return prepared(Host(name, place, addresses))


def prepared(host: Host) -> Host:
    """`lo` up; no duplicate address detection, which would make the first seconds of every lab different."""
    host.ip("link set lo up")
    for scope in ("default", "all"):
        host.sysctl(f"net.ipv6.conf.{scope}.accept_dad", "0")
        host.sysctl(f"net.ipv6.conf.{scope}.router_solicitations", "0")
    return host


def _laptop() -> Host:
    place = Place(net=ns.new_network(), mounts=ns.new_mounts())
    return prepared(Host("laptop", place, {4: "198.51.100.2", 6: "2001:db8:64::2"}))


def wire(near: Host, far: Host, near_device: str = "", far_device: str = "") -> None:
    """A veth pair between the two, named after where it leads; `near` gets its default routes through `far`."""
    name = near_device or f"to-{far.name}"
    peer = far_device or f"to-{near.name}"
    ends = (near.place.net, far.place.net)
    argv = [
        "ip",
        "link",
        "add",
        name,
        "netns",
        f"/proc/self/fd/{ends[0]}",
        "type",
        "veth",
        "peer",
        "name",
        peer,
        "netns",
        f"/proc/self/fd/{ends[1]}",
    ]
    subprocess.run(argv, check=True, pass_fds=ends, timeout=20)
    for host, device in ((near, name), (far, peer)):
        host.ip(
            f"addr add {host.addresses[4]}/24 dev {device}",
            f"addr add {host.addresses[6]}/64 dev {device} nodad",
            f"link set {device} up",
        )
    for host, device in ((near, name), (far, peer)):
        _wait_for_carrier(host, device)
    near.ip(
        f"route add default via {far.addresses[4]}",
        f"route add default via {far.addresses[6]}",
        f"route add unreachable {UNROUTED[4]}/32",
        f"route add unreachable {UNROUTED[6]}/128",
    )


def _wait_for_carrier(host: Host, device: str) -> None:
    """The kernel may take a second to notice that both ends are up, and loses what is sent before."""
    for _ in range(200):
        if " UP " in host.run("ip", "-brief", "link", "show", device):
            return
        time.sleep(0.02)
    raise TimeoutError(f"{device} on {host.name} has no carrier")


def _dress_server(server: Host, deaf: dict[int, str]) -> None:
    rules = [
        f"meta nfproto {'ipv4' if family == 4 else 'ipv6'} meta l4proto {protocol} th dport {port} {fates[i]}"
        for port, fates in FATES.items()
        for i, family in enumerate(FAMILIES)
        for protocol in ("tcp", "udp")
        if protocol == "tcp" or "tcp reset" not in fates[i]
    ]
    rules += [f"{'ip' if family == 4 else 'ip6'} daddr {address} udp dport 53 drop" for family, address in deaf.items()]
    server.nft("table inet fates { chain input { type filter hook input priority 0;\n" + "\n".join(rules) + "\n}\n}\n")
    server.ip(*(f"addr add {address}/{PREFIX[family]} dev to-laptop nodad" for family, address in deaf.items()))
    _tell_every_error(server)


def _tell_every_error(host: Host) -> None:
    """ICMP errors are limited to one a second and peer by default; a test that earns many must get them all."""
    host.sysctl("net.ipv4.icmp_ratelimit", "0")
    host.sysctl("net.ipv6.icmp.ratelimit", "0")


class Resolvers:
    """The laptop's /etc/resolv.conf: a file that is bound there once and rewritten in place."""

    def __init__(self, laptop: Host) -> None:
        self.path = Path(SCRATCH, f"resolv.conf.{laptop.place.net}")
        self.path.write_text("")
        self.path.chmod(0o644)
        target = os.path.realpath("/etc/resolv.conf")
        laptop.run("mount", "--bind", str(self.path), target)

    def use(self, addresses: Sequence[str], options: str = "") -> None:
        lines = [f"nameserver {address}" for address in addresses]
        self.path.write_text("\n".join([*lines, options, ""]))
