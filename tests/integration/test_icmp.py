"""ping and traceroute as users type them."""

from __future__ import annotations

import re

import pytest

from tests.lab.enter import whereabouts
from tests.lab.hosts import CLOSED_PORT
from tests.lab.lab import Caller, Lab

GATEWAY = {4: "192.0.0.1", 6: "fd63:6869:6c64::1"}


@pytest.mark.case("C12")
def test_ping(lab: Lab, caller: Caller, family: int) -> None:
    r = caller.childflow("ping", f"-{family}", "-c3", "-i0.2", "-w10", lab.server_ip(family)).ok()
    assert "3 received, 0% packet loss" in r.stdout


@pytest.mark.case("C12")
@pytest.mark.parametrize("size", [0, 56, 1400, 4000, 65000])
def test_ping_of_every_size(lab: Lab, caller: Caller, family: int, size: int) -> None:
    r = caller.childflow("ping", f"-{family}", "-c1", "-w10", f"-s{size}", lab.server_ip(family)).ok()
    assert "1 received, 0% packet loss" in r.stdout


@pytest.mark.case("C12")
def test_pings_at_once_with_the_same_id(lab: Lab, caller: Caller) -> None:
    """One in each family (within one, the command's own kernel gives both programs' replies to one of them)."""
    ping = "ping -e 4321 -c5 -i0.02 -w10"
    script = (
        f"{ping} -4 -s 100 {lab.server_ip(4)} > one & {ping} -6 -s 2000 {lab.server_ip(6)} > two; wait; cat one two"
    )
    r = caller.childflow("/bin/sh", "-c", script, cwd=caller.folder("pings")).ok()
    assert r.stdout.count("5 packets transmitted, 5 received, 0% packet loss") == 2, r.told()
    assert (r.stdout.count("108 bytes from"), r.stdout.count("2008 bytes from")) == (5, 5)


def test_ping_of_the_gateway(lab: Lab, caller: Caller, family: int) -> None:
    caller.childflow("ping", f"-{family}", "-c1", "-w5", GATEWAY[family]).ok()


def test_ping_of_a_deaf_address_is_lost(lab: Lab, caller: Caller) -> None:
    r = caller.childflow("ping", "-c1", "-W1", "203.0.113.77")
    assert (r.status, "100% packet loss" in r.stdout) == (1, True)


@pytest.mark.case("C13")
def test_ping_where_the_host_lets_nobody_ping(lab: Lab, caller: Caller, family: int) -> None:
    """Root has raw sockets all the same; another user is told why."""
    if not whereabouts().real_root:
        pytest.skip("needs root: the range names ids that a user namespace does not map")
    lab.ping_group(everyone=False)
    r = caller.childflow("ping", f"-{family}", "-c3", "-i0.2", "-w5", lab.server_ip(family), flags=["-v"])
    if caller.user == "root":
        assert "3 received" in r.ok().stdout
    else:
        assert r.status == 1
        assert "bytes from" not in r.stdout
        assert r.stderr.count("ping is closed to this user") == 1
        assert "rohibited" in r.stdout + r.stderr or "filtered" in r.stdout + r.stderr


def hops(said: str) -> list[str]:
    return [match[1] for line in said.splitlines()[1:] if (match := re.match(r"\s*\d+\s+(\S+)", line))]


@pytest.mark.case("C14")
@pytest.mark.parametrize("method", ["udp", "icmp"])
def test_traceroute(routed_lab: Lab, routed_caller: Caller, family: int, method: str) -> None:
    """One probe at a time: with several, traceroute's own ping socket trips over the error that another one earned."""
    flags = ["-I"] if method == "icmp" else []
    target = routed_lab.server_ip(family)
    r = routed_caller.childflow("traceroute", f"-{family}", "-n", "-w3", "-q1", "-N1", "-m6", *flags, target).ok()
    assert routed_lab.router is not None
    assert hops(r.stdout) == [GATEWAY[family], routed_lab.router.addresses[family], target], r.told()


def test_drops_are_counted_under_names(lab: Lab, caller: Caller) -> None:
    r = caller.childflow(*lab.client("udp_error", lab.server_ip(4), CLOSED_PORT), flags=["-v"]).ok()
    assert re.search(r"^childflow: .*drop", r.stderr, re.MULTILINE | re.IGNORECASE), r.told()
