"""The command's interfaces: `tap0` and `lo`, set up over rtnetlink, and what the host's own routes say about them.

Our own few messages instead of a library: the usual one takes 220 ms to import, these take one round trip.

Invariants: addresses carry IFA_F_NODAD, and tap0 makes no link-local address, so nothing waits and no router is
            solicited. A family that the host has no way out for gets no default route: connects fail at once.
            The gateway's neighbour entries are permanent, so ARP and neighbour discovery are rare.
Not here:   answering what comes out of tap0 (the engine).
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from typing import Any, NamedTuple

from childflow.settings import Addresses

DEVICE = "tap0"
MTU_UNKNOWN = 1500
MTU_MAX = 65521  # the most that a TAP with a virtio header takes (measured)
MTU_MIN = 68  # RFC 791
MTU_MIN_IPV6 = 1280  # RFC 8200

# Frames that may wait for the engine. A flood fills the kernel's 500 or 1,000 while the engine has lost its core for a
# scheduler's slice, and then frames of others are lost. What waits is bounded by the command's own sockets.
QUEUE_FRAMES = 8192
_TUNSETOFFLOAD = 0x400454D0
_TUNSETVNETHDRSZ = 0x400454D8
_VNET_HEADER_BYTES = 10
_TUN_F_CSUM, _TUN_F_TSO4, _TUN_F_TSO6 = 1, 2, 4

_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_RTM_NEWLINK, _RTM_GETLINK, _RTM_NEWADDR, _RTM_GETADDR = 16, 18, 20, 22
_RTM_NEWROUTE, _RTM_GETROUTE, _RTM_NEWNEIGH = 24, 26, 28
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP, _NLM_F_CREATE = 1, 4, 0x300, 0x400
_IFF_UP = 1
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_TXQLEN, _IFLA_AF_SPEC = 1, 3, 4, 13, 26
_IFLA_INET6_ADDR_GEN_MODE, _ADDR_GEN_NONE = 8, 1
_IFA_ADDRESS, _IFA_LOCAL, _IFA_F_NODAD = 1, 2, 0x02
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_METRICS, _RTAX_MTU = 1, 4, 5, 8, 2
_RT_TABLE_MAIN, _RTPROT_STATIC, _RTN_UNICAST = 254, 4, 1
_NDA_DST, _NDA_LLADDR, _NUD_PERMANENT = 1, 2, 0x80
_LOOPBACK_INDEX = 1

_HEADER = struct.Struct("=IHHII")
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")
_NEIGHBOUR = struct.Struct("=BxxxiHBB")


class LinkPlan(NamedTuple):
    """What the command's link will be: MTU in bytes, and the families that the host has a way out for."""

    mtu: int
    ipv4: bool
    ipv6: bool


# ---- rtnetlink ----


