"""childflow through real proxies: what they carry, what reaches the far side, and what happens when they don't.

The far hosts are the Internet's (`internet.py`): that nothing but the proxy was ever written to is the kernel's word.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.lab.hosts import CLOSED_PORT
from tests.lab.internet import Internet
from tests.lab.lab import Caller
from tests.lab.processes import Result
from tests.lab.proxies import PASSWORD, USER, Proxies, proxies_on
from tests.lab.serve import ACTOR, ECHO

MIB = 1 << 20
FAR = {4: "203.0.113.77", 6: "2001:db8:77::1"}
EACH = ("tinyproxy", "squid", "tls", "dante", "microsocks")
ONLY = ("--proxy-only",)


@pytest.fixture(scope="module")
def proxies(internet_map: Internet) -> Iterator[Proxies]:
    with proxies_on(internet_map.server) as started:
        yield started


@pytest.fixture
def ordinary(internet: Internet) -> Caller:
    return internet.caller("ordinary")


def through(proxies: Proxies, caller: Caller, name: str, *command: str, flags: tuple[str, ...] = ONLY) -> Result:
    """The command under childflow with that proxy; its authority is in the system's store."""
    env = {"SSL_CERT_FILE": proxies.authority}
    return caller.childflow(*command, flags=[*proxies.flags(name), *flags], env=env, timeout=60)


def nothing_but_the_proxy(internet: Internet, proxies: Proxies) -> bool:
    return {(protocol, address) for protocol, address, _ in internet.arrived()} == {("tcp", proxies.address)}


@pytest.mark.parametrize(("name", "user"), [*((name, "ordinary") for name in EACH), ("squid", "root")])
def test_addresses_and_names(internet: Internet, proxies: Proxies, name: str, user: str) -> None:
    """No DNS leaves, and no connection but the proxy's."""
    caller = internet.caller(user)
    urls = [f"http://{FAR[4]}/hello", f"http://[{FAR[6]}]/hello", "http://a.lab.test/hello"]
    r = through(proxies, caller, name, "curl", "-sS", "-g", *urls).ok()
    assert r.stdout == "hello from the lab\n" * 3
    assert nothing_but_the_proxy(internet, proxies)
    assert [event["via_proxy"] for event in r.events_of("connect_attempt")] == [True] * 3
    assert PASSWORD not in r.stderr + str(r.events)


@pytest.mark.parametrize(
    ("name", "size"), [("squid", 100), ("tls", 100), ("dante", 100), ("tinyproxy", 10), ("microsocks", 10)]
)
def test_100_mib_up_and_down(internet: Internet, proxies: Proxies, ordinary: Caller, name: str, size: int) -> None:
    """With equal digests. The last two copy some 20 MB/s."""
    client = internet.client("there_and_back", FAR[4], ACTOR, size * MIB)
    assert through(proxies, ordinary, name, *client).json()["right"]


def test_each_way_ends_alone(internet: Internet, proxies: Proxies, ordinary: Caller) -> None:
    """With a proxy that can do that."""
    client = internet.client("transfer", FAR[4], ACTOR, 10 * MIB)
    assert through(proxies, ordinary, "dante", *client).json() == {"up": True, "down": True, "ended": True}


@pytest.mark.parametrize("name", ["tls", "dante"])
def test_200_connections_at_once(internet: Internet, proxies: Proxies, ordinary: Caller, name: str) -> None:
    r = through(proxies, ordinary, name, *internet.client("many", FAR[4], ECHO, "at-once", 200))
    assert r.json()["right"] == 200


def test_a_server_that_speaks_first(internet: Internet, proxies: Proxies, ordinary: Caller) -> None:
    for name in ("tls", "microsocks"):
        r = through(proxies, ordinary, name, *internet.client("banner", FAR[4], 25, 1))
        assert r.json()["line"] == "220 lab.test ready\r\n"


# What is refused.


@pytest.mark.parametrize(("name", "error"), [("dante", "ECONNREFUSED"), ("squid", "ECONNREFUSED")])
def test_a_closed_port_behind_the_proxy(
    internet: Internet, proxies: Proxies, ordinary: Caller, name: str, error: str
) -> None:
    r = through(proxies, ordinary, name, *internet.client("connect", FAR[4], CLOSED_PORT))
    assert r.json()[str(CLOSED_PORT)]["error"] == error
    assert "childflow: --proxy" not in r.stderr  # it is not the proxy's fault
    (result,) = r.events_of("connect_result")
    assert (result["status"], result["via_proxy"]) == ("error", True)
    assert "proxy answered" in result["error"]


@pytest.mark.case("D22")
@pytest.mark.parametrize("name", ["squid", "tls", "microsocks"])
def test_a_wrong_password(internet: Internet, proxies: Proxies, ordinary: Caller, name: str) -> None:
    wrong = "wr0ng-s3cret"
    flags = [*proxies.flags(name, password=wrong), "--proxy-only", "-v"]
    r = ordinary.childflow(
        *internet.client("connect", FAR[4], "80,81"), flags=flags, env={"SSL_CERT_FILE": proxies.authority}
    )
    assert {outcome["error"] for outcome in r.json().values()} == {"ECONNREFUSED"}
    assert r.stderr.count("childflow: --proxy") == 1
    assert wrong not in r.stderr + str(r.events)
    assert nothing_but_the_proxy(internet, proxies)


