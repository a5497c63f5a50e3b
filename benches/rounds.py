"""Side by side: each round runs every candidate once, in turn, so that what disturbs the machine disturbs all of them.

Figures of different runs on a shared machine don't compare; ratios within one round do. No benchmark fails by a clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median

from tests.lab.enter import whereabouts
from tests.lab.hosts import Wires
from tests.lab.lab import Lab


def lab() -> Lab:
    """The tests' lab, for a program that is not a test."""
    if closed := whereabouts().closed:
        raise SystemExit(f"{closed}; run it as root")
    return Lab(Wires.direct())


def interleaved(rounds: int, candidates: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Each candidate's figure in each round, printed as they come."""
    figures: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds):
        for name, measure in candidates.items():
            figures[name].append(measure())
        row = "  ".join(f"{name} {figures[name][-1]:.3f}" for name in candidates)
        print(f"  round {number + 1}: {row}", flush=True)
    return figures


def report_ratios(figures: Mapping[str, list[float]], reference: str, unit: str) -> None:
    """Medians, and the medians of the ratios to `reference` round by round."""
    for name, values in figures.items():
        ratios = [value / base for value, base in zip(values, figures[reference], strict=True)]
        print(f"  {name:12} median {median(values):8.3f} {unit}, of the ratios to {reference}: {median(ratios):.3f}")


def report_differences(figures: Mapping[str, list[float]], reference: str, unit: str) -> None:
    """Medians, and the medians of the differences to `reference` round by round."""
    for name, values in figures.items():
        more = [value - base for value, base in zip(values, figures[reference], strict=True)]
        print(f"  {name:12} median {median(values):8.3f} {unit}, {median(more):+.3f} {unit} against {reference}")
