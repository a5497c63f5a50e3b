"""DNS at the gateway address: what glibc's resolver and dig see through childflow and without it."""

from __future__ import annotations

import pytest

from tests.lab.hosts import DEAF
from tests.lab.lab import Caller, Lab
from tests.lab.processes import CALLERS

NAMES = (
    ("a.lab.test", "A"),
    ("many.lab.test", "A"),
    ("aaaa.lab.test", "AAAA"),
    ("txt.lab.test", "TXT"),
    ("a.lab.test", "AAAA"),
    ("missing.lab.test", "A"),
    ("missing.lab.test", "TXT"),
)


def dig(caller: Caller, *question: str, under: bool) -> tuple[str, str]:
    """Status and sorted answers of `dig`; `under` childflow or alone."""
    run = caller.childflow if under else caller.direct
    said = run("dig", "+tries=1", "+nocookie", *question).ok().stdout
    status = said.split("status: ")[1].split(",")[0]
    return status, "\n".join(sorted(line for line in said.splitlines() if line and not line.startswith(";")))


@pytest.mark.parametrize(("name", "kind"), NAMES)
def test_the_same_answer_as_outside(lab: Lab, caller: Caller, name: str, kind: str) -> None:
    inside = dig(caller, name, kind, under=True)
    assert inside == dig(caller, name, kind, under=False)
    assert inside[0] == ("NXDOMAIN" if name.startswith("missing") else "NOERROR")


@pytest.mark.case("C27")
@pytest.mark.parametrize("resolver", [4, 6], ids=["ipv4", "ipv6"])
def test_the_hosts_resolver_of_either_family(lab: Lab, caller: Caller, resolver: int) -> None:
    lab.resolvers.use([lab.server_ip(resolver)])
    assert dig(caller, "a.lab.test", "A", under=True)[0] == "NOERROR"


@pytest.mark.case("C23")
def test_a_truncated_answer_is_truncated_and_complete_over_tcp(lab: Lab, caller: Caller) -> None:
    cut = caller.childflow("dig", "+ignore", "+tries=1", "big.lab.test", "TXT").ok().stdout
    assert " tc" in cut.split("flags:")[1].split(";")[0]
    whole = caller.childflow("dig", "+tries=1", "big.lab.test", "TXT").ok().stdout
    assert "(TCP)" in whole
    assert sum(line.startswith("big.lab.test.") for line in whole.splitlines()) == 24


def test_the_command_asks_the_gateway(lab: Lab, caller: Caller) -> None:
    assert "SERVER: 192.0.0.1#53" in caller.childflow("dig", "a.lab.test").ok().stdout


LOOKUPS = {
    ("a.lab.test", 4): (["198.51.100.1"], None),
    ("aaaa.lab.test", 6): (["2001:db8:64::1"], None),
    ("missing.lab.test", 4): ([], "EAI_NONAME"),
}


@pytest.mark.parametrize(("name", "version"), LOOKUPS)
def test_getaddrinfo(lab: Lab, caller: Caller, name: str, version: int) -> None:
    r = caller.childflow(*lab.client("resolve", name, version)).json()
    assert (r["addresses"], r["error"]) == LOOKUPS[name, version]


def test_getaddrinfo_of_both_families_at_once(lab: Lab, caller: Caller) -> None:
    r = caller.childflow(*lab.client("resolve", "both.lab.test")).json()
    assert r["addresses"] == ["198.51.100.1", "2001:db8:64::1"]


@pytest.mark.case("E10")
def test_a_dead_first_resolver_costs_no_more_than_outside(lab: Lab, caller: Caller, family: int) -> None:
    """glibc gives up on a resolver after 5 s."""
    lab.resolvers.use([DEAF[family], lab.server_ip(family)])
    r = caller.childflow(*lab.client("resolve", "a.lab.test", "4")).json()
    assert (r["addresses"], r["error"]) == (["198.51.100.1"], None)
    assert r["seconds"] < 6


@pytest.mark.case("E10")
def test_a_dead_only_resolver_is_an_error_in_time(lab: Lab) -> None:
    lab.resolvers.use([DEAF[4]])
    runs = [lab.caller(user).start(*lab.client("resolve", "a.lab.test", 4)) for user in CALLERS]
    for run in runs:
        r = run.wait().json()
        assert r["error"] == "EAI_AGAIN"
        assert r["seconds"] < 21


def test_queries_and_answers_are_in_the_flow_log(lab: Lab, caller: Caller) -> None:
    r = caller.childflow(*lab.client("resolve", "a.lab.test", "4"))
    (query,), (answer,) = r.events_of("dns_query"), r.events_of("dns_answer")
    assert (query["qname"], query["qtype"], query["server_ip"]) == ("a.lab.test", "A", lab.server_ip(4))
    assert (answer["mode"], answer["answer_ips"]) == ("relayed", ["198.51.100.1"])
