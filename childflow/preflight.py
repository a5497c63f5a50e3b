"""Why a start failed, and the one thing to change.

Nothing is tried on the way of a run that works. Only after a failure a throwaway child does what the sandbox needs,
step by step (a user namespace, a network namespace, /dev/net/tun, TUNSETIFF), and the first refusal, together with what
the host says about itself, becomes one remedy.

Not here: the sandbox itself (`sandbox/spawn.py`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from typing import NamedTuple

from childflow.errors import StartError

TUN = "/dev/net/tun"
DOCKER_OPTIONS = (
    "--device /dev/net/tun --security-opt seccomp=unconfined --security-opt apparmor=unconfined "
    "--security-opt systempaths=unconfined"
)


class Facts(NamedTuple):
    """What was tried and what the host says. `refused` is the step of `STEPS` that failed, "" if none did."""

    refused: str
    number: int
    container: bool
    seccomp: bool
    max_user_namespaces: str
    max_net_namespaces: str
    userns_clone: str
    apparmor_restricts: bool
    program: str
    max_mnt_namespaces: str = ""
    max_pid_namespaces: str = ""
    sealed: bool = False  # root, and its /proc/sys is read-only: so it is inside of a childflow


def explain(error: StartError) -> StartError:
    """The same failure with the host's own reason and remedy, where the failure is one of the host's."""
    if error.hint or error.phase != "child_bootstrap":
        return error
    hint = diagnose(gather())
    return StartError(error.phase, error.reason_code, error.detail, hint) if hint else error


def diagnose(facts: Facts) -> str | None:
    """The one remedy for what `facts` say, or None when all that was tried went well."""
    if not facts.refused:
        return None
    if facts.refused == "user namespace" and facts.sealed and facts.max_user_namespaces == "0":
        from childflow.sandbox.spawn import ROOT_INSIDE

        return ROOT_INSIDE
    if facts.refused == "user namespace" and facts.number in (errno.ENOSPC, errno.EUSERS):
        return _quota("user.max_user_namespaces", facts.max_user_namespaces)
    quotas = {
        "network namespace": ("user.max_net_namespaces", facts.max_net_namespaces),
        "mount namespace": ("user.max_mnt_namespaces", facts.max_mnt_namespaces),
        "PID namespace": ("user.max_pid_namespaces", facts.max_pid_namespaces),
    }
    if facts.refused in quotas and facts.number == errno.ENOSPC:
        return _quota(*quotas[facts.refused])
    if facts.refused == "user namespace" and facts.userns_clone == "0":
        return _sysctl("kernel.unprivileged_userns_clone", "1", "user namespaces are closed to ordinary users")
    if facts.refused == "tun device" or (facts.refused == "TAP interface" and facts.number == errno.ENOTTY):
        return _tun(facts)
    if facts.container:
        return f"the container's profile refuses the {facts.refused}; start it with `docker run {DOCKER_OPTIONS} ...`"
    if facts.apparmor_restricts:
        return _apparmor(facts.program)
    if facts.refused == "user namespace" and facts.number == errno.EINVAL:
        return "this kernel has no user namespaces; use one that is built with CONFIG_USER_NS"
    if facts.seccomp:
        return f"the seccomp filter that childflow runs under refuses the {facts.refused}; start it without that filter"
    return f"the host refuses the {facts.refused} ({os.strerror(facts.number)}); look into the kernel's log (`dmesg`)"


def _quota(name: str, value: str) -> str:
    if value == "0":
        return _sysctl(name, "15000", f"{name} is 0, which closes such namespaces")
    limit = f"the limit {name} ({value or 'unknown'}) is reached"
    return f"{limit}; end what holds them, or as root run `sysctl -w {name}=65536`"


def _sysctl(name: str, value: str, reason: str) -> str:
    return f"{reason}: as root run `sysctl -w {name}={value}` (a line `{name}={value}` in /etc/sysctl.d/ keeps it)"


def _tun(facts: Facts) -> str:
    if facts.container:
        return f"the container has no usable {TUN}; start it with `docker run {DOCKER_OPTIONS} ...`"
    if facts.number == errno.ENOTTY:
        return f"{TUN} is not the tun device: as root run `rm {TUN}; mknod -m 0666 {TUN} c 10 200`"
    if facts.number in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return f"{TUN} is missing or has no driver: as root run `modprobe tun`"
    rule = """printf 'KERNEL=="tun", MODE="0666"\\n' > /etc/udev/rules.d/60-tun.rules"""
    return f"{TUN} is closed to you: as root run `chmod 0666 {TUN}` (and `{rule}` to keep it)"


def _apparmor(program: str) -> str:
    rule = f"profile childflow {program} flags=(unconfined) {{\\n  userns,\\n}}"
    lines = f"abi <abi/4.0>,\\ninclude <tunables/global>\\n{rule}\\n"
    profile = "/etc/apparmor.d/childflow"
    return (
        f"AppArmor keeps user namespaces from programs without a profile: as root run `printf '{lines}' > {profile} && "
        f"apparmor_parser -r {profile}` and start childflow as {program}; or, for all programs and weaker, "
        "`sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`"
    )


# ---- the host ----


def gather() -> Facts:
    """Try the steps in a throwaway child and read what the host says about itself."""
    refused, number = _try_steps()
    seccomp = "Seccomp:\t0" not in _read("/proc/self/status")
    return Facts(
        refused=refused,
        number=number,
        container=in_container(seccomp),
        seccomp=seccomp,
        max_user_namespaces=_read("/proc/sys/user/max_user_namespaces").strip(),
        max_net_namespaces=_read("/proc/sys/user/max_net_namespaces").strip(),
        userns_clone=_read("/proc/sys/kernel/unprivileged_userns_clone").strip(),
        apparmor_restricts=_read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").strip() == "1",
        program=installed_program(),
        max_mnt_namespaces=_read("/proc/sys/user/max_mnt_namespaces").strip(),
        max_pid_namespaces=_read("/proc/sys/user/max_pid_namespaces").strip(),
        sealed=os.geteuid() == 0 and bool(os.statvfs("/proc").f_flag & os.ST_RDONLY),
    )


def installed_program() -> str:
    """The path by which the kernel, and so AppArmor, knows an installed childflow."""
    started = os.path.realpath(sys.argv[0])
    if os.path.basename(started) == "childflow":
        return started
    return os.path.join(os.path.dirname(os.path.abspath(sys.executable)), "childflow")


def in_container(seccomp: bool) -> bool:
    """Virtual machines are made from container images too, with Docker's mark in them: it alone says nothing."""
    if "container" in os.environ or os.path.exists("/run/.containerenv"):
        return True
    return os.path.exists("/.dockerenv") and (seccomp or _root_is_layered())


