"""The two windows: the one we tell the child (true, not silly, reopened) and the one it tells us (kept, probed)."""

from __future__ import annotations

import itertools
import socket

import pytest

from childflow.netstack.events import End
from childflow.netstack.stack import Limits

from . import wire
from .play import ACK, CHILD_PORT, FIN, RST, SYN, Play, text_of

SCALED = wire.mss(1460) + wire.NOP + wire.wscale(0)
RING = 512 * 1024


def fill_up(play: Play, segment: int = 1460) -> int:
    """The child sends into a host that does not read, as the window lets it; returns the bytes accepted."""
    child, sent, edge, shift = play.child, 0, 65_535, 4
    while True:
        size = min(segment, edge - sent)
        if size <= 0:
            return sent
        child.sends(ACK, text=text_of(size, sent))
        sent += size
        for s in child.forgets():
            assert child.acked(s) == sent + 1, "an accepted byte was not acknowledged"
            edge = child.acked(s) - 1 + (s.window << shift)


# --- up: the window that we tell


@pytest.mark.case("B15")
def test_established_window_shrinks_to_zero_as_the_host_stops_reading(play):
    play.establish(options=SCALED, buffer=4096)
    sent = fill_up(play)
    assert RING <= sent <= RING + 65_536
    assert play.stack.buffered() == RING
    play.child.sends(ACK, text=text_of(100, sent), seq=sent + 1)
    s = play.child.gets(ACK, window=0)
    assert 0 <= play.child.acked(s) - 1 - sent < 16  # what the scale of the window hides
    assert play.stack.counters() == {"out_of_window": 1}


@pytest.mark.case("B15")
def test_zero_window_told_reopens_with_an_update_when_the_host_reads(play):
    play.establish(options=SCALED, buffer=4096)
    sent = fill_up(play)
    got = play.host.reads(64)
    play.child.gets_nothing()  # a little room is no news (RFC 9293, 3.8.6.2.2)
    got += play.host.reads()
    updates = play.child.forgets()
    assert updates
    assert play.child.acked(updates[-1]) == sent + 1
    assert updates[-1].window << 4 >= RING // 2
    assert got == text_of(sent)
    assert play.stack.buffered() == 0


@pytest.mark.case("B15")
def test_established_edge_never_moves_back_and_never_by_a_silly_bit(play):
    """The edge moves by at least a segment or stays; scaling may hide up to 15 bytes of it (RFC 7323, 2.4)."""
    play.establish(options=SCALED, buffer=4096)
    child, sent, edge = play.child, 0, 0
    edges = []
    for step in range(2000):
        size = min(997, edge - sent) if edge else 997
        if size > 0:
            child.sends(ACK, text=text_of(size, sent))
            sent += size
        if step % 3 == 0:
            play.host.reads(1500)
        for s in child.forgets():
            now = child.acked(s) - 1 + (s.window << 4)
            assert now > edge - 16, "the edge moved back"
            if now >= edge + 16:
                assert now >= edge + 1460 - 16, "a silly window"
            edge = max(edge, now)
            edges.append(now)
    assert len(set(edges)) > 10


@pytest.mark.case("B15")
def test_established_unscaled_window_fills_and_reopens(play):
    play.establish(buffer=4096)
    child, sent = play.child, 0
    window = 65_535
    while window:
        size = min(1460, window)
        child.sends(ACK, text=text_of(size, sent))
        sent += size
        window = child.forgets()[-1].window
    assert sent > 65_535
    assert play.host.reads() == text_of(sent)
    assert child.forgets()[-1].window >= 65_535 - 1460


def test_zero_window_told_takes_acks_and_window_updates(play):
    """A full up direction doesn't stop the down direction."""
    play.establish(options=SCALED, buffer=4096)
    fill_up(play)
    play.host.sends(b"down")
    play.child.gets(ACK, text=b"down")
    play.child.sends(ACK)
    play.host.sends(b"more")
    play.child.gets(ACK, text=b"more", seq=5)
    play.child.sends(ACK)
    play.child.gets_nothing()
    play.clock.advance(ms=5000)
    play.child.gets_nothing()


