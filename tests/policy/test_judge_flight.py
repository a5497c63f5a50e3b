"""Verdicts on the name that a flow's first bytes bear."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from childflow.netstack.events import Denial
from childflow.policy.rules import Rules
from childflow.policy.verdict import TCP, UDP, Action, Ask, Verdict, judge, judge_flight, judge_name
from tests.policy.make import packed, rules

FAR = packed("198.51.100.7")
DENY = ("--default-policy", "deny")
GOOD = rules(
    *DENY, "--allow-domain", "good.example", "--allow-domain", "other.example", "--deny-domain", "bad.good.example"
)
BY_CIDR = rules(*DENY, "--allow-cidr", "198.51.100.0/24", "--deny-domain", "bad.example")
BY_DEFAULT = rules("--deny-domain", "bad.example", "--deny-domain-exact", "worse.example:443")


def flight(made: Rules, name: str | None, source: str = "sni", names: tuple[str, ...] = ("good.example",),
           protocol: int = TCP) -> Verdict:  # fmt: skip
    ask = Ask(protocol, FAR, 443, names)
    before = judge(ask, rules=made)
    assert (before.action, before.inspect) == (Action.ALLOW, True)
    return judge_flight(ask, before, name, source, made)


@pytest.mark.parametrize("source", ["sni", "host", "quic"])
@pytest.mark.parametrize(
    ("made", "name", "reason"),
    [
        (GOOD, "good.example", None),
        (GOOD, "GOOD.example.", None),
        (GOOD, "evil.example", "sni_mismatch"),
        (GOOD, "other.example", "sni_mismatch"),  # allowed, but it did not lead to this address
        (GOOD, "x.good.example", "sni_mismatch"),
        (GOOD, "bad.good.example", "deny_domain"),
        (GOOD, "198.51.100.7", "sni_mismatch"),
        (GOOD, "good.example\0", "sni_mismatch"),
        (GOOD, "", "sni_mismatch"),
        (GOOD, "gööd.example", "sni_mismatch"),
        (BY_CIDR, "evil.example", None),
        (BY_CIDR, "x.bad.example", "deny_domain"),
        (BY_DEFAULT, "evil.example", None),
        (BY_DEFAULT, "bad.example", "deny_domain"),
        (BY_DEFAULT, "worse.example", "deny_domain_exact"),
    ],
)
def test_name_on_the_wire(made: Rules, name: str, reason: str | None, source: str) -> None:
    protocol = UDP if source == "quic" else TCP
    verdict = flight(made, name, source, protocol=protocol)
    assert verdict.reason_code == reason
    assert verdict.evidence == source
    assert not verdict.inspect
    if reason is not None:
        assert verdict.denial is (Denial.RESET if protocol == TCP else Denial.PROHIBITED)
        assert verdict.control is not None


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_allowed_names_change_nothing_where_all_are_allowed(protocol: int) -> None:
    """Others of the same address are reached as without the rule."""
    ask = Ask(protocol, FAR, 443, ("good.example", "other.example"))
    assert not judge(ask, rules=rules("--allow-domain", "good.example")).inspect
    made = rules("--allow-domain", "good.example", "--deny-domain", "bad.example")
    source = "sni" if protocol == TCP else "quic"
    for name, reason in (("good.example", None), ("third.example", None), ("bad.example", "deny_domain")):
        assert flight(made, name, source, ask.names, protocol).reason_code == reason


@pytest.mark.parametrize("made", [GOOD, BY_CIDR, BY_DEFAULT])
def test_no_name_passes_on_what_is_known_already(made: Rules) -> None:
    for source in ("none", "sni", "host", "quic"):
        verdict = flight(made, None, source)
        assert (verdict.action, verdict.inspect) == (Action.ALLOW, False)
        assert verdict.evidence == ("dns" if made is GOOD else "address")


@pytest.mark.parametrize("made", [GOOD, BY_CIDR, BY_DEFAULT])
@pytest.mark.parametrize("name", [None, "good.example"])
def test_what_can_not_be_read_is_refused(made: Rules, name: str | None) -> None:
    assert flight(made, name, "unreadable").reason_code == "sni_mismatch"
    assert flight(made, name, "unreadable", protocol=UDP).reason_code == "quic_unreadable"


def test_a_name_that_a_rule_allows_at_another_port_only() -> None:
    made = rules(*DENY, "--allow-domain", "a.example:443", "--allow-domain", "b.example:80")
    assert flight(made, "b.example", names=("a.example", "b.example")).reason_code == "sni_mismatch"
    assert flight(made, "a.example", names=("a.example", "b.example")).reason_code is None


def test_the_rule_is_that_of_the_name_on_the_wire() -> None:
    verdict = flight(GOOD, "other.example", names=("good.example", "other.example"))
    assert (verdict.rule, verdict.matched_domain) == ("allow-domain=other.example", "other.example")


@pytest.mark.case("D07")
def test_block_metadata_holds_against_the_name_on_the_wire() -> None:
    made = rules("--block-metadata", "--deny-domain", "bad.example")
    assert flight(made, "metadata.google.internal", "host").reason_code == "metadata"


def test_a_denial_stays_one() -> None:
    ask = Ask(TCP, FAR, 443, ())
    before = judge(ask, rules=GOOD)
    assert before.reason_code == "default_deny"
    assert judge_flight(ask, before, "good.example", "sni", GOOD) is before


def test_a_virtual_name_agrees_with_itself_alone() -> None:
    ask = Ask(TCP, packed("198.18.0.5"), 443, ("good.example",))
    before = judge_name("good.example", 443, GOOD, protocol=TCP)
    assert before.evidence == "virtual"
    assert judge_flight(ask, before, "good.example", "sni", GOOD).action is Action.ALLOW
    assert judge_flight(ask, before, "other.example", "sni", GOOD).reason_code == "sni_mismatch"
    assert judge_flight(ask, before, None, "none", GOOD).evidence == "virtual"


def test_sentences() -> None:
    assert flight(GOOD, "evil.example").sentence == (
        "the TLS client hello asks for evil.example, but the address was reached by good.example"
    )
    assert flight(GOOD, "bad.good.example", "host").sentence == (
        "bad.good.example is denied by --deny-domain bad.good.example"
    )


@given(st.one_of(st.none(), st.text(max_size=30), st.just("good.example")),
       st.sampled_from(["sni", "host", "quic", "none", "more", "unreadable", ""]))  # fmt: skip
def test_nothing_but_the_name_that_led_here_passes(name: str | None, source: str) -> None:
    verdict = flight(GOOD, name, source)
    if verdict.action is Action.ALLOW and name is not None and source != "none":
        assert name.lower().removesuffix(".") == "good.example"
