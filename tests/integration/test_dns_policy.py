"""DNS under rules as a user meets it: what dig says, what the flow log says, and names that stand for themselves."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.lab.lab import Caller, Lab

DENY = ("--default-policy", "deny")
QUICK_PORT = 5300


@pytest.fixture
def asked(lab: Lab) -> Callable[[str], list[str]]:
    """How the server was asked for a name since the test began: `udp/53` or `tcp/53` for each time."""
    before = len(lab.witness())
    return lambda name: [line["service"] for line in lab.witness()[before:] if line.get("name") == f"{name}."]


@pytest.mark.case("D14", "D15")
@pytest.mark.parametrize("over", ["+notcp", "+tcp"])
@pytest.mark.parametrize("flags", [("--offline",), DENY, ("--deny-domain", "lab.test")], ids=lambda f: f[0].strip("-"))
def test_dig_is_told_that_a_name_is_blocked(
    lab: Lab, asked: Callable[[str], list[str]], flags: tuple[str, ...], over: str
) -> None:
    at = ["", f"@{lab.server_ip(4)}", f"@{lab.server_ip(6)}"]
    script = "; ".join(f"dig +tries=1 +timeout=3 {over} {server} TXT txt.lab.test" for server in at)
    r = lab.caller("ordinary").childflow("sh", "-c", script, flags=flags)
    assert r.ok().stdout.count("status: NOERROR") == 3, r.told()
    assert r.stdout.count("ANSWER: 0") == 3
    assert r.stdout.count("EDE: 15 (Blocked)") == 3
    assert asked("txt.lab.test") == []
    violations = r.events_of("policy_violation")
    assert [(one["protocol"], one["remote_port"]) for one in violations] == [("dns", 53)] * 3
    assert [one["mode"] for one in r.events_of("dns_answer")] == ["synthetic_empty"] * 3


@pytest.mark.case("D15")
@pytest.mark.parametrize("over", ["+notcp", "+tcp"])
def test_other_server_is_asked_and_answers_as_itself(
    lab: Lab, caller: Caller, family: int, asked: Callable[[str], list[str]], over: str
) -> None:
    lab.resolvers.use(["203.0.113.254"])  # nobody would answer there
    server = lab.server_ip(family)
    r = caller.childflow("dig", "+tries=1", "+timeout=3", over, f"@{server}", "TXT", "txt.lab.test", flags=["-q"])
    assert f"SERVER: {server}#53({server})" in r.ok().stdout, r.told()
    assert '"hello from"' in r.stdout
    assert asked("txt.lab.test") == ["tcp/53" if over == "+tcp" else "udp/53"]
    assert {line["server_ip"] for line in r.events_of("dns_query")} == {server}


@pytest.mark.case("D15")
def test_other_server_that_a_rule_closes_is_not_asked(lab: Lab, asked: Callable[[str], list[str]]) -> None:
    script = (
        f"dig +tries=1 @{lab.server_ip(6)} TXT txt.lab.test; dig +tries=1 +tcp @{lab.server_ip(6)} TXT txt.lab.test"
    )
    r = lab.caller("ordinary").childflow("sh", "-c", script, flags=["--deny-cidr", "[2001:db8::/32]"])
    assert r.ok().stdout.count("EDE: 15 (Blocked)") == 2, r.told()
    assert asked("txt.lab.test") == []
    assert {one["reason_code"] for one in r.events_of("policy_violation")} == {"deny_cidr"}


# -- Virtual names --------------------------------------------------------------------------------------------------

VIRTUAL = ("--dns-mode", "virtual")


def test_virtual_name_is_reached_by_its_name(lab: Lab, caller: Caller, asked: Callable[[str], list[str]]) -> None:
    script = "getent ahosts both.lab.test; curl -sS http://both.lab.test/hello http://both.lab.test/hello"
    r = caller.childflow("sh", "-c", script, flags=VIRTUAL)
    assert r.ok().stdout.count("hello from the lab\n") == 2, r.told()
    assert "198.18.0.1 " in r.stdout
    assert "fd63:6869:6c64:1::1 " in r.stdout
    assert asked("both.lab.test") == ["udp/53", "udp/53"]  # A and AAAA, when curl connected, and once
    assert {one["mode"] for one in r.events_of("dns_answer")} == {"virtual"}
    assert {tuple(one["names"]) for one in r.events_of("connect_attempt")} == {("both.lab.test",)}
    assert {one["evidence"] for one in r.events_of("connect_attempt")} == {"virtual"}


def test_search_list_works_with_virtual_names(lab: Lab, caller: Caller) -> None:
    lab.resolvers.use([lab.server_ip(4)], options="search elsewhere.test lab.test")
    r = caller.childflow("curl", "-sS", "http://a/hello", flags=VIRTUAL)
    assert r.ok().stdout == "hello from the lab\n", r.told()
    assert [one["names"] for one in r.events_of("connect_attempt")] == [["a.lab.test"]]
    assert caller.childflow("getent", "hosts", "missing", flags=VIRTUAL).status == 2


def test_virtual_name_that_is_not_there_is_an_error_at_the_connect(lab: Lab, caller: Caller) -> None:
    r = caller.childflow("curl", "-sS", "--max-time", "10", "http://missing.lab.test/hello", flags=VIRTUAL)
    assert r.status == 7, r.told()


@pytest.mark.case("D10", "D41")
@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "10.0.0.1"])
def test_virtual_name_does_not_lead_where_nobody_may_go(lab: Lab, address: str) -> None:
    lab.zone({"moved.test": {"A": address, "ttl": 0}})
    flags = (*VIRTUAL, "--block-private", "--block-metadata")
    r = lab.caller("ordinary").childflow("curl", "-sS", "--max-time", "10", "http://moved.test/", flags=flags)
    assert r.status == 7, r.told()
    assert len(r.events_of("policy_violation")) >= 1


# -- Load -----------------------------------------------------------------------------------------------------------


@pytest.mark.case("E10")
def test_names_that_get_no_answer_delay_no_others(lab: Lab) -> None:
    """One in ten is never answered: each stays open for 4.5 s. What waited behind one would take a second or more."""
    resolver = lab.serve("tests.lab.quick_resolver", str(QUICK_PORT))
    flags = (f"--dns={lab.server_ip(4)}:{QUICK_PORT}", *DENY, "--allow-domain=lab.test", "--deny-domain=evil.test")
    client = lab.client("dns_load", "192.0.0.1", 53, 400, 2, 10)
    r = lab.caller("ordinary").childflow(*client, flags=flags).json()
    resolver.kill()
    assert (r["sent"], r["answered"], r["failed"], r["lost"], r["wrong"]) == (800, 720, 80, 0, 0)
    assert r["p50_ms"] < 500
