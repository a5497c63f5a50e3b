"""The host's resolvers in all their moods, and unusual clients of the gateway's port 53.

`internet` answers DNS at every address; which addresses do not is said in each test."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator

import pytest

from tests.lab.enter import PROJECT
from tests.lab.hosts import FAMILIES, SYSTEM_PATH
from tests.lab.internet import Internet
from tests.lab.lab import Caller, Lab
from tests.lab.processes import environment, own_directory, start
from tests.lab.steps import Steps

GATEWAY = {4: "192.0.0.1", 6: "fd63:6869:6c64::1"}
FIRST, SECOND, THIRD = "10.53.0.1", "10.53.0.2", "10.53.0.3"


@pytest.fixture
def caller(internet: Internet) -> Caller:
    return internet.caller("ordinary")


def dig(caller: Caller, *question: str, under: bool = True) -> str:
    run = caller.childflow if under else caller.direct
    return run("dig", "+nocookie", "+tries=1", "+time=6", *question).ok().stdout


def answer_of(said: str) -> tuple[str, str, list[str]]:
    """Status, flags and records, without what differs from one time to the next."""
    status = said.split("status: ")[1].split(",", maxsplit=1)[0]
    flags = said.split("flags: ")[1].split("\n", maxsplit=1)[0]
    return status, flags, sorted(line for line in said.splitlines() if line and not line.startswith(";"))


# --- E10: what resolvers do


DIG = ("dig", "+nocookie", "+tries=1", "+time=6")
SLOW = {  # flags of childflow, what to ask
    "dead": (("--dns", FIRST), (*DIG, "a.lab.test")),
    "dead, TCP": (("--dns", FIRST), (*DIG, "+tcp", "a.lab.test")),
    "late": (("--dns", THIRD), (*DIG, "late.lab.test")),
    "wrong port": (("--dns", THIRD), (*DIG, "wrong-port.lab.test")),
    "first two dead": ((), (*DIG, "a.lab.test")),
    "first two dead, TCP": ((), (*DIG, "+tcp", "a.lab.test")),
}


@pytest.fixture(scope="module")
def slow(internet_map: Internet) -> dict[str, str]:
    """What dig says where somebody must be waited for, all at once."""
    internet_map.restore()
    internet_map.resolvers.use([FIRST, SECOND, THIRD])
    for address in (FIRST, SECOND):
        internet_map.treat(f"ip daddr {address}", "drop")
    caller = internet_map.caller("ordinary")
    runs = {name: caller.start(*command, flags=flags) for name, (flags, command) in SLOW.items()}
    order = internet_map.client("dns_stream", GATEWAY[4], "order")
    runs["order"] = caller.start(*order, flags=("--dns", THIRD))
    said = {name: run.wait().ok().stdout for name, run in runs.items()}
    internet_map.restore()
    return said


def milliseconds(said: str) -> int:
    return int(said.split("Query time: ")[1].split(maxsplit=1)[0])


@pytest.mark.case("E10")
@pytest.mark.parametrize("name", ["dead", "dead, TCP", "wrong port"])
def test_a_resolver_that_does_not_answer_is_servfail_in_time(slow: dict[str, str], name: str) -> None:
    """An answer from another port is none."""
    assert "status: SERVFAIL" in slow[name]
    assert milliseconds(slow[name]) < 5000


@pytest.mark.case("E10")
@pytest.mark.parametrize("name", ["first two dead", "first two dead, TCP"])
def test_the_third_resolver_answers_when_two_are_dead(slow: dict[str, str], name: str) -> None:
    assert "198.51.100.1" in slow[name]
    assert milliseconds(slow[name]) < 5000


@pytest.mark.case("E10")
def test_a_slow_answer_is_an_answer(slow: dict[str, str]) -> None:
    """After 4 s, which is before the command's own resolver gives up."""
    assert "198.51.100.4" in slow["late"]


