"""TCP when it is not easy: readers that do not read, lost window updates, small buffers, odd options, lost segments.

The long versions are in `tests/soak`; the numbers here are small and the rules the same.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import product

import pytest

from tests.lab.engine import Engine, engine_of
from tests.lab.hosts import FAMILIES, Host
from tests.lab.lab import Lab
from tests.lab.lossy import childflow_leg
from tests.lab.serve import ACTOR, ECHO

KIB, MIB = 1 << 10, 1 << 20
FLOW_WINDOW = 512 * KIB  # docs/decisions.md, Limits: payload of a flow and direction
SACK_PERMITTED, WINDOW_SCALE, TIMESTAMPS = "sack-permitted", "window", "timestamp"


@pytest.mark.case("B11")
def test_flows_that_nobody_reads_hold_what_they_may_and_all_arrive_later(lab: Lab) -> None:
    with engine_of(lab, lab.caller("ordinary")) as engine:
        unread_flows(lab, engine, flows=50, size=2 * MIB, idle=4)


def unread_flows(lab: Lab, engine: Engine, flows: int, size: int, idle: float) -> None:
    """Nothing is read for `idle` seconds: the engine stops reading as well, holds its share and no more, and rests."""
    before = engine.resident_kib()
    client = lab.client("slow_reader", lab.server_ip(4), ACTOR, flows, size, idle)
    with engine.inside.start(*client, bare=True) as reader:
        reader.says("idle", limit=60)
        time.sleep(idle * 0.6)
        waiting = some_bytes_wait(lab.laptop, flows * KIB, limit=idle * 0.2)
        grown, busy = engine.resident_kib() - before, engine.cpu_seconds()
        time.sleep(idle / 10)
        busy = engine.cpu_seconds() - busy
        told = reader.wait(240).last_json()
    print(f"{flows} flows unread: {grown} KiB more, {waiting} bytes left in host sockets; then {told}")
    assert told["right"] == flows
    assert grown <= flows * FLOW_WINDOW / KIB
    assert waiting > flows * KIB, "the engine has gone on reading"
    assert busy < idle / 20, f"{busy} s of work for nothing"


def some_bytes_wait(host: Host, size: int, limit: float) -> int:
    """What is left in host sockets, as soon as that is more than `size`."""
    end = time.monotonic() + limit
    while (waiting := bytes_waiting(host, ACTOR)) <= size and time.monotonic() < end:
        time.sleep(0.1)
    return waiting


def bytes_waiting(host: Host, port: int) -> int:
    """What the established sockets to `port` have received and nobody has read."""
    lines = host.run("ss", "-Htn", "state", "established", f"dport = :{port}").splitlines()
    return sum(int(line.split()[0]) for line in lines)


def test_a_thousand_flows_that_send_at_once_are_all_served(lab: Lab) -> None:
    """Their frames wait in the TAP's queue: if it is too short all flows lose, send again together, and lose again."""
    with engine_of(lab, lab.caller("ordinary"), canary=False) as engine:
        client = lab.client("many", lab.server_ip(4), ECHO, "at-once", 1000, 64 * KIB)
        assert engine.inside.direct(*client).json()["right"] == 1000


@pytest.mark.case("B12")
def test_a_lost_window_update_is_found_by_probes(lab: Lab) -> None:
    """The window closes; then the sandbox's pure acknowledgements are lost for 5 s, the update among them."""
    with engine_of(lab, lab.caller("ordinary"), canary=False) as engine, ExitStack() as stack:
        clients = [lab.client("slow_reader", lab.server_ip(family), ACTOR, 1, 8 * MIB, 2) for family in FAMILIES]
        readers = [stack.enter_context(engine.inside.start(*client, bare=True)) for client in clients]
        for reader in readers:
            reader.says("idle")
        time.sleep(1)
        engine.sandbox.nft(LOSE_ACKS)
        time.sleep(6)
        lost, probes = map(
            int, re.findall(r"packets (\d+)", engine.sandbox.run("nft", "list", "table", "inet", "loss"))
        )
        assert lost >= 4, "no window update was lost"
        assert 4 <= probes <= 24, f"{probes} probes for two flows in 6 s: none, or no back-off"
        assert all(reader.process.poll() is None for reader in readers)
        engine.sandbox.nft("delete table inet loss\n")
        assert [reader.wait(20).last_json()["right"] for reader in readers] == [1, 1]


LOSE_ACKS = """
table inet loss {
  chain output {
    type filter hook output priority 0;
    tcp flags & (syn | fin | rst) == 0 meta length <= 100 counter drop
  }
  chain input {
    type filter hook input priority 0;
    meta l4proto tcp counter
  }
}
"""


