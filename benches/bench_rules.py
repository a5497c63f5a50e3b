"""What a large set of rules costs: to load, and per verdict. `make bench-rules`

10,000 networks (both families, nested and apart, some with ports) and 100,000 names from a file, against ten rules. The
aim is to load in less than a second, and a verdict that costs the same (a ratio near 1).
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network
from statistics import median

from childflow.policy.rules import Rules, compile_rules
from childflow.policy.verdict import TCP, Ask, judge, judge_name
from childflow.settings import Settings

CIDRS, NAMES, FEW = 10_000, 100_000, 10
ASKS = 5_000
ROUNDS = 7
RANDOM = random.Random(4)


def main() -> None:
    cidrs = [_cidr() for _ in range(CIDRS)]
    names = sorted({_name() for _ in range(NAMES + NAMES // 10)})[:NAMES]
    with tempfile.NamedTemporaryFile("w", suffix=".list") as file:
        file.write("".join(f"{name}\n" for name in names))
        file.flush()
        loads = [_timed(lambda: _compile(cidrs, (), file.name)) for _ in range(ROUNDS)]
        many = _compile(cidrs, (), file.name)
    few = _compile(cidrs[:FEW], tuple(names[:FEW]), None)
    print(f"loading {CIDRS:,} networks and {NAMES:,} names of a file: {1000 * median(loads):.0f} ms")
    for title, work in _questions(names):
        _report(title, few, many, work)


def _compile(cidrs: list[str], names: tuple[str, ...], path: str | None) -> Rules:
    files = (path,) if path else ()
    half = len(cidrs) // 2
    settings = Settings(
        command=("true",),
        allow_cidrs=tuple(cidrs[:half]),
        deny_cidrs=tuple(cidrs[half:]),
        allow_domains=names,
        allow_domain_files=files,
        deny_domains=("denied.example",),
        default_policy="deny",
    )
    return compile_rules(settings)


def _questions(names: list[str]) -> list[tuple[str, Callable[[Rules], None]]]:
    addresses = [RANDOM.randbytes(RANDOM.choice((4, 16))) for _ in range(ASKS)]
    named = RANDOM.choices(names, k=ASKS)
    strangers = [f"x.{name}x" for name in named]
    asks = [Ask(TCP, address, 443) for address in addresses]
    asks_named = [Ask(TCP, address, 443, (name,)) for address, name in zip(addresses, strangers, strict=True)]
    return [
        ("an address", lambda rules: _judge(asks, rules)),
        ("an address with a name", lambda rules: _judge(asks_named, rules)),
        ("a DNS query", lambda rules: _judge_names(strangers, rules)),
    ]


def _judge(asks: list[Ask], rules: Rules) -> None:
    """Nothing is kept: what piles up would make the garbage collector walk through the rules."""
    for ask in asks:
        judge(ask, rules=rules)


def _judge_names(names: list[str], rules: Rules) -> None:
    for name in names:
        judge_name(name, None, rules)


def _report(title: str, few: Rules, many: Rules, work: Callable[[Rules], None]) -> None:
    """Interleaved, so that both see the same machine."""
    times = [(_timed(lambda: work(few)), _timed(lambda: work(many))) for _ in range(ROUNDS)]
    per_few, per_many = (1e6 * median(column) / ASKS for column in zip(*times, strict=True))
    print(f"{title}: {per_few:.2f} us with {FEW} rules, {per_many:.2f} us with all, ratio {per_many / per_few:.2f}")


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _cidr() -> str:
    if RANDOM.random() < 0.7:
        network = str(IPv4Network((RANDOM.randbytes(4), RANDOM.choice((8, 16, 20, 24, 24, 32))), strict=False))
        return network if RANDOM.random() < 0.8 else f"{network}:{RANDOM.randint(1, 65535)}"
    first = b"\x20\x01" + RANDOM.randbytes(14)
    network = str(IPv6Network((first, RANDOM.choice((32, 48, 64, 128))), strict=False))
    return network if RANDOM.random() < 0.8 else f"[{network}]:{RANDOM.randint(1, 65535)}"


def _name() -> str:
    labels = ["".join(RANDOM.choices("abcdefghijklmnopqrstuvwxyz0123456789-", k=RANDOM.randint(1, 9))).strip("-") or "a"
              for _ in range(RANDOM.choice((1, 1, 2, 3)))]  # fmt: skip
    return ".".join([*labels, RANDOM.choice(("com", "net", "org", "example", "dev"))])


if __name__ == "__main__":
    sys.exit(main())
