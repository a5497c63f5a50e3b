"""What the path does to packets and what the command's packets do to the path: MTU, DF, DSCP, hop limits, fragments."""

from __future__ import annotations

import itertools
import json

import pytest

from tests.lab.headers import ICMP, ICMP6, UDP, Headers
from tests.lab.hosts import CLOSED_PORT, FAMILIES
from tests.lab.internet import NARROW, Internet
from tests.lab.lab import Caller, Lab
from tests.lab.serve import ACTOR, ECHO

GATEWAY = {4: "192.0.0.1", 6: "fd63:6869:6c64::1"}
HEADERS = {4: 28, 6: 48}
_fresh = itertools.count(1)


def fresh_address(family: int) -> str:
    """An address that no kernel has a path MTU for."""
    number = next(_fresh)
    return f"10.7.{number >> 8}.{number & 255}" if family == 4 else f"2001:db8:777::{number:x}"


@pytest.fixture(scope="module")
def way_back(narrow_map: Internet) -> None:
    """The far end's echoes must not be too big themselves: a first one teaches it the way back."""
    for family in FAMILIES:
        probe = narrow_map.client("path_mtu", fresh_address(family), ECHO, "want", "1400,1400,1400")
        narrow_map.caller("root").direct(*probe).ok()


@pytest.mark.case("C08", "C10")
@pytest.mark.parametrize("mode", ["do", "want", "dont", "probe"])
def test_the_path_mtu_is_learned_as_outside(narrow_internet: Internet, way_back: None, family: int, mode: str) -> None:
    caller = narrow_internet.caller("ordinary")
    fits = NARROW - HEADERS[family]
    sizes = f"{fits},1400,1400,{fits + 1},{fits},4000,100"
    said = [
        run(*narrow_internet.client("path_mtu", fresh_address(family), ECHO, mode, sizes)).json()
        for run in (caller.direct, caller.childflow)
    ]
    assert said[0] == said[1]
    if mode in ("do", "want"):
        assert said[1][1] == [1400, "EMSGSIZE", NARROW]


@pytest.mark.case("C10")
def test_datagrams_of_df_leave_with_df_and_others_without(internet: Internet, family: int) -> None:
    address, caller = fresh_address(family), internet.caller("ordinary")
    with Headers(internet.server, "to-laptop") as headers:
        for mode in ("do", "dont"):
            sizes = "100,1400" if mode == "do" else "100,1400,4000"
            run = caller.childflow(*internet.client("path_mtu", address, ECHO, mode, sizes))
            assert [outcome for _, outcome, _ in run.json()] == ["echo"] * len(sizes.split(","))
        seen = [h for h in headers.of(UDP, at_least=7) if h.to == address]
    whole = [h for h in seen if not h.more and not h.offset]
    assert [(h.length - HEADERS[family], h.df) for h in whole] == [
        (100, True), (1400, True), (100, family == 6), (1400, family == 6),
    ]  # fmt: skip
    assert [h.df for h in seen if h.more or h.offset] == [False] * 3


@pytest.mark.case("C10", "C12")
def test_ping_learns_the_path_mtu(narrow_internet: Internet, way_back: None, user: str, family: int) -> None:
    caller = narrow_internet.caller(user)
    fits, address = NARROW - HEADERS[family], fresh_address(family)
    ping = ("ping", f"-{family}", "-c1", "-W2", "-M", "do", "-s")
    assert "1 received" in caller.childflow(*ping, str(fits), address).ok().stdout
    for _ in range(2):  # told by the router, then by the host, which knows it from then on
        r = caller.childflow(*ping, str(fits + 1), address)
        assert r.status == 1
        assert str(NARROW) in r.stdout + r.stderr, r.told()
    assert "1 received" in caller.childflow("ping", "-c1", "-W2", "-s", "4000", address).ok().stdout