@pytest.mark.case("B16")
def test_a_slow_host_side_loses_no_byte(lab: Lab, family: int) -> None:
    with engine_of(lab, lab.caller("ordinary"), canary=False) as engine, small_buffers(lab.laptop):
        through_a_bottleneck(lab, engine, family, 32 * MIB)


def through_a_bottleneck(lab: Lab, engine: Engine, family: int, size: int) -> None:
    """Host sockets of two pages take what comes in bits of every size."""
    client = lab.client("transfer", lab.server_ip(family), ACTOR, size)
    assert engine.inside.direct(*client, timeout=600).json() == {"up": True, "down": True, "ended": True}


@contextmanager
def small_buffers(laptop: Host) -> Iterator[None]:
    """Socket buffers of the laptop's new connections: next to nothing."""
    before = {name: laptop.run("cat", f"/proc/sys/net/ipv4/{name}").strip() for name in ("tcp_wmem", "tcp_rmem")}
    for name in before:
        laptop.sysctl(f"net.ipv4.{name}", "4096 4096 8192")
    try:
        yield
    finally:
        for name, value in before.items():
            laptop.sysctl(f"net.ipv4.{name}", value)


@pytest.mark.case("B19")
@pytest.mark.parametrize("mtu", [576, 1280, 1500, 65520])
def test_every_mixture_of_options(lab: Lab, mtu: int) -> None:
    with engine_of(lab, lab.caller("ordinary"), flags=("--mtu", str(mtu))) as engine:
        every_mixture_of_options(lab, engine, 4 * MIB)


def every_mixture_of_options(lab: Lab, engine: Engine, size: int) -> None:
    """What the SYN-ACK has is what the SYN had, less the timestamps, which childflow never uses; all bytes arrive."""
    sandbox = engine.sandbox
    for scaling, timestamps, sack in product("01", repeat=3):
        sandbox.sysctl("net.ipv4.tcp_window_scaling", scaling)
        sandbox.sysctl("net.ipv4.tcp_timestamps", timestamps)
        sandbox.sysctl("net.ipv4.tcp_sack", sack)
        watch_syn_acks(sandbox)
        client = lab.client("transfer", lab.server_ip(4), ACTOR, size)
        assert engine.inside.direct(*client, timeout=300).json() == {"up": True, "down": True, "ended": True}
        expected = {WINDOW_SCALE: int(scaling), SACK_PERMITTED: int(sack), TIMESTAMPS: 0}
        assert options_of_syn_acks(sandbox) == expected, (scaling, timestamps, sack)


def watch_syn_acks(sandbox: Host) -> None:
    rules = "\n".join(
        f"tcp sport {ACTOR} tcp flags & (syn | ack) == (syn | ack) tcp option {option} exists counter"
        for option in (WINDOW_SCALE, SACK_PERMITTED, TIMESTAMPS)
    )
    sandbox.nft(
        f"table inet options {{}}\ndelete table inet options\ntable inet options {{\nchain input {{\n"
        f"type filter hook input priority 0;\n{rules}\n}}\n}}\n"
    )


def options_of_syn_acks(sandbox: Host) -> dict[str, int]:
    listing = sandbox.run("nft", "list", "table", "inet", "options")
    counts = map(int, re.findall(r"packets (\d+)", listing))
    return dict(zip((WINDOW_SCALE, SACK_PERMITTED, TIMESTAMPS), counts, strict=True))


LOSSES = [("up", "all", 50), ("down", "all", 50), ("up", "acks", 300), ("down", "acks", 300)]


@pytest.mark.case("B30")
def test_loss_in_each_direction_costs_time_only(lab: Lab) -> None:
    """5 % of all frames, and 30 % of pure acknowledgements; all within 20 times what it takes without loss."""
    caller = lab.caller("ordinary")
    client = lab.client("transfer", lab.server_ip(4), ACTOR, 8 * MIB)
    with childflow_leg(caller) as leg:
        lossless = max(leg.caller.direct(*client).ok().duration, 0.25)
        for direction, what, per_mille in LOSSES:
            leg.lose(**{direction: per_mille}, what=what)
            result = leg.caller.direct(*client)
            assert result.json() == {"up": True, "down": True, "ended": True}
            counted = leg.counted()[direction]
            assert counted["lost"] > 0 or what == "acks"  # most acknowledgements ride on data here
            assert counted["oversized"] == 0
            assert result.duration < 20 * lossless, (direction, what, result.duration, lossless)