@pytest.mark.parametrize(
    ("name", "host", "insecure", "good"),
    [
        ("tls", "", False, True),
        ("tls", "a.lab.test", False, False),  # a certificate for another name
        ("tls", "a.lab.test", True, False),
        ("foreign", "", False, False),  # by an authority that nobody knows
        ("foreign", "", True, True),
    ],
)
def test_who_is_trusted(
    internet: Internet, proxies: Proxies, ordinary: Caller, name: str, host: str, insecure: bool, good: bool
) -> None:
    flags = [*proxies.flags(name, host), "--proxy-only", *(["--proxy-insecure"] if insecure else [])]
    env = {"SSL_CERT_FILE": proxies.authority}
    r = ordinary.childflow("curl", "-sS", f"http://{FAR[4]}/hello", flags=flags, env=env)
    assert (r.stdout == "hello from the lab\n") is good
    assert r.stderr.count("certificate is not accepted") == (0 if good else 1)
    assert ("tcp", FAR[4], 80) not in internet.arrived()


# Proxies that fail.


@pytest.mark.case("E11")
@pytest.mark.parametrize(("name", "program"), [("tinyproxy", "tinyproxy"), ("tls", "squid")])
def test_a_proxy_that_dies_and_comes_back(
    internet: Internet, proxies: Proxies, ordinary: Caller, name: str, program: str
) -> None:
    """The command's connections break, new ones are refused, none goes another way; later all is well again."""
    gate = ordinary.folder("gate")
    flags = [*proxies.flags(name), "--proxy-only"]
    env = {"GATE": str(gate), "SSL_CERT_FILE": proxies.authority}
    with ordinary.start(*internet.client("proxy_dies", FAR[4], ECHO), flags=flags, env=env) as running:
        running.says("connected")
        proxies.stop(program)
        try:
            running.says("lost E")
            running.says("then ECONNREFUSED")
        finally:
            proxies.start(program)
        (gate / "0").touch()
        running.says("again echo")
        r = running.wait(20).ok()
    assert "lost ECONNRESET" in r.stdout or name == "tinyproxy"  # a plain end may come first, and then EPIPE
    assert r.stderr.count("can't be reached") == 1
    assert nothing_but_the_proxy(internet, proxies)


@pytest.mark.case("E11")
def test_a_proxy_that_says_nothing_does_not_delay_the_end(internet: Internet, ordinary: Caller) -> None:
    """The actor waits for a line, and SOCKS has none."""
    flags = ["--proxy", f"socks5://{internet.server_ip(4)}:{ACTOR}", "--proxy-only"]
    began = time.monotonic()
    r = ordinary.childflow("curl", "-sS", "-m", "1", f"http://{FAR[4]}/hello", flags=flags)
    assert r.status == 28
    assert time.monotonic() - began < 4


@pytest.mark.soak
@pytest.mark.case("E11")
def test_a_proxy_that_says_nothing(internet: Internet, ordinary: Caller) -> None:
    flags = ["--proxy", f"socks5://{internet.server_ip(4)}:{ACTOR}", "--proxy-only"]
    r = ordinary.childflow(*internet.client("connect", FAR[4], "80,81"), flags=flags)
    for outcome in r.json().values():
        assert outcome["error"] == "ECONNREFUSED"
        assert 19 < outcome["seconds"] < 25
    assert r.stderr.count("does not answer") == 1


# The proxy as a destination.


@pytest.mark.case("D19")
def test_the_proxy_itself_is_a_destination_like_any(internet: Internet, proxies: Proxies, ordinary: Caller) -> None:
    """What the command says to the proxy goes through the proxy: no loop, and the rules hold for it."""
    login = f"{USER}:{PASSWORD}"
    nested = ("curl", "-sS", "--proxy", proxies.uri("squid"), "--proxy-user", login, f"http://{FAR[4]}/hello")
    assert through(proxies, ordinary, "squid", *nested).ok().stdout == "hello from the lab\n"
    assert nothing_but_the_proxy(internet, proxies)
    r = through(proxies, ordinary, "squid", *nested, flags=(*ONLY, "--deny-cidr", proxies.address))
    assert r.status != 0
    assert r.events_of("policy_violation")[0]["reason_code"] == "deny_cidr"


@pytest.mark.case("D19")
def test_the_final_target_is_judged(internet: Internet, proxies: Proxies, ordinary: Caller) -> None:
    for flags, host in (
        (("--block-private",), "10.1.2.3"),
        (("--deny-cidr", FAR[4]), FAR[4]),
        (("--deny-domain", "lab.test"), "a.lab.test"),
    ):
        r = through(proxies, ordinary, "dante", "curl", "-sS", "-m", "5", f"http://{host}/hello", flags=(*ONLY, *flags))
        assert r.stdout == "", r.told()


# UDP.


@pytest.mark.parametrize("host", [FAR[4], "a.lab.test"])
def test_udp_through_dante(internet: Internet, proxies: Proxies, ordinary: Caller, host: str) -> None:
    r = through(proxies, ordinary, "dante", *internet.client("datagrams", host, ECHO, "count", 300))
    assert r.json() == {"sent": 300, "right": 300, "missing": []}
    assert {address for _, address, _ in internet.arrived()} == {proxies.address}


@pytest.mark.parametrize("name", ["squid", "microsocks"])
def test_udp_is_refused_where_the_proxy_has_none(
    internet: Internet, proxies: Proxies, ordinary: Caller, name: str
) -> None:
    r = through(proxies, ordinary, name, *internet.client("udp_error", FAR[4], ECHO))
    assert r.json()["all"] == "EHOSTUNREACH"  # what ICMP's "administratively prohibited" is
    assert {protocol for protocol, _, _ in internet.arrived()} <= {"tcp"}
