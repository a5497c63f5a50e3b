"""What a run costs: `childflow -- true` against `true`, and where the time goes. `make bench-start`

The aim is at most 120 ms more than `true`. The rows between show what of it is Python's own start and what is the
import of the event loop, which the start of the namespaces overlaps.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from benches.rounds import interleaved, lab, report_differences
from tests.lab import install
from tests.lab.lab import Caller

ROUNDS = 15
IMPORTS = "import uvloop, msgspec, childflow.run"


def main() -> None:
    where = lab()
    for user in ("ordinary", "root"):
        print(f"a run that does nothing, as {user}, ms")
        figures = interleaved(ROUNDS, candidates(where.caller(user)))
        report_differences(figures, "true", "ms")


def candidates(caller: Caller) -> dict[str, Callable[[], float]]:
    python = str(install.HOME / "bin/python")

    def bare(*command: str) -> Callable[[], float]:
        return lambda: 1000 * caller.direct(*command).ok().duration

    return {
        "childflow": lambda: 1000 * caller.childflow("true", log=False).ok().duration,
        "true": bare("true"),
        "python": bare(python, "-I", "-c", ""),
        "imports": bare(python, "-I", "-c", IMPORTS),
    }


if __name__ == "__main__":
    sys.exit(main())
