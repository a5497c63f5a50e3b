"""Virtual names: one address for each, in both families, for as long as a run."""

from __future__ import annotations

from childflow.policy.verdict import address_text
from childflow.policy.virtual import LIMIT, VirtualNames, is_virtual
from childflow.settings import ADDRESSES


def test_name_keeps_its_address_and_no_other_has_it() -> None:
    names = VirtualNames()
    first = [names.address_of(f"n{n}.test", family) for n in range(1000) for family in (4, 6)]
    again = [names.address_of(f"n{n}.test", family) for n in range(1000) for family in (4, 6)]
    assert first == again
    assert len(set(first)) == 2000
    assert [names.name_of(address) for address in first[::2] if address] == [f"n{n}.test" for n in range(1000)]
    assert [names.name_of(address) for address in first[1::2] if address] == [f"n{n}.test" for n in range(1000)]


def test_first_addresses() -> None:
    names = VirtualNames()
    assert [names.address_of("a.test", 4), names.address_of("a.test", 6)] == [
        bytes((198, 18, 0, 1)),
        bytes.fromhex("fd6368696c6400010000000000000001"),
    ]


def test_address_that_nobody_was_given_has_no_name() -> None:
    names = VirtualNames()
    names.address_of("a.test", 4)
    for address in ((198, 18, 0, 0), (198, 18, 0, 2), (198, 19, 255, 255), (198, 17, 0, 1), (198, 20, 0, 1)):
        assert names.name_of(bytes(address)) is None
    assert names.name_of(bytes.fromhex("fd6368696c6400010100000000000001")) is None
    assert names.name_of(ADDRESSES.gateway6) is None


def test_range_is_the_whole_15_and_the_64() -> None:
    inside = [(198, 18, 0, 0), (198, 19, 255, 255)]
    outside = [(198, 17, 255, 255), (198, 20, 0, 0), (199, 18, 0, 0)]
    assert [is_virtual(bytes(address)) for address in (*inside, *outside)] == [True, True, False, False, False]
    assert not is_virtual(ADDRESSES.gateway6)


def test_when_all_addresses_are_taken_a_new_name_gets_none_and_the_others_stay() -> None:
    names = VirtualNames()
    for number in range(LIMIT):
        names.address_of(f"{number}", 4)
    last = names.address_of(f"{LIMIT - 1}", 4)
    assert last is not None
    assert address_text(last) == "198.19.255.254"
    assert names.address_of("one-more", 4) is None
    assert names.address_of("one-more", 6) is None
    assert names.address_of("0", 4) == bytes((198, 18, 0, 1))
    assert len(names) == LIMIT
