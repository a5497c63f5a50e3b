"""What `judge` says of addresses in every notation."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from childflow.netstack.events import Denial
from childflow.policy.verdict import ALLOWED, ICMP4, ICMP6, TCP, UDP, Action, Ask, judge, reached


def packed(text: str) -> bytes:
    return ip_address(text).packed


MARTIANS = [
    "127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "224.0.0.251", "239.255.255.250", "255.255.255.255",
    "::", "::1", "ff02::1", "fe80::1", "febf::1", "::ffff:127.0.0.1", "::ffff:0.0.0.0", "::127.0.0.1",
    "::ffff:0:127.0.0.1", "2002:7f00:1::", "2002:7f00:0001:1234::5", "64:ff9b::127.0.0.1", "64:ff9b:1::7f00:1",
    "64:ff9b:1:7f00:0:100::", "64:ff9b::e000:1", "::ffff:255.255.255.255",
]  # fmt: skip
ORDINARY = [
    "198.51.100.7", "10.0.0.1", "169.254.169.254", "192.168.1.1", "100.64.0.1", "240.0.0.1", "192.0.0.170",
    "2001:db8::7", "fd00:ec2::254", "fec0::1", "fc00::1", "::ffff:198.51.100.7", "2002:c633:6407::1",
    "64:ff9b::c633:6407", "64:ff9b:1:c633:64:700::",
]  # fmt: skip


@pytest.mark.parametrize("text", MARTIANS)
def test_martian_is_denied(text: str) -> None:
    verdict = judge(Ask(TCP, packed(text), 80))
    assert (verdict.action, verdict.reason_code, verdict.control) == (Action.DENY, "martian", None)
    assert verdict.sentence.endswith("never leave")


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_is_allowed(text: str) -> None:
    assert all(judge(Ask(protocol, packed(text), 80)) is ALLOWED for protocol in (TCP, UDP))


def test_martian_sentence_says_what_a_disguise_reaches() -> None:
    assert judge(Ask(TCP, packed("64:ff9b::127.0.0.1"), 80)).sentence == (
        "64:ff9b::7f00:1 (it reaches 127.0.0.1) is a loopback address; those never leave"
    )


@pytest.mark.parametrize(
    ("protocol", "how"), [(TCP, Denial.RESET), (UDP, Denial.PROHIBITED), (ICMP4, Denial.PROHIBITED)]
)
def test_martian_denial_by_protocol(protocol: int, how: Denial) -> None:
    assert judge(Ask(protocol, packed("127.0.0.1"), 0)).denial is how


@pytest.mark.parametrize("text", ["224.0.0.251", "255.255.255.255", "ff02::fb"])
def test_multicast_and_broadcast_get_no_error(text: str) -> None:
    assert judge(Ask(UDP, packed(text), 5353)).denial is Denial.SILENT


GATEWAYS = ["192.0.0.1", "fd63:6869:6c64::1"]


@pytest.mark.parametrize("gateway", GATEWAYS)
def test_gateway_serves_dns_and_ping(gateway: str) -> None:
    for ask in (Ask(TCP, packed(gateway), 53), Ask(UDP, packed(gateway), 53), Ask(ICMP4, packed(gateway), 0),
                Ask(ICMP6, packed(gateway), 0)):  # fmt: skip
        assert judge(ask).action is Action.SERVE


@pytest.mark.parametrize("gateway", [*GATEWAYS, "::ffff:192.0.0.1", "64:ff9b::192.0.0.1"])
def test_gateway_refuses_the_rest_without_a_violation(gateway: str) -> None:
    tcp, udp = judge(Ask(TCP, packed(gateway), 80)), judge(Ask(UDP, packed(gateway), 123))
    assert (tcp.action, tcp.denial, tcp.reason_code) == (Action.DENY, Denial.RESET, None)
    assert (udp.action, udp.denial, udp.reason_code) == (Action.DENY, Denial.PORT, None)


OWN_LINK = ["192.0.0.0", "192.0.0.2", "192.0.0.7", "::ffff:192.0.0.3", "fd63:6869:6c64::2", "fd63:6869:6c64::abcd"]


@pytest.mark.parametrize("text", OWN_LINK)
def test_own_link_has_nobody_else(text: str) -> None:
    verdict = judge(Ask(TCP, packed(text), 80))
    assert (verdict.action, verdict.denial, verdict.reason_code) == (Action.DENY, Denial.UNREACHABLE_HOST, "martian")


@pytest.mark.parametrize("text", ["192.0.0.8", "191.255.255.255", "fd63:6869:6c64:1::2", "fd63:6869:6c63:ffff::1"])
def test_beside_the_own_link_is_ordinary(text: str) -> None:
    assert judge(Ask(TCP, packed(text), 80)) is ALLOWED


def test_gateway_in_disguise_serves_nothing() -> None:
    assert judge(Ask(TCP, packed("::ffff:192.0.0.1"), 53)).action is Action.DENY


@pytest.mark.parametrize("text", ["198.51.100.7", "2001:db8::7", "::1", "::"])
def test_reached_leaves_plain_addresses_alone(text: str) -> None:
    assert reached(packed(text)) == packed(text)
