"""childflow's own lines on standard error: each starts with `childflow: `, and none ever fails a run.

Written straight to the descriptor: a Python stream that can't be flushed would change the exit status at the very end.
"""

from __future__ import annotations

import os


def say(text: str) -> None:
    """One line on stderr. A stderr that is closed or broken is no fault of the run."""
    try:
        os.write(2, f"childflow: {text}\n".encode(errors="surrogateescape"))
    except OSError:
        pass
