"""The proxy's password: childflow alone has it. Not the command, not its init, not what childflow writes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.sandbox.conftest import Seat, eventually, processes_of

PROXY = ("--proxy", "http://192.0.2.1:3128", "--proxy-user", "bob")
SEEN = """
import glob
for path in glob.glob("/proc/[0-9]*/cmdline") + glob.glob("/proc/[0-9]*/environ"):
    try:
        print(open(path, "rb").read())
    except PermissionError:
        print("refused", path)  # init's environment
"""


@pytest.fixture
def secret() -> str:
    return f"secret-{os.getpid()}-{time.monotonic_ns()}"


def given(secret: str, how: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """Environment and options that give the password."""
    if how == "environment":
        return {"CHILDFLOW_PROXY_PASSWORD": secret}, PROXY
    return {}, (*PROXY, "--proxy-password", secret)


@pytest.mark.case("D22")
@pytest.mark.parametrize("how", ["environment", "option"])
def test_the_command_finds_no_password(seat: Seat, secret: str, how: str) -> None:
    env, options = given(secret, how)
    log = seat.home / f"{secret}.jsonl"
    done = seat.python(SEEN, flags=[*options, "--summary-format", "json", "--flow-log", str(log), "-v"], env=env)
    assert done.returncode == 0, done.stderr
    assert "PATH=" in done.stdout
    assert "CHILDFLOW_PROXY_PASSWORD" not in done.stdout
    written = done.stderr.replace(str(log), "") + log.read_text()
    assert secret not in done.stdout + written
    assert "proxy=http://192.0.2.1:3128" in done.stderr
    log.unlink()


@pytest.mark.case("D22")
@pytest.mark.parametrize("how", ["environment", "option"])
def test_no_process_but_childflow_has_the_password(root: Seat, secret: str, how: str, mark: str) -> None:
    """Root looks, who may read everything: command lines, environments, and the memory of what can be read."""
    env, options = given(secret, how)
    running = root.start(root.argv("sh", "-c", "sleep 60; :", mark, flags=options), env=env)
    eventually(lambda: any(_argv(pid)[:1] == ["sh"] for pid in processes_of(mark)))
    assert secret.encode() in _memory(running.pid, "[stack]")  # so it would be found
    tree = _below(running.pid)
    assert len(tree) >= 3  # the holder of the TAP, init, the command and what it started
    for pid in tree:
        for part in ("cmdline", "environ"):
            assert secret.encode() not in Path(f"/proc/{pid}/{part}").read_bytes()
        assert secret.encode() not in _memory(pid)
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=20)


def _argv(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


def _below(pid: int) -> list[int]:
    children = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [found for child in children for found in (child, *_below(child))]


def _memory(pid: int, part: str = "") -> bytes:
    """All that is mapped and readable; `part`: only what /proc/PID/maps calls that."""
    found = b""
    with open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            place, access, *_ = line.split()
            if not access.startswith("r") or "[v" in line or part not in line:  # [vvar], [vdso], [vsyscall]
                continue
            first, last = (int(word, 16) for word in place.split("-"))
            memory.seek(first)
            found += memory.read(last - first)
    return found
