"""The few system calls behind the lab: unshare, setns, mount, and what must die with us.

Python 3.11 has no `os.unshare` and no `os.setns`, so they are called through ctypes. A namespace is made by a
short-lived thread (unshare works per thread for network and mounts) and is held by a descriptor of this process alone:
no name in /run/netns, no holder process, so it is gone with the test process, however that ends.

Invariants: every function raises OSError with errno and a word about what was tried.
Not here:   addresses, routes and firewalls (`hosts.py`), the test process's own namespaces (`enter.py`).
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    _checked(_libc.unshare(flags), f"unshare {flags:#x}")


def setns(fd: int, kind: int) -> None:
    _checked(_libc.setns(fd, kind), f"setns {kind:#x}")


def mount(source: str, target: str, fstype: str = "", flags: int = 0, data: str = "") -> None:
    result = _libc.mount(source.encode(), target.encode(), fstype.encode(), ctypes.c_ulong(flags), data.encode())
    _checked(result, f"mount {source} on {target}")


def die_with_parent() -> None:
    """SIGKILL for this process when the thread that started it ends. Call it after the last change of ids."""
    _checked(_libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl PDEATHSIG")


def new_network() -> int:
    """A new network namespace; returns a descriptor that keeps it alive."""
    return _made_in_a_thread(CLONE_NEWNET, "net")


def new_mounts() -> int:
    """A private copy of this process's mounts; returns a descriptor that keeps it alive."""
    return _made_in_a_thread(CLONE_NEWNS, "mnt")


def _made_in_a_thread(flag: int, kind: str) -> int:
    made: list[int | OSError] = []

    def make() -> None:
        try:
            unshare(flag)
            made.append(os.open(f"/proc/thread-self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            made.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if isinstance(made[0], OSError):
        raise made[0]
    return made[0]


def map_ids(inside: int, outside: int, gid_inside: int, gid_outside: int) -> None:
    """One id each for the user namespace that this process has just made."""
    for path, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{inside} {outside} 1"),
        ("gid_map", f"{gid_inside} {gid_outside} 1"),
    ):
        with open(f"/proc/self/{path}", "w") as file:
            file.write(text)
