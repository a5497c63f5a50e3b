"""ESTABLISHED, the child sends: in and out of order, twice, overlapping, urgent, across the wrap of the numbers."""

from __future__ import annotations

import random
import socket
import time

import pytest

from childflow.netstack.events import End

from . import wire
from .play import ACK, FIN, RST, text_of
from .wire import PSH, URG

ISNS = [5_000, 0, 0xFFFFFFFF, 0xFFFFFFF0, 0x7FFFFFF0, 0x80000000]


@pytest.mark.parametrize("isn", ISNS)
def test_established_text_goes_up_and_is_acknowledged(stage, family, isn):
    play = stage(family=family)
    play.establish(isn=isn)
    play.child.sends(ACK | PSH, text=b"hello ")
    play.child.gets(ACK, seq=1, ack=7, text=b"")
    play.child.sends(ACK | PSH, text=b"world")
    play.child.gets(ACK, seq=1, ack=12, text=b"")
    play.child.gets_nothing()
    play.host.gets(b"hello world")
    assert play.stack.buffered() == 0
    assert play.stack.counters() == {}


def test_established_partial_checksum_is_taken(stage, family):
    """What a child's kernel sends with offload: only the sum of the pseudo-header."""
    play = stage(family=family)
    play.establish()
    start = 34 if family == 4 else 54
    packet = play.child.packet(ACK, text=text_of(60_000), checksum="partial")
    gso = wire.GSO_TCPV4 if family == 4 else wire.GSO_TCPV6
    play.injects(wire.frame(packet, head=wire.vnet(wire.NEEDS_CSUM, gso, start + 20, 1460, start, 16)))
    play.child.gets(ACK, ack=60_001)
    play.host.gets(text_of(60_000))


@pytest.mark.parametrize("isn", ISNS)
def test_established_gap_gets_duplicate_acks_then_one_for_all(stage, isn):
    play = stage()
    play.establish(isn=isn)
    play.child.sends(ACK, seq=101, text=text_of(100, 100))
    play.child.gets(ACK, seq=1, ack=1)
    play.child.sends(ACK, seq=201, text=text_of(100, 200))
    play.child.gets(ACK, seq=1, ack=1)
    play.host.gets_nothing()
    play.child.sends(ACK, seq=1, text=text_of(100))
    play.child.gets(ACK, ack=301)
    play.child.gets_nothing()
    play.host.gets(text_of(300))
    assert play.stack.buffered() == 0


def test_established_gap_acks_leave_at_once(established):
    """Three segments beyond a gap in one turn make three duplicate ACKs (RFC 5681, 4.2)."""
    for at in (101, 201, 301):
        established._tap.send(wire.frame(established.child.packet(ACK, seq=at, text=bytes(100))))
    established.rest()
    for _ in range(3):
        established.child.gets(ACK, ack=1)
    established.child.gets_nothing()


@pytest.mark.parametrize("isn", ISNS)
def test_established_shuffled_segments_arrive_whole(stage, isn):
    play = stage()
    play.establish(isn=isn, options=wire.mss(1460) + wire.wscale(4))
    chance = random.Random(7)
    order = list(range(16))
    chance.shuffle(order)
    for i in order:
        play.child.sends(ACK, seq=1 + i * 1000, text=text_of(1000, i * 1000))
    play.host.gets(text_of(16_000))
    assert play.child.acked(play.child.inbox[-1]) == 16_001


@pytest.mark.case("B21")
def test_established_repeat_is_acknowledged_and_not_delivered(established):
    established.child.sends(ACK, seq=1, text=b"once")
    established.child.sends(ACK, seq=1, text=b"once")
    established.child.gets(ACK, ack=5)
    established.child.gets(ACK, ack=5)
    established.host.gets(b"once")
    established.host.gets_nothing()
    assert established.stack.counters() == {"duplicate": 1}


@pytest.mark.case("B21")
def test_established_overlap_delivers_the_new_part(established):
    established.child.sends(ACK, seq=1, text=b"abcdef")
    established.child.sends(ACK, seq=4, text=b"XXXghi")
    established.child.gets(ACK, ack=7)
    established.child.gets(ACK, ack=10)
    established.host.gets(b"abcdefghi")


