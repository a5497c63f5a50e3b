"""UDP through childflow: nothing lost at a modest pace, every size, refusals told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.lab.engine import sleeping
from tests.lab.headers import UDP, Headers
from tests.lab.hosts import CLOSED_PORT, HOST_UNREACHABLE_PORT, PORT_UNREACHABLE_PORT, PROHIBITED_PORT, Host
from tests.lab.internet import Internet
from tests.lab.lab import Caller, Lab
from tests.lab.processes import Place
from tests.lab.serve import ECHO

# Around one fragment and more at MTU 1500 in both families (1452 is IPv6's limit, 1472 IPv4's), and the largest of all.
SIZES = (1, 2, 511, 512, 1452, 1453, 1472, 1473, 1500, 2952, 4096, 8192, 16384, 32768, 65000, 65507)


def test_10000_datagrams_each_way_on_one_socket(lab: Lab, caller: Caller, family: int) -> None:
    r = caller.childflow(*lab.client("datagrams", lab.server_ip(family), ECHO, "count", 10_000))
    assert r.json() == {"sent": 10_000, "right": 10_000, "missing": []}


@pytest.mark.case("C01")
def test_datagrams_of_every_size(lab: Lab, caller: Caller, family: int) -> None:
    listed = ",".join(map(str, SIZES))
    r = caller.childflow(*lab.client("datagrams", lab.server_ip(family), ECHO, "sizes", listed))
    assert r.json()["missing"] == []


@pytest.mark.case("C03")
@pytest.mark.parametrize(
    "port",
    [CLOSED_PORT, HOST_UNREACHABLE_PORT, PORT_UNREACHABLE_PORT, PROHIBITED_PORT],
    ids=["closed", "host", "port", "prohibited"],
)
def test_a_refused_datagram_gives_the_same_errno(lab: Lab, caller: Caller, family: int, port: int) -> None:
    client = lab.client("udp_error", lab.server_ip(family), port)
    direct, inside = caller.direct(*client).json(), caller.childflow(*client).json()
    assert inside == direct
    assert inside["all"] is not None


@pytest.mark.case("C01")
def test_the_smallest_and_the_largest(lab: Lab, caller: Caller, family: int) -> None:
    """Nothing at all is a datagram too, and no end."""
    listed = f"0,1,1472,0,1473,8192,{65_507 if family == 4 else 65_527},0,1"
    r = caller.childflow(*lab.client("datagrams", lab.server_ip(family), ECHO, "sizes", listed))
    assert r.json() == {"sent": 9, "right": 9, "missing": []}


@pytest.mark.case("C05")
def test_one_child_port_is_one_host_port_for_a_hundred_peers(internet: Internet, family: int) -> None:
    """And each peer's answer comes back from that peer."""
    hosts = ",".join(f"10.30.0.{n}" if family == 4 else f"2001:db8:30::{n:x}" for n in range(1, 101))
    with Headers(internet.server, "to-laptop") as headers:
        r = internet.caller("ordinary").childflow(*internet.client("fan_out", hosts, ECHO))
        seen = headers.of(UDP, ECHO, at_least=100)
    assert r.json() == {"right": 100, "wrong": 0}
    assert len({header.to for header in seen}) == 100
    assert len({header.source_port for header in seen}) == 1


@pytest.mark.case("C05")
def test_an_answer_from_another_port_is_not_delivered(internet: Internet, family: int) -> None:
    """The far server answers such a text from a port that the command has not written to."""
    client = internet.client("wrong_port", "10.30.0.1" if family == 4 else "2001:db8:30::1", ECHO)
    direct, inside = (
        internet.caller("ordinary").direct(*client).json(),
        internet.caller("ordinary").childflow(*client, flags=["-v"]),
    )
    assert sorted(text for text, _ in direct) == ["plain", "wrong-port"]
    assert inside.json() == [["plain", ECHO]]
    assert "unknown_peer=1" in inside.stderr


@pytest.mark.case("C08")
def test_fragments_lost_between_command_and_engine(internet: Internet, family: int) -> None:
    """One fragment in fifty: the largest datagrams come whole or not at all, never twice, and small ones always do."""
    caller = internet.caller("ordinary")
    far = "10.30.0.1" if family == 4 else "2001:db8:30::1"
    with sleeping(caller, ("-v",)) as (_, net):
        sandbox = Host("sandbox", Place(net))
        cut = "ip frag-off & 0x1fff != 0" if family == 4 else "exthdr frag exists"
        sandbox.nft(
            "table netdev loss { chain leaving { type filter hook egress device tap0 priority 0;\n"
            f"{cut} numgen random mod 100 < 2 drop\n}}\n}}\n"
        )
        inside = replace(caller, place=Place(net, caller.place.mounts))
        said = inside.direct(
            *internet.client("datagrams", far, ECHO, "lossy", 65_507 if family == 4 else 65_527)
        ).json()
    assert said["small"] == said["sent"]
    assert said["broken"] == said["twice"] == 0
    assert 0 < said["large"] < said["sent"]
