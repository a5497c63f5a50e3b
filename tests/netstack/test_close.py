"""From ESTABLISHED to CLOSED: FIN both ways and half-way, RST both ways, TIME-WAIT, and a tuple used again."""

from __future__ import annotations

import socket

import pytest

from childflow.netstack.events import End
from childflow.netstack.stack import Limits

from . import wire
from .play import ACK, FIN, RST, SYN, Play, text_of

SCALED = wire.mss(1460) + wire.NOP + wire.wscale(0)
TIME_WAIT_MS = 2000


# --- in good order


def test_established_fin_from_child_then_host(stage, family, offload):
    play = stage(family=family, offload=offload)
    play.establish()
    play.child.sends(FIN | ACK, text=b"request")
    play.child.gets(ACK, seq=1, ack=9)
    play.host.gets(b"request")
    play.host.gets_eof()
    play.host.sends(b"answer")
    play.child.gets(ACK, text=b"answer")
    play.host.closes()
    play.child.gets(FIN | ACK, seq=7, ack=9)
    play.child.sends(ACK)
    play.child.gets_nothing()
    e = play.ended(End.FIN)
    assert (e.bytes_up, e.bytes_down) == (7, 6)
    assert play.stack.flow_count() == 0


def test_established_fin_from_host_then_child(established):
    play = established
    play.host.sends(b"banner")
    play.child.gets(ACK, text=b"banner")
    play.host.half_closes()
    play.child.gets(FIN | ACK, seq=7)
    play.child.sends(ACK)
    play.child.sends(ACK, text=b"still talking")
    play.child.gets(ACK, seq=8, ack=14)
    play.host.gets(b"still talking")
    play.child.sends(FIN | ACK)
    play.child.gets(ACK, seq=8, ack=15)
    play.host.gets_eof()
    e = play.ended(End.FIN)
    assert (e.bytes_up, e.bytes_down) == (13, 6)
    assert play.stack.flow_count() == 1  # TIME-WAIT, without a descriptor
    play.clock.advance(ms=TIME_WAIT_MS)
    assert play.stack.flow_count() == 0


@pytest.mark.case("B01")
def test_close_wait_large_answer_comes_whole(stage, offload):
    """B01: the child is done sending; a megabyte comes down."""
    play = stage(offload=offload)
    play.establish()
    play.child.sends(FIN | ACK)
    play.child.gets(ACK)
    data = text_of(1 << 20)
    got, sent = bytearray(), 0
    while len(got) < len(data):
        sent += play.host.sends(data[sent : sent + 100_000], all_of_it=False)
        got += play.child.reads(sum(len(s.text) for s in play.child.inbox))
    assert bytes(got) == data
    play.host.closes()
    play.child.gets(FIN | ACK)
    play.child.sends(ACK)
    assert play.ended(End.FIN).bytes_down == 1 << 20


@pytest.mark.case("B02")
def test_fin_wait_2_large_upload_goes_whole(established):
    """B02: the host is done sending; a megabyte goes up."""
    play = established
    play.host.half_closes()
    play.child.gets(FIN | ACK)
    play.child.sends(ACK)
    data = text_of(1 << 20)
    for at in range(0, len(data), 32_768):
        play.child.sends(ACK, text=data[at : at + 32_768])
        play.host.gets(data[at : at + 32_768])
    play.child.sends(FIN | ACK)
    play.host.gets_eof()
    assert play.ended(End.FIN).bytes_up == 1 << 20


def test_established_both_close_at_once(established):
    """FIN-WAIT-1 and the child's FIN, which does not acknowledge ours: CLOSING, then TIME-WAIT."""
    play = established
    play.host.closes()
    play.child.gets(FIN | ACK, seq=1, ack=1)
    play.child.sends(FIN | ACK, seq=1, ack=1)
    play.child.gets(ACK, seq=2, ack=2)
    play.no_event()
    play.child.sends(ACK, seq=2, ack=2)
    play.child.gets_nothing()
    play.ended(End.FIN)
    play.clock.advance(ms=TIME_WAIT_MS)
    assert play.stack.flow_count() == 0


def test_fin_wait_1_fin_that_acknowledges_ours(established):
    play = established
    play.host.closes()
    play.child.gets(FIN | ACK, seq=1)
    play.child.sends(FIN | ACK, ack=2)
    play.child.gets(ACK, seq=2, ack=2)
    play.ended(End.FIN)


