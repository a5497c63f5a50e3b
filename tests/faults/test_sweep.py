"""Every call that the C stack makes fails, with every plausible error: at most one flow suffers, and is told so.

What is run for one failing call, and what is checked, stands in `sweep.py` and `world.py`. Here a thinned sweep; the
whole one is `make soak`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.faults.sweep import ERRORS
from tests.lab.enter import PROJECT

Found = dict[str, Any]
ALL = 1_000_000
CASES = {"writev": ["B31"], "malloc": ["E14"], "calloc": ["E14"], "realloc": ["E14"]}


@pytest.fixture(scope="module")
def swept(fault_library: Path) -> Callable[[str, int, str], Found]:
    @cache
    def sweep(mode: str, runs: int) -> dict[str, Found]:
        """One process for all functions, in a network of its own: it leaves thousands of ports in TIME-WAIT."""
        python = f"LD_PRELOAD={fault_library} exec {sys.executable}"
        line = f"ip link set lo up && {python} -m tests.faults.sweep {mode} {runs}"
        argv = ["unshare", "--net", "sh", "-c", line]
        done = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, timeout=1_500, check=False)
        assert done.returncode == 0, done.stderr
        return {found["function"]: found for found in map(json.loads, done.stdout.splitlines())}

    return lambda mode, runs, function: sweep(mode, runs)[function]


def hold(found: Found, least: int) -> None:
    """Nothing went wrong in at least so many runs, and in each the fault came to pass."""
    assert not found["wrong"], "\n".join(found["wrong"])
    assert found["runs"] >= least
    assert found["failed"] >= found["runs"] * 0.95  # the last calls of a script are not made in every run


FUNCTIONS = [pytest.param(name, marks=pytest.mark.case("I3", *CASES.get(name, []))) for name in ERRORS]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_one_call_fails(swept: Callable[[str, int, str], Found], function: str) -> None:
    found = swept("one", 25, function)
    hold(found, min(12, found["calls"] * len(ERRORS[function])))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_forty_calls_fail_in_a_row(swept: Callable[[str, int, str], Found], function: str) -> None:
    hold(swept("spell", 10, function), 1)


@pytest.mark.case("E14")
def test_stack_can_not_be_made(swept: Callable[[str, int, str], Found]) -> None:
    hold(swept("making", 0, "making"), 10)


def test_timer_can_not_be_set(swept: Callable[[str, int, str], Found]) -> None:
    hold(swept("making", 0, "timer"), 2)


@pytest.mark.soak
@pytest.mark.parametrize("function", FUNCTIONS)
def test_each_call_fails_with_each_error(swept: Callable[[str, int, str], Found], function: str) -> None:
    found = swept("one", ALL, function)
    hold(found, min(found["calls"], 200) * len(ERRORS[function]))


@pytest.mark.soak
@pytest.mark.parametrize("function", FUNCTIONS)
def test_forty_calls_fail_from_each_on(swept: Callable[[str, int, str], Found], function: str) -> None:
    hold(swept("spell", ALL, function), 1)
