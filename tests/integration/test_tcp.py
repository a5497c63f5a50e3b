"""TCP through childflow against the same program without it: bytes, numbers of connections, ends, errors, times."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import product

import pytest

from tests.lab.hosts import CLOSED_PORT, DROPPED_PORT, FAMILIES, FATES, UNROUTED
from tests.lab.lab import Caller, Lab
from tests.lab.processes import CALLERS
from tests.lab.serve import ACTOR, ECHO

GIB = 1 << 30


def test_a_gib_up_and_down_over_one_connection(lab: Lab, caller: Caller, family: int) -> None:
    r = caller.childflow(*lab.client("transfer", lab.server_ip(family), ACTOR, GIB), timeout=120)
    assert r.json() == {"up": True, "down": True, "ended": True}
    (end,) = r.events_of("flow_end")
    assert (end["bytes_up"], end["bytes_down"]) == (GIB + len(f"both-ways {GIB}\n"), GIB + 64)


def test_200_connections_at_once(lab: Lab, caller: Caller, family: int) -> None:
    r = caller.childflow(*lab.client("many", lab.server_ip(family), ECHO, "at-once", 200))
    assert r.json()["right"] == 200


def test_5000_connections_one_after_another(lab: Lab, caller: Caller, family: int) -> None:
    r = caller.childflow(*lab.client("many", lab.server_ip(family), ECHO, "one-by-one", 5000), timeout=120)
    assert r.json()["right"] == 5000


@pytest.mark.case("B01", "B02", "B04", "B05")
@pytest.mark.parametrize("order", ["child-first", "server-first", "reset-by-server", "break-off", "reset-by-child"])
def test_each_end_may_finish_first(lab: Lab, caller: Caller, family: int, order: str) -> None:
    r = caller.childflow(*lab.client("half_close", lab.server_ip(family), ACTOR, order))
    assert r.json()["right"], r.told()


REFUSED = [port for port in (*FATES, CLOSED_PORT) if port != DROPPED_PORT]


def test_a_refused_connect_gives_the_errno_and_time_of_outside(lab: Lab, caller: Caller, family: int) -> None:
    """A second is in order for ICMP errors: the kernel may heed the one to its second SYN only."""
    client = lab.client("connect", lab.server_ip(family), ",".join(map(str, REFUSED)))
    direct, inside = caller.direct(*client).json(), caller.childflow(*client).json()
    assert {port: outcome["error"] for port, outcome in inside.items()} == {
        port: outcome["error"] for port, outcome in direct.items()
    }
    assert all(outcome["seconds"] < 1.5 for outcome in inside.values()), inside


def test_a_destination_without_route_gives_the_errno_at_once(lab: Lab, caller: Caller, family: int) -> None:
    client = lab.client("connect", UNROUTED[family], 80)
    direct, inside = caller.direct(*client).json()["80"], caller.childflow(*client).json()["80"]
    assert inside["error"] == direct["error"] == "EHOSTUNREACH"
    assert inside["seconds"] < 0.5


def test_a_black_hole_takes_as_long_as_it_does_outside(lab: Lab) -> None:
    """Seven seconds each, so all callers and families wait together."""
    with ExitStack() as stack:
        pairs = []
        for user, family in product(CALLERS, FAMILIES):
            caller, client = lab.caller(user), lab.client("connect", lab.server_ip(family), DROPPED_PORT, 2)
            runs = (caller.start(*client, bare=True), caller.start(*client))
            pairs.append(tuple(stack.enter_context(run) for run in runs))
        for control, running in pairs:
            direct, inside = (run.wait().json()[str(DROPPED_PORT)] for run in (control, running))
            assert inside["error"] == direct["error"] == "ETIMEDOUT"
            assert abs(inside["seconds"] - direct["seconds"]) < 1
