"""Many connections: what an idle one costs, and that nothing is left of those that have ended."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.crowd import CROWD_ECHO, CROWD_HTTP
from tests.lab.engine import engine_of
from tests.lab.lab import Lab
from tests.lab.processes import CALLERS, Running

pytestmark = pytest.mark.soak
IDLE_FLOWS = 10_000
IDLE_WATCH_S = 20.0
SHORT_FLOWS, PARALLEL = 200_000, 1_000
KIB_PER_FLOW = 1.0
GROWTH_KIB = 2_048  # of the allocator's and the interpreter's own, over 180,000 flows


@pytest.fixture
def crowd(lab: Lab) -> Iterator[Lab]:
    """The lab, with a server that takes thousands."""
    server = lab.serve("tests.lab.crowd")
    yield lab
    server.kill()


def told(running: Running) -> dict[str, object]:
    """The JSON that a client printed last."""
    result = running.wait(120).ok()
    return dict(json.loads(result.stdout.splitlines()[-1]))


@pytest.mark.case("B32")
@pytest.mark.parametrize("log", [False, True], ids=["without log", "with log"])
def test_10000_idle_flows_cost_little_and_all_answer(crowd: Lab, family: int, log: bool, record_property) -> None:
    """At most 1 KiB of resident memory each, Python's part included; under 1 % of a core; each answers within 5 s."""
    caller = crowd.caller("root")  # ports and descriptors enough
    go = Path(caller.home, "go")
    go.unlink(missing_ok=True)
    client = crowd.client("crowd", crowd.server_ip(family), CROWD_ECHO, "idle", IDLE_FLOWS, go)
    with engine_of(crowd, caller, canary=False, log=log) as engine:
        engine.inside.direct(*crowd.client("crowd", crowd.server_ip(family), CROWD_HTTP, "churn", 100, 10)).ok()
        before = engine.resident_kib()
        with engine.inside.start(*client, bare=True) as running:
            running.says("open", 120)
            time.sleep(1)
            each = (engine.resident_kib() - before) / IDLE_FLOWS
            spent = engine.cpu_seconds()
            time.sleep(IDLE_WATCH_S)
            share = (engine.cpu_seconds() - spent) / IDLE_WATCH_S
            go.write_text("")
            result = told(running)
        print(f"{each:.3f} KiB a flow, {share:.2%} of a core, all answered in {result['seconds']:.2f} s")
        assert result["right"] == IDLE_FLOWS, result
        assert each <= KIB_PER_FLOW
        assert share < 0.01
        assert float(str(result["seconds"])) < 5


@pytest.mark.case("B35")
@pytest.mark.parametrize("user", CALLERS)
def test_200000_short_flows_leave_nothing(crowd: Lab, user: str) -> None:
    """A thousand at a time: memory is flat after the first tenth, and no descriptor stays."""
    caller = crowd.caller(user)
    client = crowd.client("crowd", crowd.server_ip(4), CROWD_HTTP, "churn", SHORT_FLOWS, PARALLEL)
    with engine_of(crowd, caller, canary=False, log=False) as engine:
        with engine.inside.start(*client, bare=True) as running:
            running.says(f"done {SHORT_FLOWS // 10}", 120)
            early = engine.resident_kib()
            running.says(f"done {SHORT_FLOWS}", 400)
            result = told(running)
        late = engine.resident_kib()
        print(f"{early} KiB after a tenth, {late} at the end; {result}")
        assert result["right"] == SHORT_FLOWS, result
        assert late - early < GROWTH_KIB
        engine.settles()