def test_zero_window_told_and_reset_by_child(play):
    play.establish(options=SCALED, buffer=4096)
    fill_up(play)
    play.child.sends(RST)
    e = play.ended(End.RST_CHILD)
    assert e.bytes_up < RING
    assert play.stack.buffered() == 0


@pytest.mark.case("B16")
def test_established_short_writes_lose_nothing(stage):
    """B16: a host socket of a few KiB takes odd parts of each segment."""
    play = stage()
    play.establish(options=SCALED, buffer=2304)
    data = text_of(600_001)
    got, sent, edge = bytearray(), 0, 65_535
    while len(got) < len(data):
        size = min(1459, edge - sent, len(data) - sent)
        if size > 0:
            play.child.sends(ACK, text=data[sent : sent + size])
            sent += size
        got += play.host.reads(1013)
        for s in play.child.forgets():
            edge = max(edge, play.child.acked(s) - 1 + (s.window << 4))
    assert bytes(got) == data
    assert play.stack.buffered() == 0


@pytest.mark.case("B15")
def test_zero_window_told_is_exactly_zero_and_its_probes_are_answered(play):
    """A child that probes gets an ACK with the window as it is; nothing of a probe beyond the edge is taken."""
    play.establish(buffer=4096)
    child, sent, window = play.child, 0, 65_535
    while window:
        size = min(1460, window)
        child.sends(ACK, text=text_of(size, sent))
        sent += size
        window = child.forgets()[-1].window
    for _ in range(20):
        play.clock.advance(ms=60_000)
        child.sends(ACK, seq=sent + 1, text=text_of(1, sent))
        child.gets(ACK, ack=sent + 1, window=0)
        child.gets_nothing()
    child.sends(ACK, seq=sent)  # an empty one, as Linux sends it
    child.gets(ACK, ack=sent + 1, window=0)
    got = play.host.reads()
    assert got == text_of(sent)
    opened = child.forgets()
    assert opened[-1].window >= 65_535 - 1460
    child.sends(ACK, seq=sent + 1, text=text_of(1, sent))
    play.host.gets(text_of(1, sent))


@pytest.mark.case("B15")
@pytest.mark.parametrize("sip", [1, 100, 1459])
def test_zero_window_told_is_not_opened_by_sips(play, sip):
    """RFC 9293, 3.8.6.2.2: a host that reads little makes no little windows."""
    play.establish(buffer=4096)
    child, sent, window = play.child, 0, 65_535
    while window:
        size = min(1460, window)
        child.sends(ACK, text=text_of(size, sent))
        sent += size
        window = child.forgets()[-1].window
    told, got = [], 0
    while got < 30_000:
        got += len(play.host.reads(sip))
        told += [s.window for s in child.forgets()]
    assert all(b >= a + 1460 for a, b in itertools.pairwise([0, *told])), told