@pytest.mark.case("C10")
def test_tcp_does_not_mind_what_datagrams_are_told(narrow_internet: Internet, way_back: None, family: int) -> None:
    address = fresh_address(family)
    probe = " ".join(narrow_internet.client("path_mtu", address, ECHO, "do", "1400,1400"))
    transfer = " ".join(narrow_internet.client("transfer", address, ACTOR, 8 << 20))
    r = narrow_internet.caller("ordinary").childflow("/bin/sh", "-c", f"{probe} >/dev/null && {transfer}")
    assert r.json() == {"up": True, "down": True, "ended": True}


@pytest.mark.case("C10")
def test_a_claim_below_the_least_mtu_lowers_nothing_below_it(internet: Internet, family: int) -> None:
    """Somebody on the path claims 600 (IPv4: 68). The command's kernel ends at the least MTU, and TCP at full speed."""
    address, caller, least = fresh_address(family), internet.caller("ordinary"), {4: 552, 6: 1280}[family]
    liar = internet.serve("tests.lab.claim_mtu", str(family), "600" if family == 6 else "68")
    try:
        probe = " ".join(internet.client("path_mtu", address, ECHO, "do", "1000,500,500", "0.5"))
        transfer = " ".join(internet.client("transfer", address, ACTOR, 8 << 20))
        r = caller.childflow("/bin/sh", "-c", f"{probe} && {transfer}")
        outcomes, transferred = r.ok().stdout.splitlines()
    finally:
        liar.kill()
    assert [mtu for _, _, mtu in json.loads(outcomes)] == [least] * 3
    assert transferred == '{"up": true, "down": true, "ended": true}'


@pytest.mark.case("C15")
def test_hop_limits_and_dscp_arrive_by_the_documented_rule(internet: Internet, family: int) -> None:
    """Every hop limit (64 stays the host's own 64, others one less) and every DSCP with every ECN."""
    address = fresh_address(family)
    hops = range(1, 256)
    toses = [dscp << 2 | dscp & 3 for dscp in range(64)] + [1, 2, 3]
    client = internet.client("marks", address, ECHO, ",".join(map(str, hops)), ",".join(map(str, toses)))
    with Headers(internet.server, "to-laptop") as headers:
        came = internet.caller("ordinary").childflow(*client).json()
        seen = {h.text.split("\0")[0]: h for h in headers.of(UDP, ECHO, at_least=254 + len(set(toses)))}
    assert sorted(came) == sorted(name for name in seen if name.startswith(("hop", "tos")))
    assert {name: h.hop_limit for name, h in seen.items() if name.startswith("hop")} == {
        f"hop {hop}": hop if hop == 64 else hop - 1 for hop in hops if hop > 1
    }
    assert {name: h.tos for name, h in seen.items() if name.startswith("tos")} == {f"tos {tos}": tos for tos in toses}
    assert {h.tos for name, h in seen.items() if name.startswith("hop")} == {0}


@pytest.mark.case("C15")
def test_ping_carries_its_dscp(internet: Internet, family: int) -> None:
    address = fresh_address(family)
    with Headers(internet.server, "to-laptop") as headers:
        internet.caller("ordinary").childflow("ping", "-c1", "-W2", "-Q", "0x48", address).ok()
        (echo,) = [h for h in headers.of(ICMP if family == 4 else ICMP6, at_least=1) if h.to == address]
    assert (echo.tos, echo.hop_limit) == (0x48, 64)


@pytest.mark.case("C14")
@pytest.mark.parametrize("open_port", [True, False], ids=["open", "closed"])
def test_tcp_traceroute(routed_lab: Lab, routed_caller: Caller, family: int, open_port: bool) -> None:
    """The router behind the gateway is named by its own address, as ICMP 11/0 (3/0)."""
    assert routed_lab.router is not None
    exceeded = [11, 0] if family == 4 else [3, 0]
    r = routed_caller.childflow(
        *routed_lab.client("tcp_trace", routed_lab.server_ip(family), ECHO if open_port else CLOSED_PORT)
    )
    assert r.json() == [
        [GATEWAY[family], *exceeded],
        [routed_lab.router.addresses[family], *exceeded],
        "connected" if open_port else "ECONNREFUSED",
    ]
