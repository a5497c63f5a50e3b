"""The link itself: taken down and brought up under way, groups and broadcasts that lead nowhere, and a router that does
not advertise."""

from __future__ import annotations

import os
import re
import socket
import struct
import time
from pathlib import Path

import pytest

from childflow.settings import ADDRESSES
from tests.lab.engine import Engine, engine_of
from tests.lab.inject import inject
from tests.lab.lab import Caller, Lab
from tests.lab.namespaces import new_network
from tests.lab.processes import Result
from tests.lab.serve import ACTOR, ECHO
from tests.netstack import wire

GATEWAY = {4: "192.0.0.1", 6: "fd63:6869:6c64::1"}


def drops(result: Result) -> dict[str, int]:
    said = re.search(r"^childflow: drops: (.*)$", result.stderr, re.MULTILINE)
    assert said, result.told()
    return {name: int(count) for name, count in re.findall(r"(\w+)=(\d+)", said[1])}


def take_the_link(engine: Engine, up: bool) -> None:
    """With its routes, which a kernel forgets when a link goes down."""
    if not up:
        engine.sandbox.ip("link set tap0 down")
        return
    engine.sandbox.ip(
        "link set tap0 up",
        f"route replace default via {GATEWAY[4]} dev tap0",
        f"addr replace {socket.inet_ntop(socket.AF_INET6, ADDRESSES.child6)}/64 dev tap0 nodad",
        f"route replace default via {GATEWAY[6]} dev tap0",
    )


@pytest.mark.case("B31")
def test_link_that_goes_down_and_up_loses_no_text(lab: Lab, caller: Caller) -> None:
    """While it is down each write to the TAP fails with EIO: frames are lost, no text is, and nothing spins."""
    with engine_of(lab, caller, flags=["-v"], canary=False) as engine:
        transfer = lab.client("transfer", lab.server_ip(4), ACTOR, 256 << 20)
        with engine.inside.start(*transfer, bare=True) as running:
            connections = Path(f"/proc/{running.pid}/net/tcp")
            while f":{ACTOR:04X} 01 " not in connections.read_text():  # established
                time.sleep(0.005)
            for _ in range(3):
                take_the_link(engine, up=False)
                spent = engine.cpu_seconds()
                time.sleep(0.3)
                assert engine.cpu_seconds() - spent < 0.2, "the engine spins"
                take_the_link(engine, up=True)
            result = running.wait(60)
        assert all(result.json().values()), result.told()
        for family in (4, 6):
            many = engine.inside.direct(*lab.client("many", lab.server_ip(family), ECHO, "one-by-one", 5))
            assert many.json()["right"] == 5
    assert drops(engine.result)["tap_full"] > 0


@pytest.mark.parametrize("fate", ["deleted", "moved"])
def test_link_that_is_taken_away_is_the_end_of_the_network_and_nothing_spins(lab: Lab, fate: str) -> None:
    """M3: a deleted TAP's descriptor says POLLERR for ever. The command lives on, without a network."""
    caller = lab.caller("ordinary")
    with engine_of(lab, caller, canary=False) as engine:
        assert engine.inside.direct(*lab.client("many", lab.server_ip(4), ECHO, "one-by-one", 1)).json()["right"] == 1
        if fate == "deleted":
            engine.sandbox.ip("link del tap0")
        else:
            elsewhere = new_network()
            engine.sandbox.run("ip", "link", "set", "tap0", "netns", f"/proc/{os.getpid()}/fd/{elsewhere}")
            os.close(elsewhere)
        spent = engine.cpu_seconds()
        time.sleep(0.5)
        assert engine.cpu_seconds() - spent < 0.1, "the engine spins"
        outcome = engine.inside.direct(*lab.client("connect", lab.server_ip(4), ECHO)).json()[str(ECHO)]
        assert outcome["error"] == "ENETUNREACH"


@pytest.mark.parametrize("change", ["set tap0 name other0", "set tap0 mtu 1280", "set tap0 promisc on"])
def test_link_that_is_changed_works_on(lab: Lab, change: str) -> None:
    with engine_of(lab, lab.caller("ordinary"), flags=["-v"]) as engine:
        engine.sandbox.ip(f"link {change}")
        for family in (4, 6):
            many = engine.inside.direct(*lab.client("many", lab.server_ip(family), ECHO, "one-by-one", 2))
            assert many.json()["right"] == 2, many.told()
        transfer = engine.inside.direct(*lab.client("transfer", lab.server_ip(4), ACTOR, 4 << 20))
        assert all(transfer.json().values())


