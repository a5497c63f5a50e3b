"""ESTABLISHED, the host sends: frames down, retransmission (RFC 6298, 5681), and what a lossy path does to it."""

from __future__ import annotations

import random

import pytest

from childflow.netstack.events import End

from . import wire
from .play import ACK, FIN, RST, Play, text_of

SCALED = wire.mss(1460) + wire.NOP + wire.wscale(7)
RTO_MIN_MS = 200


def test_established_text_comes_down(stage, family, offload):
    play = stage(family=family, offload=offload)
    play.establish()
    play.host.sends(b"hello")
    play.child.gets(ACK, seq=1, ack=1, text=b"hello")
    play.child.sends(ACK)
    play.host.sends(b"again")
    play.child.gets(ACK, seq=6, text=b"again")
    play.child.sends(ACK)
    play.child.gets_nothing()
    assert play.stack.buffered() == 0
    assert play.stack.counters() == {}


def test_established_answer_carries_the_ack(established):
    """One frame, not two, when both are due in one turn."""
    play = established
    play.host.end.send(b"answer")
    play.child.sends(ACK, text=b"question")
    acks = play.child.forgets()
    assert [s.text for s in acks] == [b"answer"]
    assert play.child.acked(acks[0]) == 9


@pytest.mark.parametrize("length", [1, 2, 3, 7, 1459, 1460, 1461, 65_475, 65_476, 131_071, 300_001])
def test_established_lengths_come_whole(stage, family, offload, length):
    play = stage(family=family, offload=offload)
    play.establish(options=SCALED)
    got, sent = bytearray(), 0
    while len(got) < length:
        sent += play.host.sends(text_of(length)[sent:], all_of_it=False)
        got += play.child.reads(sum(len(s.text) for s in play.child.inbox))
    assert bytes(got) == text_of(length)
    assert play.stack.buffered() == 0


@pytest.mark.parametrize("mtu", [1280, 1500, 9000, 65520, 65521])
def test_established_any_mtu_moves_text(stage, offload, mtu):
    """A frame of 64 KiB less headers must hold one MSS, or an MTU near it moves nothing at all."""
    play = stage(offload=offload, mtu=mtu)
    play.establish(options=wire.mss(65_495))
    play.host.sends(text_of(150_000), all_of_it=False)
    came = play.child.reads(sum(len(s.text) for s in play.child.inbox))
    assert len(came) >= 65_535
    assert came == text_of(len(came))


def test_established_ring_wraps_at_every_byte(stage, offload):
    """The pieces of a wrapped ring may meet inside a 16-bit word of the checksum."""
    play = stage(offload=offload)
    play.establish(options=SCALED)
    play.host.sends(b"-")
    play.child.forgets()  # one byte stays unacknowledged: the ring never starts again at its first byte
    play.child.got = 2
    sent = 1
    for size in [1459, 1461, 3333, 777] * 120:
        play.host.sends(text_of(size, sent))
        came = b"".join(s.text for s in play.child.forgets())
        assert came == text_of(size, sent)
        sent += size
        play.child.got += size
        play.child.sends(ACK, ack=play.child.got - 1)  # all but one byte
    play.child.sends(ACK)
    assert play.stack.buffered() == 0


# --- lost


def test_established_rto_repeats_with_doubling_and_karn(established):
    play = established
    play.host.sends(b"lost")
    play.child.forgets()
    wait = RTO_MIN_MS
    for _ in range(6):
        play.clock.advance(ms=wait - 1)
        play.child.gets_nothing()
        play.clock.advance(ms=1)
        play.child.gets(ACK, seq=1, text=b"lost")
        play.child.got = 1
        wait *= 2
    play.child.sends(ACK, ack=5)
    play.host.sends(b"next")
    play.child.forgets()
    play.clock.advance(ms=wait - 1)  # Karn: what came after a retransmission measures nothing, the RTO stays
    play.child.gets_nothing()
    play.clock.advance(ms=1)
    play.child.gets(ACK, seq=5, text=b"next")


def test_established_rto_comes_down_with_a_new_measure(established):
    play = established
    play.host.sends(b"lost")
    play.child.forgets()
    for _ in range(4):
        play.clock.advance(ms=10_000)
    play.child.forgets()
    play.child.sends(ACK, ack=5)
    play.host.sends(b"ok")
    play.child.forgets()
    play.child.sends(ACK, ack=7)  # an answer to a first sending
    play.host.sends(b"lost again")
    play.child.forgets()
    play.clock.advance(ms=RTO_MIN_MS)
    play.child.gets(ACK, seq=7, text=b"lost again")


def test_established_slow_path_has_a_longer_rto(established):
    """RFC 6298: after an RTT of 400 ms the first sample makes the RTO 1.2 s."""
    play = established
    for i in range(8):
        play.host.sends(b"x")
        play.child.forgets()
        play.clock.advance(ms=150)
        play.child.sends(ACK, ack=2 + i)
    play.host.sends(b"y")
    play.child.forgets()
    play.clock.advance(ms=RTO_MIN_MS)
    play.child.gets_nothing()
    play.clock.advance(ms=300)
    assert play.child.forgets()


