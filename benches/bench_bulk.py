"""Bulk TCP: one stream at MTU 1500 through each helper, as a share of the plain wire. `make bench-bulk`

iperf3 on the laptop and on the server, which share the cores with the helper between them; the wire is a veth pair.
The aim is at least 0.6 of plain veth in each direction. slirp4netns and pasta run where they are installed.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from functools import partial

from benches.rounds import interleaved, lab, report_ratios
from tests.lab.lab import Caller, Lab
from tests.lab.processes import Result, start

ROUNDS = 5
SECONDS = 3
# slirp4netns joins a namespace that waits for it.
_UNDER_SLIRP = r"""
unshare --user --map-root-user --net sh -c 'echo $$ >"$0"; while [ ! -e "$0.ready" ]; do sleep 0.05; done
    shift 0; exec "$@"' "$PID_FILE" "$@" &
while [ ! -s "$PID_FILE" ]; do sleep 0.05; done
slirp4netns --configure --mtu=1500 --ready-fd=5 "$(cat "$PID_FILE")" tap0 >/dev/null 2>&1 5>"$PID_FILE.ready-pipe" &
slirp=$!
while [ ! -s "$PID_FILE.ready-pipe" ]; do sleep 0.05; done
: >"$PID_FILE.ready"
wait %1
status=$?
kill $slirp
exit $status
"""


def main() -> None:
    where = lab()
    caller = where.caller("ordinary")
    server = start(["iperf3", "--server", "--forceflush"], where.server.place, "root", cwd="/", env=caller.environment)
    server.says("listening")
    for direction, flags in (("up", ()), ("down", ("--reverse",))):
        print(f"TCP, 1 stream, MTU 1500, {direction}, Gbit/s")
        figures = interleaved(ROUNDS, candidates(where, caller, flags))
        report_ratios(figures, "veth", "Gbit/s")
    server.kill()


def candidates(where: Lab, caller: Caller, flags: tuple[str, ...]) -> dict[str, Callable[[], float]]:
    iperf = ("iperf3", "--json", "--time", str(SECONDS), "--client", where.server_ip(4), *flags)
    found: dict[str, Callable[[], float]] = {
        "veth": lambda: gigabits(caller.direct(*iperf)),
        "childflow": lambda: gigabits(caller.childflow(*iperf)),
    }
    if shutil.which("slirp4netns"):
        found["slirp4netns"] = partial(under_slirp, caller, iperf)
    if shutil.which("pasta"):
        quiet = (
            "-q",
            "-t",
            "none",
            "-u",
            "none",
            "-T",
            "none",
            "-U",
            "none",
            "--mtu",
            "1500",
            "--config-net",
            "--no-map-gw",
        )
        found["pasta"] = lambda: gigabits(caller.direct("pasta", *quiet, "--", *iperf))
    return found


def under_slirp(caller: Caller, command: tuple[str, ...]) -> float:
    folder = caller.folder("slirp")
    script = ("sh", "-c", _UNDER_SLIRP, "sh", *command)
    return gigabits(caller.direct(*script, env={"PID_FILE": str(folder / "pid")}))


def gigabits(result: Result) -> float:
    return float(json.loads(result.ok().stdout)["end"]["sum_received"]["bits_per_second"]) / 1e9


if __name__ == "__main__":
    sys.exit(main())
