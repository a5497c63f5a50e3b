"""Watch: many small sockets behind one descriptor of the event loop.

Why not `loop.add_reader` for each: libuv ends a watch for good at the first POLLERR, and an ICMP error is just that
for a connected datagram socket, a fact to be read and not the end. An epoll descriptor is only ever readable. It is
cheaper too: one system call per socket, no handle.

Invariants: a callback is called only while its socket is watched. One that raises is told of, costs the others nothing,
            and is called again when something new comes: not at once and for ever.
Not here:   the stack's own descriptor (the engine watches it).
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable

_BATCH = 256


class Watch:
    """A set of descriptors with a callback each, called when there is something to read or an error to fetch."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll(sizehint=64)
        self._ready: dict[int, Callable[[], None]] = {}
        self._failed: set[int] = set()  # those whose callback has raised: edge-triggered from then on
        loop.add_reader(self._epoll.fileno(), self._run)

    def add(self, fd: int, ready: Callable[[], None]) -> None:
        """Call `ready` whenever `fd` is readable, has an error, or was hung up (level-triggered)."""
        self._epoll.register(fd, select.EPOLLIN)
        self._ready[fd] = ready

    def remove(self, fd: int) -> None:
        """Stop watching `fd`; to be called before it is closed."""
        del self._ready[fd]
        self._failed.discard(fd)
        self._epoll.unregister(fd)

    def close(self) -> None:
        """Stop watching everything. The descriptors stay their owners' to close."""
        if self._epoll.closed:
            return
        self._loop.remove_reader(self._epoll.fileno())
        self._ready.clear()
        self._epoll.close()

    def _run(self) -> None:
        for fd, _ in self._epoll.poll(0, _BATCH):
            ready = self._ready.get(fd)
            if ready is None:  # an earlier callback of this batch has removed it
                continue
            try:
                ready()
            except Exception as error:
                self._broken(fd, error)

    def _broken(self, fd: int, error: Exception) -> None:
        if fd in self._ready and fd not in self._failed:
            self._failed.add(fd)
            self._epoll.modify(fd, select.EPOLLIN | select.EPOLLET)  # and so it is called once more
        self._loop.call_exception_handler({"message": "childflow: a socket's callback failed", "exception": error})
