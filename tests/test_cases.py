"""Every case of the engine's catalogue is shown by a test that names it: `@pytest.mark.case("A01")`.

It has hostile frames (A), TCP through the relay (B), UDP, ICMP, fragments, path MTU and IPv6 (C), ways
round the policy (D), and faults (E).
"""

from __future__ import annotations

import re
from pathlib import Path

from tests.netstack.test_hostile_frames import CATALOGUE as HOSTILE_FRAMES

TESTS = Path(__file__).parent
CASES = {
    "A": "01 02 03 04 05 07 08 09 10 11 13 15 16 18 19 20 21 22 24 25 27 28 30 31 32 34 36 38 39 40",
    "B": "01 02 03 04 05 07 08 09 11 12 13 15 16 17 19 21 22 23 24 26 27 30 31 32 33 34 35 37 38",
    "C": "01 02 03 05 06 07 08 10 12 13 14 15 17 19 20 22 23 24 26 27 28",
    "D": "01 03 04 05 07 08 10 11 14 15 16 17 18 19 21 22 40 41 42 43",
    "E": "01 10 11 12 14 15 18",
}
CATALOGUE = {group + number for group, numbers in CASES.items() for number in numbers.split()}
_MARK = re.compile(r"mark\.case\(([^)]*)\)")


def claimed() -> dict[str, set[str]]:
    """Case -> files with a test that names it. Lists of frames are called after their case, as `a01`."""
    found = {make.__name__.upper(): {"test_hostile_frames.py"} for make in HOSTILE_FRAMES}
    for path in TESTS.rglob("*.py"):
        for names in _MARK.findall(path.read_text()):
            for case in re.findall(r'"(\w+)"', names):
                found.setdefault(case, set()).add(path.name)
    return found


def test_every_case_is_shown_by_a_test():
    missing = sorted(CATALOGUE - claimed().keys())
    assert not missing, f"no test names {', '.join(missing)}"


def test_no_test_names_a_case_that_is_none():
    unknown = {case: files for case, files in claimed().items() if case not in CATALOGUE and case[0] in CASES}
    assert not unknown
