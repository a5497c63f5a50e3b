"""The lab: a laptop and a server with nothing behind them, and one line to run a command there.

    def test_hello(lab, caller, family):
        direct = caller.direct("curl", "-sS", lab.url("/hello", family)).ok()
        r = caller.childflow("curl", "-sS", lab.url("/hello", family), flags=["-v"], timeout=20)
        assert (r.status, r.stdout) == (0, direct.stdout)         # also r.stderr, r.duration (s)
        assert r.events_of("connect_result")[0]["status"] == "ok" # r.events: the parsed flow log

    def test_client(lab, caller):                                 # a program of tests/lab/clients, run by a Python
        r = caller.childflow(*lab.client("connect", lab.server_ip(4), PROHIBITED_PORT))    # that the caller may read
        assert r.json() == {...}                                  # what it printed

    def test_metadata(internet):                                  # a server that accepts for every address: internet.py
        internet.treat("ip daddr 1.1.1.1", "host-unreachable")
        internet.caller("root").childflow("curl", "http://169.254.169.254/hello").ok()
        assert ("tcp", "169.254.169.254", 80) in internet.arrived()

    with childflow_leg(caller) as leg:                            # loss between the command and the engine: lossy.py
        leg.lose(up=10, down=10)                                  # per mille of frames
        leg.caller.direct("curl", lab.url("/hello")).ok()

    with caller.start("sleep", "60") as running:                  # something long; killed at the end of the block
        running.signal(signal.SIGTERM)
        r = running.wait(timeout=5)

Fixtures (`tests/conftest.py`): `lab` (the direct map), `routed_lab` (a router between),
`internet` and `narrow_internet` (every address answers; behind a path MTU of 1280), `caller` (every test once as an
ordinary user and once as root), `family` (4 and 6), `outside_caller` (one on the machine's own network; only for
tests marked `network`). What a test changes by `lab.resolvers.use(...)`, `lab.zone(...)` or `lab.ping_group(...)` is
undone after it.
Servers: `serve.py`; addresses and refused ports: `hosts.py`; limits and results: `processes.py`.

Childflow is the installed wheel (`install.py`), never the source tree.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from . import install
from .enter import PROJECT, SCRATCH, whereabouts
from .hosts import SYSTEM_PATH, Resolvers, Wires
from .processes import TIME_LIMIT, Place, Result, Running, environment, own_directory, start

CLIENTS = Path(SCRATCH, "clients")
_run_number = 0


class Lab:
    """One map with its servers running. Lives as long as the test process."""

    def __init__(self, wires: Wires) -> None:
        self.laptop, self.server, self.router = wires.laptop, wires.server, wires.router
        self.folder = own_directory(f"server-{self.server.place.net}", "root")
        self.www, self.git = self.folder / "www", self.folder / "git"
        self.www.mkdir()
        self.git.mkdir()
        (self.www / "hello").write_text("hello from the lab\n")
        self.resolvers = Resolvers(self.laptop)
        self.restore()
        _copy_clients()
        self._servers = self.serve("tests.lab.serve", str(self.folder))

    def serve(self, module: str, *arguments: str) -> Running:
        """Start a Python module of the tests on the server host and wait for its "ready"."""
        running = start(
            [sys.executable, "-m", module, *arguments],
            self.server.place,
            "root",
            cwd=PROJECT,
            env=environment("root", SYSTEM_PATH),
        )
        running.says("ready")
        return running

    def close(self) -> None:
        self._servers.kill()

    def restore(self) -> None:
        """The state in which each test finds the lab."""
        self.resolvers.use([self.server_ip(4)])
        self.ping_group(everyone=True)
        self.zone({})

    def zone(self, names: Mapping[str, Mapping[str, Any]]) -> None:
        """More names for the server's DNS, beside lab.test: {NAME: {"A": ADDRESS or a list, "AAAA": .., "TXT": ..,
        "CNAME": NAME, "ttl": 60}}. An answer has the whole chain of aliases, as a resolver's."""
        written = self.folder / "zone.new"
        written.write_text(json.dumps(names))
        written.rename(self.folder / "zone.json")

    def ping_group(self, everyone: bool) -> None:
        """Whether the laptop's users may open ping sockets."""
        all_ids = "0 4294967294" if whereabouts().real_root else "0 0"
        self.laptop.sysctl("net.ipv4.ping_group_range", all_ids if everyone else "1 0")

    def server_ip(self, family: int) -> str:
        return self.server.addresses[family]

    def url(self, path: str, family: int = 4, port: int = 80) -> str:
        host = self.server_ip(family)
        return f"http://{f'[{host}]' if family == 6 else host}:{port}{path}"

    def client(self, name: str, *arguments: object) -> tuple[str, ...]:
        """The command line of a program in tests/lab/clients."""
        return (str(install.HOME / "bin/python"), str(CLIENTS / f"{name}.py"), *map(str, arguments))

    def caller(self, user: str) -> Caller:
        return Caller(user, self.laptop.place)

    def witness(self) -> list[dict[str, Any]]:
        """What reached the server's programs since the lab was made."""
        return _json_lines(self.folder / "witness.jsonl")


