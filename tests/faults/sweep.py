"""The sweep: each call of the stack fails once with each plausible error, and at most one errand suffers.

    LD_PRELOAD=faults.so python -m tests.faults.sweep one|spell|making RUNS [FUNCTION...]

prints one JSON line for each function: how many runs there were, and what went wrong. `one`: a single call fails, the
n-th for each n up to 200; RUNS of all those faults, evenly taken. `spell`: from the n-th on 40 calls fail; then the
rule is that everybody is told, nothing spins, and all is well afterwards. `making`: the calls that make a stack, and a
timer that can't be set.

The errors are those of the manual pages and of the kernel's sources for the kind of descriptor in question, and some
that should not come but must not do harm.
"""

from __future__ import annotations

import errno
import json
import sys
import traceback

from .library import Fault, Faults
from .world import World, descriptors

NTH_MAX = 200
MAKING = ("malloc", "calloc", "epoll_create1", "timerfd_create", "epoll_ctl", "fcntl")
SPELL = 40
SPELL_OF = {"writev": 6}  # frames lost in a row: each doubles the time to the next retransmission
ERRORS: dict[str, tuple[str, ...]] = {
    "socket": ("EACCES", "EAFNOSUPPORT", "EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "EPERM"),
    "connect": (
        "EACCES", "EADDRNOTAVAIL", "EAFNOSUPPORT", "EAGAIN", "ECONNREFUSED", "EHOSTUNREACH", "EINTR", "EINVAL",
        "ENETDOWN", "ENETUNREACH", "ENOBUFS", "ENOMEM", "EPERM", "ETIMEDOUT",
    ),
    "sendmsg": (
        "EAGAIN", "ECONNRESET", "EHOSTUNREACH", "EINTR", "EMSGSIZE", "ENETDOWN", "ENETUNREACH", "ENOBUFS", "ENOMEM",
        "EPERM", "EPIPE", "ETIMEDOUT", "ECONNREFUSED", "EINVAL", "EACCES",
    ),
    "recv": ("EAGAIN", "ECONNRESET", "EINTR", "ENOMEM", "ETIMEDOUT"),
    "recvmsg": (
        "EAGAIN", "ECONNRESET", "EHOSTUNREACH", "EINTR", "ENOBUFS", "ENOMEM", "EPIPE", "ETIMEDOUT", "ECONNREFUSED",
    ),
    "recvmmsg": ("EAGAIN", "ECONNREFUSED", "EHOSTUNREACH", "EINTR", "ENOBUFS", "ENOMEM", "ENETDOWN", "EINVAL"),
    "read": ("EAGAIN", "EINTR", "EIO", "ENOBUFS", "ENOMEM", "EFAULT", "EINVAL"),
    "writev": ("EAGAIN", "EINTR", "EIO", "EINVAL", "ENOBUFS", "ENOMEM", "EFAULT", "EMSGSIZE"),
    "epoll_ctl": ("ENOMEM", "ENOSPC", "EPERM", "EINVAL"),
    "epoll_wait": ("EINTR", "ENOMEM", "EFAULT"),
    "setsockopt": ("EINVAL", "ENOBUFS", "ENOMEM", "ENOPROTOOPT", "EPERM"),
    "getsockopt": ("ENOBUFS", "ENOMEM", "ENOTCONN", "EINVAL"),
    "bind": ("EACCES", "EADDRINUSE", "ENOMEM", "EPERM"),
    "shutdown": ("ENOTCONN", "ENOBUFS"),
    "fcntl": ("EAGAIN", "EACCES", "EINVAL", "EPERM"),
    "timerfd_settime": ("EINVAL", "ECANCELED", "ENOMEM"),
    "malloc": ("ENOMEM",),
    "calloc": ("ENOMEM",),
    "realloc": ("ENOMEM",),
}  # fmt: skip
# A signal at every call of forty is no plausible world; a connect that times out is answered by the child's own timer.
NO_SPELL = {"EINTR", "ETIMEDOUT"}
Usual = tuple[int, int]  # turns and virtual time of a run without faults


def run_once(faults: Faults, fault: Fault | None, usual: Usual, sufferers: int) -> tuple[str, int]:
    """One world from its first frame to its end; what went wrong, or "", and how many calls failed."""
    world = World()
    failed = 0
    try:
        faults.order(fault)
        started = world.now_ms
        world.usual_errands()
        world.run()
        spent, failed = world.now_ms - started, faults.failed()
        faults.order(None)
        suffered = [f"{e.name}: {e.how} ({e.why})" for e in world.errands if e.how != "done"]
        assert len(suffered) <= sufferers, f"more than one suffers: {suffered}"
        assert not any(e.how == "stuck" for e in world.errands), f"nobody tells: {suffered}"
        assert world.turns <= usual[0] * 3 + 500, f"{world.turns} turns"
        assert spent <= usual[1] + 1_250 * max(12, fault.times if fault else 0), f"took {spent} ms"
        canaries = [world.upload("canary"), world.download("canary down"), world.datagrams("canary udp")]
        started = world.now_ms
        world.run(canaries)
        bad = [f"{e.name}: {e.how} ({e.why})" for e in canaries if e.how != "done"]
        assert not bad, f"not well afterwards: {bad}"
        assert world.now_ms - started <= usual[1] + 2_000, f"slow afterwards: {world.now_ms - started} ms"
        world.finish()
        assert faults.held() == 0, f"{faults.held()} pieces of memory are left"
    except Exception as error:
        faults.order(None)
        world.close()
        return f"{error}" if isinstance(error, AssertionError) else traceback.format_exc(), failed
    return "", failed


def measure(faults: Faults) -> tuple[dict[str, int], Usual]:
    """Calls of each function, and what a run takes, when nothing fails."""
    world = World()
    faults.order(None)
    started = world.now_ms
    world.usual_errands()
    world.run()
    counts = {name: faults.seen(name) for name in ERRORS}
    usual = (world.turns, world.now_ms - started)
    assert all(e.how == "done" for e in world.errands), [(e.name, e.how, e.why) for e in world.errands]
    world.finish()
    return counts, usual


def faults_of(name: str, calls: int, times: int) -> list[Fault]:
    """Each plausible failure of each call that is made, in the order of the calls."""
    errors = [error for error in ERRORS[name] if times == 1 or error not in NO_SPELL]
    found = []
    for nth in range(1, min(calls, NTH_MAX) + 1):
        found += [Fault(name, nth, getattr(errno, error), times) for error in errors]
        if name == "writev":
            found.append(Fault(name, nth, 0, times, answer=1))  # a frame cut short
    return found


def evenly(faults: list[Fault], runs: int) -> list[Fault]:
    """About `runs` of them, by a step that meets every error."""
    step = max(1, len(faults) // runs)
    errors = len({(f.error, f.answer) for f in faults})
    while step > 1 and any(step % n == 0 and errors % n == 0 for n in range(2, errors + 1)):
        step += 1
    return faults[::step]


def sweep(faults: Faults, mode: str, runs: int, name: str) -> dict[str, object]:
    counts, usual = measure(faults)
    one = mode == "one"
    todo = evenly(faults_of(name, counts[name], 1 if one else SPELL_OF.get(name, SPELL)), runs)
    wrong, failed = [], 0
    for fault in todo:
        said, came = run_once(faults, fault, usual, 1 if one else 100)
        failed += came > 0
        if said:
            wrong.append(f"{fault}: {said}")
    return {"function": name, "calls": counts[name], "runs": len(todo), "failed": failed, "wrong": wrong}


def sweep_making(faults: Faults) -> dict[str, object]:
    """Each call that makes a stack fails: an OSError, and nothing is left."""
    wrong, runs, calls = [], 0, 0
    for name in MAKING:
        faults.order(None)
        World().close()
        calls = faults.seen(name)
        assert calls, name
        for nth in range(1, calls + 1):
            before = descriptors()
            faults.order(Fault(name, nth, errno.ENOMEM))
            runs += 1
            try:
                World().close()
            except OSError as error:
                if error.errno != errno.ENOMEM:
                    wrong.append(f"{name} #{nth}: {error!r}")
            else:
                wrong.append(f"{name} #{nth}: made all the same")
            left = (faults.held(), descriptors() - before)
            if any(left):
                wrong.append(f"{name} #{nth}: {left[0]} pieces of memory and {left[1]} descriptors are left")
    return {"function": "making", "calls": runs, "runs": runs, "failed": runs, "wrong": wrong}


def sweep_timer(faults: Faults) -> dict[str, object]:
    """In real time, with nothing but the stack's descriptor to wake it: a SYN-ACK that is not answered comes again."""
    wrong = []
    for nth in (1, 2):
        world = World()
        faults.order(Fault("timerfd_settime", nth, errno.ENOMEM))
        world.upload().end("done", "does not answer")
        turns = world.run_in_real_time(until=lambda world=world: world.frames == 2, seconds=5)
        if world.frames < 2 or turns > 100 or not faults.failed():
            wrong.append(f"timerfd_settime #{nth}: {world.frames} frames came in {turns} turns")
        faults.order(None)
        world.close()
    return {"function": "timer", "calls": 2, "runs": 2, "failed": 2, "wrong": wrong}


def main() -> None:
    mode, runs, *names = sys.argv[1:]
    faults = Faults()
    faults.order(None)  # from here on, what the stack holds is counted
    run_once(faults, None, (10_000, 10_000), 0)  # what is made at the first use is there now
    if mode == "making":
        print(json.dumps(sweep_making(faults)))
        print(json.dumps(sweep_timer(faults)))
        return
    for name in names or ERRORS:
        print(json.dumps(sweep(faults, mode, int(runs), name)), flush=True)


if __name__ == "__main__":
    main()
