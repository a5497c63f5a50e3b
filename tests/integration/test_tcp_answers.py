"""How connections begin and end, on a real kernel: what the command is told, how soon, and what is left afterwards."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from statistics import median

import pytest

from tests.lab.engine import Engine, engine_of
from tests.lab.hosts import (
    DROPPED_PORT,
    FAMILIES,
    HOST_UNREACHABLE_PORT,
    NET_UNREACHABLE_PORT,
    PORT_UNREACHABLE_PORT,
    PROHIBITED_PORT,
    RESET_PORT,
)
from tests.lab.lab import Lab
from tests.lab.serve import ACTOR, BANNER, FAR_ECHO

CLOSED_PORTS = range(8200, 8300)
AT_ONCE_S = 0.05
ERRORS = {
    HOST_UNREACHABLE_PORT: {4: "EHOSTUNREACH", 6: "EHOSTUNREACH"},
    PORT_UNREACHABLE_PORT: {4: "ECONNREFUSED", 6: "ECONNREFUSED"},
    PROHIBITED_PORT: {4: "EHOSTUNREACH", 6: "EACCES"},
    RESET_PORT: {4: "ECONNREFUSED", 6: "ECONNREFUSED"},
    NET_UNREACHABLE_PORT: {4: "ENETUNREACH", 6: "ENETUNREACH"},
}


@pytest.fixture
def engine(lab: Lab) -> Iterator[Engine]:
    """An engine with the canary on and the descriptors counted (`tests/lab/engine.py`); who runs it is all the same."""
    with engine_of(lab, lab.caller("ordinary")) as engine:
        engine.sandbox.nft(
            "table inet count {\nchain input {\ntype filter hook input priority 0;\n"
            "tcp flags & (syn | ack) == (syn | ack) counter comment syn-ack\n}\n"
            "chain output {\ntype filter hook output priority 0;\n"
            f"tcp dport {DROPPED_PORT} tcp flags & (syn | ack) == syn counter comment syn\n}}\n}}\n"
        )
        yield engine


def counted(engine: Engine, name: str) -> int:
    listing = engine.sandbox.run("nft", "list", "table", "inet", "count")
    found = re.search(rf'packets (\d+) bytes \d+ comment "{name}"', listing)
    assert found, listing
    return int(found[1])


def connect_sockets(lab: Lab, port: int) -> int:
    """The host sockets on the laptop that are still connecting to `port`."""
    return len(lab.laptop.run("ss", "-Htn", "state", "syn-sent", f"dport = :{port}").splitlines())


@pytest.mark.case("B07")
def test_a_scan_of_closed_ports_finds_none_open_and_no_syn_ack(lab: Lab, engine: Engine, family: int) -> None:
    outcomes = engine.inside.direct(
        *lab.client("connect", lab.server_ip(family), ",".join(map(str, CLOSED_PORTS)))
    ).json()
    assert {outcome["error"] for outcome in outcomes.values()} == {"ECONNREFUSED"}
    assert len(outcomes) == len(CLOSED_PORTS)
    assert counted(engine, "syn-ack") == 0
    times = []
    for port in CLOSED_PORTS[:9]:
        (outcome,) = engine.inside.direct(*lab.client("connect", lab.server_ip(family), port)).json().values()
        times.append(outcome["seconds"])
    assert median(times) < AT_ONCE_S, times


@pytest.mark.case("B08")
def test_a_blackholed_connect_has_one_host_socket_and_leaves_none(lab: Lab, engine: Engine) -> None:
    """The command gives up after a few seconds (TCP_SYNCNT 2), and so does the laptop's kernel."""
    clients = [lab.client("connect", lab.server_ip(family), DROPPED_PORT, 2) for family in FAMILIES]
    with patience(lab, syns=2), ExitStack() as stack:
        runs = [stack.enter_context(engine.inside.start(*client, bare=True)) for client in clients]
        time.sleep(2.5)
        assert counted(engine, "syn") >= 4, "each command has sent its SYN again"
        assert connect_sockets(lab, DROPPED_PORT) == 2
        assert [run.wait().json()[str(DROPPED_PORT)]["error"] for run in runs] == ["ETIMEDOUT", "ETIMEDOUT"]
    assert counted(engine, "syn-ack") == 0
    engine.settles()
    assert connect_sockets(lab, DROPPED_PORT) == 0


