"""The command's view of the file system: a private, nosuid tree with a sysfs of its own.

All of it happens in the new mount namespace, before anything of the command runs, and needs no temporary file of the
host: files that are laid over others are staged in a tmpfs that only this namespace sees.

Invariants: nothing propagates to the host (the whole tree is private before the first mount).
            A command can't undo a mask: it has no CAP_SYS_ADMIN, and in a namespace of its own making they are locked.
Not here:   /proc (childflow-init mounts it, as pid 1 of the new PID namespace); the resolver's file (`resolver.py`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

from childflow.sandbox import kernel
from childflow.sandbox.kernel import MS_BIND, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY, MS_REC, MS_REMOUNT

CGROUPS = "/sys/fs/cgroup"
_QUIET = MS_NOSUID | MS_NODEV
# Sockets behind which a host process would resolve names for the command (nscd, systemd-resolved's varlink, avahi).
# The place for the other control sockets' masks.
NAME_SERVICES = ("/run/nscd", "/run/systemd/resolve", "/run/avahi-daemon")


def make_private() -> None:
    """No mount event passes between this namespace and the host's, either way."""
    kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)


def make_nosuid() -> bool:
    """Make the whole tree nosuid; False before Linux 5.12.

    With a bounding set that is empty the kernel refuses to execute files with file capabilities (`ping`), unless they
    lie on a nosuid mount: so it is emptied only where this returns True.
    """
    try:
        kernel.mount_set("/", kernel.MOUNT_ATTR_NOSUID, recursive=True)
    except OSError:
        return False
    return True


def fresh_sys(readonly: bool) -> bool:
    """Lay a sysfs over /sys that shows our own interfaces, with the cgroup tree in it; False if the host refuses."""
    old_cgroups = _open_path(CGROUPS)
    try:
        if not _mount_sysfs(readonly):
            return False
        if old_cgroups is not None:
            kernel.mount(f"/proc/self/fd/{old_cgroups}", CGROUPS, None, MS_BIND | MS_REC)
    finally:
        if old_cgroups is not None:
            os.close(old_cgroups)
    return True


def _mount_sysfs(readonly: bool) -> bool:
    flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
    # Where the old one is read-only (containers), the kernel lets us have no other than a read-only one.
    for extra in (MS_RDONLY,) if readonly else (0, MS_RDONLY):
        try:
            kernel.mount("sysfs", "/sys", "sysfs", flags | extra)
        except OSError:
            continue
        return True
    return False


def make_readonly(top: str) -> None:
    """Make the mount at `top` and all below it read-only; raises OSError when one of them stays writable."""
    try:
        kernel.mount_set(top, kernel.MOUNT_ATTR_RDONLY, recursive=True)
    except OSError:
        for point in _mount_points(top):
            kernel.mount(None, point, None, MS_REMOUNT | MS_BIND | MS_RDONLY | _locked_flags(point))


def make_readonly_types(types: tuple[str, ...]) -> None:
    """Make every mount of these file system types read-only, wherever it lies; OSError when one stays writable."""
    for point, fstype in _mounts():
        if fstype in types:
            kernel.mount_set(point, kernel.MOUNT_ATTR_RDONLY, recursive=False)


def cover_other_procs() -> None:
    """Hide every procfs but /proc itself (a chroot's, say): they show the host's processes and take its settings."""
    for point, fstype in _mounts():
        if fstype == "proc" and point != "/proc":
            kernel.mount("tmpfs", point, "tmpfs", _QUIET | MS_NOEXEC | MS_RDONLY, "size=4k,mode=555")


def _mounts() -> list[tuple[str, str]]:
    """(mount point, file system type) of every mount that can be seen at its place."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        halves = [line.partition(" - ") for line in table]
    found = [(left.split()[4].replace("\\040", " "), right.split()[0]) for left, _, right in halves]
    return [(point, fstype) for point, fstype in found if os.path.ismount(point)]


def _mount_points(top: str) -> list[str]:
    points = [point for point, _ in _mounts()]
    return [point for point in points if point == top or point.startswith(top.rstrip("/") + "/")]


def _locked_flags(point: str) -> int:
    """The flags that a mount has and a remount must repeat. ST_* and MS_* agree in these bits."""
    locked = MS_NOSUID | MS_NODEV | MS_NOEXEC | os.ST_NOATIME | os.ST_NODIRATIME
    return os.statvfs(point).f_flag & locked


def mask_name_services() -> None:
    """Hide the directories of NAME_SERVICES that the host has."""
    for directory in NAME_SERVICES:
        if os.path.isdir(directory):
            kernel.mount("tmpfs", directory, "tmpfs", _QUIET | MS_NOEXEC, "size=64k,mode=755")


def cover_directory(directory: str, files: dict[str, bytes]) -> None:
    """Lay a tmpfs over a directory; `files` (relative path to content) are all that is in it then."""
    kernel.mount("tmpfs", directory, "tmpfs", _QUIET | MS_NOEXEC, "size=1m,mode=755")
    for name, content in files.items():
        _write(os.path.join(directory, name), content)


def rebuild_directory(directory: str, files: dict[str, bytes]) -> None:
    """Lay a tmpfs over a directory in which everything is as before, bound one by one, but for `files`.

    For the places where neither a file can be bound (there is none) nor the directory hidden (/run, /etc).
    """
    old = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    names = os.listdir(directory)
    cover_directory(directory, files)
    replaced = {name.split("/", 1)[0] for name in files}
    for name in names:
        if name not in replaced:
            _carry_over(f"/proc/self/fd/{old}/{name}", os.path.join(directory, name))
    os.close(old)


def _carry_over(source: str, target: str) -> None:
    if os.path.islink(source):
        os.symlink(os.readlink(source), target)
        return
    if os.path.isdir(source):
        os.mkdir(target)
    else:
        _write(target, b"")
    kernel.mount(source, target, None, MS_BIND | MS_REC)


@contextlib.contextmanager
def staging() -> Iterator[Callable[[str, bytes], None]]:
    """Gives `lay_over(path, content)`: a file of ours, owned by the caller, in the place of an existing file."""
    # Any directory would do; it is covered for these few lines only, and in this namespace only.
    stage = next(directory for directory in ("/tmp", "/mnt", "/var", "/usr") if os.path.isdir(directory))
    waiting: list[tuple[str, str]] = []

    def lay_over(path: str, content: bytes) -> None:
        copy = os.path.join(stage, str(len(waiting)))
        _write(copy, content)
        waiting.append((copy, path))

    kernel.mount("tmpfs", stage, "tmpfs", _QUIET | MS_NOEXEC, "size=4m,mode=755")
    try:
        yield lay_over
        for copy, path in waiting:
            kernel.mount(copy, path, None, MS_BIND)
    finally:
        kernel.unmount(stage)


def _open_path(path: str) -> int | None:
    try:
        return os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return None


def _write(path: str, content: bytes) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        os.fchmod(fd, 0o644)  # whatever the caller's umask: ssh and resolvers run under other ids read them too
        os.write(fd, content)
    finally:
        os.close(fd)