def test_established_fin_rides_on_the_last_text(established):
    """With the host's end already there, one frame says both."""
    play = established
    play.host.end.send(b"last words")
    play.host.closes()
    s = play.child.inbox[0]
    assert s.text == b"last words"
    play.child.reads(10)
    if not s.flags & FIN:
        play.child.gets(FIN | ACK)


def test_established_fin_waits_for_the_window(play):
    play.establish(window=2920)
    play.host.sends(text_of(4000))
    play.host.closes()
    came = play.child.forgets()
    assert sum(len(s.text) for s in came) == 2920
    assert not any(s.flags & FIN for s in came)
    play.child.sends(ACK, ack=2921)
    play.child.got = 2921
    assert play.child.reads(1080) == text_of(1080, 2920)
    play.child.gets(FIN | ACK, seq=4001)


def test_established_fin_is_repeated_until_acknowledged(established):
    play = established
    play.host.closes()
    play.child.gets(FIN | ACK, seq=1)
    play.child.got = 1
    wait = 200
    for _ in range(4):
        play.clock.advance(ms=wait)
        play.child.gets(FIN | ACK, seq=1, ack=1)
        wait *= 2
    play.child.sends(FIN | ACK, ack=2)
    play.child.gets(ACK, ack=2)


def test_last_ack_lost_fin_is_repeated(established):
    play = established
    play.child.sends(FIN | ACK)
    play.child.gets(ACK, ack=2)
    play.host.closes()
    play.child.gets(FIN | ACK, seq=1)
    play.clock.advance(ms=200)
    play.child.gets(FIN | ACK, seq=1, ack=2)
    play.child.sends(ACK, ack=2)
    play.ended(End.FIN)
    assert play.stack.flow_count() == 0


def test_fin_wait_1_lost_fin_with_text_is_repeated_whole(established):
    play = established
    play.host.end.send(text_of(3000))
    play.host.closes()
    play.child.forgets()
    play.clock.advance(ms=200)
    assert play.child.reads(3000) == text_of(3000)
    play.child.forgets()
    play.child.sends(FIN | ACK, ack=3002)
    play.ended(End.FIN)


def test_time_wait_repeated_fin_is_acknowledged_again(established):
    play = established
    play.host.closes()
    play.child.gets(FIN | ACK)
    play.child.sends(FIN | ACK)
    play.child.gets(ACK, ack=2)
    for _ in range(3):
        play.clock.advance(ms=1500)
        play.child.sends(FIN | ACK, seq=1)
        play.child.gets(ACK, seq=2, ack=2)
    play.clock.advance(ms=TIME_WAIT_MS)
    assert play.stack.flow_count() == 0


def test_time_wait_reset_ends_it_quietly(established):
    play = established
    play.host.closes()
    play.child.gets(FIN | ACK)
    play.child.sends(FIN | ACK)
    play.child.gets(ACK)
    assert play.ended(End.FIN).end == End.FIN
    play.child.sends(RST)
    play.child.gets_nothing()
    play.no_event()


# --- what was accepted is delivered


def full_and_done(play: Play) -> int:
    """The host sent its end and reads slowly; the child has sent its all, and its end. Returns the bytes accepted."""
    play.establish(options=SCALED, buffer=4096)
    play.host.half_closes()
    play.child.gets(FIN | ACK, seq=1)
    play.child.sends(ACK)
    for at in range(0, 450_000, 30_000):
        play.child.sends(ACK, text=text_of(30_000, at))
    play.child.sends(FIN | ACK)
    assert play.child.acked(play.child.forgets()[-1]) == 450_002
    return 450_000


def test_time_wait_slow_host_gets_all_and_the_child_hears_no_more(play):
    """The child's socket is gone: a window update now would be answered with an RST that costs the host its bytes."""
    total = full_and_done(play)
    play.clock.advance(ms=10_000)
    assert play.host.reads() == text_of(total)
    play.host.gets_eof()
    play.child.gets_nothing()
    assert play.ended(End.FIN).bytes_up == total
    play.clock.advance(ms=TIME_WAIT_MS)
    assert play.stack.flow_count() == 0


