"""Verdicts on names: DNS queries, and destinations that a proxy or a later look-up resolves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from childflow.netstack.events import Denial
from childflow.policy.verdict import TCP, UDP, Action, Ask, judge, judge_name
from tests.policy.make import packed, rules

DENY = ("--default-policy", "deny")
PROXY = ("--proxy", "http://192.0.2.1:3128")
SOCKS = ("--proxy", "socks5h://192.0.2.1:1080")
RESOLVER = packed("203.0.113.53")


def query(name: str, *options: str, resolver: bytes | None = RESOLVER) -> str | None:
    """What a DNS query is denied for, or what allowed it (None: no rule)."""
    verdict = judge_name(name, None, rules(*options), resolver=resolver)
    return verdict.reason_code if verdict.action is Action.DENY else verdict.rule


def target(name: str, port: int, *options: str, protocol: int = TCP) -> str | None:
    verdict = judge_name(name, port, rules(*options), protocol=protocol)
    return verdict.reason_code if verdict.action is Action.DENY else verdict.rule


@pytest.mark.parametrize(
    ("name", "options", "found"),
    [
        ("a.example", (), None),
        ("a.example", ("--offline", "--allow-domain", "example"), "offline"),
        ("a.example", DENY, "default_deny"),
        ("a.example", (*DENY, "--allow-domain", "example"), "allow-domain=example"),
        ("A.Example.", (*DENY, "--allow-domain", "example"), "allow-domain=example"),
        ("a.example", (*DENY, "--allow-domain-exact", "a.example"), "allow-domain-exact=a.example"),
        ("x.a.example", (*DENY, "--allow-domain-exact", "a.example"), "default_deny"),
        ("a.example", (*DENY, "--allow-domain", "a.example:443"), "allow-domain=a.example:443"),
        ("a.example", ("--deny-domain", "a.example"), "deny_domain"),
        ("a.example", ("--deny-domain-exact", "a.example"), "deny_domain_exact"),
        ("a.example", ("--deny-domain", "a.example:443"), None),
        ("a.example", ("--deny-domain", "a.example", "--allow-domain", "a.example"), "deny_domain"),
        ("a.example", (*DENY, "--allow-domain", "a.example:443", "--deny-domain", "example:443"), "default_deny"),
        (
            "a.example",
            (*DENY, "--allow-domain", "a.example:80", "--allow-domain", "example:443", "--deny-domain", "example:443"),
            "allow-domain=a.example:80",
        ),
        (".", DENY, "default_deny"),
        (".", (*DENY, "--allow-domain", "example"), "default_deny"),
        (".", (), None),
        ("\\000.example", (*DENY, "--allow-domain", "example"), "allow-domain=example"),
        ("a\\046example", (*DENY, "--allow-domain", "example"), "default_deny"),
        ("203.0.113.9", (*DENY, "--allow-cidr", "203.0.113.9"), "default_deny"),
        ("localhost", (), None),
        ("a.example", (*DENY, "--allow-cidr", "203.0.113.0/24"), "allow-cidr=203.0.113.0/24"),
        ("a.example", (*DENY, "--allow-cidr", "203.0.113.0/24:53"), "allow-cidr=203.0.113.0/24:53"),
        ("a.example", (*DENY, "--allow-cidr", "203.0.113.0/24:443"), "default_deny"),
        ("a.example", (*DENY, "--allow-cidr", "tcp:203.0.113.0/24"), "default_deny"),
        ("a.example", (*DENY, "--allow-cidr", "203.0.113.0/24", "--allow-domain", "b.example"), "default_deny"),
        ("a.example", (*DENY, "--allow-cidr", "203.0.113.53", "--deny-domain", "b.example"), "allow-cidr=203.0.113.53"),
        ("b.example", (*DENY, "--allow-cidr", "203.0.113.0/24", "--deny-domain", "b.example"), "deny_domain"),
    ],
)  # fmt: skip
def test_query(name: str, options: tuple[str, ...], found: str | None) -> None:
    assert query(name, *options) == found


def test_query_whose_resolver_is_nobody_in_particular() -> None:
    assert query("a.example", *DENY, "--allow-cidr", "0.0.0.0/0", resolver=None) == "default_deny"


def test_query_over_a_proxy_is_judged_by_name_alone() -> None:
    assert query("a.example", *PROXY, "--proxy-only") is None


@pytest.mark.parametrize(
    ("name", "port", "options", "found"),
    [
        ("a.example", 443, PROXY, None),
        ("a.example", 443, (*PROXY, *DENY), "default_deny"),
        ("a.example", 443, (*PROXY, *DENY, "--allow-domain", "example:443"), "allow-domain=example:443"),
        ("a.example", 22, (*PROXY, *DENY, "--allow-domain", "example:443"), "default_deny"),
        ("a.example", 22, (*PROXY, "--deny-domain", "example:22"), "deny_domain"),
        ("a.example", 443, (*PROXY, "--offline", "--allow-domain", "example"), "offline"),
        ("a.example", 443, (*PROXY, *DENY, "--allow-cidr", "0.0.0.0/0"), "default_deny"),
        ("metadata.google.internal", 80, (*PROXY, "--block-metadata"), "metadata"),
        ("10.0.0.1", 80, (*PROXY, "--block-private"), "private"),
        ("167772161", 80, (*PROXY, "--block-private"), "private"),
        ("012.1", 80, (*PROXY, "--block-private"), "private"),
        ("[fd12::1]", 80, (*PROXY, "--block-private"), "private"),
        ("203.0.113.9", 80, (*PROXY, *DENY, "--allow-cidr", "203.0.113.0/24"), "allow-cidr=203.0.113.0/24"),
        ("203.0.113.9", 80, (*PROXY, *DENY, "--allow-domain", "example"), "default_deny"),
    ],
)
def test_target(name: str, port: int, options: tuple[str, ...], found: str | None) -> None:
    assert target(name, port, *options) == found


def test_a_name_that_is_resolved_here_may_lead_into_an_allowed_network() -> None:
    options = (*DENY, "--dns-mode", "virtual", "--allow-cidr", "203.0.113.0/24", "--deny-domain", "bad.example")
    assert target("a.example", 443, *options) is None
    assert target("bad.example", 443, *options) == "deny_domain"
    for address, found in (("203.0.113.9", Action.ALLOW), ("198.51.100.9", Action.DENY)):
        assert judge(Ask(TCP, packed(address), 443, ("a.example",)), rules=rules(*options)).action is found
    assert target("a.example", 443, *DENY, "--dns-mode", "virtual") == "default_deny"


@pytest.mark.case("D19")
@pytest.mark.parametrize(
    "name",
    ["127.0.0.1", "127.1", "0x7f000001", "[::1]", "::ffff:127.0.0.1", "0", "0.0.0.0", "localhost", "a.LocalHost."],
)
def test_the_proxys_own_loopback_is_nobodys_target(name: str) -> None:
    assert target(name, 22, *PROXY) == "martian"
    assert target(name, 22, *PROXY, *DENY, "--allow-cidr", "0.0.0.0/0", "--allow-domain", "localhost") == "martian"


def test_datagrams_to_a_name_need_a_proxy_that_carries_them() -> None:
    assert target("a.example", 443, *PROXY, protocol=UDP) == "proxy_only"
    assert target("a.example", 443, *SOCKS, protocol=UDP) is None
    assert target("203.0.113.9", 443, *PROXY, protocol=UDP) == "proxy_only"


def test_a_target_is_inspected_where_a_name_on_the_wire_can_be_denied() -> None:
    assert not judge_name("a.example", 443, rules(*PROXY), protocol=TCP).inspect
    assert judge_name("a.example", 443, rules("--deny-domain", "b.example"), protocol=TCP).inspect
    assert judge_name("a.example", 443, rules(*DENY, "--allow-domain", "example"), protocol=TCP).inspect
    assert not judge_name("a.example", None, rules(*DENY, "--allow-domain", "example")).inspect


def test_how_a_denied_target_ends_and_what_is_said() -> None:
    made = rules("--deny-domain", "example")
    tcp, udp = (judge_name("a.example", 443, made, protocol=protocol) for protocol in (TCP, UDP))
    assert (tcp.denial, udp.denial) == (Denial.RESET, Denial.PROHIBITED)
    assert (tcp.control, tcp.matched_domain) == ("deny-domain", "example")
    assert tcp.sentence == "a.example is denied by --deny-domain example"
    assert judge_name("a.example", None, rules(*DENY)).sentence == "no rule allows a.example (--default-policy deny)"


NAME = st.one_of(
    st.text(max_size=40),
    st.text("ab.:[]%x0123456789\\", max_size=20),
    st.sampled_from(["a.example", "metadata.google.internal", "localhost", "..", "[", "]", "[]"]),
)


@given(NAME, st.sampled_from([None, 0, 53, 443]), st.sampled_from([
    (), ("--offline",), (*PROXY, "--proxy-only"), ("--block-metadata", "--block-private"),
    (*DENY, "--allow-domain", "example"),
]))  # fmt: skip
def test_judge_name_never_raises(name: str, port: int | None, options: tuple[str, ...]) -> None:
    verdict = judge_name(name, port, rules(*options), resolver=RESOLVER, protocol=TCP)
    assert verdict.action is Action.ALLOW or verdict.sentence
    if "--offline" in options:
        assert verdict.reason_code == "offline"