@pytest.mark.case("B16")
def test_established_host_socket_that_fills_at_every_offset_loses_nothing(play):
    """The host's buffer grows from one connection to the next, so that the first short write ends at every offset of a
    segment in turn; what follows finds it full and waits. A socket takes two pieces of a length of its own."""
    ends = set()
    for i in range(1460):
        play.establish(1000 + i, buffer=4608 + i)
        play.child.sends(ACK, text=b"-" * (i // 730))
        play.child.sends(ACK, text=text_of(30_000, i))
        assert play.stack.buffered()
        got = play.host.end.recv(1 << 20)
        ends.add(len(got) % 1460)
        got += play.host.reads()
        assert got == b"-" * (i // 730) + text_of(30_000, i)
        play.child.sends(ACK, text=b"next")
        play.host.gets(b"next")
        play.child.sends(RST)
        play.child.forgets()
        play.forgets_events()
    assert len(ends) == 1460


@pytest.mark.case("B16")
def test_established_child_window_that_cuts_at_every_offset_loses_nothing(play):
    """The other way: the child's window ends at every offset of a segment in turn."""
    for i in range(1, 1461):
        play.establish(1000 + i, window=1460 + i)
        play.host.sends(text_of(6000, i))
        came = b"".join(s.text for s in play.child.forgets())
        assert came == text_of(len(came), i)
        assert 1460 <= len(came) <= 1460 + i
        play.child.got = 1 + len(came)
        play.child.sends(ACK, window=65_535)
        play.child.window = 65_535
        assert came + play.child.reads(6000 - len(came)) == text_of(6000, i)
        play.child.sends(RST)
        play.forgets_events()


# --- down: the window that we are told


@pytest.mark.parametrize("window", [1, 100, 1460, 4000, 65_535])
def test_established_no_more_goes_down_than_the_window_takes(stage, offload, window):
    play = stage(offload=offload)
    play.establish(window=window)
    play.host.sends(text_of(100_000), all_of_it=False)
    came = b"".join(s.text for s in play.child.forgets())
    assert came == text_of(len(came))
    assert window - 1460 < len(came) <= window
    play.clock.advance(ms=1)
    play.child.gets_nothing()


def test_established_only_the_window_is_read_from_the_host(play):
    play.establish(window=10_000, host="pair")
    play.host.sends(text_of(100_000))
    play.child.forgets()
    unread = play.host.end.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    assert unread > 0
    assert play.stack.buffered() == RING
    play.child.sends(ACK, ack=10_001)
    assert b"".join(s.text for s in play.child.forgets()) == text_of(10_000, 10_000)


def test_established_scaled_window_is_scaled(play):
    play.establish(options=wire.mss(1460) + wire.NOP + wire.wscale(3), window=1000)
    play.host.sends(text_of(100_000))
    came = sum(len(s.text) for s in play.child.forgets())
    assert 8000 - 1460 < came <= 8000


def test_established_no_silly_segment_while_an_ack_is_on_its_way(stage, offload):
    """RFC 9293, 3.8.6.2.1: half a segment of room waits while something is in flight, and is used when nothing is."""
    play = stage(offload=offload)
    play.establish(window=1000)
    play.host.sends(text_of(5000))
    play.child.gets(ACK, seq=1, text=text_of(1000))
    play.child.sends(ACK, ack=1, window=1500)
    play.child.gets_nothing()
    play.child.sends(ACK, ack=1, window=2460)
    play.child.gets(ACK, seq=1001, text=text_of(1460, 1000))
    play.child.sends(ACK, ack=2461, window=500)
    play.child.gets(ACK, seq=2461, text=text_of(500, 2460))


@pytest.mark.parametrize("shift", [14, 15, 255])
@pytest.mark.case("A13")
def test_established_scale_is_at_most_fourteen(play, shift):
    """RFC 7323, 2.3."""
    play.establish(options=wire.mss(1460) + wire.NOP + wire.wscale(shift), window=1)
    play.host.sends(text_of(100_000))
    came = sum(len(s.text) for s in play.child.forgets())
    assert 16_384 - 1460 < came <= 16_384


@pytest.mark.case("B12", "B13")
def test_zero_window_is_probed_with_a_byte_and_back_off(play):
    """B13: the probe carries a byte, so the child must answer; RTO, doubled up to a minute; never given up."""
    play.establish(window=0)
    play.host.sends(text_of(5000))
    play.child.gets_nothing()
    wait = 200
    for _ in range(25):
        play.clock.advance(ms=wait - 1)
        play.child.gets_nothing()
        play.clock.advance(ms=1)
        play.child.gets(ACK, seq=1, text=text_of(1))
        play.child.got = 1
        play.child.sends(ACK)  # still nothing taken
        play.child.gets_nothing()
        wait = min(2 * wait, 60_000)
    play.child.window = 65_535
    play.child.sends(ACK)
    assert play.child.reads(5000) == text_of(5000)
    assert play.stack.buffered() == 0


@pytest.mark.case("B12")
def test_zero_window_lost_update_is_found_by_a_probe(play):
    """B12: the child's window opens, its ACK is lost, the answer to the next probe tells it."""
    play.establish(window=1000)
    play.host.sends(text_of(5000))
    assert play.child.reads(1000, window=0) == text_of(1000)
    play.child.gets_nothing()
    play.child.window = 65_535  # told to nobody
    play.clock.advance(ms=200)
    play.child.gets(ACK, seq=1001, text=text_of(1, 1000))
    play.child.sends(ACK)
    assert play.child.reads(3999) == text_of(3999, 1001)


@pytest.mark.case("B12", "B13")
def test_zero_window_lost_update_and_lost_probes_are_mended(play):
    """Five probes and the child's window update are lost; each wait is twice the last, and the next probe mends it."""
    play.establish(window=0)
    play.host.sends(text_of(5000))
    wait = 200
    for _ in range(5):
        play.clock.advance(ms=wait)
        (probe,) = play.child.forgets()
        assert probe.text == text_of(1)
        wait *= 2
    play.clock.advance(ms=wait - 1)
    play.child.gets_nothing()
    play.clock.advance(ms=1)
    assert len(play.child.inbox) == 1
    play.child.window = 65_535
    assert play.child.reads(1) == text_of(1)
    assert play.child.reads(4999) == text_of(4999, 1)


@pytest.mark.case("B12")
def test_zero_window_is_never_given_up_while_the_child_answers(play):
    """RFC 9293, MUST-36, 37: a day of zero windows, each probe acknowledged; then all of it comes."""
    play.establish(window=0)
    play.host.sends(text_of(5000))
    for _ in range(24 * 60):
        play.clock.advance(ms=60_000)
        for s in play.child.forgets():
            assert s.text == text_of(1)
        play.child.sends(ACK)
    play.no_event()
    play.child.window = 65_535
    play.child.sends(ACK)
    assert play.child.reads(5000) == text_of(5000)


@pytest.mark.case("B13")
def test_zero_window_probe_byte_taken_and_still_closed_goes_on(play):
    """A child that takes the probe's byte and stays closed is probed with the next one."""
    play.establish(window=0)
    play.host.sends(text_of(5000))
    for i in range(5):
        play.clock.advance(ms=60_000)
        play.child.gets(ACK, seq=1 + i, text=text_of(1, i))
        play.child.sends(ACK)
        play.child.gets_nothing()
    play.child.window = 65_535
    play.child.sends(ACK)
    assert play.child.reads(4995) == text_of(4995, 5)


def test_zero_window_reopened_after_long_has_a_short_rto_again(play):
    """The back-off of probes is not a measure of the path: the first loss after them must not cost a minute."""
    play.establish(window=0)
    play.host.sends(text_of(5000))
    for _ in range(10):
        play.clock.advance(ms=60_000)
        play.child.forgets()
        play.child.sends(ACK)
    play.child.sends(ACK, window=65_535)
    assert play.child.forgets()
    play.clock.advance(ms=2000)
    assert play.child.forgets(), "no retransmission within two seconds"


def test_zero_window_silly_reopening_is_used_at_last(play):
    """A window of less than a segment with nothing in flight is used: nothing else would ever come."""
    play.establish(window=0)
    play.host.sends(text_of(5000))
    play.child.sends(ACK, window=10)
    play.child.gets(ACK, seq=1, text=text_of(10))


def test_zero_window_host_closed_sends_the_fin_when_it_may(play):
    play.establish(window=0)
    play.host.sends(text_of(100))
    play.host.closes()
    play.child.gets_nothing()
    play.child.sends(ACK, window=65_535)
    assert play.child.reads(100) == text_of(100)
    play.child.gets(ACK | FIN, seq=101)


def test_zero_window_and_host_at_its_end_never_hangs(play):
    """The window closes after the last byte, the host ends, and the child's window update is lost: only our FIN (or a
    probe) can wake the connection."""
    play.establish(window=100)
    play.host.sends(text_of(100))
    play.child.gets(ACK, text=text_of(100))
    play.child.sends(ACK, window=0)
    play.host.closes()
    for _ in range(5):
        play.clock.advance(ms=2000)
    assert play.child.inbox, "nothing tells the child that the host is done"


def test_zero_window_and_host_reset_is_a_reset_for_the_child(stage):
    """B03, B04: a host's RST never turns into a FIN."""
    play = stage()
    play.establish(host="tcp", window=100)
    play.host.sends(text_of(100))
    play.until(lambda: play.child.inbox)
    play.child.gets(ACK, text=text_of(100))
    play.child.sends(ACK, window=0)
    play.host.resets()
    play.until(lambda: True)
    play.clock.advance(ms=1000)
    play.child.sends(ACK, window=65_535)
    play.until(lambda: play.child.inbox)
    play.child.gets(RST | ACK)
    play.ended(End.RST_HOST)


def test_established_window_taken_back_is_probed(play):
    """The child closes its window over what is in flight: no retransmission timeout ends the flow."""
    play.establish(window=5000)
    play.host.sends(text_of(10_000))
    play.child.forgets()
    play.child.sends(ACK, ack=1, window=0)
    for _ in range(30):
        play.clock.advance(ms=61_000)
        for s in play.child.forgets():
            assert s.text == text_of(1)
        play.child.sends(ACK, ack=1, window=0)
    play.child.sends(ACK, ack=1, window=65_535)
    assert play.child.reads(10_000) == text_of(10_000)


def test_established_old_window_is_not_believed(play):
    """What was sent before the newest segment can't change the window (RFC 9293, SND.WL1), also when it comes later."""
    play.establish()
    play.child.sends(ACK, seq=4, text=b"def", window=65_535)
    play.child.sends(ACK, seq=1, text=b"abc", window=0)
    play.child.forgets()
    play.host.sends(b"goes")
    play.child.gets(ACK, text=b"goes")
    play.child.sends(ACK, window=0)
    play.host.sends(b"stays")
    play.child.gets_nothing()


# --- memory


ONE_RING = Limits(flow_window=65_536, buffer_limit=65_536)


def hold_all(play: Play) -> None:
    """One flow, whose host does not read, takes the one ring that there is."""
    play.establish(port=1, buffer=4096)
    for at in range(0, 60_000, 1000):
        play.child.sends(ACK, text=text_of(1000, at))
    assert play.stack.buffered() == 65_536


def test_buffer_limit_leaves_the_others_a_page(stage):
    """At the limit another flow is slow, not stopped; memory stays bounded, and nothing spins (`rest` would fail)."""
    play = stage(limits=ONE_RING)
    hold_all(play)
    holder = play.host
    play.establish(port=2)
    play.host.sends(text_of(50_000))
    assert play.stack.buffered() <= 65_536 + 2 * 4096
    assert play.child.reads(50_000) == text_of(50_000)
    play.child.sends(ACK, text=b"direct")
    play.host.gets(b"direct")
    holder.reads()
    assert play.stack.buffered() == 0


def test_buffer_limit_text_beyond_the_page_comes_again(stage):
    play = stage(limits=ONE_RING)
    play.establish(port=2)  # and told a large window, before that
    child, host = play.child, play.host
    hold_all(play)
    holder, play.child, play.host = play.host, child, host
    play.child.sends(ACK, seq=1001, text=text_of(30_000, 1000))
    play.child.gets(ACK, ack=1)
    assert play.stack.counters()["no_buffer"] == 1
    play.child.sends(ACK, seq=1, text=text_of(1000))
    acked = play.child.acked(play.child.forgets()[-1])
    assert 1001 <= acked < 31_001
    holder.reads()
    play.child.sends(ACK, seq=acked, text=text_of(31_000)[acked - 1 :])
    play.child.gets(ACK, ack=31_001)
    play.host.gets(text_of(31_000))


def test_buffer_limit_is_told_as_the_window(stage):
    """Whoever comes when all is held is not invited to send what can't be kept; afterwards it is."""
    play = stage(limits=ONE_RING)
    hold_all(play)
    holder = play.host
    play.connect(2).opens()
    play.attach()
    play.child.gets(SYN | ACK, window=4096)
    play.child.sends(ACK, text=text_of(1000))
    play.child.gets(ACK, ack=1001)
    holder.reads()
    play.child.sends(ACK, text=text_of(1000, 1000))
    play.child.gets(ACK, ack=2001, window=65_535)
    play.host.gets(text_of(2000))
    assert "no_buffer" not in play.stack.counters()


@pytest.mark.parametrize("window", [1 << 16, 1 << 19, 1 << 25, 1 << 26, 1 << 27, 1 << 28])
def test_buffer_limit_leaves_a_window_that_the_scale_can_tell(stage, window):
    """The larger the window, the coarser its scale; what the others get must not round down to nothing."""
    play = stage(limits=Limits(flow_window=window, buffer_limit=window))
    options = wire.mss(1460) + wire.NOP + wire.wscale(0)
    play.establish(options=options)
    play.child.sends(ACK, seq=11, text=b"x")  # ahead of a gap: holds the only large ring
    shift = next(n for n in range(15) if window >> n <= 65_535)
    play.connect(CHILD_PORT + 1).opens(options)
    play.attach()
    edge = play.child.gets(SYN | ACK).window
    assert edge >= 2 * 1460
    play.child.sends(ACK)
    for at in range(0, 200 * 1460, 1460):
        for s in play.child.forgets():
            edge = max(edge, play.child.acked(s) - 1 + (s.window << shift))
        assert edge >= at + 1460, "stuck"
        play.child.sends(ACK, text=text_of(1460, at))
        play.host.gets(text_of(1460, at))


def test_buffer_limit_many_flows_wait_and_all_go_on(stage):
    """More flows than there are pages: those that find none wait for one, without spinning."""
    play = stage(limits=Limits(max_flows=4, flow_window=65_536, buffer_limit=65_536))
    talks = []
    for port in (1, 2, 3, 4):
        play.establish(port=port, buffer=4096)
        talks.append((play.child, play.host))
    for child, host in talks:  # up and down at once: eight rings wanted, five there
        for at in range(0, 20_000, 1000):
            child.sends(ACK, seq=1 + at, text=text_of(1000, at))
        host.end.send(text_of(3000))
        play.rest()
    for _ in range(300):
        for child, host in talks:
            host.reads()
            base = max([child.acked(s) for s in child.history if s.flags & ACK])
            for s in child.forgets():
                child._take(s)
            child.sends(ACK, seq=base)
            if base <= 20_000:
                child.sends(ACK, seq=base, text=text_of(20_000)[base - 1 : base + 999])
        play.clock.advance(ms=100)
    for child, _ in talks:
        assert child.got == 3001
        assert max(child.acked(s) for s in child.history if s.flags & ACK) == 20_001
    assert play.stack.buffered() == 0


def test_buffer_limit_text_that_fills_a_gap_needs_no_page_when_the_host_reads(stage):
    """One page that holds text ahead of a gap is no reason to drop what fills the gap: only the child's timer would
    bring it again, later each time."""
    play = stage(limits=ONE_RING)
    play.establish(port=2)
    child, host = play.child, play.host
    hold_all(play)
    play.child, play.host = child, host
    play.child.sends(ACK, seq=2001, text=text_of(100, 2000))
    play.child.gets(ACK, ack=1)
    play.child.sends(ACK, seq=1, text=text_of(30_000))
    play.child.gets(ACK, ack=30_001)
    play.host.gets(text_of(30_000))
    assert "no_buffer" not in play.stack.counters()


def test_all_rings_held_leave_a_way_down(stage):
    """A host that takes nothing before it is read from (an echo) is read from, whatever the others hold."""
    play = stage(limits=Limits(max_flows=2, flow_window=65_536, buffer_limit=65_536))
    hold_all(play)
    play.host.end.send(b"never acknowledged")
    play.rest()
    play.establish(port=2, buffer=4096)
    held = 65_536 + 2 * 4096  # both ways of the one, up of the other: all but what is reserved
    for at in range(0, 20_000, 1000):
        if play.stack.buffered() < held:
            play.child.sends(ACK, text=text_of(1000, at))
    assert play.stack.buffered() == held
    play.child.forgets()
    play.host.end.send(text_of(20_000))
    play.rest()
    assert play.child.reads(20_000) == text_of(20_000)
    assert play.stack.buffered() == held


def test_established_idle_flows_hold_nothing(stage):
    play = stage()
    for port in range(1, 201):
        play.establish(port=port)
        play.child.sends(ACK, text=b"ping")
        play.child.gets(ACK, ack=5)
        play.host.gets(b"ping")
        play.host.sends(b"pong")
        play.child.gets(ACK, text=b"pong")
        play.child.sends(ACK)
    assert play.stack.flow_count() == 200
    assert play.stack.buffered() == 0
