"""childflow with an engine that does nothing, for tests of the start and the end alone.

`python idle_engine.py [OPTIONS] -- COMMAND`
"""

from __future__ import annotations

import sys
import types
from typing import Any


class IdleEngine:
    """Takes the TAP and leaves it alone."""

    def __init__(self, *_: Any) -> None:
        pass

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def counters(self) -> dict[str, int]:
        return {}


class Silent:
    """A recorder that records nothing."""

    active = False

    def __getattr__(self, _name: str) -> Any:
        return lambda *_: None


def install() -> None:
    """Put the idle engine and the silent recorder in the place of the real modules."""
    engine = types.ModuleType("childflow.engine")
    engine.Engine = IdleEngine  # type: ignore[attr-defined]
    flowlog = types.ModuleType("childflow.record.flowlog")
    flowlog.make_recorder = lambda _settings: Silent()  # type: ignore[attr-defined]
    sys.modules |= {"childflow.engine": engine, "childflow.record.flowlog": flowlog}


if __name__ == "__main__":
    install()
    from childflow.cli import main

    raise SystemExit(main())
