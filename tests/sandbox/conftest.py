"""Seats: who starts childflow, from where, and on which terminal, for the tests of a run's start and end.

They stand in the test process's own namespaces (tests/lab/enter.py): no network but `lo`, so nothing that a test sends
goes anywhere. childflow is the lab's installed one; CHILDFLOW_UNDER_TEST names another command line to test instead.
"""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import signal
import subprocess
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from fcntl import ioctl
from pathlib import Path
from typing import Any, Self

import pytest

from tests.lab import install, lab
from tests.lab import namespaces as ns
from tests.lab.processes import become, environment

SYSTEM_PYTHON = "/usr/bin/python3"


class Seat:
    """One caller ("ordinary" or "root") and its ways to start childflow."""

    def __init__(self, user: str, program: Sequence[str]) -> None:
        self.user = user
        self.program = list(program)
        self.env = environment(user, f"{install.HOME}/bin:{lab.SYSTEM_PATH}")
        self.home = Path(self.env["HOME"])

    def argv(self, *command: str, flags: Sequence[str] = ()) -> list[str]:
        return [*self.program, *flags, "--", *command]

    def line(self, *command: str, flags: Sequence[str] = ()) -> str:
        """The same as a line for a shell."""
        return shlex.join(self.argv(*command, flags=flags))

    def start(
        self,
        argv: Sequence[str],
        before: Callable[[], None] = lambda: None,
        env: dict[str, str] | None = None,
        **more: Any,
    ) -> subprocess.Popen[str]:
        """Start any program as this caller; `before` runs as the tester, just before the change of ids."""

        def prepare() -> None:
            before()
            become(self.user)
            os.chdir(self.home)
            ns.die_with_parent()

        given = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
        environment = {**self.env, **(env or {})}
        return subprocess.Popen(argv, preexec_fn=prepare, env=environment, text=True, **given)  # noqa: PLW1509

    def run(self, *command: str, flags: Sequence[str] = (), **more: Any) -> subprocess.CompletedProcess[str]:
        """Run `childflow FLAGS -- COMMAND`."""
        return self.wait(self.start(self.argv(*command, flags=flags), **more))

    def python(self, code: str, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
        """Run Python code as the command."""
        return self.run(SYSTEM_PYTHON, "-c", code, *arguments, **more)

    @staticmethod
    def wait(process: subprocess.Popen[str], timeout: float = 30) -> subprocess.CompletedProcess[str]:
        out, err = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def terminal(self, *argv: str) -> Terminal:
        return Terminal(self, argv)


class Terminal:
    """A program on a terminal of its own, typed at and read by a test."""

    def __init__(self, seat: Seat, argv: Sequence[str]) -> None:
        self.main, other = pty.openpty()
        self.text = ""
        self._read_from = 0

        def take_terminal() -> None:
            os.setsid()
            ioctl(0, termios.TIOCSCTTY, 0)

        env = {"TERM": "dumb", "PS1": "outer> "}
        self.process = seat.start(argv, before=take_terminal, env=env, stdin=other, stdout=other, stderr=other)
        os.close(other)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.main)

    def type(self, text: str) -> None:
        os.write(self.main, text.encode())

    def sees(self, pattern: str, timeout: float = 15) -> re.Match[str]:
        """Wait for a pattern in what comes after the last that was seen."""
        if found := self.hears(pattern, timeout):
            return found
        raise AssertionError(f"no {pattern!r} on the terminal:\n{self.text}\n{self._processes()}")

    def hears(self, pattern: str, timeout: float) -> re.Match[str] | None:
        """The same, with None if it does not come."""
        end = time.monotonic() + timeout
        while not (found := re.compile(pattern).search(self.text, self._read_from)):
            if not self._read_more(end):
                return None
        self._read_from = found.end()
        return found

    def _read_more(self, end: float) -> bool:
        if not select.select([self.main], [], [], max(0, end - time.monotonic()))[0]:
            return False
        try:
            data = os.read(self.main, 65536)
        except OSError:  # the terminal's last user is gone
            return False
        self.text += data.decode(errors="replace")
        return bool(data)

    def _processes(self) -> str:
        shown = ["ps", "-o", "pid,ppid,pgid,tpgid,stat,wchan:24,args", "-s", str(self.process.pid)]
        return subprocess.run(shown, capture_output=True, text=True, check=False, timeout=20).stdout

    def ends(self, timeout: float = 15) -> int:
        """The program's return code, as subprocess has it."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.hears("what never comes", 1)
            raise AssertionError(f"does not end:\n{self.text}\n{self._processes()}") from None


@pytest.fixture(scope="session")
def program(namespaces: None) -> list[str]:
    """The command line of the childflow under test."""
    if given := os.environ.get("CHILDFLOW_UNDER_TEST"):
        return shlex.split(given)
    return list(lab._childflow()) if not lab._once(install.make_environment) else []


@pytest.fixture
def seat(program: list[str], user: str) -> Seat:
    """Each caller in turn."""
    return Seat(user, program)


@pytest.fixture
def ordinary(program: list[str]) -> Seat:
    return Seat("ordinary", program)


@pytest.fixture
def root(program: list[str]) -> Seat:
    return Seat("root", program)


def processes_of(mark: str) -> list[int]:
    """The living processes (no zombies) whose command line holds `mark`."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                words = Path("/proc", entry, "cmdline").read_bytes()
                alive = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
            except OSError:
                continue
            if mark.encode() in words and alive:
                found.append(int(entry))
    return found


def eventually(check: Callable[[], Any], timeout: float = 5) -> None:
    """Wait until `check()` is true."""
    end = time.monotonic() + timeout
    while not check():
        assert time.monotonic() < end, f"{check} is still false"
        time.sleep(0.01)


@pytest.fixture
def mark() -> Iterator[str]:
    """A word that finds this test's processes; whatever still has it afterwards is ended, and the test fails."""
    word = f"mark-{os.getpid()}-{time.monotonic_ns()}"
    yield word
    left = processes_of(word)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, f"processes were left: {left}"
