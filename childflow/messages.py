"""childflow's own lines on standard error: each starts with `childflow: `, and none ever fails a run.

Written straight to the descriptor: a Python stream that can't be flushed would change the exit status at the very end.
"""

from __future__ import annotations

import os


def say(text: str) -> None:
    """One line on stderr."""
    write(f"childflow: {text}\n")


def write(text: str) -> None:
    """Text on stderr as it is. A stderr that is closed or broken is no fault of the run."""
    try:
        data = text.encode(errors="surrogateescape")
        while data:
            data = data[os.write(2, data) :]
    except OSError:
        pass