def test_established_silence_gives_up_after_fifteen(established):
    play = established
    play.host.sends(b"lost")
    for _ in range(15):
        play.clock.advance(ms=60_000)
        assert len(play.child.forgets()) >= 1
        play.no_event()
    play.clock.advance(ms=60_000)
    play.child.gets(RST | ACK)
    play.ended(End.TIMEOUT)
    play.host.gets_reset()
    assert play.stack.flow_count() == 0


def test_established_three_duplicate_acks_repeat_at_once(stage, offload):
    play = stage(offload=offload)
    play.establish()
    for i in range(5):
        play.host.sends(text_of(1460, i * 1460))
    play.child.forgets()
    for _ in range(2):
        play.child.sends(ACK, ack=1461)
    play.child.gets_nothing()
    play.child.sends(ACK, ack=1461)
    play.child.gets_nothing()
    play.child.sends(ACK, ack=1461)  # the third duplicate
    s = play.child.gets(ACK, text=None)
    assert play.child.relative(s) == 1461
    assert s.text[:1460] == text_of(1460, 1460)
    for _ in range(10):  # no more for more duplicates
        play.child.sends(ACK, ack=1461)
    play.child.gets_nothing()
    play.child.sends(ACK, ack=5 * 1460 + 1)
    assert play.stack.buffered() == 0


def test_established_window_update_is_no_duplicate_ack(established):
    play = established
    play.host.sends(text_of(1460))
    play.child.forgets()
    for window in (1000, 2000, 3000, 4000, 5000):
        play.child.sends(ACK, ack=1, window=window)
    play.child.gets_nothing()


def test_established_text_is_no_duplicate_ack(established):
    play = established
    play.host.sends(text_of(1460))
    play.child.forgets()
    for _ in range(5):
        play.child.sends(ACK, ack=1, text=b"x")
    assert all(not s.text for s in play.child.forgets())


def test_established_partial_ack_repeats_the_next_hole(stage):
    """RFC 6582: in recovery each partial ACK brings the next lost segment without three more duplicates."""
    play = stage(offload=False)
    play.establish()
    play.host.sends(text_of(6 * 1460))
    play.child.forgets()
    for _ in range(4):
        play.child.sends(ACK, ack=1)
    s = play.child.inbox.popleft()
    assert play.child.relative(s) == 1
    play.child.forgets()
    play.child.sends(ACK, ack=1461)
    assert [play.child.relative(s) for s in play.child.forgets()][:1] == [1461]
    play.child.sends(ACK, ack=6 * 1460 + 1)
    play.child.gets_nothing()


def test_established_old_ack_changes_nothing(established):
    play = established
    play.host.sends(b"abcdef")
    play.child.gets(ACK)
    play.child.sends(ACK)
    for ack in (1, 3, -100):
        play.child.sends(ACK, ack=ack, window=0)
    play.host.sends(b"ghi")
    play.child.gets(ACK, seq=7, text=b"ghi")


def test_established_partial_ack_of_a_frame_keeps_the_rest(established):
    play = established
    play.host.sends(text_of(10_000))
    play.child.forgets()
    play.child.sends(ACK, ack=778)
    play.clock.advance(ms=400)
    s = play.child.inbox.popleft()
    assert play.child.relative(s) == 778
    assert s.text == text_of(len(s.text), 777)


@pytest.mark.case("B17")
def test_established_idle_for_hours_is_kept_alive(established):
    """RFC 5382, REQ-5: not before two hours, and then asked before it is given up."""
    play = established
    play.clock.advance(ms=7_199_999)
    play.child.gets_nothing()
    play.clock.advance(ms=1)
    s = play.child.gets(ACK, seq=0, text=b"")
    assert play.child.acked(s) == 1
    play.child.sends(ACK)
    play.clock.advance(ms=3_600_000)
    play.child.gets_nothing()
    play.child.sends(ACK, text=b"alive")
    play.host.gets(b"alive")


def test_established_dead_child_is_given_up_at_last(established):
    play = established
    play.clock.advance(ms=7_200_000)
    for _ in range(9):
        assert len(play.child.forgets()) == 1
        play.no_event()
        play.clock.advance(ms=75_000)
    play.child.gets(RST | ACK)
    play.ended(End.IDLE)
    play.host.gets_reset()


