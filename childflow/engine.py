"""The engine: the C stack on the event loop, and the switchboard that answers its questions.

The loop watches one descriptor, the stack's epoll set. When it fires, turns are taken until the stack has nothing left or
other callbacks have waited long enough; after each turn the waiting events are answered, since a parked flow's latency is
the time until its verdict.

Invariants: nothing is decided here and no payload is touched. After `stop` every host socket is closed.
Not here:   what an event means (`services/switchboard.py`), the life of the run (`run.py`).
"""

from __future__ import annotations

import asyncio
import select
import time

from childflow.netstack.stack import Stack
from childflow.record.flowlog import NullRecorder
from childflow.sandbox.link import LinkPlan
from childflow.services.switchboard import Switchboard
from childflow.settings import ADDRESSES, Settings

TURNS_AT_ONCE = 16  # before other callbacks of the loop get to run
DRAIN_QUIET_S = 1.0  # without a byte moving, what the command left behind is given up
DRAIN_MAX_S = 10.0
DRAIN_POLL_MS = 20


def now_us() -> int:
    """The stack's clock: microseconds, monotonic."""
    return time.monotonic_ns() // 1000


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
        self._stack = Stack(tap_fd, ADDRESSES, mtu=plan.mtu, offload=offload)
        self._switchboard = Switchboard(self._stack, settings, loop, recorder)
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
        self._drain()
        self._stack.close_all()
        self._switchboard.handle(self._stack.events())
        self._switchboard.close()
        self._counters = self._stack.counters()
        self._stack.close()

    def counters(self) -> dict[str, int]:
        """Frames that were not carried, by reason; only reasons that occurred."""
        return self._counters

    def _serve(self) -> None:
        self._again = None
        for _ in range(TURNS_AT_ONCE):
            if not self._turn():
                break
        else:
            self._again = self._loop.call_soon(self._serve)
        if self._stack.tap_gone:
            self._loop.remove_reader(self._stack.fd)  # its POLLERR would never end

    def _turn(self) -> bool:
        more = self._stack.turn(now_us())
        if self._stack.has_events:
            self._switchboard.handle(self._stack.events())
        return more

    def _drain(self) -> None:
        """As a kernel does after a program's last close: what it sent is still delivered, for a bounded time."""
        poll = select.poll()
        poll.register(self._stack.fd, select.POLLIN)
        give_up = time.monotonic() + DRAIN_MAX_S
        quiet_until = time.monotonic() + DRAIN_QUIET_S
        while True:
            moved = bool(poll.poll(0))
            while self._turn():
                moved = True
            now = time.monotonic()
            if moved:
                quiet_until = now + DRAIN_QUIET_S
            elif now > quiet_until or now > give_up or self._stack.tap_gone or not self._stack.unfinished():
                return
            else:
                poll.poll(DRAIN_POLL_MS)
