"""Names by address: how long, how many, and in which clothes."""

from __future__ import annotations

import pytest

from childflow.policy.names import GRACE_S, NAMES_OF_ONE, TTL_MAX_S, Names
from childflow.policy.verdict import TCP, Action, Ask, judge
from tests.policy.make import packed, rules

FAR = packed("198.51.100.7")


def test_a_name_is_known_for_its_ttl_and_a_grace_period() -> None:
    names = Names()
    names.learn("a.example", (), [(FAR, 60)], 1000.0)
    assert names.of(FAR, 1060.0 + GRACE_S) == ("a.example",)
    assert names.of(FAR, 1060.1 + GRACE_S) == ()
    assert len(names) == 0


def test_a_later_answer_prolongs_and_never_shortens() -> None:
    names = Names()
    names.learn("a.example", (), [(FAR, 600)], 0.0)
    names.learn("a.example", (), [(FAR, 0)], 10.0)
    assert names.of(FAR, 600 + GRACE_S) == ("a.example",)
    names.learn("a.example", (), [(FAR, 600)], 500.0)
    assert names.of(FAR, 1100 + GRACE_S) == ("a.example",)


@pytest.mark.parametrize("ttl", [1 << 31, (1 << 32) - 1])
def test_a_ttl_has_a_bound(ttl: int) -> None:
    names = Names()
    names.learn("a.example", (), [(FAR, ttl)], 0.0)
    assert names.of(FAR, TTL_MAX_S + GRACE_S) == ("a.example",)
    assert names.of(FAR, TTL_MAX_S + GRACE_S + 1) == ()


def test_several_names_of_an_address_and_several_addresses_of_a_name() -> None:
    names = Names()
    other = packed("2001:4860::7")
    names.learn("a.example", (), [(FAR, 60), (other, 600)], 0.0)
    names.learn("b.example", (), [(FAR, 60)], 1.0)
    assert names.of(FAR, 2.0) == ("a.example", "b.example")
    names.learn("a.example", (), [(FAR, 60)], 3.0)
    assert names.of(FAR, 4.0) == ("b.example", "a.example")
    assert names.of(other, 400.0 + GRACE_S) == ("a.example",)
    assert names.of(FAR, 400.0 + GRACE_S) == ()


def test_an_address_is_known_by_what_it_reaches() -> None:
    names = Names()
    names.learn("a.example", (), [(packed("64:ff9b::198.51.100.7"), 60)], 0.0)
    assert names.of(FAR, 1.0) == names.of(packed("::ffff:198.51.100.7"), 1.0) == ("a.example",)


def test_the_chain_is_kept_apart_from_the_name_that_was_asked() -> None:
    names = Names()
    names.learn("a.example", ("a.example", "x.cdn.example"), [(FAR, 60)], 0.0)
    names.learn("a.example", ("y.cdn.example", "x.cdn.example"), [(FAR, 60)], 0.0)
    assert names.of(FAR, 1.0) == ("a.example",)
    assert names.aliases_of(FAR, 1.0) == ("y.cdn.example", "x.cdn.example")
    assert names.aliases_of(FAR, 61.0 + GRACE_S) == ()


def test_the_oldest_goes_first() -> None:
    names = Names(limit=3)
    for number in range(3):
        names.learn(f"{number}.example", (), [(bytes((1, 1, 1, number)), 60)], 0.0)
    names.learn("0.example", (), [(bytes((1, 1, 1, 0)), 60)], 1.0)  # now the latest
    names.learn("3.example", (), [(bytes((1, 1, 1, 3)), 60)], 2.0)
    assert len(names) == 3
    assert [len(names.of(bytes((1, 1, 1, number)), 3.0)) for number in range(4)] == [1, 0, 1, 1]


def test_one_address_with_a_thousand_names_is_bounded() -> None:
    names = Names()
    for number in range(1000):
        names.learn(f"{number}.example", ("cdn.example",), [(FAR, 60)], 0.0)
    assert len(names) == NAMES_OF_ONE
    assert names.of(FAR, 1.0)[-1] == "999.example"


@pytest.mark.case("D11")
def test_aliases_count_too_so_that_a_hostile_zone_takes_no_more_memory_than_an_honest_one() -> None:
    names = Names(limit=100)
    for round_ in range(50):
        for number in range(40):
            chain = [f"{round_}-{number}-{step}.evil.example" for step in range(20)]
            names.learn(f"{number}.evil.example", chain, [(bytes((203, 0, 113, number)), 60)], now=0.0)
    held = names._by_address.values()
    assert sum(1 + len(chain) for known in held for chain in known.values()) == names._size <= 100
    assert len(names) == sum(len(known) for known in held) > 0
    names.of(bytes((203, 0, 113, 39)), now=1e6)  # its time is over
    assert names._size < 100


def test_an_address_that_no_look_up_led_to_is_denied_and_so_is_one_after_its_time() -> None:
    made = rules("--default-policy", "deny", "--allow-domain", "good.example")
    names = Names()

    def verdict(now: float) -> Action:
        return judge(Ask(TCP, FAR, 443, names.of(FAR, now)), rules=made).action

    assert verdict(0.0) is Action.DENY
    names.learn("good.example", (), [(FAR, 60)], 0.0)
    assert verdict(1.0) is Action.ALLOW
    assert verdict(60 + GRACE_S) is Action.ALLOW
    assert verdict(3600.0) is Action.DENY