@pytest.mark.case("E10")
@pytest.mark.parametrize("verb", ["port-unreachable", "reset"])
def test_refusing_resolvers_cost_no_time(internet: Internet, caller: Caller, verb: str) -> None:
    internet.resolvers.use([FIRST, SECOND, THIRD])
    transport = "+notcp" if verb == "port-unreachable" else "+tcp"
    for address in (FIRST, SECOND):
        internet.treat(f"ip daddr {address}", verb)
    said = dig(caller, transport, "a.lab.test")
    assert "198.51.100.1" in said
    assert milliseconds(said) < 500
    internet.treat(f"ip daddr {THIRD}", verb)
    said = dig(caller, transport, "a.lab.test")
    assert "status: SERVFAIL" in said
    assert milliseconds(said) < 500


@pytest.mark.case("E10")
def test_a_resolver_that_comes_and_goes(internet: Internet, caller: Caller) -> None:
    """Nothing is remembered of the time in which it was dead."""
    internet.resolvers.use([FIRST])
    ask = "dig +tries=1 +time=6 +short a.lab.test"
    with Steps(caller, f"{ask}; echo first; step; {ask}; echo second; step; {ask}; echo third") as steps:
        steps.says("198.51.100.1\nfirst")
        internet.treat(f"ip daddr {FIRST}", "drop")
        steps.go()
        steps.says("second", 6)
        assert steps.running.so_far()[0].count("198.51.100.1") == 1
        internet.restore()
        internet.resolvers.use([FIRST])
        steps.go()
        steps.says("198.51.100.1\nthird", 1.5)


@pytest.mark.case("E10", "C27")
def test_resolv_conf_may_change_under_way(internet: Internet, caller: Caller) -> None:
    internet.resolvers.use([FIRST])
    ask = "dig +tries=1 +time=6 +short a.lab.test"
    with Steps(caller, f"{ask}; echo first; step; {ask}; echo second") as steps:
        steps.says("198.51.100.1\nfirst", 6)
        internet.treat(f"ip daddr {FIRST}", "drop")
        internet.resolvers.use([SECOND])
        time.sleep(1)  # as often as the file is looked at
        steps.go()
        steps.says("198.51.100.1\nfirst\n198.51.100.1\nsecond", 2)
    assert ("udp", SECOND, 53) in internet.arrived()


@pytest.mark.soak
@pytest.mark.case("E10")
def test_ten_thousand_queries_and_a_dead_resolver(internet: Internet, caller: Caller) -> None:
    """Each is answered SERVFAIL or counted (a burst may be more than is taken in at once); another flow is well."""
    internet.resolvers.use([FIRST])
    internet.treat(f"ip daddr {FIRST}", "drop")
    client = internet.client("dns_flood", GATEWAY[4], 10_000, "10.7.7.7")
    r = caller.childflow(*client, flags=["-v"])
    said, lost = r.json(), re.search(r"slow_path_full=(\d+)", r.stderr)
    assert said["rcodes"] == [2]
    assert said["answers"] + int(lost[1] if lost else 0) == 10_000
    assert said["slowest"] < 0.1


# --- C23: what comes back untouched


@pytest.mark.case("C23")
@pytest.mark.parametrize(
    "question",
    [
        ("+bufsize=4096", "wide.lab.test", "TXT"),
        ("+bufsize=512", "+ignore", "wide.lab.test", "TXT"),
        ("+noedns", "big.lab.test", "TXT"),
        ("+tcp", "big.lab.test", "TXT"),
        ("strange.lab.test", "TYPE65280"),
        ("web.lab.test", "HTTPS"),
        ("web.lab.test", "TYPE64"),
        ("+dnssec", "signed.lab.test", "A"),
        ("+dnssec", "+cdflag", "signed.lab.test", "RRSIG"),
        ("+adflag", "+norecurse", "signed.lab.test", "A"),
    ],
    ids=" ".join,
)
def test_answers_are_those_of_outside(internet: Internet, caller: Caller, question: tuple[str, ...]) -> None:
    inside, outside = (dig(caller, *question, under=under) for under in (True, False))
    assert answer_of(inside) == answer_of(outside)
    assert ("(TCP)" in inside) == ("(TCP)" in outside)
    assert "MSG SIZE" in inside
    assert inside.split("MSG SIZE")[1] == outside.split("MSG SIZE")[1]


