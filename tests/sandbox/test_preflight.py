"""Hosts that can't run childflow as they are: each gets one message with one remedy, and no command is started.

The conditions are made, where a test can make them: in user and mount namespaces of the test's own. What it can't make
(AppArmor's restriction, a container) is told to `diagnose` as facts.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

import pytest

from childflow.preflight import DOCKER_OPTIONS, Facts, diagnose, gather
from tests.lab import namespaces as ns
from tests.lab.enter import SCRATCH
from tests.sandbox.conftest import Seat

FINE = Facts("", 0, False, False, "100000", "100000", "1", False, "/opt/childflow/bin/childflow")


def own_mounts() -> None:
    ns.unshare(ns.CLONE_NEWNS)
    ns.mount("none", "/", flags=ns.MS_REC | ns.MS_PRIVATE)


def no_user_namespaces() -> None:
    """A user namespace in which the limit of further ones is 0."""
    uid, gid = os.geteuid(), os.getegid()
    ns.unshare(ns.CLONE_NEWUSER)
    ns.map_ids(uid, uid, gid, gid)
    with open("/proc/sys/user/max_user_namespaces", "w") as limit:
        limit.write("0")


def no_tun() -> None:
    own_mounts()
    ns.mount("tmpfs", "/dev/net", "tmpfs", data="mode=755")


def closed_tun() -> None:
    own_mounts()
    node = f"{SCRATCH}/closed-{os.getpid()}"
    os.mknod(node, stat.S_IFCHR | 0o600, os.makedev(10, 200))
    ns.mount(node, "/dev/net/tun", flags=ns.MS_BIND)
    os.unlink(node)


def tun_without_driver() -> None:
    own_mounts()
    node = f"{SCRATCH}/driverless-{os.getpid()}"
    os.mknod(node, stat.S_IFCHR | 0o666, os.makedev(10, 249))
    os.chmod(node, 0o666)
    ns.mount(node, "/dev/net/tun", flags=ns.MS_BIND)
    os.unlink(node)


def refused(seat: Seat, before: Callable[[], None]) -> str:
    done = seat.run("touch", "should-not-be", before=before)
    assert done.returncode == 125, done
    assert not (seat.home / "should-not-be").exists()
    (line,) = done.stderr.splitlines()
    assert line.startswith("childflow: ")
    return line


def here(remedy: str) -> str:
    """`remedy`, or in a container the one for containers."""
    return DOCKER_OPTIONS if gather().container else remedy


def test_missing_tun(seat: Seat) -> None:
    assert here("modprobe tun") in refused(seat, no_tun)


def test_closed_tun(ordinary: Seat) -> None:
    line = refused(ordinary, closed_tun)
    assert here("chmod 0666 /dev/net/tun") in line
    assert "Permission denied" in line


def test_tun_without_driver(seat: Seat) -> None:
    assert here("modprobe tun") in refused(seat, tun_without_driver)


def test_max_user_namespaces_0(root: Seat) -> None:
    line = refused(root, no_user_namespaces)
    assert "sysctl -w user.max_user_namespaces=15000" in line


def test_missing_tun_in_a_container(seat: Seat) -> None:
    done = seat.run("true", before=no_tun, env={"container": "docker"})
    assert "docker run --device /dev/net/tun --security-opt seccomp=unconfined" in done.stderr


@pytest.mark.parametrize(
    ("facts", "remedy"),
    [
        (
            FINE._replace(refused="user namespace", number=errno.EPERM, container=True, seccomp=True),
            "docker run --device",
        ),
        (FINE._replace(refused="user namespace", number=errno.EPERM, userns_clone="0"), "unprivileged_userns_clone=1"),
        (FINE._replace(refused="user namespace", number=errno.ENOSPC), "user.max_user_namespaces=65536"),
        (
            FINE._replace(refused="network namespace", number=errno.ENOSPC, max_net_namespaces="0"),
            "max_net_namespaces=15",
        ),
        (
            FINE._replace(refused="PID namespace", number=errno.ENOSPC, max_pid_namespaces="0"),
            "sysctl -w user.max_pid_namespaces=15",
        ),
        (
            FINE._replace(refused="mount namespace", number=errno.ENOSPC, max_mnt_namespaces="0"),
            "sysctl -w user.max_mnt_namespaces=15",
        ),
        (FINE._replace(refused="TAP interface", number=errno.ENOTTY), "is not the tun device"),
        (FINE._replace(refused="user namespace", number=errno.EINVAL), "CONFIG_USER_NS"),
        (FINE._replace(refused="user namespace", number=errno.EPERM, seccomp=True), "without that filter"),
    ],
)
def test_remedies(facts: Facts, remedy: str) -> None:
    assert remedy in (diagnose(facts) or "")


def test_no_remedy_where_nothing_is_refused() -> None:
    assert diagnose(FINE) is None


@pytest.mark.parametrize("step", ["user namespace", "network namespace", "TAP interface", "mount"])
def test_apparmor_names_the_profile_first_and_the_sysctl_last(step: str) -> None:
    remedy = diagnose(FINE._replace(refused=step, number=errno.EACCES, apparmor_restricts=True)) or ""
    assert (
        0 < remedy.index("/etc/apparmor.d/childflow") < remedy.index("kernel.apparmor_restrict_unprivileged_userns=0")
    )
    assert "profile childflow /opt/childflow/bin/childflow flags=(unconfined)" in remedy


# ---- hosts that can do less, but enough ----


def covered_proc() -> None:
    """As containers have it: parts of /proc are covered, and the kernel lets nobody have a /proc that shows more."""
    own_mounts()
    ns.mount("tmpfs", "/proc/irq", "tmpfs")


def covered_sys() -> None:
    own_mounts()
    ns.mount("tmpfs", "/sys/kernel/mm", "tmpfs")


def test_a_refused_proc_costs_the_pid_namespace_and_one_warning(seat: Seat) -> None:
    done = seat.run("sh", "-c", "echo $$; exit 3", before=covered_proc)
    assert done.returncode == 3
    assert int(done.stdout) > 2
    (warning,) = done.stderr.splitlines()
    assert "no PID namespace" in warning
    assert "no PID namespace" in refused_by_strict(seat, covered_proc)
    assert seat.run("true", flags=["-q"], before=covered_proc).stderr == ""


def test_without_a_pid_namespace_leftovers_end_too(seat: Seat, mark: str) -> None:
    done = seat.run("sh", "-c", f"setsid sh -c ': {mark}; sleep 100' & echo on", before=covered_proc)
    assert done.stdout == "on\n"


def test_without_a_pid_namespace_roots_proc_is_read_only(root: Seat) -> None:
    done = root.run("sh", "-c", "echo 0 > /proc/sys/vm/swappiness", before=covered_proc)
    assert "Read-only file system" in done.stderr


def test_a_refused_sys_is_one_warning(seat: Seat) -> None:
    done = seat.run("sh", "-c", "exit 4", before=covered_sys)
    assert done.returncode == 4
    (warning,) = done.stderr.splitlines()
    assert "fresh /sys" in warning
    assert "fresh /sys" in refused_by_strict(seat, covered_sys)


def refused_by_strict(seat: Seat, before: Callable[[], None]) -> str:
    done = seat.run("touch", "strict", flags=["--strict"], before=before)
    assert done.returncode == 125
    assert not (seat.home / "strict").exists()
    return done.stderr
