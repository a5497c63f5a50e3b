"""childflow itself, in the lab, with a system call of its engine failing: one errand of the command suffers at most.

The calls are failed by `faults.c` in childflow's process alone: a sample of those that `test_sweep.py` goes through,
and the calls of Python and uvloop beside them. The command knows nothing of it: LD_PRELOAD is not in its environment.
"""

from __future__ import annotations

import errno
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.library import ENGINE, PROCESS, STACK, Fault
from tests.faults.sweep import ERRORS, MAKING
from tests.lab.lab import Caller, Lab
from tests.lab.processes import CALLERS, Result

CPU_S = 1.5  # of childflow and the command; some 0.2 without a fault
ALLOCATIONS = ("malloc", "calloc", "realloc")
Found = tuple[Result, dict[str, int], float]


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(lab: Lab, caller: Caller, library: Path, fault: Fault) -> Found:
    """The result, the library's counts, and the CPU time that it took."""
    report = caller.folder("faults") / "report"
    before = cpu()
    command = lab.client("errands", lab.server_ip(4), 6, 100_000)
    result = caller.childflow(*command, env=fault.environment(library, report), log=False, timeout=30)
    counts = dict(line.split() for line in report.read_text().splitlines()) if report.exists() else {}
    return result, {name: int(count) for name, count in counts.items()}, cpu() - before


@pytest.fixture(scope="module")
def usual(direct_map: Lab, fault_library: Path) -> dict[int, dict[str, int]]:
    """How often each function is called when nothing fails, by scope."""
    found = {}
    for scope in (STACK, ENGINE, PROCESS):
        result, counts, _ = run(
            direct_map, direct_map.caller("ordinary"), fault_library, Fault("nothing", 0, 0, scope=scope)
        )
        said = result.json()
        assert not said["failed"]
        assert not said["canary"]
        assert not result.stderr
        found[scope] = counts
    return found


def hold(found: Found, fault: Fault) -> None:
    """At most one errand suffered, the engine lives and says no more than a line, and nothing span."""
    result, counts, used = found
    assert counts["failed"] > 0, f"{fault} never came to pass"
    said: dict[str, Any] = result.json()
    assert len(said["failed"]) + len(said["canary"]) <= 1, f"{fault}: {said}"
    assert len(result.stderr.splitlines()) <= 1, result.stderr
    assert used < CPU_S, used


OF_THE_STACK = [
    Fault("socket", 3, errno.ENOMEM),
    Fault("connect", 2, errno.EADDRNOTAVAIL),
    Fault("sendmsg", 5, errno.ENOBUFS),
    Fault("recvmsg", 4, errno.ENOMEM),
    Fault("recvmmsg", 1, errno.ENOBUFS),
    Fault("read", 20, errno.EIO),
    Fault("writev", 15, errno.EIO),
    Fault("epoll_ctl", 6, errno.ENOSPC),
    Fault("epoll_wait", 8, errno.EINTR),
    Fault("timerfd_settime", 4, errno.ENOMEM),
    Fault("fcntl", 3, errno.EACCES),
    Fault("malloc", 13, errno.ENOMEM),  # the first that a flow needs
]
OF_PYTHON = [
    Fault("recv", 4, errno.ENOMEM, scope=ENGINE),  # of DNS over TCP
    Fault("send", 4, errno.ENOBUFS, scope=ENGINE),
    Fault("connect", 9, errno.ENETUNREACH, scope=ENGINE),
    Fault("socketpair", 2, errno.EMFILE, scope=ENGINE),
    Fault("epoll_pwait", 5, errno.EINTR, scope=ENGINE),
    Fault("poll", 1, errno.ENOMEM, scope=ENGINE),  # of the engine's end
    Fault("malloc", 65, errno.ENOMEM, scope=ENGINE),
    Fault("calloc", 19, errno.ENOMEM, scope=ENGINE),
    Fault("realloc", 49, errno.ENOMEM, scope=ENGINE),
]
OF_THE_START = [
    Fault("socket", 1, errno.EMFILE, scope=PROCESS),
    Fault("socketpair", 2, errno.ENOMEM, scope=PROCESS),
    Fault("send", 3, errno.ENOBUFS, scope=PROCESS),
    Fault("recvmsg", 1, errno.ENOMEM, scope=PROCESS),
    Fault("epoll_ctl", 1, errno.ENOSPC, scope=PROCESS),
    Fault("calloc", 1, errno.ENOMEM, scope=ENGINE),
]