def test_time_wait_stray_reset_costs_the_host_nothing(play):
    """RFC 1337: both FINs are acknowledged, so an RST has nothing left to reset."""
    total = full_and_done(play)
    play.child.sends(RST)
    assert play.host.reads() == text_of(total)
    play.host.gets_eof()


@pytest.mark.case("B27")
def test_time_wait_tuple_reused_while_the_host_still_reads(play):
    """B27: a new SYN may not cut off what the old connection still owes its host."""
    total = full_and_done(play)
    slow = play.host
    play.child.isn += 10_000_000
    old_next, play.child.next = play.child.next, 0
    play.child.opens()
    assert slow.reads() == text_of(total)
    slow.gets_eof()
    assert old_next == total + 2


def test_draining_slow_host_gets_all(play):
    """The same with the child the first to close: LAST-ACK is acknowledged, the host has yet to read."""
    play.establish(options=SCALED, buffer=4096)
    for at in range(0, 450_000, 30_000):
        play.child.sends(ACK, text=text_of(30_000, at))
    play.child.sends(FIN | ACK)
    play.child.forgets()
    play.host.half_closes()
    play.child.gets(FIN | ACK)
    play.child.sends(ACK)
    play.clock.advance(ms=10_000)
    assert play.host.reads() == text_of(450_000)
    play.host.gets_eof()
    play.child.gets_nothing()
    assert play.ended(End.FIN).bytes_up == 450_000
    assert play.stack.flow_count() == 0


def test_close_wait_reset_by_child_still_delivers_what_was_acknowledged(play):
    """The child sent all and its FIN, then its process died with text unread: its RST ends only its own side, and it
    hears no more, also not what was on its way down."""
    play.establish(options=SCALED, buffer=4096)
    for at in range(0, 450_000, 30_000):
        play.child.sends(ACK, text=text_of(30_000, at))
    play.child.sends(FIN | ACK)
    play.host.sends(text_of(5000))
    play.child.forgets()
    play.child.sends(RST)
    for _ in range(10):
        play.clock.advance(ms=1000)
    play.child.gets_nothing()
    assert play.host.reads() == text_of(450_000)
    play.host.gets_eof()
    play.child.gets_nothing()
    assert play.stack.flow_count() == 0
    assert play.stack.buffered() == 0


def test_close_wait_reset_by_child_with_a_closed_window_is_not_probed(play):
    """Each probe would be answered with an RST, which would look like life: the flow would never be given up."""
    play.establish(options=SCALED, buffer=4096)
    for at in range(0, 450_000, 30_000):
        play.child.sends(ACK, text=text_of(30_000, at))
    play.child.sends(FIN | ACK, window=0)
    play.host.sends(text_of(5000))
    play.child.forgets()
    play.child.sends(RST)
    for _ in range(9):
        play.clock.advance(ms=60_000)
        play.child.gets_nothing()
    assert play.stack.flow_count() == 1
    play.clock.advance(ms=60_000)
    play.ended(End.TIMEOUT)
    assert play.stack.flow_count() == 0


@pytest.mark.parametrize("first", ["host", "child"])
def test_done_and_the_host_takes_no_more_is_no_good_end(play, first):
    """The child is done, bytes wait for the host, and sending them fails: not all arrived, and the end says so."""
    play.establish(options=SCALED, buffer=4096)
    if first == "host":
        play.host.half_closes()
        play.child.gets(FIN | ACK)
        play.child.sends(ACK)
    for at in range(0, 450_000, 30_000):
        play.child.sends(ACK, text=text_of(30_000, at))
    play.child.sends(FIN | ACK)
    play.child.forgets()
    if first == "child":
        play.host.half_closes()
        play.child.gets(FIN | ACK)
        play.child.sends(ACK)
    play.no_event()
    play.host.end.shutdown(socket.SHUT_RD)
    play.rest()
    assert play.ended(End.RST_HOST).bytes_up < 450_000
    assert play.stack.flow_count() == 0


# --- the tuple again