@pytest.mark.case("B21")
def test_established_overlap_ahead_keeps_the_first_bytes(established):
    established.child.sends(ACK, seq=11, text=b"second")
    established.child.sends(ACK, seq=9, text=b"__SECOND__")
    established.child.sends(ACK, seq=1, text=b"XXXXXXXX????????YY")
    established.child.forgets()
    established.host.gets(b"XXXXXXXX__second__")


@pytest.mark.case("B22")
def test_established_thousand_gaps_are_bounded(established):
    """B22: every second byte; what is not kept is not acknowledged and comes again."""
    for at in range(2, 2002, 2):
        established.child.sends(ACK, seq=at, text=text_of(1, at - 1))
    assert established.stack.counters()["reassembly_full"] == 1000 - 128
    established.child.forgets()
    established.child.sends(ACK, seq=1, text=text_of(2001))
    established.child.gets(ACK, ack=2002)
    established.host.gets(text_of(2001))
    assert established.stack.buffered() == 0


def test_established_text_beyond_the_window_is_cut(established):
    established.child.sends(ACK, seq=65_530, text=text_of(20, 65_529))
    established.child.gets(ACK, ack=1)
    for at in range(0, 65_529, 32_000):
        established.child.sends(ACK, seq=1 + at, text=text_of(min(32_000, 65_529 - at), at))
    assert established.stack.counters() == {"out_of_window": 1}
    established.host.gets(text_of(65_535))
    assert established.child.acked(established.child.forgets()[-1]) == 65_536


def test_established_fin_behind_cut_text_is_cut_too(established):
    established.child.sends(FIN | ACK, seq=65_530, text=text_of(20, 65_529))
    for at in range(0, 65_529, 32_000):
        established.child.sends(ACK, seq=1 + at, text=text_of(min(32_000, 65_529 - at), at))
    established.host.gets(text_of(65_535))
    established.host.gets_nothing()
    established.child.sends(FIN | ACK, seq=65_536, text=text_of(14, 65_535))
    established.host.gets(text_of(14, 65_535))
    established.host.gets_eof()


def test_established_segment_wholly_beyond_the_window_is_refused(established):
    established.child.sends(ACK, seq=100_000, text=b"far")
    established.child.gets(ACK, seq=1, ack=1)
    assert established.stack.counters() == {"out_of_window": 1}
    established.child.next = 1
    established.child.sends(ACK, text=b"near")
    established.child.gets(ACK, ack=5)


def test_established_segment_before_the_window_is_refused(established):
    established.child.sends(ACK, seq=-3000, text=b"old")
    established.child.gets(ACK, seq=1, ack=1)
    established.host.gets_nothing()


@pytest.mark.parametrize("text", [b"", b"?"])
@pytest.mark.case("B17")
def test_established_idle_for_three_hours_with_probes_still_works(established, text):
    """A child with TCP_KEEPIDLE=60: its probes keep the flow, cost no retransmission, and deliver nothing."""
    established.child.sends(ACK, text=b"before")
    established.child.gets(ACK, ack=7)
    for _ in range(180):
        established.clock.advance(ms=60_000)
        established.child.sends(ACK, seq=6, text=text)
        established.child.gets(ACK, seq=1, ack=7, text=b"")
    established.child.gets_nothing()
    established.child.sends(ACK, seq=7, text=b"after")
    established.child.gets(ACK, ack=12)
    established.host.gets(b"beforeafter")
    established.host.sends(b"still here")
    established.child.gets(ACK, text=b"still here")


@pytest.mark.case("B17")
@pytest.mark.parametrize("text", [b"", b"?"])
def test_established_keep_alive_probe_is_answered(established, text):
    established.child.sends(ACK, text=b"word")
    established.child.gets(ACK, ack=5)
    for _ in range(5):
        established.child.sends(ACK, seq=4, text=text)
        established.child.gets(ACK, seq=1, ack=5, text=b"")
    established.child.gets_nothing()
    established.host.gets(b"word")
    established.host.gets_nothing()


