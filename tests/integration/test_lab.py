"""The lab itself: what its own promises are worth, without childflow."""

from __future__ import annotations

import pytest

from tests.lab.hosts import CLOSED_PORT, DEAF, UNROUTED
from tests.lab.internet import Internet
from tests.lab.lab import Caller, Lab
from tests.lab.lossy import childflow_leg, plain_leg
from tests.lab.serve import ACTOR, ECHO

ERRORS = {
    8102: {4: "EHOSTUNREACH", 6: "EHOSTUNREACH"},
    8103: {4: "ECONNREFUSED", 6: "ECONNREFUSED"},
    8104: {4: "EHOSTUNREACH", 6: "EACCES"},
    8105: {4: "ECONNREFUSED", 6: "ECONNREFUSED"},
    8106: {4: "ENETUNREACH", 6: "ENETUNREACH"},
    CLOSED_PORT: {4: "ECONNREFUSED", 6: "ECONNREFUSED"},
}


def test_callers_are_who_they_should_be(caller: Caller) -> None:
    said = caller.direct("cat", "/proc/self/status").ok().stdout
    fields = dict(line.split(":\t", 1) for line in said.splitlines() if ":\t" in line)
    assert fields["Uid"].split()[0] == ("1000" if caller.user == "ordinary" else "0")
    assert (int(fields["CapEff"], 16) == 0) == (caller.user == "ordinary")


def test_each_port_has_its_fate(lab: Lab, caller: Caller, family: int) -> None:
    outcomes = caller.direct(*lab.client("connect", lab.server_ip(family), ",".join(map(str, ERRORS)))).json()
    assert {port: outcomes[str(port)]["error"] for port in ERRORS} == {port: ERRORS[port][family] for port in ERRORS}


def test_no_route(lab: Lab, caller: Caller, family: int) -> None:
    assert caller.direct(*lab.client("connect", UNROUTED[family], 80)).json()["80"]["error"] == "EHOSTUNREACH"


def test_servers_answer(lab: Lab, caller: Caller, family: int) -> None:
    server = lab.server_ip(family)
    assert caller.direct("curl", "-sS", lab.url("/hello", family)).ok().stdout == "hello from the lab\n"
    assert all(caller.direct(*lab.client("transfer", server, ACTOR, 1 << 20)).json().values())
    assert caller.direct(*lab.client("many", server, ECHO, "at-once", 20)).json()["right"] == 20
    assert caller.direct(*lab.client("datagrams", server, ECHO, "count", 100)).json()["right"] == 100
    assert caller.direct(*lab.client("datagrams", server, ECHO, "sizes", "1,1473,65507")).json()["right"] == 3


@pytest.mark.parametrize("order", ["child-first", "server-first", "reset-by-server", "break-off", "reset-by-child"])
def test_ends_of_connections(lab: Lab, caller: Caller, family: int, order: str) -> None:
    r = caller.direct(*lab.client("half_close", lab.server_ip(family), ACTOR, order))
    assert r.json()["right"], r.told()


def test_resolvers(lab: Lab, caller: Caller) -> None:
    assert caller.direct(*lab.client("resolve", "both.lab.test")).json()["addresses"] == [
        "198.51.100.1",
        "2001:db8:64::1",
    ]
    assert caller.direct(*lab.client("resolve", "missing.lab.test")).json()["error"] == "EAI_NONAME"
    lab.resolvers.use([DEAF[4], lab.server_ip(4)], options="options timeout:1")
    assert 1 <= caller.direct(*lab.client("resolve", "a.lab.test", "4")).json()["seconds"] < 3


def test_a_router_between(routed_lab: Lab, routed_caller: Caller, family: int) -> None:
    r = routed_caller.direct("traceroute", f"-{family}", "-n", "-q1", "-m5", routed_lab.server_ip(family)).ok()
    assert len(r.stdout.splitlines()) == 3


def test_the_witness_saw_the_visitors(lab: Lab, caller: Caller) -> None:
    before = len(lab.witness())
    caller.direct("curl", "-sS", lab.url("/hello?witness", 6)).ok()
    assert any(seen.get("path") == "/hello?witness" for seen in lab.witness()[before:])


def test_a_program_that_hangs_is_ended(lab: Lab, caller: Caller) -> None:
    with pytest.raises(AssertionError, match=r"still running after 0\.2 s"):
        caller.direct("sleep", "30", timeout=0.2)


def test_nothing_leads_out(lab: Lab, caller: Caller) -> None:
    assert caller.direct("ping", "-c1", "-W1", "198.51.100.77").status == 1
    assert lab.server.run("ip", "route", "show", "default") == ""


