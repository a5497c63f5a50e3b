"""P's signals: read from a descriptor, told apart by who sent them, and taken on again at the end.

The command is in childflow's process group, so what the terminal sends reaches both; what kill(2) sends to childflow
reaches only childflow and is passed on, once. A signalfd says which it was: si_code SI_KERNEL is the terminal's driver.

Invariants: from `block` to `stop_as` or `die_as`, no signal but KILL, STOP and the faults acts on P by itself.
"""

from __future__ import annotations

import os
import resource
import signal
import struct
from typing import NamedTuple

from childflow.sandbox import kernel

_SI_KERNEL = 0x80
_INFO_BYTES = 128
_INFO = struct.Struct("=IiiI")  # signalfd_siginfo: signal, errno, code, pid
_FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS, signal.SIGABRT}
_OF_THE_C_LIBRARY = {32, 33}
_TAKEN = frozenset(
    set(range(1, signal.NSIG)) - _FAULTS - _OF_THE_C_LIBRARY - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}
)
STOPPING = frozenset((signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGSTOP))
_HARMLESS = frozenset((signal.SIGCONT, signal.SIGWINCH, signal.SIGURG))


class Arrival(NamedTuple):
    """One signal, and whether the kernel sent it (then the command has it already)."""

    number: int
    from_kernel: bool


class Signals:
    """All signals of this process, held back for reading."""

    def __init__(self, fd: int, caller_mask: int) -> None:
        self.fd = fd
        self.caller_mask = caller_mask

    @staticmethod
    def block() -> Signals:
        """Hold back every signal that can be; `caller_mask` (bit 0 is signal 1) is the mask that was."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _TAKEN)
        return Signals(kernel.signalfd(_bits(_TAKEN)), _bits(before))

    def arrived(self) -> list[Arrival]:
        """All signals that wait; empty when there are none."""
        found: list[Arrival] = []
        try:
            while True:
                data = os.read(self.fd, _INFO_BYTES * 16)
                for start in range(0, len(data), _INFO_BYTES):
                    number, _errno, code, _pid = _INFO.unpack_from(data, start)
                    found.append(Arrival(number, code == _SI_KERNEL))
        except BlockingIOError:
            return found

    def before_the_command(self) -> int | None:
        """A signal that ends this run before its command started, if one waits; stops on one that stops."""
        for arrival in self.arrived():
            if arrival.number in STOPPING:
                stop_as(arrival.number)
            elif arrival.number not in _HARMLESS and signal.getsignal(arrival.number) != signal.SIG_IGN:
                return arrival.number
        return None


def stop_as(number: int) -> None:
    """Stop this process by a stopping signal; returns when it is continued (at once, in an orphaned process group)."""
    _raise(number)
    if number != signal.SIGSTOP:
        signal.pthread_sigmask(signal.SIG_BLOCK, {number})


def die_as(number: int) -> None:
    """End this process by a signal, without a core file of its own. Returns if the signal does not end a process."""
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _raise(number)


def _raise(number: int) -> None:
    """Let a signal act on us by default. Sent while still held back, it merges with one that waits already."""
    try:
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    except (OSError, ValueError):
        return  # libc keeps 32 and 33 to itself: the exit status says it alone


def _bits(numbers: frozenset[int] | set[signal.Signals] | set[int]) -> int:
    return sum(1 << (number - 1) for number in numbers)