@pytest.mark.parametrize("isn", [1000, 0xFFFFFFF0])
@pytest.mark.case("B27")
def test_time_wait_new_syn_is_a_new_connection(stage, isn):
    """B27, RFC 9293 MAY-2: a number beyond the old ones opens at once."""
    play = stage()
    play.establish(isn=isn)
    first = play.child
    play.host.closes()
    first.gets(FIN | ACK)
    first.sends(FIN | ACK)
    first.gets(ACK)
    play.ended(End.FIN)
    old = play.flow
    play.establish(isn=(isn + 70_000) & 0xFFFFFFFF)
    assert play.flow != old
    play.child.sends(ACK, text=b"fresh")
    play.child.gets(ACK, ack=6)
    play.host.gets(b"fresh")
    assert play.stack.flow_count() == 1


@pytest.mark.case("B27")
def test_time_wait_old_syn_is_challenged(established):
    play = established
    play.host.closes()
    play.child.gets(FIN | ACK)
    play.child.sends(FIN | ACK)
    play.child.gets(ACK)
    play.ended(End.FIN)
    play.child.sends(SYN, seq=-500)
    play.child.gets(ACK, seq=2, ack=2)
    play.no_event()


@pytest.mark.case("B27")
def test_closed_by_reset_new_syn_is_a_new_connection(established):
    established.child.sends(RST)
    established.ended(End.RST_CHILD)
    established.establish(isn=1)
    established.child.sends(ACK, text=b"x")
    established.host.gets(b"x")


@pytest.mark.case("B27")
def test_reset_and_syn_in_one_turn(established):
    """B27: in the same batch of frames."""
    play = established
    play._tap.send(wire.frame(play.child.packet(RST)))
    child = play.connect(isn=99)
    play._tap.send(wire.frame(child.packet(SYN, seq=0, options=wire.mss(1460))))
    play.rest()
    play.ended(End.RST_CHILD)
    play.attach()
    child.gets(SYN | ACK, ack=1)


@pytest.mark.case("B27")
@pytest.mark.parametrize("last", ["child", "host"])
def test_closed_by_both_new_syn_is_served_and_gets_nothing_old(established, last):
    """Whoever closed last; what the network still had of the old connection does not get into the new one."""
    play, old = established, established.child
    old.sends(ACK, text=b"old")
    old.gets(ACK)
    play.host.gets(b"old")
    if last == "host":
        old.sends(FIN | ACK)
        play.host.closes()
        old.forgets()
        old.sends(ACK, ack=2)
    else:
        play.host.closes()
        old.forgets()
        old.sends(FIN | ACK, ack=2)
    play.ended(End.FIN)
    old_end = old.next
    play.establish(isn=old.isn + 100_000)
    new = play.child
    for at in (1, 4, old_end):
        play.sends(old.packet(ACK, seq=at, ack=2, text=b"STALE"))
        assert len(new.forgets()) <= 1
    play.host.gets_nothing()
    new.next = 1
    new.sends(ACK, text=b"new")
    new.gets(ACK, ack=4)
    play.host.gets(b"new")


@pytest.mark.case("B27")
def test_close_and_syn_in_one_turn(established):
    """The last ACK, and the next connection of the same ports, in the same batch of frames."""
    play, old = established, established.child
    old.sends(FIN | ACK)
    play.host.closes()
    old.forgets()
    new = play.connect(isn=old.isn + 70_000)
    play._tap.send(wire.frame(old.packet(ACK, ack=2)))
    play._tap.send(wire.frame(new.packet(SYN, seq=0, options=wire.mss(1460))))
    new.next = 1
    play.rest()
    play.ended(End.FIN)
    play.attach()
    new.gets(SYN | ACK, ack=1)
    new.sends(ACK, text=b"new")
    play.host.gets(b"new")


@pytest.mark.case("B27")
def test_time_wait_fin_and_syn_in_one_turn(established):
    """The same with the child the last to close: its FIN and its next SYN come together."""
    play, old = established, established.child
    play.host.closes()
    old.forgets()
    new = play.connect(isn=old.isn + 70_000)
    play._tap.send(wire.frame(old.packet(FIN | ACK, ack=2)))
    play._tap.send(wire.frame(new.packet(SYN, seq=0, options=wire.mss(1460))))
    new.next = 1
    play.rest()
    play.ended(End.FIN)
    play.attach()
    assert any(s.flags & SYN for s in new.forgets())