@pytest.mark.parametrize("kind", ["childflow", "plain"])
def test_a_lossy_leg_loses_whole_frames_of_the_mtu(lab: Lab, kind: str, family: int) -> None:
    caller = lab.caller("ordinary")
    with childflow_leg(caller) if kind == "childflow" else plain_leg(caller, lab.laptop) as leg:
        for up, down in ((0, 0), (20, 0), (0, 20)):
            leg.lose(up, down)
            assert all(
                leg.caller.direct(*lab.client("transfer", lab.server_ip(family), ACTOR, 4 << 20)).json().values()
            )
            counted = leg.counted()
            assert [side["oversized"] for side in counted.values()] == [0, 0]
            assert [side["lost"] > 0 for side in counted.values()] == [up > 0, down > 0]
            assert all(side["passed"] > 1000 for side in counted.values())


def test_a_lossy_leg_can_lose_pure_acknowledgements_alone(lab: Lab) -> None:
    with plain_leg(lab.caller("ordinary"), lab.laptop) as leg:
        leg.lose(up=500, what="acks")
        r = leg.caller.direct("curl", "-sS", lab.url("/hello")).ok()
        assert r.stdout == "hello from the lab\n"
        assert leg.counted()["up"]["passed"] >= 2  # SYN and request were spared
        leg.lose(up=1000, down=1000, what="data")
        assert leg.caller.direct(*lab.client("connect", lab.server_ip(4), ACTOR)).json()[str(ACTOR)]["error"] is None


ANYWHERE = {4: ["1.1.1.1", "169.254.169.254", "10.0.0.1"], 6: ["64:ff9b::a00:1", "2606:4700::1111", "fc00::1"]}


def test_the_internet_accepts_for_every_address(internet: Internet, family: int) -> None:
    caller, before = internet.caller("ordinary"), len(internet.witness())
    for address in ANYWHERE[family]:
        host = f"[{address}]" if family == 6 else address
        assert caller.direct("curl", "-sS", f"http://{host}/hello").ok().stdout == "hello from the lab\n"
        assert caller.direct(*internet.client("datagrams", address, ECHO, "sizes", "1")).json()["right"] == 1
        caller.direct("ping", "-c1", "-W2", address).ok()
    named = {seen["to"][0].removeprefix("::ffff:") for seen in internet.witness()[before:] if seen["service"] == "http"}
    assert named == set(ANYWHERE[family])
    ping = "icmp" if family == 4 else "ipv6-icmp"
    assert internet.arrived() == {
        arrival
        for address in ANYWHERE[family]
        for arrival in (("tcp", address, 80), ("udp", address, 7), (ping, address, 0))
    }


def test_the_internet_treats_as_told(internet: Internet, family: int) -> None:
    caller, address = internet.caller("ordinary"), ANYWHERE[family][0]
    verbs = ["host-unreachable", "net-unreachable", "port-unreachable", "admin-prohibited", "reset"]
    for n, verb in enumerate(verbs):
        internet.treat(f"tcp dport {9001 + n}", verb)
    ports = [9001 + n for n in range(len(verbs))]
    outcome = caller.direct(*internet.client("connect", address, ",".join(map(str, ports)))).json()
    refused = "ECONNREFUSED"
    prohibited = "EHOSTUNREACH" if family == 4 else "EACCES"
    assert [outcome[str(port)]["error"] for port in ports] == [
        "EHOSTUNREACH",
        "ENETUNREACH",
        refused,
        prohibited,
        refused,
    ]
    assert {(kind, port) for kind, _, port in internet.arrived()} == {("tcp", port) for port in ports}


def test_a_narrow_internet_says_what_fits(narrow_internet: Internet, family: int) -> None:
    caller, address = narrow_internet.caller("root"), ANYWHERE[family][0]
    headers = 28 if family == 4 else 48
    caller.direct("ping", "-c1", "-W2", "-M", "do", "-s", str(1280 - headers), address).ok()
    too_big = caller.direct("ping", "-c1", "-W2", "-M", "do", "-s", str(1281 - headers), address)
    assert too_big.status == 1
    assert "1280" in too_big.stdout + too_big.stderr, too_big.told()
    assert all(caller.direct(*narrow_internet.client("transfer", address, ACTOR, 4 << 20)).json().values())


def test_internet_tells_what_spoke(internet: Internet) -> None:
    """A connection that says nothing has arrived, and has not spoken."""
    caller = internet.caller("ordinary")
    caller.direct(*internet.client("connect", "93.184.216.34", 443)).ok()
    caller.direct(*internet.client("datagrams", "2606:2800:220::34", 443, "sizes", "1")).ok()
    assert {("tcp", "93.184.216.34", 443), ("udp", "2606:2800:220::34", 443)} <= internet.arrived()
    assert internet.spoke() == {("udp", "2606:2800:220::34", 443)}


def test_zone_has_names_for_one_test(internet: Internet) -> None:
    internet.zone({"www.good.test": {"CNAME": "good.test"}, "good.test": {"A": ["1.2.3.4", "1.2.3.5"], "ttl": 7}})
    said = internet.caller("ordinary").direct("dig", "+noall", "+answer", "www.good.test").ok().stdout
    assert sorted(" ".join(line.split()) for line in said.splitlines()) == [
        "good.test. 7 IN A 1.2.3.4", "good.test. 7 IN A 1.2.3.5", "www.good.test. 60 IN CNAME good.test.",
    ]  # fmt: skip
