"""Selective acknowledgements (RFC 2018): what the stack reports, and what it does with what the child reports."""

from __future__ import annotations

import pytest

from . import wire
from .lossy import OPTIONS, sack_blocks, sack_option
from .play import ACK, FIN, SYN, Play, text_of

MSS = 1460


@pytest.fixture
def play(stage) -> Play:
    """Without offload, so that each segment is a frame; both ends permit SACK."""
    play = stage(offload=False)
    play.establish(options=OPTIONS, window=4096)
    return play


def reports(play: Play, *blocks: tuple[int, int], ack: int | None = None) -> None:
    """The child's pure ACK with `blocks`, relative to the stack's SYN."""
    base = play.child.peer_isn
    play.child.sends(ACK, ack=ack, options=sack_option([(base + a, base + b) for a, b in blocks]))


def reported(play: Play) -> list[tuple[int, int]]:
    """The blocks of the next segment, relative to the child's SYN."""
    s = play.child.gets(ACK)
    return [((a - play.child.isn) & 0xFFFFFFFF, (b - play.child.isn) & 0xFFFFFFFF) for a, b in sack_blocks(s.options)]


def resent(play: Play) -> list[tuple[int, int]]:
    """Number and length of each segment that came, in order."""
    return [(play.child.relative(s), len(s.text)) for s in play.child.forgets()]


def segment(n: int) -> tuple[int, int]:
    """The `n`-th segment down, from 0."""
    return 1 + n * MSS, MSS


def block(first: int, last: int) -> tuple[int, int]:
    """The segments `first` to `last`."""
    return 1 + first * MSS, 1 + (last + 1) * MSS


def sends_down(play: Play, segments: int) -> None:
    play.host.sends(text_of(segments * MSS))
    assert resent(play) == [segment(n) for n in range(segments)]


# --- what the stack reports


def test_gap_is_reported(play):
    play.child.sends(ACK, seq=11, text=b"x" * 10)
    assert reported(play) == [(11, 21)]
    play.child.sends(ACK, seq=1, text=b"y" * 10)
    assert reported(play) == []
    play.host.gets(b"y" * 10 + b"x" * 10)


def test_gaps_are_reported_newest_first_and_the_others_in_turn(play):
    for at in (101, 301, 201):
        play.child.sends(ACK, seq=at, text=b"x")
    assert [reported(play)[0] for _ in range(3)] == [(101, 102), (301, 302), (201, 202)]
    told = set()
    for at in range(401, 1401, 100):
        play.child.sends(ACK, seq=at, text=b"x")
        blocks = reported(play)
        assert blocks[0] == (at, at + 1)
        assert len(blocks) == len(set(blocks)) == 4
        told.update(blocks[1:])
    assert told >= {(at, at + 1) for at in range(101, 1001, 100)}


@pytest.mark.case("B23")
def test_gap_across_the_wrap_is_reported(stage):
    play = stage(offload=False)
    play.establish(options=OPTIONS, isn=0xFFFFFFF0)
    play.child.sends(ACK, seq=12, text=b"x" * 10)
    (b,) = sack_blocks(play.child.gets(ACK).options)
    assert b == (0xFFFFFFFC, 6)
    play.child.sends(ACK, seq=1, text=b"y" * 11)
    play.host.gets(b"y" * 11 + b"x" * 10)


def test_child_that_permits_none_gets_none(stage):
    play = stage()
    play.establish()
    play.child.sends(ACK, seq=11, text=b"x" * 10)
    assert play.child.gets(ACK).options == b""


def burst(play: Play, starts: range) -> None:
    """Segments of 10 bytes that are all there when the stack looks."""
    for at in starts:
        play._tap.send(wire.frame(play.child.packet(ACK, seq=at, text=b"x" * 10)))
    play.rest()


def test_after_three_acks_ahead_the_rest_of_a_burst_shares_one(play):
    burst(play, range(11, 111, 10))
    acks = play.child.forgets()
    assert len(acks) == 4
    assert all(s.ack == (play.child.isn + 1) & 0xFFFFFFFF for s in acks)


def test_each_further_gap_is_told_at_once(play):
    burst(play, range(11, 211, 20))
    assert len(play.child.forgets()) == 10


# --- what the child reports


def test_hole_is_sent_again_once_three_segments_lie_behind_it(play):
    sends_down(play, 10)
    reports(play, block(1, 1))
    reports(play, block(1, 2))
    assert resent(play) == []
    reports(play, block(1, 3))
    assert resent(play) == [segment(0)]
    reports(play, block(1, 9))
    assert resent(play) == []


def test_only_holes_are_sent_again(play):
    sends_down(play, 20)
    reports(play, block(1, 3), block(5, 5), block(8, 15))
    assert resent(play) == [segment(n) for n in (0, 4, 6, 7)]
    play.child.got = 1 + 20 * MSS
    play.child.sends(ACK)
    play.clock.advance(10_000)
    play.child.gets_nothing()