@pytest.mark.case("B27")
def test_established_child_that_started_anew_is_served_after_the_challenge(established):
    """The child rebooted and uses the port again: our challenge ACK gets its RST, and its next SYN a new connection."""
    play, old = established, established.child
    old.sends(ACK, text=b"before")
    old.gets(ACK)
    reborn = play.connect(isn=0x70000000)
    reborn.opens()
    challenge = reborn.inbox.popleft()
    assert challenge.flags == ACK
    play.sends(
        wire.ip(
            wire.tcp(reborn.address, reborn.remote, reborn.port, reborn.remote_port, challenge.ack, 0, RST),
            wire.TCP, reborn.address, reborn.remote,
        )
    )  # fmt: skip
    play.ended(End.RST_CHILD)
    reborn.opens()
    play.attach()
    reborn.gets(SYN | ACK, ack=1)


@pytest.mark.case("B27")
def test_ports_used_again_thousands_of_times(stage):
    """A hundred ports, three thousand connections, closed in turn by each side or reset: each is served at once."""
    play = stage(limits=Limits(max_flows=256))
    isn = 1
    for i in range(3000):
        isn = (isn + 100_003) & 0xFFFFFFFF
        play.establish(1000 + i % 100, isn=isn)
        play.child.sends(ACK, text=b"%d" % i)
        play.host.gets(b"%d" % i)
        match i % 3:
            case 0:
                play.child.sends(RST)
            case 1:
                play.child.sends(FIN | ACK)
                play.host.closes()
                play.child.sends(ACK, ack=2)
            case _:
                play.host.closes()
                play.child.sends(FIN | ACK, ack=2)
        play.child.forgets()
        play.forgets_events()
        play.clock.advance(ms=1)  # 1,000 a second: TIME-WAIT is of no use here


# --- half-closed and idle


@pytest.mark.case("B17")
@pytest.mark.parametrize("minutes", [4, 124, 180])
@pytest.mark.parametrize("half", ["child", "host"])
def test_half_closed_and_idle_still_works(established, half, minutes):
    """RFC 5382, REQ-5: 4 minutes for what is half over, 2 h 4 min for what is not. Here both have the longer one."""
    play = established
    if half == "child":
        play.child.sends(FIN | ACK)
        play.child.gets(ACK)
    else:
        play.host.half_closes()
        play.child.gets(FIN | ACK)
        play.child.sends(ACK)
    for _ in range(minutes):
        play.clock.advance(ms=60_000)
        for _s in play.child.forgets():
            play.child.sends(ACK)  # a keep-alive, after two hours
    if half == "child":
        play.host.sends(b"late")
        play.child.gets(ACK, text=b"late")
    else:
        play.child.sends(ACK, text=b"late")
        play.host.gets(b"late")
    play.no_event()


# --- the host's socket fails


def test_established_send_fails_with_nothing_to_read_resets_the_child(established):
    """The host reads no more (EPIPE) and has said nothing: there is no text to deliver first, so the child hears of it
    at once."""
    play = established
    play.host.end.shutdown(socket.SHUT_RD)
    play.child.sends(ACK, text=b"to nobody")
    play.child.gets(RST | ACK)
    assert play.ended(End.RST_HOST).bytes_up == 0


def test_established_send_fails_behind_text_delivers_the_text_first(established):
    play = established
    play.host.end.send(b"last words")
    play.host.end.shutdown(socket.SHUT_RD)
    play.child.sends(ACK, text=b"to nobody")
    came = play.child.forgets()
    assert b"".join(s.text for s in came) == b"last words"
    assert came[-1].flags & RST
    assert play.ended(End.RST_HOST).bytes_down == 10


def test_established_send_fails_before_a_closed_window_resets_the_child_when_it_must(play):
    """What the host sent waits for the child's window; the failure comes behind it, not instead of it."""
    play.establish(window=5)
    play.host.end.send(b"12345678")
    play.host.end.shutdown(socket.SHUT_RD)
    play.child.sends(ACK, text=b"to nobody")
    came = b"".join(s.text for s in play.child.inbox)
    assert came == b"12345"[: len(came)]
    for _ in range(4):
        play.clock.advance(ms=1000)
        play.child.forgets()
        play.child.sends(ACK, window=65_535)
    play.ended(End.RST_HOST)
    assert play.stack.flow_count() == 0


# --- resets


