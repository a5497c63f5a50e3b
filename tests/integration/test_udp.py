"""UDP through childflow: nothing lost at a modest pace, every size, refusals told."""

from __future__ import annotations

import pytest

from tests.lab.hosts import CLOSED_PORT, HOST_UNREACHABLE_PORT, PORT_UNREACHABLE_PORT, PROHIBITED_PORT
from tests.lab.lab import Caller, Lab
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