def test_large_frame_that_is_lost_whole_is_sent_again_at_one_report(stage):
    play = stage()
    play.establish(options=OPTIONS, window=4096)
    play.host.sends(text_of(128 * 1024))
    first, second = play.child.forgets()[:2]
    end = play.child.relative(second) + len(second.text)
    reports(play, (1 + len(first.text), end))
    assert resent(play) == [(1, len(first.text))]


def test_hole_is_lost_again_when_something_later_arrives(play):
    sends_down(play, 10)
    reports(play, block(1, 3), block(5, 9))
    assert resent(play) == [segment(0), segment(4)]
    reports(play, block(1, 9))  # the second came
    assert resent(play) == [segment(0)]
    play.host.sends(text_of(MSS))
    assert resent(play) == [segment(10)]
    reports(play, block(1, 10))  # and what was sent after the second try, too
    assert resent(play) == [segment(0)]


def test_partial_ack_keeps_what_is_known(play):
    sends_down(play, 12)
    reports(play, block(1, 3), block(5, 8))
    assert resent(play) == [segment(0), segment(4)]
    reports(play, block(5, 8), ack=1 + 4 * MSS)
    assert resent(play) == []
    play.child.sends(ACK, ack=1 + 9 * MSS)
    assert resent(play) == []


@pytest.mark.case("B30")
def test_tail_is_probed_before_the_timeout(play):
    """RFC 8985, 7: the last three are lost; nothing would tell."""
    sends_down(play, 10)
    play.child.sends(ACK, ack=1 + 7 * MSS)
    play.clock.advance(11)
    assert resent(play) == [segment(9)]
    reports(play, block(9, 9), ack=1 + 7 * MSS)
    assert resent(play) == [segment(7), segment(8)]
    play.child.got = 1 + 10 * MSS
    play.child.sends(ACK)
    play.clock.advance(10_000)
    play.child.gets_nothing()


def test_one_segment_is_not_probed_for(play):
    """Its ACK may be delayed (RFC 9293, 3.8.6.3)."""
    sends_down(play, 1)
    play.clock.advance(150)
    play.child.gets_nothing()
    play.clock.advance(60)
    assert resent(play) == [segment(0)]


def test_timeout_sends_at_the_childs_pace(play):
    sends_down(play, 64)
    play.clock.advance(11)
    assert resent(play) == [segment(63)]
    play.clock.advance(220)
    assert resent(play) == [segment(0)]
    play.clock.advance(420)
    assert resent(play) == [segment(0)]  # twice the time, once
    play.child.sends(ACK, ack=1 + MSS)
    assert resent(play) == [segment(1), segment(2)]
    play.child.sends(ACK, ack=1 + 3 * MSS)
    assert resent(play) == [segment(n) for n in range(3, 7)]
    play.child.got = 1 + 64 * MSS
    play.child.sends(ACK)
    play.host.sends(text_of(20 * MSS, 64 * MSS))
    assert len(resent(play)) == 20


@pytest.mark.case("B30")
def test_report_ends_the_back_off(play):
    """After an outage the next loss is not waited for as long as the outage lasted."""
    sends_down(play, 64)
    for wait in (11, 220, 420, 820, 1_620):
        play.clock.advance(wait)
    resent(play)
    play.child.sends(ACK, ack=1 + MSS)
    assert len(resent(play)) == 2
    play.clock.advance(11)
    resent(play)  # the tail's probe
    play.clock.advance(210)
    assert resent(play)[0] == segment(1)


def test_child_that_throws_away_what_it_reported_gets_it_again(play):
    """RFC 2018, 8."""
    sends_down(play, 10)
    reports(play, block(1, 9))
    resent(play)
    for wait in (11, 220, 420):
        play.clock.advance(wait)
    resent(play)
    for n in range(1, 10):
        play.child.sends(ACK, ack=1 + n * MSS)
    assert set(resent(play)) >= {segment(n) for n in range(2, 10)}


def test_fin_is_part_of_the_last_hole(play):
    sends_down(play, 6)
    play.host.half_closes()
    fin = play.child.gets(FIN | ACK)
    assert play.child.relative(fin) == 1 + 6 * MSS
    reports(play, block(1, 3))
    assert resent(play) == [segment(0)]
    play.child.sends(ACK, ack=1 + 4 * MSS)
    play.clock.advance(11)
    (probe,) = play.child.forgets()
    assert probe.flags & FIN
    play.clock.advance(220)
    play.child.forgets()
    play.child.sends(ACK, ack=1 + 5 * MSS)
    last = play.child.forgets()
    assert last[-1].flags & FIN
    assert play.child.relative(last[-1]) + len(last[-1].text) == 1 + 6 * MSS
    play.child.got = 2 + 6 * MSS
    play.child.sends(ACK)
    play.clock.advance(10_000)
    play.child.gets_nothing()


