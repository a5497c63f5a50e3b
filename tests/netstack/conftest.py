"""The C stack's tests: scripts of what each side says (`play.py`), on frames made and read by `wire.py`.

    play            one stack with offload, IPv4, MTU 1500; nothing said yet
    stage(...)      the same with a choice: family, offload, mtu, limits
    established     a play whose connection stands
    oracle          a play with a canary, and what must hold whatever is sent (`oracles.py`)

No TAP, no root, no real time: only the tests that name a loopback socket wait for the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .oracles import Oracle
from .play import Play

Stage = Callable[..., Play]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if report.when == "call":
        item.stash[_FAILED] = report.failed
    return report


_FAILED = pytest.StashKey[bool]()


@pytest.fixture
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """Makes plays; all of them are closed, and their books checked, at the end of the test."""
    made: list[Play] = []

    def make(**how: Any) -> Play:
        made.append(Play(**how))
        return made[-1]

    yield make
    failed = request.node.stash.get(_FAILED, True)
    for p in reversed(made):
        if failed:
            p.abandon()
        else:
            p.close()


@pytest.fixture
def play(stage: Stage) -> Play:
    return stage()


@pytest.fixture
def established(play: Play) -> Play:
    play.establish()
    return play


@pytest.fixture
def oracle(play: Play) -> Oracle:
    return Oracle(play)


@pytest.fixture(params=[True, False], ids=["offload", "plain"])
def offload(request: pytest.FixtureRequest) -> bool:
    """The TAP takes partial checksums and large segments, or not."""
    return bool(request.param)
