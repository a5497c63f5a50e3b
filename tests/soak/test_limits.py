"""Many connections: what an idle one costs, and that nothing is left of those that have ended."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from childflow.limits import Limits
from tests.lab.crowd import CROWD_ECHO, CROWD_HTTP
from tests.lab.engine import engine_of
from tests.lab.flood import flood
from tests.lab.hosts import DROPPED_PORT, Host
from tests.lab.lab import Lab
from tests.lab.processes import CALLERS, Running
from tests.lab.serve import ECHO

pytestmark = pytest.mark.soak
IDLE_FLOWS = 10_000
IDLE_WATCH_S = 20.0
FLOOD_S, FLOOD_RATE, FLOOD_SLOWEST_S = 10.0, 200_000, 0.1
RETRANSMISSION_S = 0.25  # TCP_RTO_MIN and a little
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


def dropped_at_device(sandbox: Host) -> int:
    """Frames that the sandbox's kernel had no room for in the queue of its TAP device."""
    told = json.loads(sandbox.run("ip", "-json", "-s", "link", "show", "tap0"))
    return int(told[0]["stats64"]["tx"]["dropped"])


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
        for host in (engine.sandbox, crowd.laptop):  # nobody is left who thinks that he is connected
            assert host.run("ss", "-Htn", "state", "connected", "exclude", "time-wait") == ""
        engine.settles()


@pytest.mark.case("B33")
@pytest.mark.parametrize("target", ["allowed", "blackholed", "denied"])
def test_a_flood_of_200000_syns_a_second(crowd: Lab, target: str) -> None:
    """One core does nothing but send SYNs. When the other is not the engine's for 20 ms (400,000 frames come a second,
    the resets of its own kernel among them), the child's kernel drops at its device; a canary's frame then takes one
    retransmission more."""
    address = "127.0.0.1" if target == "denied" else crowd.server_ip(4)
    port = DROPPED_PORT if target == "blackholed" else CROWD_ECHO
    caller, most = crowd.caller("ordinary"), 0
    stop = Path(caller.home, "stop-flood")
    stop.unlink(missing_ok=True)
    crowd.laptop.sysctl("net.ipv4.tcp_syn_retries", "1")
    with engine_of(crowd, caller, flags=["-v"], canary=False, log=False) as engine:
        song = crowd.client("canary", crowd.server_ip(4), ECHO, stop)
        with engine.inside.start(*song, bare=True) as canary:
            canary.says("ready")
            lost = dropped_at_device(engine.sandbox)
            sent: list[int] = []
            words = ("syn", address, port, FLOOD_S, FLOOD_RATE)
            flooding = Thread(target=lambda: sent.append(flood(engine.running, *words)))
            flooding.start()
            while flooding.is_alive():
                most = max(most, engine.descriptors())
                time.sleep(0.02)
            begin = time.monotonic()
            engine.inside.direct(*crowd.client("many", crowd.server_ip(4), CROWD_ECHO, "one-by-one", 3)).ok()
            recovered = time.monotonic() - begin
            stop.write_text("")
            slowest = dict(json.loads(canary.wait(20).ok().stdout.splitlines()[-1]))["slowest"]
            lost = dropped_at_device(engine.sandbox) - lost
    crowd.laptop.sysctl("net.ipv4.tcp_syn_retries", "6")
    rate = sent[0] / FLOOD_S
    print(f"{target}: {rate:.0f} SYNs a second, at most {most} descriptors, slowest {slowest:.3f} s, {lost} lost")
    assert rate > 0.9 * FLOOD_RATE
    assert most < Limits().max_half_open + 100
    assert recovered < 5
    assert slowest < FLOOD_SLOWEST_S + (RETRANSMISSION_S if lost else 0)