@pytest.mark.case("A11", "B21")
@pytest.mark.parametrize(
    "blocks",
    [
        [(1 + 10 * MSS, 2 + 10 * MSS)],  # not sent yet
        [(1 + 5 * MSS, 1 + 11 * MSS)],
        [(1 + 5 * MSS, 1 + 5 * MSS)],
        [(1 + 5 * MSS, 1 + 4 * MSS)],
        [(0, 5)],
        [(1, 1 + 9 * MSS)],  # of what would be acknowledged
        [(-1 << 31, (1 << 31) - 1)],
        [(1 + 5 * MSS, 1 + 5 * MSS + (1 << 31))],
    ],
)  # fmt: skip
def test_invented_blocks_mean_nothing(play, blocks):
    sends_down(play, 10)
    for _ in range(5):
        reports(play, *blocks)
    assert resent(play) == []
    play.child.got = 1 + 10 * MSS
    play.child.sends(ACK)
    play.host.sends(text_of(MSS))
    assert resent(play) == [segment(10)]


def test_more_holes_than_are_remembered(play):
    """What finds no place is as if it had not been said; all arrives in the end."""
    sends_down(play, 140)
    for n in range(1, 140, 2):
        reports(play, block(n, n))
    again = resent(play)
    assert len(again) <= 64
    assert set(again) <= {segment(n) for n in range(0, 140, 2)}
    play.child.got = 1 + 140 * MSS
    play.child.sends(ACK)
    play.clock.advance(60_000)
    play.child.gets_nothing()


def test_block_in_the_midst_of_a_hole_that_finds_no_place_loses_nothing(play):
    """The list is full: the hole stays whole, and its second part is not forgotten."""
    sends_down(play, 140)
    for n in range(12, 140, 2):
        reports(play, block(n, n))
    assert segment(11) in resent(play)
    reports(play, block(5, 5))
    assert resent(play) == []
    reports(play, block(5, 5), ack=1 + 5 * MSS)
    play.child.sends(ACK, ack=1 + 6 * MSS)
    play.clock.advance(11)
    assert set(resent(play)) >= {segment(n) for n in range(6, 12)}


def test_window_taken_back_and_given_again_after_a_timeout(play):
    """The timeout lets the child set the pace; the window's closing ends that, or nothing would ever be sent."""
    sends_down(play, 64)
    for wait in (11, 220):
        play.clock.advance(wait)
    play.child.sends(ACK, ack=1, window=0)
    play.clock.advance(500)
    resent(play)
    play.child.sends(ACK, ack=1)
    assert resent(play) == [segment(n) for n in range(64)]
    play.child.got = 1 + 64 * MSS
    play.child.sends(ACK)
    play.host.sends(text_of(MSS))
    assert resent(play) == [segment(64)]


def test_blocks_of_one_byte_split_a_hole_exactly(play):
    sends_down(play, 4)
    reports(play, (11, 12), (21, 22), (31, 32), block(3, 3))
    assert resent(play) == [(1, 10), (12, 9), (22, 9)]  # three segments lie behind these
    play.host.sends(text_of(2 * MSS, 4 * MSS))
    play.child.forgets()
    reports(play, block(3, 5))
    assert resent(play)[-3:] == [(32, MSS), (32 + MSS, MSS), (32 + 2 * MSS, MSS - 31)]


@pytest.mark.case("A11", "B21")
def test_lies_byte_by_byte_do_not_cost_a_window_each(stage, offload):
    """Each report says that what was sent again is lost again; it pays for no more than twice what it reports."""
    play = stage(offload=offload)
    play.establish(options=OPTIONS, window=4096)
    play.host.sends(text_of(400_000))
    play.child.forgets()
    reports(play, (392_001, 400_001))
    assert sum(n for _, n in resent(play)) == 392_000
    again = 0
    for at in range(392_000, 391_000, -1):
        reports(play, (at, 400_001))
        again += sum(n for _, n in resent(play))
    assert again <= 2 * (8_000 + 1_000)


def test_sack_without_permission_is_no_news(stage):
    play = stage(offload=False)
    play.establish()
    play.host.sends(text_of(10 * MSS))
    play.child.forgets()
    for _ in range(5):
        reports(play, block(1, 9))
    play.child.gets_nothing()


def test_syn_ack_that_is_lost_offers_the_same_again(stage):
    play = stage()
    play.connect().opens(OPTIONS)
    play.attach()
    first = play.child.gets(SYN | ACK)
    play.clock.advance(1_010)
    assert play.child.gets(SYN | ACK).options == first.options
