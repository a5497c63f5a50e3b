"""The host's own network in trouble: no IPv6, no route, another address, a link that flaps, no port left."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.lab.hosts import FAMILIES, UNROUTED, Host
from tests.lab.internet import Internet
from tests.lab.lab import Lab
from tests.lab.serve import ECHO
from tests.lab.steps import Steps

FAR = {4: "10.20.0.1", 6: "2001:db8:20::1"}
OTHER = {4: "10.20.0.2", 6: "2001:db8:20::2"}
DEVICE = "to-server"
ALL_WELL = {"tcp": "ok", "udp": "ok", "same_udp": "ok", "dns": "ok", "held": "ok"}


@pytest.fixture
def laptop(internet: Internet) -> Iterator[Host]:
    """The laptop, whose network is put right afterwards."""
    yield internet.laptop
    mend(internet)


def mend(internet: Internet) -> None:
    """The laptop's link, addresses and routes as the lab made them."""
    laptop = internet.laptop
    laptop.sysctl("net.ipv6.conf.all.disable_ipv6", "0")
    laptop.sysctl("net.ipv6.conf.lo.disable_ipv6", "0")
    laptop.ip(
        f"link set {DEVICE} up",
        f"addr replace {laptop.addresses[4]}/24 dev {DEVICE}",
        f"addr replace {laptop.addresses[6]}/64 dev {DEVICE} nodad",
        f"route replace default via {internet.server.addresses[4]}",
        f"route replace default via {internet.server.addresses[6]}",
        f"route replace unreachable {UNROUTED[4]}/32",
        f"route replace unreachable {UNROUTED[6]}/128",
    )


def told(line: str) -> dict[str, str]:
    return {name: outcome for name, outcome in json.loads(line).items() if name != "seconds"}


def seconds(line: str) -> dict[str, float]:
    found: dict[str, float] = json.loads(line)["seconds"]
    return found


# --- C22


def no_default_route(internet: Internet) -> None:
    internet.laptop.ip(f"route del default via {internet.server.addresses[6]}")


def no_ipv6_at_all(internet: Internet) -> None:
    internet.laptop.sysctl("net.ipv6.conf.all.disable_ipv6", "1")


@pytest.mark.case("C22")
@pytest.mark.parametrize("how", [no_default_route, no_ipv6_at_all])
def test_a_host_without_ipv6_fails_at_once(internet: Internet, laptop: Host, how: Callable[[Internet], None]) -> None:
    """So happy eyeballs falls back: curl gets its page from a name with both families in no time."""
    caller = internet.caller("ordinary")
    how(internet)
    for client in ("connect", "udp_error"):
        said = caller.childflow(*internet.client(client, FAR[6], 80)).json()
        outcome = said["80"] if client == "connect" else {"error": said["all"], "seconds": 0}
        assert outcome["error"] == "ENETUNREACH"
        assert outcome["seconds"] < 0.05
    write_out = ("-w", " %{time_total} %{remote_ip}", "-sS")
    page = caller.childflow("curl", *write_out, "http://both-far.lab.test/hello").ok().stdout
    text, total, address = page.rsplit(" ", 2)
    assert (text, address) == ("hello from the lab\n", "198.51.100.1")
    assert float(total) < 0.3


@pytest.mark.case("C22", "E12")
def test_ipv6_lost_under_way_is_told_at_once(internet: Internet, laptop: Host) -> None:
    """The command still has its route; the engine has none."""
    commands = [" ".join(internet.client(client, FAR[6], 80)) for client in ("connect", "udp_error")]
    fetch = "curl -sS -o /dev/null -w '%{time_total} %{remote_ip}\\n' http://both-far.lab.test/hello"
    with Steps(internet.caller("ordinary"), f"echo up; step; {'; '.join([*commands, fetch])}") as steps:
        steps.says("up")
        no_default_route(internet)
        steps.go()
        tcp, udp, page = steps.lines(4)[1:]
    assert json.loads(tcp)["80"]["error"] == "ENETUNREACH"
    assert json.loads(tcp)["80"]["seconds"] < 0.05
    assert json.loads(udp) == {"plain": None, "all": "ENETUNREACH"}
    total, address = page.split()
    assert address == "198.51.100.1"
    assert float(total) < 0.3


# --- E12


def rounds(internet: Internet, family: int, *changes: Callable[[], Any]) -> list[str]:
    """What round_trips reports before, between and after the changes."""
    client = " ".join(internet.client("round_trips", FAR[family], len(changes) + 1))
    with Steps(internet.caller("ordinary"), client) as steps:
        for number, change in enumerate(changes, 1):
            steps.lines(number)
            change()
            steps.go()
        return steps.lines(len(changes) + 1)


