"""Which ids exist inside: the maps of the command's user namespace.

An ordinary caller keeps its own uid and gid (or becomes 0 with --map-root), and no other id exists: the kernel lets a
process write such a map of one line by itself, after it gave up setgroups(2). A root caller's ids are those of its own
user namespace, mapped onto themselves, so that package managers can still change owners; its map comes from outside.
"""

from __future__ import annotations

import os

_CAP_SETGID = 6
_CAP_SETUID = 7


def maps_ranges() -> bool:
    """May this caller map whole ranges: is it root, with the capabilities that the kernel asks for?"""
    if os.geteuid() != 0:
        return False
    needed = 1 << _CAP_SETUID | 1 << _CAP_SETGID
    return _effective_capabilities() & needed == needed


def _effective_capabilities() -> int:
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        return next((int(line.split()[1], 16) for line in status if line.startswith("CapEff:")), 0)


def write_single(map_root: bool, uid: int, gid: int) -> None:
    """Map `uid` and `gid` (of outside) as the only ids of our own new namespace."""
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{0 if map_root else uid} {uid} 1\n")
    _write("/proc/self/gid_map", f"{0 if map_root else gid} {gid} 1\n")


def write_ranges(pid: int) -> None:
    """Map all ids of our own namespace onto themselves in the new namespace of process `pid`."""
    for kind in ("uid_map", "gid_map"):
        _write(f"/proc/{pid}/{kind}", _identity(f"/proc/self/{kind}"))


def _identity(path: str) -> str:
    with open(path, encoding="ascii") as own:
        rows = [line.split() for line in own]
    return "".join(f"{first} {first} {count}\n" for first, _outside, count in rows)


def _write(path: str, text: str) -> None:
    # One write(2), unbuffered: the kernel takes a map in one piece or not at all.
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode("ascii"))
    finally:
        os.close(fd)