def _attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def _attributes(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[4:length]
        data = data[(length + 3) & ~3 :]
    return found


class _Netlink:
    """One rtnetlink socket of the caller's network namespace."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        self._sequence = 0

    def __enter__(self) -> _Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def change(self, kind: int, flags: int, body: bytes) -> None:
        """One change; raises OSError with the kernel's errno."""
        self._send(kind, flags | _NLM_F_ACK, body)
        for _ in self._answers():
            pass

    def get(self, kind: int, body: bytes) -> bytes | None:
        """One object's body, or None where the kernel has none."""
        self._send(kind, 0, body)
        try:
            return next(self._answers(), None)
        except OSError:
            return None

    def dump(self, kind: int, body: bytes) -> Any:
        """The bodies of all objects of a kind."""
        self._send(kind, _NLM_F_DUMP, body)
        return self._answers()

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._sequence += 1
        header = _HEADER.pack(_HEADER.size + len(body), kind, _NLM_F_REQUEST | flags, self._sequence, 0)
        self._socket.send(header + body)

    def _answers(self) -> Any:
        while True:
            data = self._socket.recv(65536)
            while len(data) >= _HEADER.size:
                length, kind, _flags, sequence, _port = _HEADER.unpack_from(data)
                body, data = data[_HEADER.size : length], data[(length + 3) & ~3 :]
                if sequence != self._sequence:
                    continue  # the rest of a dump that nobody wanted to read to its end
                if kind == _NLMSG_DONE:
                    return
                if kind == _NLMSG_ERROR:
                    (code,) = struct.unpack_from("=i", body)
                    if code:
                        raise OSError(-code, os.strerror(-code))
                    return
                yield body


# ---- the host's side: what the plan is made from ----

# Documentation addresses (RFC 5737, RFC 3849): a route look-up sends nothing, and asks about "anywhere".
_ANYWHERE: dict[int, bytes] = {
    socket.AF_INET: bytes((198, 51, 100, 1)),
    socket.AF_INET6: bytes.fromhex("20010db8" + "00" * 11 + "01"),
}


def plan_from_host(mtu: int | None) -> LinkPlan:
    """The plan that the host's routes call for; `mtu` (bytes) overrides the egress MTU."""
    with _Netlink() as netlink:
        ipv4 = _egress_mtu(netlink, socket.AF_INET)
        ipv6 = _egress_mtu(netlink, socket.AF_INET6)
    known = [found for found in (ipv4, ipv6) if found]
    size = mtu or min(known[0] if known else MTU_UNKNOWN, MTU_MAX)
    return LinkPlan(size, ipv4 is not None, ipv6 is not None and size >= MTU_MIN_IPV6)


def host_addresses() -> list[bytes]:
    """The host's own addresses (packed, of all its interfaces) at this moment; raises OSError."""
    found: list[bytes] = []
    with _Netlink() as netlink:
        for body in netlink.dump(_RTM_GETADDR, _ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
            attributes = _attributes(body[_ADDRESS.size :])
            # On a point-to-point link IFA_ADDRESS is the other end's, and IFA_LOCAL ours.
            own = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)
            if body[0] in _ANYWHERE and own is not None:
                found.append(own)
    return found


def _egress_mtu(netlink: _Netlink, family: int) -> int | None:
    """MTU in bytes of the family's way out of the host, 0 if its link does not say, None if there is no way out."""
    route = _route_to(netlink, family, _ANYWHERE[family]) or _any_route(netlink, family)
    if route is None:
        return None
    metrics = _attributes(route.get(_RTA_METRICS, b""))
    if _RTAX_MTU in metrics:
        return int.from_bytes(metrics[_RTAX_MTU][:4], "little" if struct.pack("=H", 1)[0] else "big")
    return _link_mtu(netlink, struct.unpack("=i", route[_RTA_OIF])[0])


def _route_to(netlink: _Netlink, family: int, destination: bytes) -> dict[int, bytes] | None:
    bits = len(destination) * 8
    body = _ROUTE.pack(family, bits, 0, 0, 0, 0, 0, 0, 0) + _attribute(_RTA_DST, destination)
    return _usable(netlink.get(_RTM_GETROUTE, body))


def _any_route(netlink: _Netlink, family: int) -> dict[int, bytes] | None:
    """A host without a default route may still reach some networks; its own errors then tell the command which."""
    try:
        for body in netlink.dump(_RTM_GETROUTE, _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)):
            if body[0] == family and (route := _usable(body)):
                return route
    except OSError:
        pass
    return None


def _usable(body: bytes | None) -> dict[int, bytes] | None:
    """A route's attributes, if it is unicast, leaves the host, and is no link-local one."""
    if body is None or body[7] != _RTN_UNICAST:
        return None
    route = _attributes(body[_ROUTE.size :])
    if _RTA_OIF not in route or struct.unpack("=i", route[_RTA_OIF])[0] == _LOOPBACK_INDEX:
        return None
    destination = route.get(_RTA_DST, b"")
    link_local = destination[:2] == b"\xa9\xfe" if body[0] == socket.AF_INET else destination[:2] == b"\xfe\x80"
    return None if link_local else route


def _link_mtu(netlink: _Netlink, index: int) -> int:
    body = netlink.get(_RTM_GETLINK, _LINK.pack(socket.AF_UNSPEC, 0, index, 0, 0))
    mtu = _attributes(body[_LINK.size :]).get(_IFLA_MTU) if body else None
    return struct.unpack("=I", mtu)[0] if mtu else 0


# ---- the command's side ----


def open_tap() -> tuple[Any, bool]:
    """Make tap0 in our network namespace: the device, and whether the kernel took checksum and TSO offloads."""
    from pytun_pmd3.linux import IFF_NO_PI, IFF_TAP, IFF_VNET_HDR, TunTapDevice

    tap = TunTapDevice(DEVICE, IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)
    fcntl.ioctl(tap.fileno(), _TUNSETVNETHDRSZ, struct.pack("=i", _VNET_HEADER_BYTES))
    try:
        fcntl.ioctl(tap.fileno(), _TUNSETOFFLOAD, _TUN_F_CSUM | _TUN_F_TSO4 | _TUN_F_TSO6)
        offload = True
    except OSError:
        offload = False
    os.set_blocking(tap.fileno(), False)
    return tap, offload