@pytest.mark.case("E12")
def test_default_route_removed_and_back(internet: Internet, laptop: Host, family: int) -> None:
    """Errors while it is gone, at once; afterwards all works, an old connection too."""

    def gone() -> None:
        laptop.ip(*(f"route del default via {internet.server.addresses[version]}" for version in FAMILIES))

    before, without, after = rounds(internet, family, gone, lambda: mend(internet))
    assert told(before) == ALL_WELL
    lost = {"tcp": "ENETUNREACH", "udp": "silence", "same_udp": "silence", "held": "silence"}
    assert told(without) == {**ALL_WELL, **lost}
    assert seconds(without)["tcp"] < 0.5
    assert told(after) == ALL_WELL


@pytest.mark.case("E12")
def test_another_address(internet: Internet, laptop: Host, family: int) -> None:
    """New flows, and datagrams of old sockets, go out from it; the old connection belongs to the old address."""
    old, new = laptop.addresses[family], {4: "198.51.100.22", 6: "2001:db8:64::22"}[family]

    def renumber() -> None:
        laptop.sysctl(f"net.ipv4.conf.{DEVICE}.promote_secondaries", "1")
        laptop.ip(f"addr add {new}/{24 if family == 4 else 64} dev {DEVICE} {'' if family == 4 else 'nodad'}")
        laptop.ip(f"addr del {old}/{24 if family == 4 else 64} dev {DEVICE}")
        laptop.ip(f"route replace default via {internet.server.addresses[family]}")

    before, after = rounds(internet, family, renumber)
    laptop.ip(f"addr del {new}/{24 if family == 4 else 64} dev {DEVICE}")
    assert told(before) == ALL_WELL
    assert {**told(after), "held": ""} == {**ALL_WELL, "held": ""}
    assert told(after)["held"] in ("silence", "ECONNRESET", "ETIMEDOUT", "EHOSTUNREACH")


@pytest.mark.case("E12")
def test_a_link_that_flaps(internet: Internet, laptop: Host, family: int) -> None:
    def flap() -> None:
        laptop.ip(f"link set {DEVICE} down")
        mend(internet)

    before, after = rounds(internet, family, flap)
    assert told(before) == told(after) == ALL_WELL


# --- E15


@pytest.fixture
def fifty_ports(internet: Internet) -> Iterator[None]:
    internet.laptop.sysctl("net.ipv4.ip_local_port_range", "50000 50049")
    yield
    internet.laptop.sysctl("net.ipv4.ip_local_port_range", "32768 60999")


@pytest.mark.case("E15")
def test_no_port_left_for_tcp(internet: Internet, fifty_ports: None, family: int) -> None:
    """Refused at once; other destinations work meanwhile (a port serves many), the same one afterwards."""
    client = internet.client("ports", FAR[family], OTHER[family], "tcp", 70)
    r = internet.caller("ordinary").childflow(*client).json()
    assert r.pop("slowest") < 0.5
    assert r == {"open": 50, "errors": ["ECONNREFUSED"], "other": True, "again": True}


@pytest.mark.case("E15")
def test_no_port_left_for_udp(internet: Internet, fifty_ports: None, family: int) -> None:
    client = internet.client("ports", FAR[family], OTHER[family], "udp", 70)
    r = internet.caller("ordinary").childflow(*client).json()
    assert r["slowest"] < 0.5
    assert r["open"] == 50
    assert r["errors"] == ["EHOSTUNREACH" if family == 4 else "EACCES"]


@pytest.mark.case("E15")
def test_ports_that_wait(internet: Internet, fifty_ports: None) -> None:
    """Fifty connections that the command closed first leave fifty ports in TIME-WAIT towards that destination."""
    client = internet.client("ports", "10.20.0.3", OTHER[4], "in-turn", 60)
    r = internet.caller("ordinary").childflow(*client).json()
    assert r.pop("slowest") < 0.5
    assert r == {"open": 50, "errors": ["ECONNREFUSED"], "other": True}


@pytest.mark.case("C14", "E12")
@pytest.mark.parametrize("hops", [0, 10])
def test_an_unreachable_moment_ends_no_connection(routed_lab: Lab, family: int, hops: int) -> None:
    """ICMP's complaints about a connection that stands are no end of it, whatever hop limit it was made with."""
    router, server = routed_lab.router, routed_lab.server_ip(family)
    assert router is not None
    client = " ".join(routed_lab.client("held", server, ECHO, hops))
    with Steps(routed_lab.caller("ordinary"), client) as steps:
        steps.says("held")
        router.ip(f"route add unreachable {server}/{32 if family == 4 else 128}")
        try:
            steps.go()
            steps.says("written")
        finally:
            router.ip(f"route del unreachable {server}/{32 if family == 4 else 128}")
        steps.go()
        assert steps.lines(3) == ["held", "written", "ok"]