@pytest.mark.case("I3")
@pytest.mark.parametrize("fault", [*OF_THE_STACK, *OF_PYTHON], ids=str)
def test_one_call_fails(lab: Lab, fault_library: Path, usual: dict[int, dict[str, int]], fault: Fault) -> None:
    user = CALLERS[fault.nth % 2]  # who calls makes no difference to the engine
    hold(run(lab, lab.caller(user), fault_library, fault), fault)


@pytest.mark.case("E14")
@pytest.mark.parametrize("fault", OF_THE_START, ids=str)
def test_start_fails_cleanly(
    lab: Lab, fault_library: Path, usual: dict[int, dict[str, int]], user: str, fault: Fault
) -> None:
    result, counts, _ = run(lab, lab.caller(user), fault_library, fault)
    assert counts["failed"] > 0
    assert result.status == 125, result.told()
    assert result.stdout == ""  # the command never ran
    assert result.stderr.splitlines()[-1].startswith("childflow: "), result.stderr
    assert "internal error" not in result.stderr or fault.error == errno.ENOBUFS


@pytest.mark.case("E14")
def test_start_without_memory(lab: Lab, fault_library: Path, usual: dict[int, dict[str, int]]) -> None:
    """Whichever allocation it is that fails: all is well, or the command never ran."""
    statuses = []
    calls = usual[PROCESS]["malloc"]
    for nth in range(calls // 4, calls, calls // 12):
        fault = Fault("malloc", nth, errno.ENOMEM, scope=PROCESS)
        result, _, _ = run(lab, lab.caller("ordinary"), fault_library, fault)
        statuses.append(result.status)
        if result.status:
            assert result.stdout == "", result.told()
            assert result.stderr, result.told()
        else:
            assert not result.json()["failed"], result.told()
    assert 125 in statuses


# --- the whole of it -------------------------------------------------------------------------------------------------


def spread(calls: int, runs: int) -> Iterator[int]:
    yield from range(1, min(calls, 200) + 1, max(1, min(calls, 200) // runs))


@pytest.mark.soak
@pytest.mark.parametrize("function", ERRORS)
def test_calls_of_the_stack_fail(
    lab: Lab, fault_library: Path, usual: dict[int, dict[str, int]], function: str
) -> None:
    for nth in spread(usual[STACK][function], 12):
        error = ERRORS[function][nth % len(ERRORS[function])]
        if error == "ETIMEDOUT":
            continue  # is the child's own to tell, and takes two minutes
        fault = Fault(function, nth, getattr(errno, error))
        found = run(lab, lab.caller("ordinary"), fault_library, fault)
        if function in MAKING and found[0].status == 125:
            assert found[0].stdout == ""  # it was one of those that make the stack
        elif found[1].get("failed"):  # the last calls are not made in every run
            hold(found, fault)


@pytest.mark.soak
@pytest.mark.case("E14")
@pytest.mark.parametrize("function", ALLOCATIONS)
def test_allocations_of_the_process_fail(
    lab: Lab, fault_library: Path, usual: dict[int, dict[str, int]], function: str
) -> None:
    """An errand suffers, or the run ends: with the command, and not with status 0."""
    calls = usual[ENGINE][function]
    for nth in range(1, calls + 1, max(1, calls // 40)):
        fault = Fault(function, nth, errno.ENOMEM, scope=ENGINE)
        result, counts, used = found = run(lab, lab.caller("ordinary"), fault_library, fault)
        if result.status == 0 and counts.get("failed"):
            hold(found, fault)
        elif result.status:
            assert result.status in (125, 128 + 6), result.told()  # libuv aborts where it has no memory
        assert used < CPU_S