def configure(plan: LinkPlan, addresses: Addresses) -> None:
    """Bring up lo and tap0 of our network namespace; raises OSError whose `filename` is the failing step."""
    index = socket.if_nametoindex(DEVICE)
    ipv6 = plan.mtu >= MTU_MIN_IPV6 and os.path.exists("/proc/sys/net/ipv6")
    steps = [
        ("bring lo up", _RTM_NEWLINK, 0, _LINK.pack(0, 0, _LOOPBACK_INDEX, _IFF_UP, _IFF_UP)),
        ("set tap0's MTU and address", _RTM_NEWLINK, 0, _tap_shape(index, plan.mtu, addresses.child_mac, ipv6)),
        ("bring tap0 up", _RTM_NEWLINK, 0, _LINK.pack(0, 0, index, _IFF_UP, _IFF_UP)),
        *_family_steps(index, (addresses.child4, addresses.prefix4), _gateway4(addresses), plan.ipv4),
    ]
    if ipv6:
        steps += _family_steps(index, (addresses.child6, addresses.prefix6), _gateway6(addresses), plan.ipv6)
    with _Netlink() as netlink:
        for step, kind, flags, body in steps:
            try:
                netlink.change(kind, flags, body)
            except OSError as error:
                raise OSError(error.errno, error.strerror, step) from None


def _tap_shape(index: int, mtu: int, mac: bytes, ipv6: bool) -> bytes:
    shape = _attribute(_IFLA_MTU, struct.pack("=I", mtu)) + _attribute(_IFLA_ADDRESS, mac)
    shape += _attribute(_IFLA_TXQLEN, struct.pack("=I", QUEUE_FRAMES))
    if ipv6:
        mode = _attribute(_IFLA_INET6_ADDR_GEN_MODE, bytes((_ADDR_GEN_NONE,)))
        shape += _attribute(_IFLA_AF_SPEC, _attribute(socket.AF_INET6, mode))
    return _LINK.pack(0, 0, index, 0, 0) + shape


def _gateway4(addresses: Addresses) -> tuple[bytes, bytes]:
    return addresses.gateway4, addresses.gateway_mac


def _gateway6(addresses: Addresses) -> tuple[bytes, bytes]:
    return addresses.gateway6, addresses.gateway_mac


def _family_steps(
    index: int, own: tuple[bytes, int], router: tuple[bytes, bytes], default_route: bool
) -> list[tuple[str, int, int, bytes]]:
    """One family's changes. `own` is (address, prefix length), `router` (address, MAC)."""
    (child, prefix), (gateway, gateway_mac) = own, router
    family, name = (socket.AF_INET, "IPv4") if len(child) == 4 else (socket.AF_INET6, "IPv6")
    address = _ADDRESS.pack(family, prefix, _IFA_F_NODAD, 0, index)
    neighbour = _NEIGHBOUR.pack(family, index, _NUD_PERMANENT, 0, 0)
    route = _ROUTE.pack(family, 0, 0, 0, _RT_TABLE_MAIN, _RTPROT_STATIC, 0, _RTN_UNICAST, 0)
    steps = [
        (
            f"add tap0's {name} address",
            _RTM_NEWADDR,
            _NLM_F_CREATE,
            address + _attribute(_IFA_LOCAL, child) + _attribute(_IFA_ADDRESS, child),
        ),
        (
            f"add the {name} gateway's neighbour entry",
            _RTM_NEWNEIGH,
            _NLM_F_CREATE,
            neighbour + _attribute(_NDA_DST, gateway) + _attribute(_NDA_LLADDR, gateway_mac),
        ),
    ]
    if default_route:
        via = _attribute(_RTA_GATEWAY, gateway) + _attribute(_RTA_OIF, struct.pack("=i", index))
        steps.append((f"add the {name} default route", _RTM_NEWROUTE, _NLM_F_CREATE, route + via))
    return steps


def open_ping_sockets(gid: int) -> bool:
    """Let group `gid` (inside) use unprivileged ICMP sockets; False where /proc/sys is closed to us."""
    return _write_sysctl("ping_group_range", f"{gid} {gid}")


def open_low_ports() -> bool:
    """Let the command listen on ports below 1024 of its own network: nobody else is there to be impersonated."""
    return _write_sysctl("ip_unprivileged_port_start", "0")


def forbid_user_namespaces() -> bool:
    """Let no further user namespace be made inside."""
    return _write_sysctl("max_user_namespaces", "0", "user")


def _write_sysctl(name: str, value: str, place: str = "net/ipv4") -> bool:
    try:
        with open(f"/proc/sys/{place}/{name}", "w", encoding="ascii") as file:
            file.write(f"{value}\n")
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.EINVAL):
            return False
        raise
    return True
