"""A real lack of memory (RLIMIT_AS): a start that fails says so; an engine under load refuses what has no room."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest

from tests.lab import install
from tests.lab.lab import Caller, Lab

MIB = 1 << 20
STREAMS = 60
TOLD = ("ConnectionRefusedError", "ConnectionResetError", "OSError: [Errno 113]")


def address_space(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()


@pytest.mark.case("E14")
def test_start_in_little_memory(lab: Lab, caller: Caller) -> None:
    """From nothing to plenty: no network for a command whose engine has no room, and one line that says why."""
    caller.childflow("true").ok()  # so that it is installed
    program = f"{install.HOME}/bin/childflow"
    statuses = []
    for mib in (14, 18, 22, 26, 30, 34, 40, 200):
        line = f"ulimit -v {mib * 1024}; exec {program} -- /bin/sh -c 'echo it ran; ls /sys/class/net'"
        result = caller.direct("sh", "-c", line)
        statuses.append(result.status)
        if result.status == 0:
            assert result.stdout.split() == ["it", "ran", "lo", "tap0"]
        else:
            assert "it ran" not in result.stdout, result.told()
            assert result.stderr, result.told()  # of memory, or whatever Python made of it
    assert statuses[-1] == 0
    assert statuses[0] != 0


@pytest.mark.case("E14")
@pytest.mark.parametrize("room", [pytest.param(1, marks=pytest.mark.soak), 4])
def test_engine_runs_out_of_memory_under_load(lab: Lab, room: int) -> None:
    """`room` MiB for sixty streams at once that want more: what works is right, and with memory again all is well."""
    caller = lab.caller("root")
    folder = caller.folder("memory")
    errands = lab.client("errands", lab.server_ip(4), STREAMS, 400_000)
    wait = "while ! [ -e {} ]; do sleep 0.02; done"
    line = f'echo up; {wait.format("go")}; "$@"; {wait.format("again")}; "$@"'
    whose = {"PYTHONFAULTHANDLER": "1"}  # says where, if it dies
    with caller.start("sh", "-c", line, "sh", *errands, log=False, cwd=folder, env=whose) as running:
        running.says("up")
        _, hard = resource.prlimit(running.pid, resource.RLIMIT_AS)
        resource.prlimit(running.pid, resource.RLIMIT_AS, (address_space(running.pid) + room * MIB, hard))
        (folder / "go").touch()
        try:
            running.says("}\n", 60)
        except AssertionError:
            raise AssertionError(running.wait(1).told()) from None
        resource.prlimit(running.pid, resource.RLIMIT_AS, (hard, hard))
        (folder / "again").touch()
        result = running.wait(60)
    assert result.status == 0, result.told()
    short, plenty = map(json.loads, result.stdout.splitlines()[1:])
    for name, why in {**short["failed"], **short["canary"]}.items():
        assert name.startswith("dns") or why.startswith(TOLD), short  # Python needs more than the stack
    assert not plenty["failed"], plenty
    assert not plenty["canary"], plenty
    assert all("not enough memory" in line for line in result.stderr.splitlines()), result.stderr
    assert len(result.stderr.splitlines()) < 8, result.stderr