def _root_is_layered() -> bool:
    mounts = (line.split() for line in _read("/proc/self/mounts").splitlines())
    return any(point == "/" and fstype in ("overlay", "aufs", "fuse-overlayfs") for _, point, fstype, *_ in mounts)


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _try_steps() -> tuple[str, int]:
    """(step, errno) of the first refusal, or ("", 0)."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, "{} {}".format(*_first_refusal()).encode("ascii"))
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        number, _, step = answer.read().decode("ascii").partition(" ")
    with contextlib.suppress(ChildProcessError):  # a caller that ignores SIGCHLD
        os.waitpid(pid, 0)
    return step, int(number or 0)


def _first_refusal() -> tuple[int, str]:
    from childflow.sandbox import idmap, kernel, link, mounts

    uid, gid = os.geteuid(), os.getegid()
    steps = (
        ("user namespace", lambda: kernel.unshare(kernel.CLONE_NEWUSER)),
        ("id map", lambda: None if uid == 0 else idmap.write_single(False, uid, gid)),
        ("network namespace", lambda: kernel.unshare(kernel.CLONE_NEWNET)),
        ("tun device", lambda: os.close(os.open(TUN, os.O_RDWR | os.O_CLOEXEC))),
        ("TAP interface", link.open_tap),
        ("PID namespace", lambda: kernel.unshare(kernel.CLONE_NEWPID)),
        ("mount namespace", lambda: kernel.unshare(kernel.CLONE_NEWNS)),
        ("mount", mounts.make_private),
    )
    for step, act in steps:
        try:
            act()
        except OSError as error:
            return error.errno or 0, step
    return 0, ""
