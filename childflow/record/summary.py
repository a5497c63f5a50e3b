"""The summary: what a run reached, for people (text) or programs (JSON). It is printed on stderr after the run.

The text says what a user asks first: where did it go, how much, what went wrong. Addresses that DNS gave are shown by
name. The JSON has everything that was counted.

Not here: counting (`tally.py`), the JSON's shape (`summary_form.py`).
"""

from __future__ import annotations

import shlex
import signal
from typing import TYPE_CHECKING

from childflow.errors import EXIT_SIGNAL_BASE
from childflow.record.recorder import Recorder
from childflow.record.tally import OTHERS
from childflow.services import dns

if TYPE_CHECKING:
    from collections import Counter

    from childflow.record.null import NullRecorder
    from childflow.record.tally import NameRow, PingRow, Tally
    from childflow.settings import Settings

ROWS = 15  # of the table of what was reached
FAILURES = 8  # lines, each a destination and its error
LISTED = 5  # items of a list on one line
_NXDOMAIN = 3  # RFC 1035 4.1.1
_MAX_LABEL = 60
_PING_LABEL = _MAX_LABEL + 42  # a name and an address


def render(settings: Settings, recorder: NullRecorder, status: int, killed: bool | None = None) -> str:
    """The summary as `settings.summary_format` wants it, ending in a newline; `status` is the run's exit status.

    `killed`: a signal ended the command, and `status` is 128+N; None: judge by `status` alone.
    Empty when nothing was recorded, which is when no summary was asked for.
    """
    if not isinstance(recorder, Recorder):
        return ""
    if settings.summary_format == "json":
        from childflow.record.summary_form import encode

        return encode(settings, recorder, status)
    return _text(settings, recorder, _end_text(status, status > EXIT_SIGNAL_BASE if killed is None else killed))


def notes(settings: Settings) -> list[str]:
    """What the user should know about this run's rules, a sentence each."""
    given = [text for text in settings.controls() if text.partition("=")[0] in _ABOUT_ADDRESSES]
    if settings.proxy is None or not settings.virtual_names or not given:
        return []
    rules = _few([f"--{_shortened(text.replace('=', ' ', 1), _MAX_LABEL)}" for text in given])
    return [f"names are looked up by the proxy: where they lead can't be checked against {rules}"]


_ABOUT_ADDRESSES = ("block-metadata", "block-private", "deny-cidr", "allow-cidr")


# Text.


def _text(settings: Settings, recorder: Recorder, end: str) -> str:
    tally = recorder.tally
    queries = sum(row.queries for row in tally.names.values())
    lines = [
        f"childflow: {_shortened(shlex.join(settings.command), 80)}: {end}, {_seconds(recorder)}",
        f"  {_count(tally.flows, 'flow')}, {size_text(tally.bytes_up)} up, {size_text(tally.bytes_down)} down; "
        f"{_count(queries, 'DNS query', 'DNS queries')} for {_count(len(tally.names), 'name')}",
    ]
    lines += _listed("controls", [_shortened(text, _MAX_LABEL) for text in settings.controls()])
    lines += [f"  note: {text}" for text in notes(settings)]
    lines += _reached(tally, settings.flow_log is not None)
    rest = [
        *_pings(tally),
        *_silent_resolvers(tally),
        *_unreached(tally),
        *_reasons("refused by policy", tally.violations),
        *_no_answer(tally),
        *_failures(tally),
    ]
    if settings.flow_log is not None:
        rest.append(f"  flow log: {settings.flow_log}")
    lines += ["", *rest] if rest else []
    return "\n".join(lines) + "\n"


def _end_text(status: int, killed: bool) -> str:
    number = status - EXIT_SIGNAL_BASE
    if not killed or number <= 0:
        return f"exit status {status}"
    try:
        return f"killed by signal {number} ({signal.Signals(number).name.removeprefix('SIG')})"
    except ValueError:
        return f"killed by signal {number}"  # a real-time signal


def _reached(tally: Tally, logged: bool) -> list[str]:
    """The table of what was reached; `logged`: a flow log has all of it."""
    rows = [row for row in tally.hosts.values() if row.reached]
    if not rows:
        return [] if any(row.answered for row in tally.pings.values()) else ["  reached nothing"]
    rows.sort(key=lambda row: (-row.bytes_up - row.bytes_down, -row.reached, row.order, row.label))
    labels = [_shortened(row.label, _MAX_LABEL) for row in rows[:ROWS]]
    width = max(len("reached"), *map(len, labels))
    lines = ["", f"  {'reached':<{width}} {'flows':>7} {'up':>10} {'down':>10}"]
    for label, row in zip(labels, rows, strict=False):
        lines.append(
            f"  {label:<{width}} {row.reached:>7} {size_text(row.bytes_up):>10} {size_text(row.bytes_down):>10}"
        )
    if len(rows) > ROWS:
        lines.append(f"  and {len(rows) - ROWS} more; all of them: {'the flow log' if logged else '--flow-log FILE'}")
    return lines


