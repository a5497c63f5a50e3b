"""The summary: what a run reached, for people (text) or programs (JSON). It is printed on stderr after the run.

The text says what a user asks first: where did it go, how much, what went wrong. Addresses that DNS gave are shown by
name. The JSON has everything that was counted.

Not here: counting (`tally.py`), the JSON's shape (`summary_form.py`).
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from childflow.record.recorder import Recorder
from childflow.record.tally import OTHERS

if TYPE_CHECKING:
    from collections import Counter

    from childflow.record.null import NullRecorder
    from childflow.record.tally import Tally, TargetRow
    from childflow.settings import Settings

ROWS = 15  # of the table of what was reached
_MAX_LABEL = 60


def render(settings: Settings, recorder: NullRecorder, status: int) -> str:
    """The summary as `settings.summary_format` wants it, ending in a newline; `status` is the run's exit status.

    Empty when nothing was recorded, which is when no summary was asked for.
    """
    if not isinstance(recorder, Recorder):
        return ""
    if settings.summary_format == "json":
        from childflow.record.summary_form import encode

        return encode(settings, recorder, status)
    return _text(settings, recorder, status)


# Text.


def _text(settings: Settings, recorder: Recorder, status: int) -> str:
    tally = recorder.tally
    queries = sum(row.queries for row in tally.names.values())
    lines = [
        f"childflow: {_shortened(shlex.join(settings.command), 80)}: exit status {status}, {_seconds(recorder)}",
        f"  {_count(tally.flows, 'flow')}, {size_text(tally.bytes_up)} up, {size_text(tally.bytes_down)} down; "
        f"{_count(queries, 'DNS query', 'DNS queries')} for {_count(len(tally.names), 'name')}",
    ]
    lines += _reached(tally)
    rest = [
        *_unreached(tally),
        *_reasons("refused by policy", tally.violations),
        *_reasons("connects that failed", tally.connect_errors),
    ]
    if settings.flow_log is not None:
        rest.append(f"  flow log: {settings.flow_log}")
    lines += ["", *rest] if rest else []
    return "\n".join(lines) + "\n"


class _Reached:
    """One row of the table: what goes by one name and port."""

    def __init__(self) -> None:
        self.flows = 0
        self.up = 0
        self.down = 0
        self.names: dict[str, None] = {}

    def add(self, row: TargetRow) -> None:
        self.flows += row.attempts - row.errors
        self.up += row.bytes_up
        self.down += row.bytes_down
        self.names.update(row.names)


def _reached(tally: Tally) -> list[str]:
    groups: dict[str, _Reached] = {}
    for row in tally.targets.values():
        if row.attempts > row.errors:
            groups.setdefault(_label(row), _Reached()).add(row)
    if not groups:
        return []
    ranked = sorted(groups.items(), key=lambda item: (-item[1].up - item[1].down, -item[1].flows, item[0]))
    width = max(len("reached"), *(len(label) for label, _ in ranked[:ROWS]))
    lines = ["", f"  {'reached':<{width}} {'flows':>7} {'up':>10} {'down':>10} {'queries':>8}"]
    for label, group in ranked[:ROWS]:
        queries = sum(tally.names[name].queries for name in group.names if name in tally.names)
        lines.append(
            f"  {label:<{width}} {group.flows:>7} {size_text(group.up):>10} {size_text(group.down):>10}"
            f" {queries or '':>8}".rstrip()
        )
    if len(ranked) > ROWS:
        lines.append(f"  and {len(ranked) - ROWS} more")
    return lines


def _unreached(tally: Tally) -> list[str]:
    """Names that were looked up and, by that answer, never connected to."""
    led_somewhere = {name for row in tally.targets.values() for name in row.names}
    idle = [name for name in tally.names if name not in led_somewhere]
    if not idle:
        return []
    shown = ", ".join(_shortened(name, _MAX_LABEL) for name in idle[:5])
    more = f" and {len(idle) - 5} more" if len(idle) > 5 else ""
    return [f"  only looked up: {shown}{more}"]


def _reasons(title: str, counts: Counter[str]) -> list[str]:
    if not counts:
        return []
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [f"  {title}: " + ", ".join(f"{count} x {reason}" for reason, count in ranked[:5])]


def _label(row: TargetRow) -> str:
    """`name:port` where DNS told a name, else the address and port; the last name that led there counts."""
    if not row.names or row.target == OTHERS:
        return row.target
    return f"{_shortened(next(reversed(row.names)), _MAX_LABEL)}:{row.target.rpartition(':')[2]}"


def _shortened(text: str, limit: int) -> str:
    """`text` on one line, without control characters, and not longer than `limit`."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _seconds(recorder: Recorder) -> str:
    return f"{recorder.duration_ms() / 1000:.1f} s"


def size_text(size: int) -> str:
    """Bytes in binary units, three figures: `512 B`, `1.5 KiB`, `34.2 MiB`."""
    if size < 1024:
        return f"{size} B"
    value = float(size)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if value < 999.5:
            return f"{value:.1f} {unit}" if value < 99.95 else f"{value:.0f} {unit}"
    return f"{value / 1024:.1f} TiB"
