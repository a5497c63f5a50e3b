"""Who the command is, and what it finds of itself and of its network."""

from __future__ import annotations

import os

from tests.sandbox.conftest import Seat

PACKAGE_MANAGERS = 0xFB  # CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID


def status_of(seat: Seat, *flags: str) -> dict[str, str]:
    text = seat.run("cat", "/proc/self/status", flags=flags).stdout
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


def test_ordinary_keeps_its_ids_and_has_no_capabilities(ordinary: Seat) -> None:
    status = status_of(ordinary)
    assert status["Uid"].split() == ["1000"] * 4
    assert status["Gid"].split() == ["1000"] * 4
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert status["NoNewPrivs"] == "1"


def test_root_keeps_what_package_managers_need(root: Seat) -> None:
    status = status_of(root)
    assert status["Uid"].split() == ["0"] * 4
    assert {int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd")} == {PACKAGE_MANAGERS}
    assert {int(status[name], 16) for name in ("CapInh", "CapAmb")} == {0}
    assert status["NoNewPrivs"] == "1"


def test_map_root_of_an_ordinary_caller(ordinary: Seat) -> None:
    status = status_of(ordinary, "--map-root")
    assert status["Uid"].split() == ["0"] * 4
    assert int(status["CapEff"], 16) == PACKAGE_MANAGERS
    ordinary.run("sh", "-c", "echo hi > from-map-root", flags=["--map-root"])
    assert (ordinary.home / "from-map-root").stat().st_uid == 1000


def test_root_can_change_owners_but_not_the_host(root: Seat) -> None:
    done = root.run("sh", "-c", "touch owned && chown 1234:1234 owned && stat -c %u owned")
    assert done.stdout.strip() == "1234", done.stderr
    for path in ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/sys/kernel/uevent_helper"):
        refused = root.run("sh", "-c", f"test ! -e {path} || : > {path}")
        assert refused.returncode != 0 or not os.path.exists(path)
        assert "Read-only file system" in refused.stderr or not os.path.exists(path)
    assert root.run("mount", "-o", "remount,rw", "/proc").returncode != 0
    assert root.run("unshare", "-m", "true").returncode != 0


LIBC_SIGNALS = 3 << 31  # 32 and 33 are glibc's own; GNU make starts its commands with both ignored


def test_signals_are_as_the_caller_left_them(seat: Seat) -> None:
    status = status_of(seat)
    assert int(status["SigBlk"], 16) == 0
    assert int(status["SigIgn"], 16) & ~LIBC_SIGNALS == 0


def test_ignored_and_blocked_signals_are_handed_on(ordinary: Seat) -> None:
    code = (
        "import os,signal,sys; ignore = lambda s: signal.signal(s, signal.SIG_IGN)\n"
        "ignore(signal.SIGHUP); ignore(signal.SIGCHLD)\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1}); os.execvp(sys.argv[1], sys.argv[1:])"
    )
    argv = ["/usr/bin/python3", "-c", code, *ordinary.argv("cat", "/proc/self/status")]
    text = ordinary.wait(ordinary.start(argv, restore_signals=True)).stdout
    status = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    assert int(status["SigIgn"], 16) & ~LIBC_SIGNALS == 1 << (1 - 1) | 1 << (17 - 1)
    assert int(status["SigBlk"], 16) == 1 << (10 - 1)


def test_a_caller_that_ignores_sigchld_gets_the_status(ordinary: Seat) -> None:
    code = "import os,signal,sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execvp(sys.argv[1], sys.argv[1:])"
    assert (
        ordinary.wait(ordinary.start(["/usr/bin/python3", "-c", code, *ordinary.argv("sh", "-c", "exit 9")])).returncode
        == 9
    )


def test_interfaces_are_the_commands_own(seat: Seat) -> None:
    assert seat.run("ls", "/sys/class/net").stdout.split() == ["lo", "tap0"]
    shown = seat.run("sh", "-c", "ip -o addr; ip -o link; ip neigh; ip -6 neigh").stdout
    for part in ("192.0.0.2/29", "fd63:6869:6c64::2/64", "02:63:66:00:00:02", "192.0.0.1 dev tap0", "PERMANENT"):
        assert part in shown
    assert "fe80" not in shown
    assert "tentative" not in shown


def test_cgroups_are_carried_over(seat: Seat) -> None:
    assert sorted(seat.run("ls", "/sys/fs/cgroup").stdout.split()) == sorted(os.listdir("/sys/fs/cgroup"))


def test_a_host_without_a_way_out_gives_no_default_route(seat: Seat) -> None:
    assert seat.run("sh", "-c", "ip route show default; ip -6 route show default").stdout == ""
    failed = seat.python("import socket; socket.create_connection(('198.51.100.1', 80), 5)")
    assert "Network is unreachable" in failed.stderr


def test_mtu_option(seat: Seat) -> None:
    assert seat.run("cat", "/sys/class/net/tap0/mtu", flags=["--mtu", "9000"]).stdout.strip() == "9000"
    assert seat.run("cat", "/sys/class/net/tap0/mtu").stdout.strip() == "1500"
    assert "fd63" not in seat.run("ip", "-6", "addr", flags=["--mtu=1000"]).stdout


def test_ping_without_privileges(seat: Seat) -> None:
    gid = "1000" if seat.user == "ordinary" else "0"
    assert seat.run("cat", "/proc/sys/net/ipv4/ping_group_range").stdout.split() == [gid, gid]
    assert seat.run("ping", "-c1", "-W2", "127.0.0.1").returncode == 0


def test_environment_has_no_secret(seat: Seat) -> None:
    shown = seat.run("env", env={"CHILDFLOW_PROXY_PASSWORD": "open-sesame", "OTHER": "kept"}).stdout
    assert "sesame" not in shown
    assert "OTHER=kept" in shown


def test_command_shares_session_and_group(seat: Seat) -> None:
    process = seat.start(seat.argv("sleep", "5"), start_new_session=True)
    try:
        names = ("sleep",)
        found = [
            pid for pid in os.listdir("/proc") if pid.isdigit() and _comm(pid) in names and _session(pid) == process.pid
        ]
        while not found:
            found = [
                pid
                for pid in os.listdir("/proc")
                if pid.isdigit() and _comm(pid) in names and _session(pid) == process.pid
            ]
        assert os.getpgid(int(found[0])) == process.pid
    finally:
        process.kill()
        process.communicate()


def _comm(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read().strip()
    except OSError:
        return ""


def _session(pid: str) -> int:
    try:
        return os.getsid(int(pid))
    except OSError:
        return 0
