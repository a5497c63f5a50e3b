"""Reassembly of IPv4 and IPv6, in every order, and what spoils it."""

from __future__ import annotations

import itertools
import random
import struct
import time
import tracemalloc

import dpkt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from childflow.services import fragments
from childflow.services.fragments import Reassembler, Taken
from tests.services.play import CHILD6, FAR6, fragment4, fragment6, fragments4, plain_checksum

PAYLOAD = bytes(range(256)) * 8


def fragments6(payload: bytes, size: int, ident: int = 7, **more: object) -> list[bytes]:
    return [
        fragment6(start, payload[start : start + size], start + size < len(payload), ident, **more)  # type: ignore[arg-type]
        for start in range(0, len(payload), size)
    ]


def feed(pieces: list[bytes], at: float = 0.0, into: Reassembler | None = None) -> list[Taken]:
    into = Reassembler() if into is None else into
    return [into.take(piece, at) for piece in pieces]


def whole(results: list[Taken]) -> bytes | None:
    packets = [result.packet for result in results if result.packet is not None]
    assert len(packets) <= 1
    return packets[0] if packets else None


def drops(results: list[Taken]) -> list[str]:
    return [result.drop for result in results if result.drop is not None]


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
@pytest.mark.case("A22")
def test_four_pieces_in_every_order(order: tuple[int, ...]) -> None:
    pieces = fragments4(PAYLOAD, 512)
    packet = whole(feed([pieces[i] for i in order]))
    assert packet is not None
    ip = dpkt.ip.IP(packet)
    assert (ip.len, ip.df, ip.mf, ip.offset, ip.p, packet[20:]) == (20 + len(PAYLOAD), 0, 0, 0, 17, PAYLOAD)
    assert plain_checksum(packet[:20]) == 0


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
@pytest.mark.case("A22", "A27")
def test_four_pieces_of_ipv6_in_every_order(order: tuple[int, ...]) -> None:
    pieces = fragments6(PAYLOAD, 512)
    packet = whole(feed([pieces[i] for i in order]))
    assert packet is not None
    ip = dpkt.ip6.IP6(packet)
    assert (ip.nxt, ip.plen, ip.src, ip.dst, packet[40:]) == (17, len(PAYLOAD), CHILD6, FAR6, PAYLOAD)


def test_header_before_the_fragment_header_stays() -> None:
    options = bytes((17, 0, 1, 4, 0, 0, 0, 0))
    packet = whole(feed(fragments6(PAYLOAD, 512, before=options)))
    assert packet is not None
    assert (packet[6], packet[40], packet[48:]) == (60, 17, PAYLOAD)


@pytest.mark.case("A27")
def test_next_header_is_the_first_fragments() -> None:
    first, last = fragment6(0, PAYLOAD[:512], True), fragment6(512, PAYLOAD[512:600], False, next_header=6)
    packet = whole(feed([last, first]))
    assert packet is not None
    assert packet[6] == 17


@pytest.mark.case("A22")
def test_exact_duplicates_are_passed_over() -> None:
    pieces = fragments4(PAYLOAD, 512)
    results = feed([pieces[0], pieces[0], pieces[1], pieces[2], pieces[1], pieces[3]])
    assert whole(results) is not None
    assert drops(results) == []


OVERLAPS = {
    "same place, other bytes": (0, b"x" * 512, True),
    "tail into the next": (504, b"x" * 16, True),
    "inside (teardrop)": (128, b"x" * 64, True),
    "around": (0, b"x" * 1024, True),
    "inside, same bytes": (128, PAYLOAD[128:192], True),
}


@pytest.mark.parametrize("what", OVERLAPS)
@pytest.mark.parametrize("make", [fragment4, fragment6])
@pytest.mark.case("A22", "A27")
def test_overlap_spoils_the_datagram_and_all_that_follows(what: str, make: object) -> None:
    pieces = fragments4(PAYLOAD, 512) if make is fragment4 else fragments6(PAYLOAD, 512)
    start, data, more = OVERLAPS[what]
    results = feed([pieces[0], make(start, data, more), *pieces[1:], pieces[0]])  # type: ignore[operator]
    assert whole(results) is None
    assert drops(results)[0] == "fragment_overlap"
    assert all(result.error is None for result in results)


def test_second_end_elsewhere_spoils() -> None:
    for end in (1024, 1100, 2000):
        results = feed(
            [fragment4(0, PAYLOAD[:512], True), fragment4(1024, b"e" * 64, False), fragment4(end, b"f" * 64, False)]
        )
        assert drops(results) == ["fragment_overlap"]


def test_end_before_what_came_spoils() -> None:
    assert drops(feed([fragment4(1024, bytes(64), True), fragment4(512, bytes(64), False)])) == ["fragment_overlap"]


@pytest.mark.parametrize("make", [fragment4, fragment6])
@pytest.mark.case("A21")
def test_more_than_a_length_can_say_is_dropped(make: object) -> None:
    results = feed([make(0, bytes(1480), True), make(65512, bytes(1480), False)])  # type: ignore[operator]
    assert drops(results) == ["fragment_overflow"]


