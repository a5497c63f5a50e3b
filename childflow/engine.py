"""The engine: the C stack on the event loop, and the switchboard that answers its questions.

The loop watches one descriptor, the stack's epoll set. When it fires, turns are taken until the stack has nothing left
or other callbacks have waited long enough; after each turn the waiting events are answered, since a parked flow's
latency is the time until its verdict.

Invariants: nothing is decided here and no payload is touched. After `stop` every host socket is closed.
Not here:   what an event means (`services/switchboard.py`), the life of the run (`run.py`).
"""

from __future__ import annotations

import asyncio
import os
import resource
import select
import time
from collections.abc import Mapping

from childflow.limits import Limits
from childflow.netstack.stack import Stack
from childflow.policy.policy import policy_of
from childflow.record.null import NullRecorder
from childflow.sandbox.link import LinkPlan, host_addresses
from childflow.services.switchboard import Switchboard
from childflow.settings import ADDRESSES, Settings

EVENTS_AT_ONCE = 6  # some 0.3 ms of answers
ANSWERS_US = 4_000  # when no frame waits
ANSWERS_SHARE = 4  # when more frames wait: a fourth of the time that the last ones took
SERVE_US = 5_000  # before other callbacks of the loop get to run
STUMBLE_S = 0.05
TAP_GONE_S = 0.5  # at the end of a run the TAP may go a little before us
TAP_GONE = "the command's network interface was taken away from outside; it has no network any more"
DRAIN_QUIET_S = 1.0  # without a byte moving, what the command left behind is given up
DRAIN_MAX_S = 10.0
DRAIN_POLL_MS = 20
DRAIN_SETTLE_S = 0.05  # for last datagrams; a host that goes on sending them does not keep us


def now_us() -> int:
    """The stack's clock: microseconds, monotonic."""
    return time.monotonic_ns() // 1000


def raise_open_files_limit() -> int:
    """Raise our soft limit of open descriptors to the hard one (the command was forked before, and keeps the caller's).

    Returns the limit.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def open_files() -> int:
    """Descriptors that this process has open."""
    return len(os.listdir("/proc/self/fd"))


def crash_path(environment: Mapping[str, str]) -> str:
    """The file that the stack's last frames go to if an assertion of ours fails; made then, and only then."""
    name = f"childflow-crash-{os.getpid()}.pcapng"
    path = os.path.join(environment.get("TMPDIR") or "/tmp", name)
    return path if len(os.fsencode(path)) < 256 else f"/tmp/{name}"


# Limits that make the stack refuse, by their counters: what to say of it, once.
_FULL = {
    "no_descriptor": "no descriptor is left for new connections, and they are refused; raise the limit of open files "
    "(`ulimit -Hn`, now {open_files}) or --limit max_sockets (now {limits.max_sockets})",
    "flow_table_full": "no room is left for new flows, and they are refused; raise --limit max_flows "
    "(now {limits.max_flows})",
}


class Engine:
    """Serves one TAP until `stop`; `counters` still answers afterwards."""

    def __init__(
        self,
        tap_fd: int,
        offload: bool,
        plan: LinkPlan,
        settings: Settings,
        loop: asyncio.AbstractEventLoop,
        recorder: NullRecorder,
    ) -> None:
        self._loop = loop
        self._recorder = recorder
        limits = Limits(**dict(settings.limits)).within(raise_open_files_limit() - open_files())
        self._stack = Stack(
            tap_fd, ADDRESSES, mtu=plan.mtu, offload=offload, limits=limits, crash_path=crash_path(os.environ),
            clock=now_us,
        )  # fmt: skip
        self._full = dict(_FULL)
        policy = policy_of(settings, loop.time, host_addresses() if settings.block_private else ())
        self._switchboard = Switchboard(
            self._stack, settings, loop, recorder, policy=policy, limits=self._stack.limits, has_ipv6=plan.ipv6
        )
        self._again: asyncio.Handle | None = None
        self._counters: dict[str, int] = {}

    def start(self) -> None:
        """Begin to serve; the first frames may be waiting already."""
        self._loop.add_reader(self._stack.fd, self._serve)
        self._serve()

    def stop(self) -> None:
        """Deliver what the command sent before it ended, end every flow, close everything."""
        self._loop.remove_reader(self._stack.fd)
        if self._again:
            self._again.cancel()
        for step in (self._drain, self._end_flows, self._switchboard.close, self._close_stack):
            try:
                step()
            except Exception as error:  # the command's status is not lost by it
                self._loop.call_exception_handler({"message": "the engine stumbled at its end", "exception": error})

    def _end_flows(self) -> None:
        self._stack.close_all()
        self._switchboard.handle(self._stack.events())

    def _close_stack(self) -> None:
        self._counters = self._stack.counters()
        self._stack.close()

    def counters(self) -> dict[str, int]:
        """Frames that were not carried, by reason; only reasons that occurred."""
        return self._counters

    def _serve(self) -> None:
        if self._again:
            self._again.cancel()
            self._again = None
        try:
            self._serve_a_while()
        except Exception as error:
            self._stumble(error)

    def _stumble(self, error: Exception) -> None:
        """A bug of ours, or no memory: told, and tried again after a moment. At once might be at 100 % CPU for ever."""
        self._loop.call_exception_handler({"message": "the engine stumbled", "exception": error})
        self._loop.remove_reader(self._stack.fd)
        self._again = self._loop.call_later(STUMBLE_S, self.start)

    def _serve_a_while(self) -> None:
        until = now_us() + SERVE_US
        while self._turn():
            if now_us() >= until:
                self._again = self._loop.call_soon(self._serve)
                break
        if self._full:
            self._tell_what_is_full()
        if self._stack.tap_gone:
            self._loop.remove_reader(self._stack.fd)  # its POLLERR would never end
            self._again = self._loop.call_later(TAP_GONE_S, self._recorder.warn, TAP_GONE)

    def _turn(self) -> bool:
        """One turn, and the answers to its events; True when there is more to do at once."""
        begin = now_us()
        more = self._stack.turn(begin)
        if not self._stack.has_events:
            return more
        self._answer((now_us() - begin) // ANSWERS_SHARE if more else ANSWERS_US)
        return True  # an answer may have made work

    def _answer(self, time_us: int) -> None:
        """Answer waiting events for about `time_us`. The rest waits for the next turn: frames come first, since those
        that the TAP has no room for are lost, and a flood of new flows would lose everybody's."""
        until = now_us() + time_us
        while self._stack.has_events:
            self._switchboard.handle(self._stack.some_events(EVENTS_AT_ONCE))
            if now_us() >= until:
                break

    def _tell_what_is_full(self) -> None:
        for reason in [reason for reason in self._full if self._stack.counted(reason)]:
            open_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            self._recorder.warn(self._full.pop(reason).format(open_files=open_files, limits=self._stack.limits))

    def _drain(self) -> None:
        """As a kernel does after a program's last close: what it sent is still delivered, for a bounded time."""
        poll = select.poll()
        poll.register(self._stack.fd, select.POLLIN)
        start = quiet_since = time.monotonic()
        while True:
            busy = bool(poll.poll(0))
            busy = self._turn() or busy
            now = time.monotonic()
            if busy:
                quiet_since = now
            if self._stack.tap_gone or now > start + DRAIN_MAX_S or now > quiet_since + DRAIN_QUIET_S:
                return
            if not self._stack.unfinished() and (not busy or now > start + DRAIN_SETTLE_S):
                return
            if not busy:
                poll.poll(DRAIN_POLL_MS)
