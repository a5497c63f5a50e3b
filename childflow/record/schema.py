"""JSON Schemas of what childflow writes, generated from the structs. `python -m childflow.record.schema docs/schema`
writes them; a test keeps the files current.

Not here: the structs (`events.py`, `summary_form.py`).
"""

from __future__ import annotations

import json
import sys
from typing import Any

import msgspec

from childflow.record.events import AnyEvent
from childflow.record.summary_form import Summary

DIALECT = "https://json-schema.org/draft/2020-12/schema"
SURFACES: dict[str, tuple[Any, str]] = {
    "flow-log.schema.json": (AnyEvent, "One line of childflow's flow log"),
    "summary.schema.json": (Summary, "childflow's summary (--summary-format json)"),
}


def schema_text(name: str) -> str:
    """The file `name` of `docs/schema`, whole."""
    surface, title = SURFACES[name]
    return json.dumps({"$schema": DIALECT, "title": title, **msgspec.json.schema(surface)}, indent=2) + "\n"


def main(folder: str) -> None:
    """Write every schema into `folder`."""
    for name in SURFACES:
        with open(f"{folder}/{name}", "w", encoding="utf-8") as file:
            file.write(schema_text(name))


if __name__ == "__main__":
    main(sys.argv[1])