@pytest.mark.parametrize("gib", [2, 4])
@pytest.mark.case("B23")
def test_established_gibibytes_down(stage, gib):
    """B23: past half of all sequence numbers, where comparisons turn round, and past all; losses are still mended."""
    play = stage()
    play.establish(options=wire.mss(65_495) + wire.NOP + wire.wscale(7))
    child, chunk = play.child, text_of(448 * 1024)
    while child.got < (gib << 30) + (1 << 20):
        play.host.end.send(chunk[:200_000])
        play.rest()
        for s in child.inbox:
            child._take(s)
        child.inbox.clear()
        child.history.clear()
        child.sends(ACK)
    for _ in range(3):
        play.host.sends(b"one")
    child.forgets()
    for _ in range(3):
        child.sends(ACK, ack=child.got)
    assert child.forgets(), "three duplicate ACKs"


# --- a bad wire


def lossy(play: Play, chance: random.Random, up: bytes, down: bytes) -> tuple[bytes, bytes]:
    """Both ways at once through a wire that loses, repeats and shuffles a tenth each; returns what arrived."""
    child = play.child
    got_up, got_down = bytearray(), bytearray()
    base, sent, at = 1, 0, 0  # acknowledged, handed to the host, next to send
    ahead: dict[int, bytes] = {}
    for _ in range(20_000):
        if len(got_up) == len(up) and len(got_down) == len(down) and base == len(up) + 1:
            break
        batch: list[bytes] = []
        for _ in range(8):
            if at < len(up) and at - (base - 1) < 20_000:
                size = min(chance.randint(1, 1460), len(up) - at)
                batch.append(child.packet(ACK, seq=1 + at, text=up[at : at + size]))
                at += size
        batch.append(child.packet(ACK, seq=1 + at))
        chance.shuffle(batch)
        for packet in batch:
            for _ in range(chance.choice((0, 1, 1, 1, 1, 1, 1, 1, 1, 2))):
                play._tap.send(wire.frame(packet))
        if sent < len(down):
            sent += play.host.sends(down[sent : sent + 5000], all_of_it=False)
        play.rest()
        segments = child.forgets()
        chance.shuffle(segments)
        for s in segments:
            if chance.random() < 0.1:
                continue
            base = max(base, child.acked(s))
            if s.text:
                ahead.setdefault(child.relative(s), s.text)
        while any(k <= child.got < k + len(v) for k, v in ahead.items()):
            k, v = next((k, v) for k, v in ahead.items() if k <= child.got < k + len(v))
            got_down += v[child.got - k :]
            child.got = k + len(v)
            ahead = {k: v for k, v in ahead.items() if k + len(v) > child.got}
        got_up += play.host.reads()
        play.clock.advance(ms=50)
        if chance.random() < 0.3:
            at = base - 1  # as an RTO of the child's would
    return bytes(got_up), bytes(got_down)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.case("B21", "B23")
def test_established_bad_wire_delivers_both_ways(stage, offload, seed):
    """B21, B30: what arrives is what was sent, whatever the wire does."""
    play = stage(offload=offload)
    play.establish(options=SCALED, isn=0xFFFFFFF0 - seed, window=500)
    up, down = text_of(150_000, seed), text_of(150_000, 77 + seed)
    assert lossy(play, random.Random(seed), up, down) == (up, down)
    play.child.next = len(up) + 1
    play.child.sends(FIN | ACK)
    play.host.gets_eof()


# --- the TAP is full


@pytest.mark.case("B31")
def test_established_full_tap_loses_no_text(stage, offload):
    """B31: nothing counts as sent that the TAP did not take, and the stack goes on when it does."""
    play = stage(offload=offload, tap_buffer=100_000 if offload else 4608)
    play.establish(options=SCALED)
    play.deaf = True
    play.host.end.send(text_of(200_000))
    play.rest()
    play.deaf = False
    play.rest()
    came = play.child.reads(sum(len(s.text) for s in play.child.inbox))
    for _ in range(2000):
        if len(came) == 200_000:
            break
        play.clock.advance(ms=1)
        came += play.child.reads(sum(len(s.text) for s in play.child.inbox))
    assert came == text_of(200_000)


@pytest.mark.case("B31")
def test_established_tap_that_refuses_a_frame_is_not_asked_for_ever(stage):
    """M2, M3: a write may fail for good (EIO, EINVAL; here EMSGSIZE). The frame is lost; the stack comes to rest."""
    play = stage(tap_buffer=4608)
    play.establish(options=SCALED)
    play.host.end.send(text_of(60_000))
    play.rest()
    play.clock.advance(ms=1000)
    assert play.stack.counters()["tap_full"] >= 2


@pytest.mark.case("B31")
def test_established_full_tap_owes_the_ack(stage):
    """An ACK that the TAP refused is still due."""
    play = stage(tap_buffer=4608)
    play.establish()
    play.deaf = True
    sent = 0
    while not play.stack.counters():  # until the TAP has refused exactly one
        play.child.sends(ACK, text=text_of(10, sent))
        sent += 10
    assert play.stack.counters() == {"tap_full": 1}
    play.deaf = False
    play.rest()
    assert play.child.acked(play.child.forgets()[-1]) == sent + 1
