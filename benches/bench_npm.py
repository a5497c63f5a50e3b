"""`npm ci` of the sample project from a registry mirror in the lab, with childflow and without. `make bench-npm`

Each round starts with an empty npm cache and no node_modules. The aim is at most 1.15 times the time without.
"""

from __future__ import annotations

import sys

from benches.rounds import interleaved, lab, report_ratios
from tests.lab import npm_mirror
from tests.lab.lab import Caller

ROUNDS = 5


def main() -> None:
    where = lab()
    mirror = where.serve("tests.lab.npm_mirror", "serve", str(npm_mirror.PORT))
    caller = where.caller("ordinary")
    print("npm ci, cold cache, s")
    figures = interleaved(
        ROUNDS, {"direct": lambda: install(caller, True), "childflow": lambda: install(caller, False)}
    )
    report_ratios(figures, "direct", "s")
    mirror.kill()


def install(caller: Caller, direct: bool) -> float:
    caller.folder(".npm").rmdir()
    project = caller.folder("bench-project")
    npm_mirror.copy_sample(project)
    run = caller.direct if direct else caller.childflow
    return run("npm", "ci", "--registry", npm_mirror.BASE, cwd=project, timeout=300).ok().duration


if __name__ == "__main__":
    sys.exit(main())
