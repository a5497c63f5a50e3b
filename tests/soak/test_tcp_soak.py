"""The long versions of TCP's cases: gigabytes, thousands of connections, every loss. Each prints its figures."""

from __future__ import annotations

from statistics import median

import pytest

from tests.integration.test_tcp_pressure import (
    MIB,
    every_mixture_of_options,
    small_buffers,
    through_a_bottleneck,
    unread_flows,
)
from tests.lab.engine import engine_of
from tests.lab.lab import Lab
from tests.lab.lossy import childflow_leg, leg_before
from tests.lab.serve import ACTOR, ECHO, FAR_ECHO

pytestmark = pytest.mark.soak
KIB, GIB = 1 << 10, 1 << 30
RIGHT = {"up": True, "down": True, "ended": True}


@pytest.mark.timeout(900)
@pytest.mark.case("B30")
@pytest.mark.parametrize("percent", [1, 5])
def test_a_gib_each_way_through_loss(lab: Lab, percent: int) -> None:
    """Both ways at once over one connection, frames of both directions lost."""
    with engine_of(lab, lab.caller("ordinary")) as engine, leg_before(engine) as leg:
        leg.lose(up=percent * 10, down=percent * 10)
        result = leg.caller.direct(*lab.client("transfer", lab.server_ip(4), ACTOR, GIB), timeout=800)
        counted = leg.counted()
    print(f"1 GiB each way at {percent} %: {result.duration:.1f} s, {rate(GIB, result.duration)}, {counted}")
    assert result.json() == RIGHT
    assert all(side["oversized"] == 0 and side["lost"] > 0 for side in counted.values())


def rate(size: int, seconds: float) -> str:
    return f"{size * 8 / seconds / 1e9:.2f} Gbit/s each way"


@pytest.mark.timeout(900)
@pytest.mark.case("B23")
def test_four_and_a_half_gib_each_way_on_one_connection(lab: Lab) -> None:
    """The sequence numbers of both directions wrap."""
    size = 9 * GIB // 2
    with engine_of(lab, lab.caller("ordinary")) as engine:
        result = engine.inside.direct(*lab.client("transfer", lab.server_ip(4), ACTOR, size), timeout=800)
    print(f"4.5 GiB each way: {result.duration:.1f} s, {rate(size, result.duration)}")
    assert result.json() == RIGHT
    ends = [(end["bytes_up"], end["bytes_down"]) for end in engine.result.events_of("flow_end")]
    assert (size + len(f"both-ways {size}\n"), size + 64) in ends


@pytest.mark.timeout(300)
@pytest.mark.case("B32")
def test_5000_connections_at_once_each_echo_their_own_64_kib(lab: Lab) -> None:
    """No canary: for some seconds the TAP's queue is full, and a single frame may be lost more than once."""
    with engine_of(lab, lab.caller("ordinary"), canary=False) as engine:
        before = engine.resident_kib()
        client = lab.client("many", lab.server_ip(4), ECHO, "at-once", 5000, 64 * KIB)
        told = engine.inside.direct(*client, timeout=240).json()
        print(f"5,000 echoes of 64 KiB: {told}, {engine.resident_kib() - before} KiB more afterwards")
        assert told["right"] == 5000


@pytest.mark.timeout(400)
@pytest.mark.case("B11")
def test_1000_flows_unread_for_30_seconds(lab: Lab) -> None:
    """The server sends with Reno: BBR takes a long closed window for a slow path, and some flows crawl for minutes."""
    way = ("route", "replace", "198.51.100.0/24", "dev", "to-laptop", "src", lab.server_ip(4))
    lab.server.ip(" ".join((*way, "congctl", "reno")))
    try:
        with engine_of(lab, lab.caller("ordinary"), canary=False) as engine:
            unread_flows(lab, engine, flows=1000, size=2 * MIB, idle=30)
    finally:
        lab.server.ip(" ".join(way))


@pytest.mark.timeout(900)
@pytest.mark.case("B16")
def test_a_gib_through_a_bottleneck(lab: Lab, family: int) -> None:
    with engine_of(lab, lab.caller("ordinary")) as engine, small_buffers(lab.laptop):
        through_a_bottleneck(lab, engine, family, GIB)


@pytest.mark.timeout(900)
@pytest.mark.case("B19")
@pytest.mark.parametrize("mtu", [576, 1280, 1500, 65520])
def test_every_mixture_of_options_with_100_mib(lab: Lab, mtu: int) -> None:
    with engine_of(lab, lab.caller("ordinary"), flags=("--mtu", str(mtu))) as engine:
        every_mixture_of_options(lab, engine, 100 * MIB)


@pytest.mark.timeout(300)
@pytest.mark.case("B27")
def test_30000_connections_from_100_ports(lab: Lab, family: int) -> None:
    with engine_of(lab, lab.caller("ordinary")) as engine:
        engine.sandbox.sysctl("net.ipv4.ip_local_port_range", "40000 40099")
        told = engine.inside.direct(*lab.client("churn", lab.server_ip(family), ACTOR, 30_000), timeout=200).json()
        print(f"30,000 connections, {30_000 * 60 / told['seconds']:.0f} a minute: {told}")
        assert (told["right"], told["errors"]) == (30_000, {})
        assert told["tuples"] <= 100


@pytest.mark.timeout(300)
@pytest.mark.case("B38")
def test_10000_small_writes(lab: Lab) -> None:
    """A server a millisecond away decides; what the wire alone costs is printed."""
    caller = lab.caller("ordinary")
    with engine_of(lab, caller, canary=False) as engine:
        rounds = []
        for port in (ECHO, FAR_ECHO, FAR_ECHO, FAR_ECHO):
            client = lab.client("ping_pong", lab.server_ip(4), port, 1, 10_000)
            inside, direct = (who.direct(*client, timeout=120).json() for who in (engine.inside, caller))
            print(f"port {port}: childflow {inside}, plain {direct}", flush=True)
            rounds.append(inside["p99"] / direct["p99"])
    assert median(rounds[1:]) < 2, rounds


MATRIX = [
    (direction, what, percent) for direction in ("up", "down") for what in ("all", "acks") for percent in (1, 5, 20, 40)
]


@pytest.mark.timeout(1800)
@pytest.mark.case("B30")
def test_the_whole_matrix_of_losses(lab: Lab) -> None:
    """50 MiB each way, at 5 % within 20 times what it takes without loss."""
    with childflow_leg(lab.caller("ordinary")) as leg:
        lossless = leg.caller.direct(*lab.client("transfer", lab.server_ip(4), ACTOR, 50 * MIB)).ok().duration
        print(f"no loss: {lossless:.2f} s")
        for direction, what, percent in MATRIX:
            leg.lose(**{direction: percent * 10}, what=what)
            result = leg.caller.direct(*lab.client("transfer", lab.server_ip(4), ACTOR, 50 * MIB), timeout=900)
            print(f"{percent} % of {what}, {direction}: {result.duration:.2f} s, {leg.counted()}", flush=True)
            assert result.json() == RIGHT
            assert percent > 5 or result.duration < 20 * lossless