@pytest.mark.case("B05")
def test_established_reset_from_child_aborts_the_host(stage):
    play = stage()
    play.establish(host="tcp")
    play.child.sends(ACK, text=b"x")
    play.child.gets(ACK)
    play.child.sends(RST)
    play.child.gets_nothing()
    play.until(lambda: play.stack.flow_count() == 0)
    assert play.ended(End.RST_CHILD).bytes_up == 1
    with pytest.raises(ConnectionResetError):
        play.host.end.send(b"y") and play.host.end.send(b"y") and play.host.end.recv(1) and play.host.end.recv(1)


@pytest.mark.case("B04")
def test_established_reset_from_host_resets_the_child(stage):
    play = stage()
    play.establish(host="tcp")
    play.host.resets()
    play.until(lambda: play.child.inbox)
    play.child.gets(RST | ACK, seq=1, ack=1)
    play.ended(End.RST_HOST)
    assert play.stack.flow_count() == 0


def test_established_reset_from_host_behind_text_delivers_the_text_first(stage):
    play = stage()
    play.establish(host="tcp")
    play.host.sends(b"last")
    play.host.resets()
    play.until(lambda: len(play.child.inbox) >= 2)
    play.child.gets(ACK, text=b"last")
    play.child.gets(RST | ACK, seq=5)


def test_fin_wait_2_reset_from_host_resets_the_child(stage):
    """The host closed its half, then died: the child's next read or write must say so, and the flow must not stay."""
    play = stage()
    play.establish(host="tcp")
    play.host.half_closes()
    play.until(lambda: play.child.inbox)
    play.child.gets(FIN | ACK)
    play.child.sends(ACK)
    play.host.resets()
    play.until(lambda: play.child.inbox, seconds=1)
    play.child.gets(RST | ACK)
    play.ended(End.RST_HOST)


def test_close_wait_reset_from_host_resets_the_child(stage):
    play = stage()
    play.establish(host="tcp")
    play.child.sends(FIN | ACK)
    play.child.gets(ACK)
    play.host.resets()
    play.until(lambda: play.child.inbox)
    play.child.gets(RST | ACK)
    play.ended(End.RST_HOST)


def test_established_host_closes_with_text_unread_resets_the_child(stage):
    """close(2) on a socket with unread bytes is an RST."""
    play = stage()
    play.establish(host="tcp")
    play.child.sends(ACK, text=b"never read")
    play.child.gets(ACK)
    play.until(lambda: play.host.end.recv(1, socket.MSG_PEEK))
    play.host.closes()
    play.until(lambda: play.child.inbox)
    play.child.gets(RST | ACK)
    play.ended(End.RST_HOST)


def test_established_reset_in_window_but_not_exact_is_challenged(established):
    """RFC 5961, 3.2."""
    play = established
    play.child.sends(RST, seq=2)
    play.child.gets(ACK, seq=1, ack=1)
    play.no_event()
    play.child.sends(RST, seq=1)
    play.ended(End.RST_CHILD)
    play.child.gets_nothing()


@pytest.mark.parametrize("seq", [0, -1, -70_000, 65_536, 200_000, 1 << 31])
def test_established_reset_out_of_window_is_ignored(established, seq):
    established.child.sends(RST, seq=seq)
    established.child.gets_nothing()
    established.no_event()
    assert established.stack.counters() == {"bad_reset": 1}


def test_established_reset_may_carry_anything(established):
    established.child.sends(RST | ACK | FIN | wire.PSH | wire.URG, text=b"because", ack=999_999)
    established.ended(End.RST_CHILD)
    established.child.gets_nothing()


@pytest.mark.parametrize("seq", [0, 1, 500, -500, 100_000])
def test_established_syn_is_challenged(established, seq):
    """RFC 5961, 4.2: wherever it is numbered."""
    established.child.sends(SYN, seq=seq)
    established.child.gets(ACK, seq=1, ack=1)
    established.child.gets_nothing()
    established.no_event()
    assert established.stack.flow_count() == 1


def test_established_syn_with_reset_is_no_question_to_answer(established):
    """I6: nothing with RST in it is ever answered, also where a SYN would be."""
    established.child.sends(SYN | RST, seq=0)
    established.child.gets_nothing()


def test_syn_received_syn_with_reset_is_not_answered(play):
    play.connect().opens()
    play.attach()
    play.child.gets(SYN | ACK)
    play.child.sends(SYN | RST, seq=0)
    play.child.gets_nothing()