@pytest.mark.parametrize(
    ("urgent", "text", "flags"),
    [
        (0, b"abc", URG),
        (1, b"abc", URG),
        (65535, b"a", URG),
        (1, b"", URG),
        (3, b"abc", URG),
        (4, b"abc", URG),
        (1000, b"abc", URG | PSH),
        (7, b"a", 0),
    ],
)
@pytest.mark.case("A15", "B24")
def test_established_urgent_is_inline(established, urgent, text, flags):
    """RFC 6093: the pointer is ignored, the bytes stay where they are."""
    established.child.sends(ACK | flags, text=text, urgent=urgent)
    established.child.sends(ACK, text=b"|")
    established.host.gets(text + b"|")


@pytest.mark.case("A15")
def test_established_urgent_beyond_the_text_again_and_again(established):
    """CVE-2026-9539: a pointer past the segment never makes the stack read past it."""
    for i in range(10_000):
        established._tap.send(
            wire.frame(established.child.packet(ACK | URG, text=text_of(1, i), urgent=(2, 60_000, 65_535)[i % 3]))
        )
        if i % 100 == 99:
            established.rest()
            established.host.gets(text_of(100, i - 99))
    established.host.gets_nothing()
    assert established.stack.counters() == {}


@pytest.mark.case("A15")
def test_established_urgent_while_the_host_reads_nothing(play):
    """Urgent text waits in the order in which it was sent, as any other."""
    play.establish(options=wire.mss(1460) + wire.NOP + wire.wscale(0), buffer=4096)
    for i in range(200):
        play.child.sends(ACK | (URG if i % 2 else 0), text=text_of(997, i * 997), urgent=(0, 1, 996, 65_535)[i % 4])
    assert play.stack.buffered() > 0
    play.host.gets(text_of(200 * 997))
    play.host.gets_nothing()


@pytest.mark.case("A15", "A16")
def test_closed_urgent_syn_opens_and_its_pointer_is_nothing(play):
    play.connect().sends(wire.SYN | URG, seq=0, urgent=65_535, options=wire.mss(1460))
    play.attach()
    play.child.gets(wire.SYN | ACK, ack=1)
    play.child.sends(ACK | URG, urgent=1)
    play.child.sends(ACK, text=b"abc")
    play.host.gets(b"abc")


@pytest.mark.case("A15", "B24")
def test_established_urgent_from_a_real_host_comes_in_line(stage):
    """The other way: what a host sends as urgent keeps its place, and the child is not told which byte it was."""
    play = stage()
    play.establish(host="tcp")
    sent = b""
    for i in range(200):
        play.host.end.send(b"<")
        play.host.end.send(bytes((65 + i % 26,)), socket.MSG_OOB)
        play.host.end.send(b">")
        sent += b"<" + bytes((65 + i % 26,)) + b">"
    came = b""
    while len(came) < len(sent):
        play.until(lambda: play.child.inbox)
        assert not any(s.flags & URG for s in play.child.inbox)
        came += play.child.reads(sum(len(s.text) for s in play.child.inbox))
    assert came == sent


@pytest.mark.case("A15")
def test_established_urgent_fin_half_closes(established):
    established.child.sends(ACK | URG | FIN, text=b"a", urgent=9)
    established.host.gets(b"a")
    established.host.gets_eof()


def test_established_no_ack_flag_is_dropped(established):
    established.child.sends(0, seq=1, text=b"bare")
    established.child.sends(PSH, seq=1, text=b"bare")
    established.child.gets_nothing()
    established.host.gets_nothing()
    assert established.stack.counters() == {"bad_flags": 2}


def test_established_ack_of_what_was_not_sent_is_challenged(established):
    established.child.sends(ACK, ack=5000, text=b"x", seq=1)
    established.child.gets(ACK, seq=1, ack=1)
    established.host.gets_nothing()
    assert established.stack.counters() == {"old_ack": 1}


@pytest.mark.case("A03")
def test_established_padding_of_a_short_frame_is_not_text(established):
    """A 60-byte Ethernet frame of a 40-byte packet: the IP length decides."""
    established.injects(wire.frame(established.child.packet(ACK, text=b"abc") + b"PADDING"))
    established.child.gets(ACK, ack=4)
    established.host.gets(b"abc")
    established.host.gets_nothing()


