"""The end of a run: nothing stays, whatever ends it, and nobody waits for the TAP."""

from __future__ import annotations

import os
import signal
import time

from tests.lab import namespaces as ns
from tests.sandbox.conftest import Seat, eventually, processes_of

HOLDER = "childflow-init\0hold"


def test_leftover_processes_are_ended(seat: Seat, mark: str) -> None:
    done = seat.run("sh", "-c", f"setsid sh -c 'exec 0<&- 1>&- 2>&-; : {mark}; sleep 100' & echo started")
    assert done.stdout == "started\n"
    assert not processes_of(mark)


def test_output_that_a_leftover_holds_ends_with_the_run(seat: Seat, mark: str) -> None:
    before = time.monotonic()
    assert seat.run("sh", "-c", f"(: {mark}; sleep 100) & echo out").stdout == "out\n"
    assert time.monotonic() - before < 10


def test_kill_9_of_childflow_leaves_nothing(seat: Seat, mark: str) -> None:
    code = f"import os, time\nif os.fork() == 0: os.setsid()\nprint('up', flush=True)\ntime.sleep(100)  # {mark}"
    process = seat.start(seat.argv("/usr/bin/python3", "-c", code))
    assert process.stdout
    assert process.stdout.readline() == "up\n"
    holders = set(processes_of(HOLDER))
    assert holders
    process.kill()
    process.wait()
    eventually(lambda: not processes_of(mark), 2)
    eventually(lambda: len(set(processes_of(HOLDER)) & holders) < len(holders), 2)
    process.communicate()


def test_kill_9_of_init_ends_the_run(seat: Seat, mark: str) -> None:
    process = seat.start(seat.argv("sh", "-c", f"echo up; : {mark}; sleep 100"))
    assert process.stdout
    assert process.stdout.readline() == "up\n"
    init = next(pid for pid in processes_of(mark) if _words(pid)[0] == b"childflow-init")
    os.kill(init, signal.SIGKILL)
    done = seat.wait(process)
    assert done.returncode == -signal.SIGKILL
    assert "init was killed" in done.stderr
    assert not processes_of(mark)


def test_holder_is_gone_soon(seat: Seat) -> None:
    for _ in range(3):
        before = set(processes_of(HOLDER))
        seat.run("true")
        eventually(lambda before=before: set(processes_of(HOLDER)) <= before, 0.3)


def test_holder_has_no_stdio_and_its_own_session(seat: Seat, mark: str) -> None:
    process = seat.start(seat.argv("sh", "-c", f": {mark}; echo up; read x"), stdin=-1)
    assert process.stdout
    assert process.stdout.readline() == "up\n"
    holder = next(pid for pid in _children(process.pid) if _words(pid)[1] == b"hold")
    kinds = sorted(os.readlink(f"/proc/{holder}/fd/{fd}").split(":")[0] for fd in os.listdir(f"/proc/{holder}/fd"))
    assert kinds == ["/dev/net/tun", "pipe"]
    assert os.getsid(holder) == holder
    assert os.readlink(f"/proc/{holder}/cwd") == "/"
    process.communicate("\n", timeout=20)


def test_no_namespace_or_file_is_left(seat: Seat) -> None:
    def own_tmp() -> None:
        ns.unshare(ns.CLONE_NEWNS)
        ns.mount("tmpfs", "/tmp", "tmpfs", data="mode=1777")

    line = (
        f"cat /proc/self/mountinfo; {seat.line('true')}; {seat.line('no-such')}; ls -A /tmp; cat /proc/self/mountinfo"
    )
    done = seat.wait(seat.start(["bash", "-c", line], before=own_tmp))
    lines = done.stdout.splitlines()
    assert lines[: len(lines) // 2] == lines[len(lines) // 2 :]


def test_engine_that_can_not_start_means_no_command(ordinary: Seat) -> None:
    """Fail closed: an import error of the engine is the plainest failure there is."""
    broken = ordinary.home / "broken" / "uvloop"
    broken.mkdir(parents=True, exist_ok=True)
    (broken / "__init__.py").write_text("raise ImportError('broken on purpose')\n")
    argv = ordinary.argv("touch", "was-started-anyway")
    done = ordinary.wait(ordinary.start(argv, env={"PYTHONPATH": str(broken.parent)}))
    assert done.returncode == 125, done
    assert done.stderr.startswith("childflow: ")
    assert not (ordinary.home / "was-started-anyway").exists()


def test_flow_log_that_can_not_be_written_means_no_command(ordinary: Seat) -> None:
    done = ordinary.run("touch", "was-started-too", flags=["--flow-log", "/no/such/folder/log"])
    assert done.returncode in (2, 125)
    assert done.stderr.startswith("childflow: ")
    assert not (ordinary.home / "was-started-too").exists()


def _children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(word) for word in file.read().split()]


def _words(pid: int) -> list[bytes]:
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read().split(b"\0")


def test_stopped_and_continued_from_inside_goes_on(seat: Seat) -> None:
    """No shell with job control is there to continue childflow, which stopped with its command."""
    done = seat.run("sh", "-c", "(sleep .3; kill -CONT $$) & kill -STOP $$; echo back")
    assert (done.returncode, done.stdout) == (0, "back\n")


def test_stopped_and_killed_from_inside_ends(seat: Seat) -> None:
    assert seat.run("sh", "-c", "(sleep .3; kill -KILL $$) & kill -STOP $$").returncode == -9