@pytest.mark.case("C20")
def test_groups_and_broadcasts_lead_nowhere(lab: Lab, caller: Caller) -> None:
    """mDNS, LLMNR, SSDP, DHCP, IGMP, MLD: no error for the program, a counter for us, not a packet on the wire."""
    table = "inet groups"
    lab.server.nft(
        f"table {table} {{ chain arrival {{ type filter hook prerouting priority -500;\n"
        "fib daddr type { multicast, broadcast } meta l4proto { udp, tcp, icmp, igmp } counter\n}\n}\n"
    )
    try:
        with engine_of(lab, caller, flags=["-v"]) as engine:
            said = engine.inside.direct(*lab.client("groups")).json()
        seen = lab.server.run("nft", "list", "table", *table.split())
    finally:
        lab.server.nft(f"delete table {table}")
    assert said == {"sent": 8, "told": []}
    assert "counter packets 0 bytes 0" in seen
    assert drops(engine.result)["multicast"] >= 8 + 1  # and the IGMP report
    assert len(engine.result.events_of("flow_end")) == 1


def state_of(engine: Engine) -> str:
    """Addresses and routes, without the lifetimes and counters that always move."""
    listing = engine.sandbox.run("ip", "address") + engine.sandbox.run("ip", "route", "show", "table", "all")
    return listing + engine.sandbox.run("ip", "-6", "route", "show", "table", "all")


@pytest.mark.case("C28")
@pytest.mark.parametrize("accept_ra", [0, 2])
def test_router_solicitation_gets_silence_and_the_addresses_stay(lab: Lab, accept_ra: int) -> None:
    """Addresses and routes are static; whether the sandbox would hear an advertisement makes no difference."""
    with engine_of(lab, lab.caller("ordinary"), flags=["-v"]) as engine:
        engine.sandbox.sysctl("net.ipv6.conf.tap0.accept_ra", str(accept_ra))
        before = state_of(engine)
        routers = bytes.fromhex("ff02" + "00" * 13 + "02")
        message = wire.icmp(133, 0, bytes(4) + b"\x01\x01" + ADDRESSES.child_mac, src=ADDRESSES.child6, dst=routers)
        packet = wire.ipv6(message, wire.ICMPV6, dst=routers, hop_limit=255)
        heard = advertisements(engine)
        sent = inject(engine.running, [wire.frame(packet, to=bytes.fromhex("333300000002"))] * 3)
        assert not any(sent.errors)
        assert advertisements(engine) == heard == 0
        assert state_of(engine) == before
        assert engine.inside.direct(*lab.client("many", lab.server_ip(6), ECHO, "one-by-one", 1)).json()["right"] == 1
    assert drops(engine.result).keys() == {"multicast"}


def advertisements(engine: Engine) -> int:
    """Router advertisements that the sandbox's kernel has received."""
    counters = dict(line.split() for line in engine.sandbox.run("cat", "/proc/net/snmp6").splitlines())
    return int(counters["Icmp6InRouterAdvertisements"])


@pytest.mark.case("C19")
def test_arp_answers_for_the_gateway_only(lab: Lab) -> None:
    """With the permanent entries gone the sandbox's kernel has to ask. Nobody else lives on the link. (No canary: it
    would have to ask, too.)"""
    with engine_of(lab, lab.caller("ordinary"), canary=False) as engine:
        for flag in ("-4", "-6"):
            engine.sandbox.run("ip", flag, "neigh", "flush", "dev", "tap0", "nud", "permanent")
        for family in (4, 6):
            many = engine.inside.direct(*lab.client("many", lab.server_ip(family), ECHO, "one-by-one", 1))
            assert many.json()["right"] == 1
        neighbours = engine.sandbox.run("ip", "neigh", "show", "dev", "tap0") + engine.sandbox.run("ip", "-6", "neigh")
        assert f"{GATEWAY[4]} lladdr {as_text(ADDRESSES.gateway_mac)}" in neighbours
        assert "fe80" in neighbours or GATEWAY[6] in neighbours
        silent = engine.inside.direct("ping", "-c1", "-W1", "192.0.0.3")
        assert silent.status == 1
        assert "192.0.0.3 lladdr" not in engine.sandbox.run("ip", "neigh", "show", "dev", "tap0")


def as_text(mac: bytes) -> str:
    return ":".join(f"{byte:02x}" for byte in struct.unpack("6B", mac))