@dataclass(frozen=True)
class Caller:
    """Someone who runs commands in one place: "ordinary" (uid 1000, no capabilities) or "root"."""

    user: str
    place: Place

    @cached_property
    def home(self) -> Path:
        return own_directory(f"home-{self.user}", self.user)

    def childflow(self, *command: str, flags: Sequence[str] = (), timeout: float = TIME_LIMIT, **more: Any) -> Result:
        """Run `childflow FLAGS -- COMMAND` and wait for it. `more`: as for `start`."""
        return self.start(*command, flags=flags, **more).wait(timeout)

    def direct(self, *command: str, timeout: float = TIME_LIMIT, **more: Any) -> Result:
        """Run the command alone in the same place: the control."""
        return self.start(*command, bare=True, **more).wait(timeout)

    def start(
        self,
        *command: str,
        flags: Sequence[str] = (),
        bare: bool = False,
        log: bool = True,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
    ) -> Running:
        """Start a command under childflow (alone when `bare`). `log`: record the flow log, for `Result.events`."""
        _once(install.make_environment)
        log_file = self._new_flow_log()
        logged = ("--flow-log", str(log_file)) if log else ()
        argv = list(command) if bare else [*_childflow(), *logged, *flags, "--", *command]
        return start(
            argv,
            self.place,
            self.user,
            cwd=str(cwd or self.home),
            env={**self.environment, **(env or {})},
            stdin=stdin,
            events=lambda: _json_lines(log_file),
        )

    def folder(self, name: str) -> Path:
        """A new empty directory of this caller."""
        path = self.home / name
        shutil.rmtree(path, ignore_errors=True)
        return own_directory(str(path.relative_to(SCRATCH)), self.user)

    @property
    def environment(self) -> dict[str, str]:
        return environment(self.user, f"{install.HOME}/bin:{SYSTEM_PATH}")

    def _new_flow_log(self) -> Path:
        global _run_number
        _run_number += 1
        return self.home / f"flow-{_run_number}.jsonl"


def outside(user: str) -> Caller:
    """A caller on the machine's own network, for the few tests that want the real world."""
    return Caller(user, Place(net=whereabouts().machine_net))


_done: dict[str, str] = {}


def _once(step: Callable[[], None]) -> None:
    """Do a step of the installation at its first use. A failure is told again at once, not tried again in each test."""
    if step.__name__ not in _done:
        try:
            step()
            _done[step.__name__] = ""
        except Exception as error:
            _done[step.__name__] = f"{error}"
    if _done[step.__name__]:
        pytest.fail(_done[step.__name__], pytrace=False)


def _childflow() -> tuple[str, ...]:
    _once(install.install)
    return (str(install.HOME / "bin/childflow"),)


def _copy_clients() -> None:
    shutil.rmtree(CLIENTS, ignore_errors=True)
    shutil.copytree(Path(__file__).parent / "clients", CLIENTS, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(["chmod", "-R", "a+rX", str(CLIENTS)], check=True)


def _json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
