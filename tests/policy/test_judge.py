"""Verdicts under rules: each control by protocol and family, allowed and denied, and the order among them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from childflow.netstack.events import Denial
from childflow.policy.rules import NO_RULES, Rules
from childflow.policy.verdict import ALLOWED, ICMP4, ICMP6, TCP, UDP, Action, Ask, Verdict, judge
from childflow.settings import ADDRESSES
from tests.policy.make import packed, rules

FAR = {4: "198.51.100.7", 6: "2001:4860::7"}  # ordinary ones
LAN = {4: "10.1.2.3", 6: "fd12::3"}
CLOUD = {4: "169.254.169.254", 6: "fd00:ec2::254"}
NET = {4: "198.51.100.0/24", 6: "2001:4860::/32"}
DENY = ("--default-policy", "deny")
PROXY = ("--proxy", "http://192.0.2.1:3128")
SOCKS = ("--proxy", "socks5://192.0.2.1:1080")

# Name, options, (address, names) that is denied and why, (address, names) that is allowed or None.
Case = tuple[
    tuple[str, ...], tuple[dict[int, str], tuple[str, ...]], str, tuple[dict[int, str], tuple[str, ...]] | None
]
CONTROLS: dict[str, Case] = {
    "offline": (("--offline",), (FAR, ()), "offline", None),
    "block-private": (("--block-private",), (LAN, ()), "private", (FAR, ())),
    "block-metadata": (("--block-metadata",), (CLOUD, ()), "metadata", (LAN, ())),
    "deny-cidr": (("--deny-cidr", NET[4], "--deny-cidr", NET[6]), (FAR, ()), "deny_cidr", (LAN, ())),
    "deny-domain": (
        ("--deny-domain", "bad.example"), (FAR, ("x.bad.example",)), "deny_domain", (FAR, ("notbad.example",)),
    ),
    "deny-domain-exact": (
        ("--deny-domain-exact", "bad.example"), (FAR, ("bad.example",)), "deny_domain_exact", (FAR, ("x.bad.example",)),
    ),
    "default-policy": (DENY, (FAR, ("any.example",)), "default_deny", None),
    "allow-cidr": ((*DENY, "--allow-cidr", NET[4], "--allow-cidr", NET[6]), (LAN, ()), "default_deny", (FAR, ())),
    "allow-domain": (
        (*DENY, "--allow-domain", "good.example"), (FAR, ("notgood.example",)), "default_deny",
        (FAR, ("x.good.example",)),
    ),
    "allow-domain-exact": (
        (*DENY, "--allow-domain-exact", "good.example"), (FAR, ("x.good.example",)), "default_deny",
        (FAR, ("good.example",)),
    ),
}  # fmt: skip


def ask(protocol: int, address: str, port: int = 443, names: tuple[str, ...] = ()) -> Ask:
    return Ask(protocol, packed(address), 0 if protocol in (ICMP4, ICMP6) else port, names)


def said(verdict: Verdict) -> str | None:
    assert (verdict.action is Action.DENY) == (verdict.reason_code is not None)
    return verdict.reason_code


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", ["tcp", "udp", "icmp"])
@pytest.mark.parametrize("control", CONTROLS)
def test_control(control: str, protocol: str, family: int) -> None:
    options, (where, names), reason, allowed = CONTROLS[control]
    number = {"tcp": TCP, "udp": UDP, "icmp": ICMP4 if family == 4 else ICMP6}[protocol]
    made = rules(*options)
    verdict = judge(ask(number, where[family], names=names), rules=made)
    assert said(verdict) == reason
    assert verdict.control == (control if reason != "default_deny" else "default-policy")
    assert verdict.denial is (Denial.RESET if protocol == "tcp" else Denial.PROHIBITED)
    assert verdict.sentence
    if allowed is not None:
        verdict = judge(ask(number, allowed[0][family], names=allowed[1]), rules=made)
        assert said(verdict) is None


@pytest.mark.parametrize("family", [4, 6])
def test_what_a_proxy_can_not_carry_is_refused(family: int) -> None:
    icmp = ICMP4 if family == 4 else ICMP6
    for options, udp in ((PROXY, "proxy_only"), (SOCKS, None)):
        for only in ((), ("--proxy-only",)):
            made = rules(*options, *only)
            assert said(judge(ask(TCP, FAR[family]), rules=made)) is None
            assert said(judge(ask(UDP, FAR[family]), rules=made)) == udp
            verdict = judge(ask(icmp, FAR[family]), rules=made)
            assert (said(verdict), verdict.control) == ("proxy_only", "proxy-only" if only else "proxy")


def test_proxy_only_without_a_proxy_lets_nothing_out() -> None:
    assert said(judge(ask(TCP, FAR[4]), rules=Rules(proxy_only=True))) == "proxy_only"


# ---- the order ----

LADDER = [
    (("--offline",), "offline"),
    ((*PROXY, "--proxy-only"), "proxy_only"),
    (("--block-metadata",), "metadata"),
    (("--block-private",), "private"),
    (("--deny-cidr", "169.254.0.0/16"), "deny_cidr"),
    (("--deny-domain-exact", "a.example"), "deny_domain_exact"),
    (("--deny-domain", "example"), "deny_domain"),
    (("--allow-cidr", "169.254.0.0/16"), None),
    (("--allow-domain", "example"), None),
    (DENY, "default_deny"),
]


@pytest.mark.case("D07")
def test_the_first_in_the_documented_order_decides() -> None:
    """Each control with all below it, for a flow that all of them match (UDP, so that the proxy matters)."""
    where = ask(UDP, CLOUD[4], names=("a.example",))
    for at, (_, reason) in enumerate(LADDER):
        verdict = judge(where, rules=rules(*(word for options, _ in LADDER[at:] for word in options)))
        assert said(verdict) == reason
        assert verdict.rule == {7: "allow-cidr=169.254.0.0/16", 8: "allow-domain=example"}.get(at)


@pytest.mark.case("D07")
def test_one_address_under_an_allowed_and_a_denied_name_is_denied() -> None:
    made = rules("--allow-domain", "good.example", "--deny-domain", "bad.example", *DENY)
    for names in (("good.example", "bad.example"), ("bad.example", "good.example")):
        assert said(judge(ask(TCP, FAR[4], names=names), rules=made)) == "deny_domain"


@pytest.mark.case("D07")
def test_default_deny_with_nothing_allowed_is_nothing() -> None:
    made = rules(*DENY)
    for protocol in (TCP, UDP, ICMP4):
        assert said(judge(ask(protocol, FAR[4], names=("a.example",)), rules=made)) == "default_deny"


def test_an_alias_on_the_way_is_denied_but_allows_nothing() -> None:
    made = rules(
        "--deny-domain", "cdn.example:22", "--allow-domain", "good.example", "--allow-domain", "alias.example", *DENY
    )
    where = Ask(TCP, packed(FAR[4]), 22, ("good.example",), ("x.cdn.example",))
    assert said(judge(where, rules=made)) == "deny_domain"
    assert said(judge(where._replace(port=443), rules=made)) is None
    only_alias = where._replace(port=443, names=("other.example",), aliases=("alias.example",))
    assert said(judge(only_alias, rules=made)) == "default_deny"


ADDRESS = st.one_of(
    st.binary(min_size=4, max_size=4),
    st.binary(min_size=16, max_size=16),
    st.sampled_from([*FAR.values(), *LAN.values(), *CLOUD.values(), "127.0.0.1", "::1", "64:ff9b::a00:1"]).map(packed),
)
NAME = st.sampled_from(["good.example", "x.good.example", "bad.example", "metadata", "", "."])
ASK = st.builds(
    Ask,
    st.sampled_from([TCP, UDP, ICMP4, ICMP6, 132, 0]),
    ADDRESS,
    st.sampled_from([0, 22, 53, 443, 65535]),
    st.lists(NAME, max_size=3).map(tuple),
    st.lists(NAME, max_size=2).map(tuple),
)
ALLOWING = (
    "--allow-cidr",
    "0.0.0.0/0",
    "--allow-cidr",
    "::/0",
    "--allow-domain",
    "example",
    "--allow-domain",
    "metadata",
)


@given(ASK)
def test_no_allow_rule_opens_offline(question: Ask) -> None:
    verdict = judge(question, rules=rules("--offline", *ALLOWING))
    assert verdict.action is not Action.ALLOW


@given(ASK)
def test_no_allow_rule_opens_proxy_only(question: Ask) -> None:
    verdict = judge(question, rules=rules("--proxy-only", *PROXY, *ALLOWING))
    assert verdict.action is not Action.ALLOW or question.protocol == TCP


DENYING = st.sampled_from([("--block-private",), ("--block-metadata",), ("--deny-cidr", "10.0.0.0/8"),
                           ("--deny-domain", "bad.example"), ("--deny-domain-exact", "good.example:22")])  # fmt: skip


@given(ASK, st.sets(DENYING))
def test_allow_rules_open_only_what_the_default_denies(question: Ask, denying: set[tuple[str, ...]]) -> None:
    """With all allow rules there are, a flow is denied exactly where it would be without any and a default of allow."""
    words = [word for options in sorted(denying) for word in options]
    open_all, plain = judge(question, rules=rules(*words, *DENY, *ALLOWING)), judge(question, rules=rules(*words))
    assert open_all.action is plain.action
    assert open_all.reason_code == plain.reason_code


@given(ASK)
def test_without_rules_it_is_as_before(question: Ask) -> None:
    assert judge(question) == judge(question, ADDRESSES, NO_RULES)


@given(ASK, st.lists(st.sampled_from([options for options, _ in LADDER]), unique=True, max_size=5))
def test_judge_never_raises_and_always_says_why(question: Ask, options: list[tuple[str, ...]]) -> None:
    verdict = judge(question, rules=rules(*(word for words in options for word in words)))
    if verdict.action is Action.DENY:
        assert verdict.sentence


# ---- ports and protocols ----


@pytest.mark.case("D43")
@pytest.mark.parametrize(
    ("rule", "allowed"),
    [
        ("198.51.100.0/24", {"tcp22", "tcp443", "udp22", "udp443", "icmp"}),
        ("198.51.100.0/24:443", {"tcp443", "udp443"}),
        ("tcp:198.51.100.0/24", {"tcp22", "tcp443"}),
        ("udp:198.51.100.0/24:443", {"udp443"}),
        ("icmp:198.51.100.0/24", {"icmp"}),
    ],
)
def test_cidr_rules_by_port_and_protocol(rule: str, allowed: set[str]) -> None:
    flows = {"tcp22": (TCP, 22), "tcp443": (TCP, 443), "udp22": (UDP, 22), "udp443": (UDP, 443), "icmp": (ICMP4, 0)}
    for option, default in (("--allow-cidr", "deny"), ("--deny-cidr", "allow")):
        made = rules(option, rule, "--default-policy", default)
        found = {name for name, (protocol, port) in flows.items()
                 if judge(ask(protocol, FAR[4], port), rules=made).action is Action.ALLOW}  # fmt: skip
        assert found == (allowed if option == "--allow-cidr" else flows.keys() - allowed)


@pytest.mark.case("D43")
def test_a_name_without_a_port_is_for_every_protocol_and_with_one_for_that_port() -> None:
    whole, ported = rules("--allow-domain", "a.example", *DENY), rules("--allow-domain", "a.example:443", *DENY)
    for protocol, port, with_port in (
        (TCP, 443, True), (UDP, 443, True), (TCP, 22, False), (TCP, 9999, False), (UDP, 22, False), (ICMP4, 0, False),
    ):  # fmt: skip
        where = ask(protocol, FAR[4], port, ("a.example",))
        assert judge(where, rules=whole).action is Action.ALLOW
        assert (judge(where, rules=ported).action is Action.ALLOW) is with_port


# ---- addresses in disguise, and the host's own ----

FORMS = ["::ffff:{}", "::ffff:0:{}", "64:ff9b::{}", "::{}"]


def disguised(address: str) -> list[bytes]:
    plain = packed(address)
    six_to_four = b"\x20\x02" + plain + bytes(10)
    local_nat64 = bytes.fromhex("0064ff9b0001") + plain[:2] + b"\0" + plain[2:] + bytes(5)
    return [*(packed(form.format(address)) for form in FORMS), six_to_four, local_nat64]


@pytest.mark.case("D01")
@pytest.mark.parametrize(
    ("options", "address", "reason"),
    [
        (("--block-private",), "10.0.0.1", "private"),
        (("--block-metadata",), "169.254.169.254", "metadata"),
        (("--deny-cidr", "198.51.100.0/24"), "198.51.100.7", "deny_cidr"),
        (("--allow-cidr", "203.0.113.0/24", *DENY), "198.51.100.7", "default_deny"),
        (("--offline",), "198.51.100.7", "offline"),
        ((*PROXY, "--proxy-only"), "198.51.100.7", "proxy_only"),
    ],
)
@pytest.mark.parametrize("protocol", [TCP, UDP, ICMP6])
def test_an_address_in_disguise_is_judged_as_what_it_reaches(
    options: tuple[str, ...], address: str, reason: str, protocol: int
) -> None:
    made = rules(*options)
    for form in [packed(address), *disguised(address)]:
        verdict = judge(Ask(protocol, form, 80), rules=made)
        expected = None if reason == "proxy_only" and protocol == TCP else reason
        assert said(verdict) == expected


def test_an_allowed_address_in_disguise_is_allowed() -> None:
    made = rules("--allow-cidr", "198.51.100.0/24", *DENY)
    assert all(judge(Ask(TCP, form, 80), rules=made).action is Action.ALLOW for form in disguised("198.51.100.7"))


@pytest.mark.case("D01")
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--block-private",), "private"),
        (("--deny-cidr", "10.0.0.0/8"), "deny_cidr"),
        (("--allow-cidr", "8.8.8.8", *DENY), "default_deny"),
    ],
)
@pytest.mark.parametrize(
    "text", ["64:ff9b:1:a00:0:100:808:808", "64:ff9b:1:a:0:1:808:808", "64:ff9b:1::a:0:100:0", "64:ff9b:1::10.0.0.1"]
)
def test_a_local_nat64_address_is_every_address_that_it_may_carry(
    options: tuple[str, ...], reason: str, text: str
) -> None:
    """10.0.0.1 behind prefixes of 48, 56, 64 and 96 bits; the first two could be taken for 8.8.8.8 behind one of 96."""
    assert said(judge(ask(TCP, text), rules=rules(*options))) == reason


@pytest.mark.case("D03")
def test_the_host_reached_by_itself_is_refused_by_default() -> None:
    for text in ("0.0.0.0", "0.1.2.3", "::", "127.1.2.3", "::1", "255.255.255.255"):
        assert (
            said(judge(ask(TCP, text), rules=rules("--allow-cidr", "0.0.0.0/0", "--allow-cidr", "::/0"))) == "martian"
        )


@pytest.mark.case("D03")
def test_the_hosts_own_addresses_are_private() -> None:
    own = ("198.51.100.5", "2001:4860::5", "172.17.0.1")
    made = rules("--block-private", host=own)
    for text in (*own, "::ffff:198.51.100.5"):
        for protocol in (TCP, UDP, ICMP4):
            assert said(judge(ask(protocol, text), rules=made)) == "private"
    assert said(judge(ask(TCP, "198.51.100.6"), rules=made)) is None
    assert said(judge(ask(TCP, "2001:4860::5"), rules=rules("--block-private"))) is None


# ---- what must be inspected ----


@pytest.mark.parametrize(
    ("options", "names", "inspected"),
    [
        ((), (), False),
        (("--allow-cidr", NET[4], *DENY), (), False),
        (("--allow-cidr", NET[4], "--deny-domain", "bad.example"), (), True),
        (("--allow-cidr", NET[4], "--allow-domain", "good.example", *DENY), (), False),
        (("--deny-domain", "bad.example"), (), True),
        (("--allow-domain", "good.example"), ("other.example",), False),
        (("--allow-domain", "good.example", *DENY), ("good.example",), True),
    ],
)
def test_flows_that_a_name_on_the_wire_can_still_deny_are_inspected(
    options: tuple[str, ...], names: tuple[str, ...], inspected: bool
) -> None:
    made = rules(*options)
    for protocol, port in ((TCP, 22), (TCP, 443), (UDP, 443)):
        verdict = judge(ask(protocol, FAR[4], port, names), rules=made)
        assert (verdict.action, verdict.inspect) == (Action.ALLOW, inspected)
    for protocol, port in ((UDP, 53), (ICMP4, 0)):
        assert not judge(ask(protocol, FAR[4], port, names), rules=made).inspect


def test_evidence_is_what_allowed_the_flow() -> None:
    made = rules("--allow-domain", "good.example", "--allow-cidr", "203.0.113.0/24", *DENY)
    assert judge(ask(TCP, FAR[4], names=("good.example",)), rules=made).evidence == "dns"
    assert judge(ask(TCP, "203.0.113.9", names=("good.example",)), rules=made).evidence == "address"
    assert ALLOWED.evidence == "address"


def test_sentences_say_what_and_which_rule() -> None:
    made = rules("--block-private", "--deny-cidr", "203.0.113.0/24:443", "--deny-domain", "bad.example:22", *DENY)
    sentences = {
        ask(TCP, LAN[4]): "10.1.2.3:443 is private, in 10.0.0.0/8 (--block-private)",
        ask(
            TCP, "64:ff9b::10.1.2.3"
        ): "[64:ff9b::a01:203]:443 (it reaches 10.1.2.3) is private, in 10.0.0.0/8 (--block-private)",
        ask(UDP, "203.0.113.9"): "203.0.113.9:443 is denied by --deny-cidr 203.0.113.0/24:443",
        ask(TCP, FAR[4], 22, ("x.bad.example",)): "x.bad.example is denied by --deny-domain bad.example:22",
        ask(TCP, FAR[4], names=("a.example",)): "no rule allows 198.51.100.7:443 (a.example) (--default-policy deny)",
        ask(ICMP4, FAR[4]): "no rule allows 198.51.100.7 (--default-policy deny)",
    }
    for question, sentence in sentences.items():
        assert judge(question, rules=made).sentence == sentence
    metadata = judge(ask(UDP, CLOUD[4], 80), rules=rules("--block-metadata"))
    assert metadata.sentence == "169.254.169.254:80 is a cloud's metadata service (--block-metadata)"
