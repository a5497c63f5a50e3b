"""DNS: 5,000 questions a second through the forwarder, with a flow log and ten rules. `make bench-dns`

The same client asks a quick resolver on the server directly and from inside childflow, in turn. What is printed:
answers a second, questions without an answer, and how late answers come. None should be lost; where there are two
cores, client, resolver and engine share them.

Then with one name in fifty that the resolver never answers: each such question stays open for 4.5 s and is asked twice,
and the others should not notice.
"""

from __future__ import annotations

import sys
from statistics import median
from typing import Any

from benches.rounds import lab
from tests.lab.lab import Caller, Lab

ROUNDS = 3
RATE = 5_000
SECONDS = 10
DEAD = 50  # one name in so many
PORT = 5300
RULES = (
    "--default-policy=deny", "--allow-domain=lab.test", "--allow-domain-exact=example.test",
    *(f"--deny-domain=evil{number}.test" for number in range(4)),
    *(f"--deny-cidr=203.0.113.{16 * number}/28" for number in range(4)),
)  # fmt: skip
GATEWAY = "192.0.0.1"


def main() -> None:
    where = lab()
    resolver = where.serve("tests.lab.quick_resolver", str(PORT))
    caller = where.caller("ordinary")
    print(f"{RATE} questions a second over UDP for {SECONDS} s, {len(RULES)} rules, flow log")
    figures: dict[str, list[dict[str, Any]]] = {"direct": [], "childflow": []}
    for number in range(ROUNDS):
        figures["direct"].append(direct(where, caller))
        figures["childflow"].append(through(where, caller))
        for name, values in figures.items():
            print(f"  round {number + 1}: {name:10}{row(values[-1])}", flush=True)
    for name in ("p50_ms", "p99_ms"):
        print(f"  {name}: {ratio(figures, name):.2f} times the direct one (median of the rounds)")
    print(f"the same while {RATE // DEAD} questions a second are about names that get no answer")
    for _ in range(ROUNDS):
        print(f"  childflow {row(through(where, caller, DEAD))}", flush=True)
    resolver.kill()


def load(where: Lab, server: str, port: int, dead: int = 0) -> tuple[str, ...]:
    return where.client("dns_load", server, port, RATE, SECONDS, dead)


def direct(where: Lab, caller: Caller) -> dict[str, Any]:
    figures: dict[str, Any] = caller.direct(*load(where, where.server_ip(4), PORT)).json()
    return figures


def through(where: Lab, caller: Caller, dead: int = 0) -> dict[str, Any]:
    flags = (f"--dns={where.server_ip(4)}:{PORT}", *RULES)
    result = caller.childflow(*load(where, GATEWAY, 53, dead), flags=flags, timeout=60)
    figures: dict[str, Any] = result.json()
    figures["logged"] = len(result.events_of("dns_answer"))
    return figures


def row(figures: dict[str, Any]) -> str:
    rate = figures["answered"] / SECONDS
    told = f"{rate:6.0f}/s, lost {figures['lost']}, wrong {figures['wrong']}, "
    told += ", ".join(f"{name} {figures[f'{name}_ms']:.2f} ms" for name in ("p50", "p99", "max"))
    if "logged" in figures:
        told += f", {figures['logged']} answers in the log"
    return told + (f", {figures['failed']} failed as they should" if figures["failed"] else "")


def ratio(figures: dict[str, list[dict[str, Any]]], name: str) -> float:
    """The median of the rounds' ratios of childflow's figure to the direct one."""
    rounds = zip(figures["childflow"], figures["direct"], strict=True)
    return median(inside[name] / outside[name] for inside, outside in rounds)


if __name__ == "__main__":
    sys.exit(main())
