"""A command that waits for the test between its steps.

    with Steps(caller, "ask; step; ask") as steps:     # a shell script; `step` waits for `go()`
        steps.says("first answer")
        ...                                            # change something
        steps.go()

A program waits for the file `$GATE/N`, N = 0, 1, ... (`wait_for` in clients that take part).
"""

from __future__ import annotations

from typing import Any, Self

from .lab import Caller

_STEP = 'step() { while [ ! -e "$GATE/${n:=0}" ]; do sleep 0.02; done; n=$((n+1)); }; '


class Steps:
    """A shell script under childflow; `more` as for `Caller.start`."""

    def __init__(self, caller: Caller, script: str, **more: Any) -> None:
        self._gate = caller.folder("gate")
        self._next = 0
        self.running = caller.start("/bin/sh", "-c", _STEP + script, env={"GATE": str(self._gate)}, **more)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.running.kill()

    def go(self) -> None:
        """Let the script take its next step."""
        (self._gate / str(self._next)).touch()
        self._next += 1

    def says(self, word: str, limit: float = 20.0) -> None:
        self.running.says(word, limit)

    def lines(self, number: int, limit: float = 20.0) -> list[str]:
        """The first `number` lines of the output, when they are there."""
        return self.running.lines(number, limit)