@pytest.mark.case("A30")
def test_established_gso_size_of_one_costs_nothing(established):
    """A30: the claimed segment size is never looked at."""
    costs = []
    for gso_size, frames in ((1460, 2000), (1, 10_000)):
        head, begin = wire.vnet(wire.NEEDS_CSUM, wire.GSO_TCPV4, 54, gso_size, 34, 16), time.process_time()
        for i in range(frames):
            packet = established.child.packet(ACK, text=text_of(60_000), checksum="partial")
            established.injects(wire.frame(packet, head=head))
            established.child.gets(ACK, ack=established.child.next)
            assert established.host.reads() == text_of(60_000), i
        established.child.history.clear()
        costs.append((time.process_time() - begin) / frames)
    assert costs[1] < 2 * costs[0], costs
    established.child.sends(FIN | ACK)
    assert established.stack.counters() == {}


@pytest.mark.parametrize("isn", [0x7FFF0000, 0xFFFF0000])
@pytest.mark.case("B23")
def test_established_stream_over_the_wrap(stage, isn):
    """The child's numbers run over 2^31 and 2^32 in the middle of a stream, to its FIN."""
    play = stage()
    play.establish(isn=isn)
    for i in range(8):
        play.child.sends(ACK, text=text_of(32_768, i * 32_768))
        play.child.gets(ACK, ack=1 + (i + 1) * 32_768)
        play.host.gets(text_of(32_768, i * 32_768))
    play.child.sends(FIN | ACK)
    play.child.gets(ACK, ack=2 + 8 * 32_768)
    play.host.gets_eof()


@pytest.mark.parametrize("isn", [0xFFFFFFF9, 0xFFFFFFFA, 0xFFFFFFFB])
@pytest.mark.case("B23")
def test_established_fin_at_the_wrap(stage, isn):
    play = stage()
    play.establish(isn=isn)
    play.child.sends(FIN | ACK, text=b"abcde")
    play.child.gets(ACK, ack=7)
    play.host.gets(b"abcde")
    play.host.gets_eof()
    play.host.sends(b"bye")
    play.child.gets(ACK, text=b"bye")
    play.host.closes()
    play.child.gets(FIN | ACK, seq=4)
    play.child.sends(ACK)
    e = play.ended(End.FIN)
    assert (e.bytes_up, e.bytes_down) == (5, 3)
    assert play.stack.flow_count() == 0


def test_established_text_behind_the_fin_is_nothing(established):
    established.child.sends(FIN | ACK, text=b"end")
    established.child.gets(ACK, ack=5)
    established.child.sends(ACK, seq=5, text=b"more")
    established.child.gets(ACK, ack=5)
    established.host.gets(b"end")
    established.host.gets_eof()
    assert established.stack.counters() == {"closed_direction": 1}


def test_established_text_ahead_of_the_fins_number_holds_nothing_up(established):
    """A child that numbers text behind its FIN harms nobody: the end still goes up, the buffer is free."""
    established.child.sends(ACK, seq=11, text=b"behind")
    established.child.sends(FIN | ACK, seq=1, text=b"end")
    established.child.forgets()
    established.host.gets(b"end")
    established.host.gets_eof()
    assert established.stack.buffered() == 0


def test_established_early_fin_waits_for_the_text_before_it(established):
    established.child.sends(FIN | ACK, seq=4, text=b"def")
    established.child.gets(ACK, ack=1)
    established.host.gets_nothing()
    established.child.sends(ACK, seq=1, text=b"abc")
    established.child.gets(ACK, ack=8)
    established.host.gets(b"abcdef")
    established.host.gets_eof()


def test_established_bare_early_fin_waits_too(established):
    established.child.sends(FIN | ACK, seq=4)
    established.child.forgets()
    established.host.gets_nothing()
    established.child.sends(ACK, seq=1, text=b"abc")
    established.child.gets(ACK, ack=5)
    established.host.gets(b"abc")
    established.host.gets_eof()


def test_reset_after_reading_counts_the_bytes(established):
    established.child.sends(ACK, text=text_of(1234))
    established.host.gets(text_of(1234))
    established.child.sends(RST)
    assert established.ended(End.RST_CHILD).bytes_up == 1234
