"""The flow log's file: lines collected, written in batches, never in the way of the packets.

A log may be a file, a pipe, a terminal or a socket that the user's shell made. A descriptor that others share must not
become non-blocking for them too, so a pipe or terminal is opened anew through `/proc/self/fd`. What a slow reader does
not take waits here up to MAX_WAITING bytes; what is beyond that, and all after an error, is lost: one warning, a count,
and the run goes on.

Invariants: `write` does no I/O; no call blocks, but `close`, which waits CLOSE_S at most.
Not here:   what a line says (`events.py`).
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import time
from collections.abc import Callable

from childflow.errors import ChildflowError, UsageError

MAX_WAITING = 8 << 20
CLOSE_S = 1.0
_CHUNK = 65536  # what a pipe holds, and little enough to copy in vain when it is full
_PATH_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NONBLOCK
_PIPE_BUF = select.PIPE_BUF  # a pipe that polls writable takes this much without blocking


class LogFile:
    """A place for lines. `lost` counts the lines that could not be kept."""

    def __init__(self, target: str, warn: Callable[[str], None]) -> None:
        """Open `target` (a path, `-`, `fd:N`). UsageError or ChildflowError when it can't be written to."""
        self.target = target
        self.lost = 0
        self._warn = warn
        self._waiting = bytearray()
        self._broken = False
        self._put: Callable[[bytes], int]
        self._open()

    def write(self, line: bytes) -> None:
        """Keep `line` (without its end) for the next flush."""
        if self._broken or len(self._waiting) + len(line) >= MAX_WAITING:
            self._lose()
            return
        self._waiting += line
        self._waiting += b"\n"

    def flush(self) -> bool:
        """Write what can be written now; true when nothing is left waiting."""
        while self._waiting:
            try:
                size = self._put(bytes(self._waiting[:_CHUNK]))
            except BlockingIOError:
                return False
            except OSError as error:
                self._break(error)
                return True
            del self._waiting[:size]
        return True

    def close(self) -> None:
        """Write the rest, waiting a moment for a slow reader, and close."""
        until = time.monotonic() + CLOSE_S
        while not self.flush() and time.monotonic() < until:
            self._wait_for_room(until)
        if self._waiting:
            self.lost += self._waiting.count(b"\n")
        if self.lost:
            self._warn(f"{self.lost} lines of the flow log {self.target} were lost")
        os.close(self._fd)

    # Opening.

    def _open(self) -> None:
        shared = _shared_descriptor(self.target)
        if shared is None:
            self._fd = _open_path(self.target)
            self._put = lambda data: os.write(self._fd, data)
            return
        try:
            mode = os.fstat(shared).st_mode
            self._fd = _dup_above_stdio(shared)
        except OSError as error:
            raise UsageError(f"--flow-log {self.target}: {error.strerror}; give an open descriptor or a file") from None
        self._settle(shared, mode)

    def _settle(self, shared: int, mode: int) -> None:
        """Choose the write that can't block for what `shared` is."""
        if stat.S_ISSOCK(mode):
            self._put = self._send
        elif stat.S_ISREG(mode):
            self._put = lambda data: os.write(self._fd, data)
        else:
            self._own_description(shared)

    def _own_description(self, shared: int) -> None:
        try:
            own = os.open(f"/proc/self/fd/{shared}", os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError:
            self._put = self._write_if_room
            return
        os.close(self._fd)
        self._fd = own
        self._put = lambda data: os.write(self._fd, data)

    # Writing.

    def _send(self, data: bytes) -> int:
        with socket.socket(fileno=os.dup(self._fd)) as sock:
            return sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def _write_if_room(self, data: bytes) -> int:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        if not poll.poll(0):
            raise BlockingIOError
        return os.write(self._fd, data[:_PIPE_BUF])

    def _wait_for_room(self, until: float) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        poll.poll(max(0, int((until - time.monotonic()) * 1000)))

    # Losing.

    def _lose(self) -> None:
        self.lost += 1
        if self.lost == 1 and not self._broken:
            self._warn(f"nobody reads the flow log {self.target} fast enough; lines are lost from here on")

    def _break(self, error: OSError) -> None:
        self._broken = True
        self.lost += self._waiting.count(b"\n")
        self._waiting.clear()
        self._warn(f"the flow log {self.target} can't be written ({error.strerror}); the run goes on without it")


def _shared_descriptor(target: str) -> int | None:
    """The descriptor that `target` names, None for a path."""
    if target == "-":
        return 1
    if not target.startswith("fd:"):
        return None
    if not target[3:].isascii() or not target[3:].isdigit():
        raise UsageError(f"--flow-log {target}: give fd:N with a descriptor number")
    return int(target[3:])


def _open_path(path: str) -> int:
    try:
        return os.open(path, _PATH_FLAGS, 0o644)
    except OSError as error:
        why = "nobody reads this pipe" if error.errno == errno.ENXIO else error.strerror
        raise ChildflowError(f"the flow log {path} can't be written ({why}); choose another --flow-log") from None


def _dup_above_stdio(fd: int) -> int:
    import fcntl

    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    if flags & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, "the descriptor is not open for writing")
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
