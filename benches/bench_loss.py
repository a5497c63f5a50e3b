"""TCP through loss: one stream at MTU 1500 behind a wire that loses, as a share of the plain wire. `make bench-loss`

The wire is that of `tests/lab/lossy.py`: frames are cut to the MTU, then lost at random in both directions alike.
Behind it is childflow with the server, or a plain veth pair with the server. The aim is at least 0.7 of plain veth at
1 %. Both ends of every stream are set to the same congestion control, CUBIC and then BBR; down, the sender that
meets the loss is childflow's engine, which has its own, against the server's. Root runs it: CUBIC may be root's alone.

    python -m benches.bench_loss [PERCENT ...]      only these losses
"""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benches.bench_bulk import gigabits
from benches.rounds import interleaved, lab, report_ratios
from tests.lab.lossy import Leg, childflow_leg, plain_leg
from tests.lab.processes import Result, start

ROUNDS = 5
SECONDS = 3
LOSSES = (0, 1, 5)
CONTROLS = ("cubic", "bbr")
_AVAILABLE = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")


def main() -> None:
    losses = [float(given) for given in sys.argv[1:]] or LOSSES
    where = lab()
    caller = where.caller("root")
    with ExitStack() as stack:
        server = start(
            ["iperf3", "--server", "--forceflush"], where.server.place, "root", cwd="/", env=caller.environment
        )
        stack.enter_context(server)
        server.says("listening")
        legs = {
            "veth": stack.enter_context(plain_leg(caller, where.laptop)),
            "childflow": stack.enter_context(childflow_leg(caller)),
        }
        for control in [name for name in CONTROLS if name in _AVAILABLE.read_text().split()]:
            for loss in losses:
                for direction, flags in (("up", ()), ("down", ("--reverse",))):
                    print(f"TCP, 1 stream, MTU 1500, {control}, {loss:g} % loss, {direction}, Gbit/s")
                    iperf = ("iperf3", "--json", "--time", str(SECONDS), "--congestion", control, *flags)
                    command = (*iperf, "--client", where.server_ip(4))
                    figures = interleaved(
                        ROUNDS, {name: partial(measure, leg, loss, command) for name, leg in legs.items()}
                    )
                    report_ratios(figures, "veth", "Gbit/s")
    where.close()


def measure(leg: Leg, loss: float, command: tuple[str, ...]) -> float:
    """One run's Gbit/s. A frame above the MTU at the place of loss would make the figure worthless."""
    leg.lose(round(loss * 10), round(loss * 10))
    figure = gigabits(finished(leg, command))
    counted = leg.counted()
    if any(side["oversized"] for side in counted.values()):
        raise SystemExit(f"frames above the MTU came to the place of loss: {counted}")
    return figure


def finished(leg: Leg, command: tuple[str, ...]) -> Result:
    """iperf3's own control connection suffers the loss too, and it may give up on its server: then once more."""
    for _ in range(3):
        result = leg.caller.direct(*command)
        if "sum_received" in result.stdout:
            return result
        print("  once more:", result.stdout.partition('"error":')[2].strip()[:100], flush=True)
        time.sleep(1)
    raise SystemExit(result.told())


if __name__ == "__main__":
    sys.exit(main())
