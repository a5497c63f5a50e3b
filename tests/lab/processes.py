"""Running programs in the lab: who runs them, in which namespaces, and what came of it.

A program is started by fork and exec, with nothing in between: the child enters the namespaces, becomes the caller and
execs, so that times and process trees are the program's own. Each has a time limit; at its end the program's session is
killed and the test fails with the output so far.

Invariants: standard input is /dev/null unless given; output goes to files, so that no pipe fills up or is inherited for
ever; a program dies with the test process.
Not here:   which hosts there are (`hosts.py`), how childflow is called (`lab.py`).
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self

from . import namespaces as ns
from .enter import SCRATCH, whereabouts

TIME_LIMIT = 60.0
ORDINARY_ID = 1000
CALLERS = ("ordinary", "root")
_KEPT_ENVIRONMENT = ("SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS", "CURL_CA_BUNDLE", "PIP_CERT", "TERM")


@dataclass(frozen=True, slots=True)
class Place:
    """The namespaces to enter before exec: descriptors, -1 for the test process's own."""

    net: int = -1
    mounts: int = -1

    def enter(self) -> None:
        if self.net >= 0:
            ns.setns(self.net, ns.CLONE_NEWNET)
        if self.mounts >= 0:
            ns.setns(self.mounts, ns.CLONE_NEWNS)


@dataclass(slots=True)
class Result:
    """What a program did. `status` as a shell shows it (128+N for signal N), `duration` in seconds, `events` the parsed
    lines of childflow's flow log (empty for a program that ran without childflow)."""

    argv: Sequence[str]
    status: int
    stdout: str
    stderr: str
    duration: float
    events: list[dict[str, Any]] = field(default_factory=list)

    def ok(self) -> Self:
        """This result, after making sure that the program succeeded."""
        assert self.status == 0, self.told()
        return self

    def json(self) -> Any:
        """What the program printed, one JSON value; the program must have succeeded."""
        return json.loads(self.ok().stdout)

    def last_json(self) -> Any:
        """The same of the last line, for a program that says more."""
        return json.loads(self.ok().stdout.splitlines()[-1])

    def events_of(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == name]

    def told(self) -> str:
        said = f"{self.stdout[-3000:]}\n--- stderr\n{self.stderr[-3000:]}"
        return f"{' '.join(self.argv)}\nstatus {self.status} after {self.duration:.2f} s\n--- stdout\n{said}"


class Running:
    """A program under way. As a context manager it is killed at the end of the block if it still runs."""

    def __init__(
        self,
        argv: Sequence[str],
        process: subprocess.Popen[bytes],
        out: BinaryIO,
        err: BinaryIO,
        events: Callable[[], list[dict[str, Any]]],
        started: float,
    ) -> None:
        self.argv, self.process, self.pid = argv, process, process.pid
        self._out, self._err, self._events = out, err, events
        self._started = started

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL for the program and what is left of its session."""
        if self.process.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
            self.process.wait()

    def so_far(self) -> tuple[str, str]:
        """Standard output and standard error until now."""
        return _text(self._out), _text(self._err)

    def says(self, word: str, limit: float = 20.0) -> None:
        """Wait until `word` shows in the standard output."""
        end = time.monotonic() + limit
        while word not in _text(self._out):
            if time.monotonic() > end or self.process.poll() is not None:
                raise AssertionError(f"no {word!r} from {self.argv}: {self.so_far()}")
            time.sleep(0.01)

    def lines(self, number: int, limit: float = 20.0) -> list[str]:
        """The first `number` lines of standard output; waits until they are there."""
        end = time.monotonic() + limit
        while (found := _text(self._out)).count("\n") < number:
            if time.monotonic() > end or self.process.poll() is not None:
                raise AssertionError(f"no {number} lines from {self.argv}: {self.so_far()}")
            time.sleep(0.01)
        return found.splitlines()[:number]

    def _ends_within(self, timeout: float) -> bool:
        """Wait on a pidfd: `Popen.wait` with a time limit looks every 50 ms only."""
        if self.process.poll() is not None:
            return True
        pidfd = os.pidfd_open(self.pid)
        try:
            return bool(select.select([pidfd], [], [], timeout)[0])
        finally:
            os.close(pidfd)

    def wait(self, timeout: float = TIME_LIMIT) -> Result:
        if not self._ends_within(timeout):
            self.kill()
            out, err = self.so_far()
            raise AssertionError(f"{' '.join(self.argv)}: still running after {timeout} s\n{out}\n{err}")
        duration = time.monotonic() - self._started
        code = self.process.wait()
        out, err = self.so_far()
        return Result(self.argv, code if code >= 0 else 128 - code, out, err, duration, self._events())


def start(
    argv: Sequence[str],
    place: Place,
    user: str,
    *,
    cwd: str,
    env: Mapping[str, str],
    stdin: bytes = b"",
    events: Callable[[], list[dict[str, Any]]] = list,
    pass_fds: Sequence[int] = (),
) -> Running:
    """Start `argv` as `user` ("ordinary" or "root") in `place`, in a session of its own."""
    out, err, given = _unnamed_file(), _unnamed_file(), _unnamed_file()
    given.write(stdin)
    given.seek(0)

    def prepare() -> None:
        place.enter()
        become(user)
        os.chdir(cwd)
        ns.die_with_parent()

    started = time.monotonic()
    process = subprocess.Popen(
        argv,
        stdin=given,
        stdout=out,
        stderr=err,
        env=dict(env),
        preexec_fn=prepare,  # noqa: PLW1509  (this process has one thread)
        start_new_session=True,
        pass_fds=pass_fds,
    )
    given.close()
    return Running(argv, process, out, err, events, started)


def become(user: str) -> None:
    """Change this (forked) process into the caller. Without real root, the ordinary user is a second user namespace in
    which our one id is called 1000: no capabilities after exec, like any user."""
    if user != "ordinary":
        return
    if whereabouts().real_root:
        os.setgroups([])
        os.setresgid(ORDINARY_ID, ORDINARY_ID, ORDINARY_ID)
        os.setresuid(ORDINARY_ID, ORDINARY_ID, ORDINARY_ID)
    else:
        ns.unshare(ns.CLONE_NEWUSER)
        ns.map_ids(ORDINARY_ID, 0, ORDINARY_ID, 0)


def own_directory(name: str, user: str) -> Path:
    """A directory in the scratch space that belongs to the caller."""
    path = Path(SCRATCH, name)
    path.mkdir(parents=True, exist_ok=True)
    if user == "ordinary" and whereabouts().real_root:
        os.chown(path, ORDINARY_ID, ORDINARY_ID)
    return path


def environment(user: str, path: str) -> dict[str, str]:
    """A plain login's environment: little more than HOME and PATH, so that the tester's own settings don't matter."""
    home = str(own_directory(f"home-{user}", user))
    kept = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    return {**kept, "HOME": home, "PATH": path, "LANG": "C.UTF-8", "TMPDIR": home, "USER": user}


def _unnamed_file() -> BinaryIO:
    """A file without a name that goes away with its last descriptor."""
    return os.fdopen(os.open(SCRATCH, os.O_RDWR | os.O_TMPFILE, 0o600), "w+b", buffering=0)


def _text(file: BinaryIO) -> str:
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode(errors="replace")
