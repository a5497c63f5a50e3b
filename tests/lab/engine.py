"""An engine under watch: a childflow whose command only sleeps, programs put into its sandbox, and the oracles.

    with engine_of(lab, caller) as engine:                      # flags=..., as for `caller.childflow`
        engine.inside.direct("curl", lab.url("/hello")).ok()    # a Caller in the sandbox's network
        engine.sandbox.nft(...)                                 # the sandbox's network as root sees it: a Host
    assert engine.result.events_of("flow_end")                  # childflow's own Result, after the block

While the block runs, a canary sends a byte there and back every few milliseconds through the same engine, and another
one on the plain wire. At the end of the block it is checked that

    I1  the engine is alive, and has told of no error
    I2  the canary waited less than 100 ms, plus thrice what the plain wire's canary did, as on a busy machine
    I3  its descriptors are back to what they were, two more at the most

Invariants: what is changed in the sandbox ends with it. Programs inside are the caller's, but see the caller's files as
they are outside (its /etc/resolv.conf among them).
Not here:   loss (`lossy.py`), frames that no kernel sends (`inject.py`).
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from .enter import SCRATCH
from .hosts import Host
from .inject import descendants
from .lab import Caller, Lab
from .processes import Place, Result, Running
from .serve import ECHO

SLOWEST_S = 0.1
LINGER_S = 15.0
_FAULTS = re.compile(r"Traceback|Assertion|AddressSanitizer|runtime error|assertion")


@dataclass
class Engine:
    running: Running
    inside: Caller
    sandbox: Host
    _baseline: int = 0
    _ended: list[Result] = field(default_factory=list)

    @property
    def pid(self) -> int:
        return self.running.pid

    @property
    def result(self) -> Result:
        """How childflow ended; after the block."""
        return self._ended[0]

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def resident_kib(self) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0])

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def is_at_rest(self) -> None:
        """The state to which its descriptors must come back: as they are now."""
        self._baseline = self.descriptors()

    def settles(self, limit: float = LINGER_S) -> None:
        """I3: no descriptor more than at the beginning, soon."""
        end = time.monotonic() + limit
        while self.descriptors() > self._baseline + 2:
            assert time.monotonic() < end, f"{self.descriptors()} descriptors, {self._baseline} at the beginning"
            time.sleep(0.05)

    def _end(self) -> None:
        """I1."""
        assert self.running.process.poll() is None, "the engine has ended by itself"
        self.running.signal(signal.SIGTERM)
        result = self.running.wait(20)
        self._ended.append(result)
        assert result.status == 128 + signal.SIGTERM, result.told()
        assert not _FAULTS.search(result.stderr), result.told()


@contextmanager
def engine_of(
    lab: Lab, caller: Caller, flags: Sequence[str] = (), canary: bool = True, log: bool = True, settle: bool = True
) -> Iterator[Engine]:
    """`settle` False: descriptors may stay, since what the test opens is idle for long before it is closed."""
    with sleeping(caller, flags, log) as (running, net), ExitStack() as stack:
        inside = replace(caller, place=Place(net, caller.place.mounts))
        engine = Engine(running, inside, Host("sandbox", Place(net)))
        if canary:
            stack.enter_context(_canaries(lab, caller, inside))
        engine.is_at_rest()
        yield engine
        if settle:
            engine.settles()
        stack.close()
        engine._end()


@contextmanager
def sleeping(caller: Caller, flags: Sequence[str] = (), log: bool = True) -> Iterator[tuple[Running, int]]:
    """A childflow whose command sleeps, and a descriptor of that command's network namespace."""
    with caller.start("sh", "-c", "echo under way; exec sleep 3600", flags=flags, log=log) as running:
        running.says("under way")
        net = network_of_command(running.pid)
        try:
            yield running, net
        finally:
            os.close(net)


def network_of_command(pid: int) -> int:
    """A descriptor of the network namespace in which the childflow with this pid runs its command."""
    own = os.readlink(f"/proc/{pid}/ns/net")
    for process in descendants(pid):
        try:
            if os.readlink(f"/proc/{process}/ns/net") != own:
                return os.open(f"/proc/{process}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
    raise LookupError(f"no process under {pid} has a network of its own")


@contextmanager
def _canaries(lab: Lab, outside: Caller, inside: Caller) -> Iterator[None]:
    """I2."""
    stop = Path(SCRATCH, f"canary-{inside.place.net}")
    stop.unlink(missing_ok=True)
    song = lab.client("canary", lab.server_ip(4), ECHO, stop)
    with inside.start(*song, bare=True) as canary, outside.start(*song, bare=True) as control:
        for bird in (canary, control):
            bird.says("ready")
        yield
        stop.write_text("")
        slowest, plain = (_slowest(bird.wait(20).ok()) for bird in (canary, control))
    stop.unlink()
    assert slowest < SLOWEST_S + 3 * plain, f"the canary waited {slowest:.3f} s, the plain wire's {plain:.3f} s"


def _slowest(result: Result) -> float:
    return float(result.stdout.split('"slowest": ')[1].rstrip("}\n "))