@pytest.mark.case("A21")
@pytest.mark.parametrize("size", [1480, 8, 65_528 - 8 * 100])
def test_many_pieces_that_add_up_to_70000_are_dropped_and_hold_nothing(size: int) -> None:
    """However they come: the one that reaches too far spoils the whole, and the bytes are free at once."""
    into, results = Reassembler(), []
    for start in range(0, 65_536, size):
        results.append(into.take(fragment4(start, bytes(size), True), 0.0))
    assert [drop for drop in drops(results) if drop != "bad_fragment"] == ["fragment_overflow"]
    assert whole(results) is None
    assert into._bytes <= 1024
    assert into.take(fragment4(0, bytes(64), False, ident=8), 0.0).packet is not None


@pytest.mark.case("A21")
@pytest.mark.parametrize("options", [4, 20, 40])
def test_header_and_payload_that_wrap_a_16_bit_length_are_dropped(options: int) -> None:
    """65,515 bytes are right behind 20 bytes of header, fewer behind more; never does a length come out short."""
    first = fragment4(0, bytes(1480), True)
    head = bytes((0x40 | 5 + options // 4,)) + first[1:2] + struct.pack("!H", 1500 + options) + first[4:20]
    first = head + b"\x01" * options + first[20:]
    pieces = fragments4(bytes(65_515), 1480)
    assert drops(feed([first, *pieces[1:]])) == ["fragment_overflow"]
    assert whole(feed([first, *fragments4(bytes(65_515 - options), 1480)[1:]])) is not None


@pytest.mark.case("A21", "A27")
def test_ipv6_options_and_payload_that_wrap_a_16_bit_length_are_dropped() -> None:
    options = bytes((17, 0, 1, 4, 0, 0, 0, 0))
    pieces = fragments6(bytes(65_535 - 7), 1440, before=options)
    assert drops(feed(pieces)) == ["fragment_overflow"]
    assert whole(feed(fragments6(bytes(65_535 - 8), 1440, before=options))) is not None


@pytest.mark.case("A21")
def test_largest_datagram_of_ipv4() -> None:
    payload = random.Random(1).randbytes(65515)
    packet = whole(feed(fragments4(payload, 1480)))
    assert packet is not None
    assert packet[20:] == payload


BAD = {
    "length not of eights": fragment4(0, bytes(100), True),
    "nothing in it": fragment4(8, b"", False),
    "short header": fragment4(0, bytes(64), True)[:19],
    "header length 4": b"\x44" + fragment4(0, bytes(64), True)[1:],
    "longer than it is": fragment4(0, bytes(64), True)[:-1],
    "ipv6 of eights": fragment6(0, bytes(100), True),
    "ipv6 nothing in it": fragment6(8, b"", False),
    "ipv6 longer than it is": fragment6(0, bytes(64), True)[:-1],
    "ipv6 short": fragment6(0, bytes(64), True)[:44],
    "ipv6 without the header": b"\x60" + bytes(5) + b"\x11" + bytes(60),
    "ipv6 in itself": fragment6(0, bytes(64), False, next_header=44),
    "ipv6 in itself behind options": fragment6(0, b"\x2c" + bytes(63), False, next_header=60),
    "empty": b"",
}


@pytest.mark.parametrize("what", BAD)
def test_malformed_is_dropped(what: str) -> None:
    into = Reassembler()
    assert into.take(BAD[what], 0.0) == fragments.BAD
    assert len(into) == 0


@pytest.mark.case("A27")
def test_atomic_fragment_has_nothing_to_do_with_others() -> None:
    into = Reassembler()
    feed([fragment6(0, PAYLOAD[:512], True)], into=into)
    packet = into.take(fragment6(0, b"u" * 64, False), 0.0).packet
    assert packet is not None
    assert packet[40:] == b"u" * 64
    assert len(into) == 1


@pytest.mark.case("A27")
def test_first_fragment_without_upper_header_is_told() -> None:
    taken = Reassembler().take(fragment6(0, bytes(8), True, next_header=6), 0.0)
    assert taken.drop == "bad_fragment"
    assert taken.error is not None
    assert (taken.error[40], taken.error[41], taken.error[24:40]) == (4, 3, CHILD6)


@pytest.mark.case("A27")
def test_neighbour_discovery_in_fragments_is_dropped() -> None:
    body = b"\x87" + bytes(31)
    assert drops(feed(fragments6(body, 16, next_header=58))) == ["bad_nd"]
    assert drops(feed([fragment6(0, body, False, next_header=58)])) == ["bad_nd"]


def test_ids_protocols_and_families_are_apart() -> None:
    into = Reassembler()
    feed([fragment4(0, bytes(64), True, ident=1), fragment4(0, bytes(64), True, ident=2)], into=into)
    feed([fragment4(0, bytes(64), True, ident=1, protocol=6), fragment6(0, bytes(64), True, ident=1)], into=into)
    assert len(into) == 4


@pytest.mark.case("A24")
def test_expiry_by_the_clock() -> None:
    into = Reassembler()
    into.take(fragment4(0, bytes(64), True), 0.0)
    into.take(fragment6(0, bytes(64), True), 0.0)
    assert (into.expire(29.9), into.expire(30.0), into.expire(59.9), into.expire(60.0)) == (0, 1, 0, 1)
    assert len(into) == 0
    assert into._bytes == 0


def test_late_piece_starts_anew() -> None:
    into = Reassembler()
    into.take(fragment4(0, bytes(64), True), 0.0)
    assert into.take(fragment4(64, bytes(64), False), 31.0).drop == "fragment_timeout"
    assert into.take(fragment4(0, bytes(64), True), 32.0).packet is not None


@pytest.mark.case("A24")
def test_flood_of_ids_is_bounded_and_the_youngest_stay() -> None:
    into = Reassembler()
    evicted = sum(into.take(fragment4(0, bytes(1480), True, ident=i), 0.0).evicted for i in range(65536))
    assert (len(into), evicted) == (fragments.MAX_DATAGRAMS, 65536 - fragments.MAX_DATAGRAMS)
    assert into.take(fragment4(1480, b"end", False, ident=65535), 0.0).packet is not None


@pytest.mark.case("A24")
def test_flood_of_bytes_is_bounded() -> None:
    into = Reassembler()
    for ident in range(200):
        for start in range(0, 60000, 1480):
            into.take(fragment4(start, bytes(1480), True, ident=ident), 0.0)
    assert into._bytes <= fragments.MAX_BYTES


@pytest.mark.case("A24")
@pytest.mark.parametrize("size", [8, 64, 1480])
def test_flood_is_bounded_in_real_memory(size: int) -> None:
    """What the books say is what the interpreter holds, small pieces included."""
    into = Reassembler()
    tracemalloc.start()
    try:
        for ident in range(260):
            for start in range(0, min(size * 130, 65_000), size):
                into.take(fragment4(start, bytes(size), True, ident=ident), 0.0)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert into._bytes <= fragments.MAX_BYTES
    assert len(into) <= fragments.MAX_DATAGRAMS
    assert held < 1.5 * fragments.MAX_BYTES


@pytest.mark.case("A24")
def test_flood_costs_the_same_for_each_piece() -> None:
    into, costs = Reassembler(), []
    for tenth in range(8):
        pieces = [fragment4(0, bytes(64), True, ident=i) for i in range(tenth * 8192, (tenth + 1) * 8192)]
        begin = time.process_time()
        for piece in pieces:
            into.take(piece, 0.0)
        costs.append(time.process_time() - begin)
    assert min(costs[4:]) < 3 * min(costs[:4]) + 0.02, costs


@pytest.mark.case("A24")
def test_eviction_takes_the_oldest_and_expiry_frees_all() -> None:
    into = Reassembler()
    pieces = [fragments4(PAYLOAD, 1024, ident=i) for i in range(fragments.MAX_DATAGRAMS + 1)]
    for first, _ in pieces:
        into.take(first, 0.0)
    assert into.take(pieces[0][1], 1.0).packet is None  # the oldest had to go, and its other half begins anew
    assert whole(feed([pieces[-1][1]], 1.0, into)) is not None
    into.expire(31.0)
    assert (len(into), into._bytes) == (0, 0)


@pytest.mark.case("A24")
def test_smallest_pieces_in_reverse_cost_linear_time() -> None:
    payload = random.Random(2).randbytes(8189 * 8)[:65512]
    pieces = fragments4(payload, 8)
    start = time.process_time()
    packet = whole(feed(pieces[::-1]))
    assert packet is not None
    assert packet[20:] == payload
    assert time.process_time() - start < 1.0


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_cut_in_any_order_with_duplicates_is_put_together(data: st.DataObject) -> None:
    payload = data.draw(st.binary(min_size=17, max_size=600))
    cuts = sorted(data.draw(st.sets(st.integers(1, (len(payload) - 1) // 8).map(lambda n: n * 8))) | {0})
    make = data.draw(st.sampled_from([fragment4, fragment6]))
    ends = [*cuts[1:], len(payload)]
    pieces = [make(a, payload[a:b], b < len(payload)) for a, b in zip(cuts, ends, strict=True)]
    if make is fragment6 and ends[0] < 8:
        return
    order = data.draw(st.permutations(pieces))
    results = feed([*order[:-1], *order])
    packet = whole(results)
    assert packet is not None
    assert packet[20 if make is fragment4 else 40 :] == payload


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=100).map(lambda b: b), max_size=5), st.integers(0, 1))
def test_any_bytes_do_no_harm(packets: list[bytes], version: int) -> None:
    into = Reassembler()
    for packet in packets:
        into.take(bytes((0x45 if version else 0x60,)) + packet, 0.0)
