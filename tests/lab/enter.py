"""Where the tests run: in network and mount namespaces of their own, entered before the first test.

`enter()` moves the test process, so that `make test` and a bare `pytest` are equally safe: nothing that a test sends
can leave the machine, and nothing that it mounts or leaves behind outlives it. Inside:

    /mnt                tmpfs, all of the tests' scratch space (SCRATCH; another folder where the project itself is in
                        /mnt), readable by ordinary users; gone with the process
    /dev/net/tun        a node that an ordinary user may open, as most distributions have it
    the network         `lo` and nothing else; the lab's hosts are made beside it (`hosts.py`)

Root gets all of it. An ordinary user becomes root of a user namespace, in which the lab works as well; what then cannot
be had is the machine's own network (`Whereabouts.machine_net`), which only the tests marked `network` want.

Invariants: called while the process has one thread; a second call changes nothing.
Not here:   the lab itself (`hosts.py`).
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import struct
from typing import NamedTuple

from . import namespaces as ns

PROJECT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SCRATCH = next(d for d in ("/mnt", "/media", "/srv") if os.path.isdir(d) and not PROJECT.startswith(d))
_TUN = "/dev/net/tun"
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1


class Whereabouts(NamedTuple):
    """`real_root`: the tests have root of the machine, not of a user namespace only. `machine_net`: a descriptor of the
    machine's own network namespace, -1 where it can't be entered again. `closed`: why there is no lab, or empty."""

    real_root: bool
    machine_net: int
    closed: str


_entered: Whereabouts | None = None


def whereabouts() -> Whereabouts:
    return _entered or enter()


def enter() -> Whereabouts:
    """Go in. Where the system refuses, `closed` says why, and the tests that need no lab run all the same."""
    global _entered
    if _entered is None:
        try:
            _entered = _go_in()
        except OSError as error:
            _entered = Whereabouts(os.geteuid() == 0, -1, f"no namespaces for the lab here ({error})")
    return _entered


def _go_in() -> Whereabouts:
    real_root = os.geteuid() == 0
    machine_net = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC) if real_root else -1
    if not real_root:
        uid, gid = os.geteuid(), os.getegid()
        ns.unshare(ns.CLONE_NEWUSER)
        ns.map_ids(0, uid, 0, gid)
    ns.unshare(ns.CLONE_NEWNS | ns.CLONE_NEWNET)
    ns.mount("none", "/", flags=ns.MS_REC | ns.MS_PRIVATE)
    ns.mount("tmpfs", SCRATCH, "tmpfs", data="mode=0755")
    _open_the_tun_node()
    raise_loopback()
    return Whereabouts(real_root, machine_net, "")


def _open_the_tun_node() -> None:
    """Bind a 0666 node over /dev/net/tun. In a user namespace mknod is refused and the node must do as it is."""
    if os.access(_TUN, os.F_OK) and os.stat(_TUN).st_mode & 0o666 == 0o666:
        return
    node = f"{SCRATCH}/tun"
    try:
        os.mknod(node, stat.S_IFCHR | 0o666, os.makedev(10, 200))
    except PermissionError:
        return
    os.chmod(node, 0o666)
    if not os.path.exists(_TUN):
        raise FileNotFoundError(f"{_TUN} does not exist; modprobe tun, or give it to the container")
    ns.mount(node, _TUN, flags=ns.MS_BIND)


def raise_loopback() -> None:
    """`ip link set lo up` without a program. Works on the network namespace of the calling thread."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sh14x", b"lo", 0)
        (flags,) = struct.unpack_from("h", fcntl.ioctl(control, _SIOCGIFFLAGS, request), 16)
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))
