"""The special ranges: their exact ends, and all the metadata services."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from childflow.policy.special import METADATA, METADATA_NAMES, PRIVATE
from childflow.policy.verdict import ICMP4, TCP, UDP, Ask, judge, judge_name
from tests.policy.make import packed, rules

ASKED_FOR = [
    "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16", "192.0.0.0/24", "192.0.2.0/24",
    "198.18.0.0/15", "192.88.99.0/24", "224.0.0.0/4", "240.0.0.0/4", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8",
    "100::/64", "2001:db8::/32", "3fff::/20", "5f00::/16", "127.0.0.0/8", "0.0.0.0/8", "::/127",
]  # fmt: skip
REFUSED = ("private", "martian")  # what never leaves is refused before


def test_the_ranges_are_those_that_were_asked_for() -> None:
    assert sorted(PRIVATE) == sorted(ASKED_FOR)


@pytest.mark.case("D04")
@pytest.mark.parametrize("text", ASKED_FOR)
def test_a_range_ends_where_it_ends(text: str) -> None:
    network, made = ip_network(text), rules("--block-private")
    first, last = int(network[0]), int(network[-1])
    kind = type(network[0])
    for inside in (first, last, (first + last) // 2):
        assert judge(Ask(TCP, kind(inside).packed, 80), rules=made).reason_code in REFUSED
    for outside in (first - 1, last + 1):
        if not 0 <= outside < 1 << network.max_prefixlen:
            continue
        address = kind(outside)
        covered = any(
            address in ip_network(other) for other in ASKED_FOR if ip_network(other).version == address.version
        )
        verdict = judge(Ask(TCP, address.packed, 80), rules=made)
        if address.version == 6 and outside < 1 << 32:
            continue  # ::2 is an IPv4 address in IPv6 clothes
        assert (verdict.reason_code in REFUSED) is covered, address


@pytest.mark.case("D04")
def test_beside_the_ranges_everything_is_public() -> None:
    made = rules("--block-private")
    for text in ("9.255.255.255", "11.0.0.0", "172.15.255.255", "172.32.0.0", "192.167.255.255", "192.169.0.0",
                 "100.63.255.255", "100.128.0.0", "169.253.255.255", "169.255.0.0", "192.0.1.0", "192.0.3.0",
                 "198.17.255.255", "198.20.0.0", "192.88.98.255", "192.88.100.0", "223.255.255.255", "128.0.0.0",
                 "fbff:ffff::", "fe00::", "fe7f::", "99:ffff::", "100:0:0:1::", "2001:db7:ffff::", "2001:db9::",
                 "3ffe::", "3fff:1000::", "5eff::", "5f01::"):  # fmt: skip
        assert judge(Ask(TCP, packed(text), 80), rules=made).reason_code is None, text


@pytest.mark.case("D05")
@pytest.mark.parametrize("text", [
    "169.254.169.254", "169.254.170.2", "169.254.170.23", "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254",
    "168.63.129.16", "100.100.100.200", "192.0.0.192",
])  # fmt: skip
def test_metadata_addresses_in_every_form(text: str) -> None:
    assert text in METADATA
    address, made = packed(text), rules("--block-metadata")
    forms = [address]
    if len(address) == 4:
        forms += [bytes(10) + b"\xff\xff" + address, bytes.fromhex("0064ff9b") + bytes(8) + address,
                  b"\x20\x02" + address + bytes(10), bytes(12) + address]  # fmt: skip
    for form in forms:
        for protocol in (TCP, UDP, ICMP4):
            verdict = judge(Ask(protocol, form, 80), rules=made)
            assert (verdict.reason_code, verdict.control) == ("metadata", "block-metadata")
    for beside in (int(ip_address(text)) - 1, int(ip_address(text)) + 1):
        near = beside.to_bytes(len(address), "big")
        assert judge(Ask(TCP, near, 80), rules=made).reason_code != "metadata"


@pytest.mark.case("D05")
@pytest.mark.parametrize("name", [*METADATA_NAMES, "METADATA.google.internal.", "x.metadata.google.internal"])
def test_metadata_names(name: str) -> None:
    made = rules("--block-metadata", "--allow-domain", "google.internal")
    for port in (None, 80):
        assert judge_name(name, port, made, protocol=TCP).reason_code == "metadata"
        assert judge_name("www.google.internal", port, made, protocol=TCP).reason_code is None
    assert (
        judge(Ask(TCP, packed("198.51.100.7"), 80, (name.lower().removesuffix("."),)), rules=made).reason_code
        == "metadata"
    )


@pytest.mark.case("D05")
@pytest.mark.parametrize("text", ["169.254.169.254", "2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "169.254.43518",
                                  "[::ffff:169.254.169.254]", "fd00:ec2::254", "169.254.169.254."])  # fmt: skip
def test_metadata_address_in_text_handed_to_a_proxy(text: str) -> None:
    made = rules("--block-metadata", "--proxy", "http://192.0.2.1:3128")
    assert judge_name(text, 80, made, protocol=TCP).reason_code == "metadata"