@contextmanager
def patience(lab: Lab, syns: int) -> Iterator[None]:
    """How often the laptop's kernel sends a SYN again."""
    lab.laptop.sysctl("net.ipv4.tcp_syn_retries", str(syns))
    try:
        yield
    finally:
        lab.laptop.sysctl("net.ipv4.tcp_syn_retries", "6")


@pytest.mark.case("B09")
def test_an_unreachable_destination_gives_its_errno_at_once(lab: Lab, engine: Engine, family: int) -> None:
    """Errors come from another processor than the engine's, as they come from elsewhere on a real network."""
    first, *_, other = sorted(os.sched_getaffinity(engine.pid))
    os.sched_setaffinity(engine.pid, {first})
    client = lab.client("connect", lab.server_ip(family), ",".join(map(str, ERRORS)))
    with lab.server.receiving_on("to-laptop", other):
        runs = [engine.inside.direct(*client).json() for _ in range(5)]
    for port, errno in ERRORS.items():
        outcomes = [run[str(port)] for run in runs]
        assert {outcome["error"] for outcome in outcomes} == {errno[family]}
        assert median(outcome["seconds"] for outcome in outcomes) < AT_ONCE_S, (port, outcomes)


@pytest.mark.case("B05")
def test_a_reset_by_the_child_resets_the_host_socket_and_closes_it(lab: Lab, family: int) -> None:
    with engine_of(lab, lab.caller("ordinary")) as engine:
        for _ in range(10):
            client = lab.client("half_close", lab.server_ip(family), ACTOR, "reset-by-child")
            assert engine.inside.direct(*client).json()["right"]
    assert [end["end"] for end in engine.result.events_of("flow_end")].count("rst_child") == 10


@pytest.mark.case("B24", "A15")
@pytest.mark.parametrize("inline", [0, 1])
def test_urgent_bytes_arrive_in_line(lab: Lab, engine: Engine, family: int, inline: int) -> None:
    """On the plain wire a server that takes urgent bytes apart reads only the others; through childflow, all."""
    client = lab.client("urgent", lab.server_ip(family), ACTOR, inline, 1000)
    assert engine.inside.direct(*client).json() == {"all": True, "ordinary": False}


@pytest.mark.case("B37")
def test_a_server_that_speaks_first_is_heard_at_once(lab: Lab, engine: Engine, family: int) -> None:
    heard = engine.inside.direct(*lab.client("banner", lab.server_ip(family), BANNER, 9)).json()
    assert heard["line"] == "220 lab.test ready\r\n"
    assert median(heard["seconds"]) < 0.1, heard


@pytest.mark.case("B27")
def test_ports_used_again_and_again_get_a_fresh_connection_each_time(lab: Lab, engine: Engine, family: int) -> None:
    """3,000 connections from 100 ports: the engine's TIME-WAIT lasts 2 s, in which each port comes again often."""
    engine.sandbox.sysctl("net.ipv4.ip_local_port_range", "40000 40099")
    result = engine.inside.direct(*lab.client("churn", lab.server_ip(family), ACTOR, 3000)).json()
    assert (result["right"], result["errors"]) == (3000, {}), result
    assert result["tuples"] <= 100
    assert result["seconds"] < 60, "less than 3,000 a minute"


@pytest.mark.case("B38")
@pytest.mark.parametrize("writes", ["1", "100+100"])
def test_small_writes_are_not_held_back(lab: Lab, writes: str) -> None:
    """p99 of a ping-pong is less than twice the plain wire's, median of three rounds: with a server a millisecond away,
    or (two writes a message, Nagle on) with one whose kernel holds its acknowledgements back."""
    size, port = ("200", ACTOR) if "+" in writes else (writes, FAR_ECHO)
    caller = lab.caller("ordinary")
    with engine_of(lab, caller, canary=False) as engine:
        client = lab.client("ping_pong", lab.server_ip(4), port, size, 15 if "+" in writes else 400)
        rounds = [(engine.inside.direct(*client).json()["p99"], caller.direct(*client).json()["p99"]) for _ in range(3)]
    assert median(inside / direct for inside, direct in rounds) < 2, rounds
