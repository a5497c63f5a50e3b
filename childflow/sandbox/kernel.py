"""The one doorway to `childflow._sandbox`: each function is one system call, and its error code an OSError.

Not here: any order or decision (`spawn.py`, `mounts.py`).
"""

from __future__ import annotations

import os

from childflow._sandbox import ffi, lib

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2

MOUNT_ATTR_RDONLY = 1
MOUNT_ATTR_NOSUID = 2

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4


def _checked(code: int, what: str) -> int:
    if code < 0:
        raise OSError(-code, os.strerror(-code), what)
    return code


def unshare(flags: int) -> None:
    _checked(lib.cf_unshare(flags), "unshare")


def mount(source: str | None, target: str, fstype: str | None, flags: int, data: str | None = None) -> None:
    """mount(2); the OSError names the target."""
    code = lib.cf_mount(_c_string(source), os.fsencode(target), _c_string(fstype), flags, _c_string(data))
    _checked(code, target)


def unmount(target: str) -> None:
    """Detach what is mounted on top at `target`."""
    _checked(lib.cf_umount(os.fsencode(target), MNT_DETACH), target)


def mount_set(path: str, attributes: int, recursive: bool) -> None:
    """mount_setattr(2): add MOUNT_ATTR_* bits; OSError(ENOSYS) before Linux 5.12."""
    _checked(lib.cf_mount_set(os.fsencode(path), recursive, attributes), path)


def fork_sibling() -> int:
    """fork(2) for a child of our own parent; the child (0 is returned there) may only exec or `os._exit`."""
    return _checked(lib.cf_fork_sibling(), "clone")


def prctl(option: int, argument: int) -> None:
    _checked(lib.cf_prctl(option, argument), "prctl")


def carry_capabilities(mask: int) -> None:
    """Let the capabilities of `mask` survive our next exec."""
    _checked(lib.cf_carry_capabilities(mask), "capset")


def signalfd(mask: int) -> int:
    """A non-blocking, close-on-exec signalfd for the signals whose bit (number - 1) is set in `mask`."""
    return _checked(lib.cf_signalfd(mask), "signalfd")


def _c_string(text: str | None) -> bytes | object:
    return ffi.NULL if text is None else os.fsencode(text)