def _pings(tally: Tally) -> list[str]:
    rows = sorted(tally.pings.values(), key=lambda row: (-row.answered, -row.sent, row.order))
    lines = [f"  ping {_shortened(row.label, _PING_LABEL)}: {_ping_text(row)}" for row in rows[:LISTED]]
    return [*lines, f"  ping: and {len(rows) - LISTED} more"] if len(rows) > LISTED else lines


def _ping_text(row: PingRow) -> str:
    told = [f"{row.sent} sent, {row.answered} answered"] if row.sent else []
    return ", ".join([*told, *(f"{count} not sent: {reason}" for reason, count in sorted(row.failed.items()))])


def _no_answer(tally: Tally) -> list[str]:
    """Where a connect or datagram went and nothing came back, not even an error."""
    silent = [(row.attempts - row.reached - row.errors, row) for row in tally.hosts.values()]
    silent = sorted(
        ((count, row) for count, row in silent if count > 0), key=lambda item: (-item[0], item[1].order, item[1].label)
    )
    return _listed("no answer", [f"{_shortened(row.label, _MAX_LABEL)} ({count})" for count, row in silent])


def _failures(tally: Tally) -> list[str]:
    """Destinations that refused or could not be connected to, each with the reason."""
    if not tally.failed:
        return []
    ranked = sorted(tally.failed.items(), key=lambda item: (-item[1], _order(tally, item[0][0]), item[0]))
    rows = [(_shortened(label, _MAX_LABEL), reason.partition(" (E")[0], count) for (label, reason), count in ranked]
    width = max(len(label) for label, _, _ in rows[:FAILURES])
    lines = [f"    {label:<{width}}  {reason} ({count})" for label, reason, count in rows[:FAILURES]]
    more = [f"    and {len(rows) - FAILURES} more"] if len(rows) > FAILURES else []
    return ["  connects that failed:", *lines, *more]


def _order(tally: Tally, label: str) -> tuple[int, bytes, int]:
    row = tally.hosts.get(label)
    return row.order if row is not None else (0, b"", 0)


def _listed(title: str, items: list[str]) -> list[str]:
    """One line with the first few of `items`; none where there are none."""
    return [f"  {title}: {_few(items)}"] if items else []


def _few(items: list[str]) -> str:
    return ", ".join(items[:LISTED]) + (f" and {len(items) - LISTED} more" if len(items) > LISTED else "")


def _unreached(tally: Tally) -> list[str]:
    """Names that were looked up and, by that answer, never connected to."""
    led_somewhere = {name for row in tally.targets.values() for name in row.names}
    led_somewhere.update(name for row in tally.pings.values() for name in row.names)
    idle: dict[str, list[str]] = {"only looked up": [], "no such name": [], "not resolved": []}
    for row in tally.names.values():
        if row.qname not in led_somewhere:
            idle[_fate(row)].append(_shortened(row.qname, _MAX_LABEL))
    return [line for title, names in idle.items() for line in _listed(title, names)]


def _fate(row: NameRow) -> str:
    if row.addresses or row.rcode == dns.NOERROR or row.qname == OTHERS:
        return "only looked up"
    return "no such name" if row.rcode == _NXDOMAIN else "not resolved"


def _silent_resolvers(tally: Tally) -> list[str]:
    ranked = sorted(tally.silent_resolvers.items(), key=lambda item: (-item[1], item[0]))[:LISTED]
    return [
        f"  DNS: {server.removesuffix(':53').strip('[]')} did not answer ({_count(count, 'query', 'queries')})"
        for server, count in ranked
    ]


def _reasons(title: str, counts: Counter[str]) -> list[str]:
    if not counts:
        return []
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [f"  {title}: " + ", ".join(f"{count} x {reason}" for reason, count in ranked[:5])]


def _shortened(text: str, limit: int) -> str:
    """`text` on one line, without control characters, and not longer than `limit`."""
    text = "".join(c if c.isprintable() else "?" for c in text.replace("\n", " "))
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
