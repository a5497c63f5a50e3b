"""Floods and shortages through a real kernel: the one too many is refused, everything else goes on.

All the while a canary sends a byte there and back through the same engine (`tests/lab/engine.py`)."""

from __future__ import annotations

import json
import os
import re
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from childflow.limits import Limits
from tests.lab.crowd import CROWD_ECHO
from tests.lab.engine import Engine, engine_of
from tests.lab.flood import flood
from tests.lab.hosts import DROPPED_PORT
from tests.lab.lab import Caller, Lab
from tests.lab.serve import ECHO

FLOOD_S, RATE = 2.0, 20_000  # the table of half-open flows is turned over ten times; more is for the soak test
SPRAY_S, SPRAY_RATE = 1.0, 60_000
RECOVERED_S = 5.0


@pytest.fixture
def crowd(lab: Lab) -> Iterator[Lab]:
    """The lab, with a server that takes thousands, and connects that are given up after 3 s."""
    server = lab.serve("tests.lab.crowd")
    lab.laptop.sysctl("net.ipv4.tcp_syn_retries", "1")
    yield lab
    lab.laptop.sysctl("net.ipv4.tcp_syn_retries", "6")
    server.kill()


def serves(lab: Lab, engine: Engine) -> None:
    """A new connection, a datagram and a DNS question are answered, soon."""
    begin = time.monotonic()
    engine.inside.direct(*lab.client("many", lab.server_ip(4), CROWD_ECHO, "one-by-one", 3)).ok()
    assert time.monotonic() - begin < RECOVERED_S


@pytest.mark.case("B33")
@pytest.mark.parametrize("target", ["allowed", "blackholed", "denied"])
def test_a_flood_of_syns_leaves_the_rest_alone(crowd: Lab, target: str) -> None:
    caller = crowd.caller("ordinary")
    address = "127.0.0.1" if target == "denied" else crowd.server_ip(4)
    port = DROPPED_PORT if target == "blackholed" else CROWD_ECHO
    most = 0
    with engine_of(crowd, caller, flags=["-v"], log=False) as engine:
        sent: list[int] = []
        flooding = Thread(target=lambda: sent.append(flood(engine.running, "syn", address, port, FLOOD_S, RATE)))
        flooding.start()
        while flooding.is_alive():
            most = max(most, engine.descriptors())
            time.sleep(0.02)
        serves(crowd, engine)
    print(f"{target}: {sent[0]} SYNs, at most {most} descriptors")
    print(engine.result.stderr)
    assert sent[0] > 10_000
    assert most < Limits().max_half_open + 100


@pytest.mark.case("C07")
@pytest.mark.parametrize("kind", ["udp-ports", "udp-peers"])
def test_a_spray_of_datagrams_leaves_the_rest_alone(crowd: Lab, kind: str) -> None:
    """60,000 source ports, or 60,000 destinations, in a second."""
    most = 0
    with engine_of(crowd, crowd.caller("ordinary"), flags=["-v"], canary=False, log=False, settle=False) as engine:
        sent: list[int] = []
        spraying = Thread(
            target=lambda: sent.append(flood(engine.running, kind, crowd.server_ip(4), 7, SPRAY_S, SPRAY_RATE))
        )
        spraying.start()
        while spraying.is_alive():
            most = max(most, engine.descriptors())
            time.sleep(0.02)
        serves(crowd, engine)
    print(f"{kind}: {sent[0]} datagrams, at most {most} descriptors")
    print(engine.result.stderr)
    assert sent[0] > 10_000
    assert most < Limits().max_udp_sockets + 100


OPEN_FILES, FLOWS = 64, 520


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.case("B34")
def test_out_of_descriptors_new_flows_are_refused_and_the_rest_goes_on(lab: Lab, caller: Caller) -> None:
    """The open files limit is 64, for childflow as for each process of the command, and the command opens 520 flows of
    each kind. A TCP connection too many gets an RST; UDP and ping sockets make room for the newest; one line tells."""
    client = lab.client("shortage", lab.server_ip(4), ECHO, FLOWS)
    log = caller.folder("shortage") / "flow.jsonl"
    command = shlex.join(["childflow", "-v", "--flow-log", str(log), "--", *client])
    with caller.start("sh", "-c", f"ulimit -n {OPEN_FILES}; exec {command}", bare=True) as running:
        running.says("full of tcp")
        spent = cpu_seconds(running.pid)
        time.sleep(0.8)
        assert cpu_seconds(running.pid) - spent < 0.2
        r = running.wait(60).ok()
    got = json.loads(r.stdout.splitlines()[-1])
    assert got["tcp"]["ok"] >= OPEN_FILES // 4, got
    assert set(got["tcp"]) == {"ok", "ECONNREFUSED"}
    assert got["udp"]["ok"] >= FLOWS * 0.9, got
    assert got["icmp"]["ok"] >= FLOWS * 0.9, got
    assert (got["kept"], got["after"]) == (True, 10)
    assert got["names"] > 10
    assert got["slowest"] < 1
    assert len(re.findall("^childflow: no descriptor is left", r.stderr, re.MULTILINE)) == 1
    assert "error" not in r.stderr
    events = [json.loads(line) for line in log.read_text().splitlines()]
    refused = [e for e in events if e["event"] == "connect_result" and e["error"]]
    assert len(refused) == got["tcp"]["ECONNREFUSED"]
    assert {e["error"] for e in refused} == {"Too many open files (EMFILE)"}
