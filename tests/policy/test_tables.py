"""The look-up tables against a plain walk through the list of rules."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address

from hypothesis import given
from hypothesis import strategies as st

from childflow.policy.tables import ICMP4, ICMP6, TCP, UDP, NameTable, Network, Networks, suffixes

PORTS = st.sampled_from([0, 22, 443])
PROTOCOLS = st.sampled_from([TCP, UDP, ICMP4, ICMP6])


@st.composite
def network(draw: st.DrawFn) -> Network:
    """Dense in the space of addresses, so that networks lie within one another."""
    if draw(st.booleans()):
        bits, kind = 32, IPv4Network
        number = draw(st.sampled_from([0, 0x0A000000, 0xFFFFFF00])) + draw(st.integers(0, 255))
    else:
        bits, kind = 128, IPv6Network
        number = draw(st.sampled_from([0, 0xFD << 120, (1 << 128) - 256])) + draw(st.integers(0, 255))
    made = kind((number, draw(st.integers(0, bits))), strict=False)
    protocol = draw(st.sampled_from([0, TCP, UDP, ICMP4]))
    port = 0 if protocol == ICMP4 else draw(PORTS)
    return Network(made.network_address.packed, made.prefixlen, protocol, port, f"{protocol} {made} {port}")


@st.composite
def addresses(draw: st.DrawFn) -> bytes:
    base, bits = draw(st.sampled_from([(0, 32), (0x0A000000, 32), (0xFFFFFF00, 32), (0, 128), (0xFD << 120, 128)]))
    return (base + draw(st.integers(0, 255))).to_bytes(bits // 8, "big")


def walk(rules: list[Network], address: bytes, protocol: int, port: int) -> set[str]:
    """Every rule that covers the address, the plain way; ICMP has no ports."""
    protocol = ICMP4 if protocol == ICMP6 else protocol
    found = [
        rule for rule in rules
        if len(rule.first) == len(address)
        and rule.protocol in (0, protocol)
        and rule.port in (0, port)
        and ip_address(address) in (IPv4Network if len(address) == 4 else IPv6Network)((rule.first, rule.prefix))
    ]  # fmt: skip
    longest = max((rule.prefix for rule in found), default=0)
    return {rule.text for rule in found if rule.prefix == longest}


@given(st.lists(network(), max_size=12), addresses(), PROTOCOLS, PORTS)
def test_networks_find_what_a_walk_finds(rules: list[Network], address: bytes, protocol: int, port: int) -> None:
    port = 0 if protocol in (ICMP4, ICMP6) else port
    found = Networks(rules).find(address, protocol, port)
    expected = walk(rules, address, protocol, port)
    assert (found in expected) if expected else found is None


@given(st.lists(network(), max_size=12))
def test_networks_hold_both_their_ends(rules: list[Network]) -> None:
    table = Networks(rules)
    for rule in rules:
        made = (IPv4Network if len(rule.first) == 4 else IPv6Network)((rule.first, rule.prefix))
        protocol = rule.protocol or TCP
        assert table.find(made.network_address.packed, protocol, rule.port) is not None
        assert table.find(made.broadcast_address.packed, protocol, rule.port) is not None


def test_empty_networks_find_nothing() -> None:
    assert Networks().find(bytes(4), TCP, 80) is None
    assert Networks().find(b"\xff" * 16, TCP, 80) is None
    assert not Networks()


LABELS = st.sampled_from(["a", "b", "c", "com"])
NAMES = st.lists(LABELS, min_size=1, max_size=5).map(".".join)


@given(st.dictionaries(NAMES, st.dictionaries(PORTS, st.just("rule"), min_size=1), max_size=8), NAMES, PORTS)
def test_names_find_what_a_walk_finds(rules: dict[str, dict[int, str]], name: str, port: int) -> None:
    table = NameTable(rules)
    covers = [(rule, at) for rule, ports in rules.items() for at in ports if at in (0, port)]
    exact = {rule for rule, _ in covers if name == rule}
    below = {rule for rule, _ in covers if name == rule or name.endswith("." + rule)}
    found_exact, found_below = table.exact(name, port), table.below(name, port)
    assert (found_exact is not None) == bool(exact)
    assert (found_below.text.partition(":")[0] if found_below else "") == max(below, key=len, default="")
    assert table.ports_exact(name) == set(rules.get(name, ()))
    assert table.ports_below(name) == {
        at for rule, ports in rules.items() for at in ports if name == rule or name.endswith("." + rule)
    }


def test_suffixes() -> None:
    assert list(suffixes("a.b.c")) == ["a.b.c", "b.c", "c"]
    assert list(suffixes(".")) == [".", ""]
