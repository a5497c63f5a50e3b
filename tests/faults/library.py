"""The fault library: built once, ordered about from Python. See `faults.c`."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).with_name("faults.c")
STACK, ENGINE, PROCESS = range(3)  # whose calls count: faults.c, enum scope
FOR_EVER = 1 << 40


class Fault(NamedTuple):
    """The `nth` call of `function` and the `times` - 1 after it fail with `error`; 0: they return `answer`."""

    function: str
    nth: int
    error: int
    times: int = 1
    answer: int = 0
    scope: int = STACK

    def __str__(self) -> str:
        what = errno.errorcode.get(self.error, str(self.error)) if self.error else f"returns {self.answer}"
        return f"{self.function} #{self.nth}{f' x{self.times}' if self.times > 1 else ''} {what}"

    def environment(self, library: Path, report: Path) -> dict[str, str]:
        """For a program: what makes it fail so, and where it writes its counts when it exits."""
        order = (self.scope, self.function, self.nth, self.times, self.error, self.answer)
        return {
            "LD_PRELOAD": str(library),
            "CHILDFLOW_FAULT": " ".join(map(str, order)),
            "CHILDFLOW_FAULT_REPORT": str(report),
        }


def build(folder: Path) -> Path:
    """The library, in `folder`, readable by every user."""
    library = folder / "faults.so"
    flags = ("-shared", "-fPIC", "-O1", "-fno-builtin", "-Wall", "-Wextra", "-Werror")
    subprocess.run([os.environ.get("CC", "cc"), *flags, "-o", str(library), str(SOURCE), "-ldl"], check=True)
    library.chmod(0o755)
    return library


class Faults:
    """The library that this process was started with."""

    def __init__(self) -> None:
        self._lib = ctypes.CDLL(None)
        number, long = ctypes.c_int, ctypes.c_long
        self._lib.faults_order.argtypes = [ctypes.c_char_p, number, long, long, number, long]
        self._lib.faults_order.restype = None
        self._lib.faults_seen.argtypes = [ctypes.c_char_p]
        for count in (self._lib.faults_seen, self._lib.faults_failed, self._lib.faults_held):
            count.restype = ctypes.c_long

    def order(self, fault: Fault | None, scope: int = STACK) -> None:
        """Begin to count anew, and to fail if there is a fault."""
        f = fault or Fault("", 0, 0, scope=scope)
        self._lib.faults_order(f.function.encode(), f.scope, f.nth, f.times, f.error, f.answer)

    def seen(self, function: str) -> int:
        """Calls since the order."""
        return int(self._lib.faults_seen(function.encode()))

    def failed(self) -> int:
        """Calls that were made to fail."""
        return int(self._lib.faults_failed())

    def held(self) -> int:
        """Pieces of memory that stacks hold now."""
        return int(self._lib.faults_held())