# --- C24, C26: unusual clients


@pytest.mark.case("C24", "C26")
@pytest.mark.parametrize(
    ("mode", "wanted"),
    [
        ("split", [0, 0]),
        ("close", [0, "end"]),
        ("zero", "end"),
        ("large", 0),
        ("junk", [1, 0]),
    ],
)
def test_dns_over_tcp_as_seldom_spoken(internet: Internet, caller: Caller, mode: str, wanted: object) -> None:
    """A message of no bytes ends the connection."""
    assert caller.childflow(*internet.client("dns_stream", GATEWAY[4], mode)).json() == wanted


@pytest.mark.case("C24")
def test_a_late_answer_holds_up_no_other(slow: dict[str, str]) -> None:
    names = json.loads(slow["order"])
    assert sorted(names[:2]) == ["a.lab.test.", "many.lab.test."]
    assert names[2] == "late.lab.test."


@pytest.mark.case("C24")
@pytest.mark.parametrize("number", [63, 200])
def test_idle_dns_connections_make_room(internet: Internet, caller: Caller, number: int) -> None:
    """64 at most; who came first and says nothing is closed first, and the newest is served."""
    r = caller.childflow(*internet.client("dns_stream", GATEWAY[4], "idle", number)).json()
    assert r["rcode"] == 0
    assert r["open"] == 63


@pytest.mark.case("C26")
@pytest.mark.parametrize("version", FAMILIES)
def test_what_is_no_query_goes_nowhere(internet: Internet, caller: Caller, version: int) -> None:
    """FORMERR where there is an id to answer; silence else. Other ports of the gateway are closed."""
    said = caller.childflow(*internet.client("dns_stream", GATEWAY[version], "datagrams")).json()
    assert said == [None, None, 1, 1, 1, 1]
    said = caller.childflow(*internet.client("dns_stream", GATEWAY[version], "elsewhere")).json()
    assert said == ["ECONNREFUSED"] * 4
    assert internet.arrived() == set()


# --- C27: /etc/resolv.conf


@pytest.fixture
def stub(internet: Internet) -> Iterator[None]:
    """A resolver on the laptop's own loopback, as systemd-resolved is."""
    folder = own_directory("laptop-server", "root")
    argv = [sys.executable, "-m", "tests.lab.serve", str(folder)]
    running = start(argv, internet.laptop.place, "root", cwd=PROJECT, env=environment("root", SYSTEM_PATH))
    running.says("ready")
    yield
    running.kill()


SHAPES = {
    "two families": "nameserver 2001:db8:64::1\nnameserver 198.51.100.1\n",
    "a stub only": "# by systemd-resolved\nnameserver 127.0.0.53\noptions edns0 trust-ad\nsearch .\n",
    "nobody": "search lab.test\n",
    "empty": "",
    "options": "options timeout:30 attempts:9 rotate ndots:0 no-such-option\nnameserver 198.51.100.1\n",
    "nonsense before": "nameserver not.an.address\nnameserver\n\0\xff\nnameserver 198.51.100.1 trailing\n",
    "no end of line": "nameserver 198.51.100.1",
}


@pytest.mark.case("C27")
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_resolv_conf_gives_a_resolver(
    internet: Internet, caller: Caller, stub: None, shape: str
) -> None:
    internet.resolvers.path.write_text(SHAPES[shape], encoding="latin-1")
    assert "198.51.100.1" in dig(caller, "a.lab.test")


@pytest.mark.case("C27")
def test_a_resolver_with_a_scope(lab: Lab) -> None:
    """fe80::…%interface, as routers announce it."""
    link_local = next(
        word.split("/")[0] for word in lab.server.run("ip", "-6", "-brief", "addr", "show", "scope", "link").split()
        if word.startswith("fe80")
    )  # fmt: skip
    lab.resolvers.use([f"{link_local}%to-server"])
    assert "198.51.100.1" in dig(lab.caller("ordinary"), "a.lab.test")
