"""PARKED, CONNECTING and SYN-RECEIVED: from the child's first SYN to its ACK of our SYN-ACK."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest

from childflow.errors import StackError
from childflow.netstack.events import Denial, End, Question

from . import wire
from .play import ACK, CHILD_PORT, FIN, REMOTE_PORT, RST, SYN, Play
from .wire import CWR, ECE, NOP, PSH, SACK_PERMITTED, TIMESTAMPS, URG


def test_closed_syn_asks_and_is_not_answered_yet(stage, family):
    play = stage(family=family)
    play.connect().opens()
    q = play.question()
    assert q == Question(q.flow, wire.TCP, CHILD_PORT, wire.REMOTE[family], REMOTE_PORT)
    play.child.gets_nothing()
    assert play.stack.flow_count() == 1


def test_parked_attach_answers_with_mss(stage, family, offload):
    play = stage(family=family, offload=offload)
    play.connect().opens()
    play.attach()
    s = play.child.gets(SYN | ACK, seq=0, ack=1, text=b"", window=65535)
    assert s.options == wire.mss(1500 - 40 - (0 if family == 4 else 20))
    play.child.sends(ACK)
    play.child.gets_nothing()


def test_parked_attach_scales_only_if_asked(play):
    play.connect().opens(wire.mss(1460) + NOP + wire.wscale(7) + SACK_PERMITTED + TIMESTAMPS)
    play.attach()
    s = play.child.gets(SYN | ACK, window=65535)
    assert s.options == wire.mss(1460) + NOP + NOP + SACK_PERMITTED + NOP + wire.wscale(4)  # 512 KiB; no timestamps
    play.child.sends(ACK)
    play.child.gets(ACK, seq=1, ack=1, window=512 * 1024 >> 4)  # a SYN can't tell the whole window


@pytest.mark.parametrize("mtu", [1280, 1500, 9000, 65520])
def test_parked_attach_mss_is_that_of_the_mtu(stage, mtu):
    play = stage(mtu=mtu)
    play.connect().opens(wire.mss(65495))
    play.attach()
    assert play.child.gets(SYN | ACK).options == wire.mss(mtu - 40)


@pytest.mark.parametrize(
    ("offered", "used"), [(1460, 1460), (9000, 1460), (536, 536), (100, 100), (10, 48), (0, 536), (65535, 1460)]
)
def test_established_segments_keep_the_childs_mss(stage, offered, used):
    play = stage(offload=False)
    play.establish(options=wire.mss(offered))
    play.host.sends(bytes(2 * used))
    assert len(play.child.gets(ACK).text) == used


def test_established_no_mss_option_means_536(stage, family):
    play = stage(family=family)
    play.establish(options=b"")
    play.host.sends(bytes(5000))
    assert play.child.gets(ACK).gso_size == {4: 536, 6: 1220}[family]


IP_MINTTL = 21  # linux/in.h


# --- repeated SYNs


def test_parked_syn_again_is_one_question(play):
    play.connect().opens()
    play.question()
    play.child.opens()
    play.no_event()
    play.child.gets_nothing()
    assert play.stack.counters() == {"duplicate": 1}


def test_connecting_syn_again_is_one_connection(play):
    listener = play.owns(socket.socket())
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    port = listener.getsockname()[1]
    fillers = []
    for _ in range(4):  # fill the backlog: the next SYN gets no answer
        s = play.owns(socket.socket())
        s.setblocking(False)
        s.connect_ex(("127.0.0.1", port))
        fillers.append(s)
    play.connect(remote=wire.LOOPBACK[4], remote_port=port).opens()
    play.allow()
    play.child.opens()
    play.child.opens()
    play.no_event()
    play.child.gets_nothing()
    assert play.stack.counters() == {"duplicate": 2}
    play.child.sends(RST, seq=1)
    assert play.ended(End.RST_CHILD).bytes_up == 0
    assert play.stack.flow_count() == 0


@pytest.mark.parametrize("isn", [9_000, 1, 0xFFFFFFFF])
def test_parked_new_syn_replaces_the_old_one(play, isn):
    """The child gave up and uses the port again before the verdict: what is answered is what it waits for now."""
    play.connect().opens(wire.mss(1460))
    play.child.isn = isn
    play.child.next = 0
    play.child.opens(wire.mss(800) + wire.NOP + wire.wscale(2))
    play.attach()
    assert play.child.gets(SYN | ACK, ack=1).options == wire.mss(1460) + NOP + wire.wscale(4)
    play.child.sends(ACK)
    play.child.forgets()
    play.host.sends(bytes(2000))
    assert play.child.gets(ACK).gso_size == 800
    play.no_event()


def test_syn_received_syn_again_is_answered_again(play):
    play.connect().opens()
    play.attach()
    first = play.child.gets(SYN | ACK)
    play.child.opens()
    again = play.child.gets(SYN | ACK, seq=0, ack=1)
    assert again.options == first.options
    play.child.sends(ACK)
    play.child.gets_nothing()


def test_syn_received_silence_repeats_with_back_off_and_gives_up(play):
    play.connect().opens()
    play.attach()
    play.child.gets(SYN | ACK)
    for wait in (1000, 2000, 4000, 8000, 16000):
        play.clock.advance(ms=wait - 1)
        play.child.gets_nothing()
        play.clock.advance(ms=1)
        play.child.gets(SYN | ACK, seq=0, ack=1)
    play.clock.advance(ms=32_000)
    play.child.gets(RST | ACK)
    play.ended(End.TIMEOUT)
    assert play.stack.flow_count() == 0
    play.host.gets_reset()


def test_parked_no_verdict_is_given_up_after_a_minute(play):
    play.connect().opens()
    q = play.question()
    play.clock.advance(ms=59_999)
    play.no_event()
    play.clock.advance(ms=1)
    assert play.ended(End.TIMEOUT).flow == q.flow
    play.child.gets_nothing()


def test_parked_reset_from_child_ends_it(play):
    play.connect().opens()
    q = play.question()
    play.child.sends(RST, seq=1)
    assert play.ended(End.RST_CHILD).flow == q.flow
    assert play.stack.flow_count() == 0


def test_parked_wrong_reset_is_ignored(play):
    play.connect().opens()
    play.question()
    play.child.sends(RST, seq=77)
    play.no_event()
    assert play.stack.flow_count() == 1


def test_syn_received_reset_from_child_ends_it(play):
    play.connect().opens()
    play.attach()
    play.child.gets(SYN | ACK)
    play.child.sends(RST, seq=1)
    play.child.gets_nothing()
    play.ended(End.RST_CHILD)
    play.host.gets_reset()


def test_syn_received_ack_of_nothing_sent_is_refused(play):
    """RFC 9293, 3.10.7.4: in SYN-RECEIVED an unacceptable ACK gets <SEQ=SEG.ACK><CTL=RST>."""
    play.connect().opens()
    play.attach()
    play.child.gets(SYN | ACK)
    play.child.sends(ACK, ack=500)
    play.child.gets(RST, seq=500)
    play.child.sends(ACK)  # the right one still counts
    play.child.sends(ACK, text=b"x")
    play.child.gets(ACK, ack=2)


def test_syn_received_cut_text_with_a_wrong_ack_gets_one_answer(play):
    """The text starts at the very edge of the window and the ACK is of nothing sent: the RST is the answer."""
    play.connect().opens()
    play.attach()
    play.child.gets(SYN | ACK)
    play.child.sends(ACK, seq=65_536, ack=500, text=b"beyond")
    play.child.gets(RST, seq=500)
    play.child.gets_nothing()


def test_syn_received_data_with_the_ack_is_taken(play):
    play.connect().opens()
    play.attach()
    play.child.gets(SYN | ACK)
    play.child.sends(ACK | PSH, text=b"early")
    play.child.gets(ACK, seq=1, ack=6)
    play.host.gets(b"early")


def test_syn_received_fin_with_the_ack_half_closes(play):
    play.connect().opens()
    play.attach()
    play.child.gets(SYN | ACK)
    play.child.sends(ACK | FIN, text=b"all")
    play.child.gets(ACK, ack=5)
    play.host.gets(b"all")
    play.host.gets_eof()


def test_syn_received_host_speaks_first_waits_for_the_ack(play):
    play.connect().opens()
    play.attach()
    play.host.sends(b"220 banner")
    play.child.gets(SYN | ACK)
    play.child.gets_nothing()
    play.child.sends(ACK)
    play.child.gets(ACK, seq=1, text=b"220 banner")


@pytest.mark.case("B26")
def test_syn_received_syn_ack_from_child_makes_no_second_connection(play):
    """Split handshake (RFC 9293, MUST-10 is for the child)."""
    play.connect().opens()
    play.attach()
    play.child.gets(SYN | ACK)
    play.child.sends(SYN | ACK, seq=0)
    play.child.gets(SYN | ACK)
    play.child.sends(SYN | ACK, seq=300)
    play.child.gets(ACK, ack=1)
    assert play.stack.flow_count() == 1


@pytest.mark.case("A16")
def test_closed_syn_with_ecn_or_text_opens(play):
    play.connect().sends(SYN | ECE | CWR, seq=0, text=b"ignored", options=wire.mss(1460))
    play.attach()
    play.child.gets(SYN | ACK, ack=1)


@pytest.mark.parametrize("flags", [SYN | FIN, SYN | RST, SYN | FIN | RST | PSH | URG])
@pytest.mark.case("A16")
def test_closed_syn_with_fin_or_rst_opens_nothing(play, flags):
    play.connect().sends(flags, seq=0)
    play.no_event()
    assert play.came() == 0
    assert play.stack.counters() == {"no_flow": 1}


# --- options


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(b"\x02\x00", id="length 0"),
        pytest.param(b"\x08\x01", id="length 1"),
        pytest.param(b"\x05\x00", id="SACK of 0"),
        pytest.param(b"\xfe\x00\x00\x00", id="unknown of 0"),
        pytest.param(b"\x01\x01\x01\x03", id="kind without length"),
        pytest.param(b"\x02\x28\x05\xb4", id="past the header"),
    ],
)
@pytest.mark.case("A11")
def test_closed_syn_with_bad_options_is_dropped(play, options):
    play.connect().sends(SYN, seq=0, options=options)
    play.no_event()
    assert play.came() == 0
    assert play.stack.counters() == {"bad_tcp_options": 1}
    assert play.stack.flow_count() == 0


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        pytest.param(b"\x02\x03\x05\x01", wire.mss(1460), id="MSS of 3"),
        pytest.param(b"\x03\x04\x07\x00", wire.mss(1460), id="scale of 4"),
        pytest.param(b"\x05\x09" + bytes(10), wire.mss(1460), id="SACK of 9"),
        pytest.param(b"\xfe\x04ab", wire.mss(1460), id="unknown"),
        pytest.param(NOP * 40, wire.mss(1460), id="nothing but NOP"),
        pytest.param(b"\x00\x02\x00\x00", wire.mss(1460), id="rubbish behind the end"),
        pytest.param(wire.wscale(14), wire.mss(1460) + NOP + wire.wscale(4), id="scale 14"),
        pytest.param(wire.wscale(15), wire.mss(1460) + NOP + wire.wscale(4), id="scale 15"),
        pytest.param(wire.wscale(255), wire.mss(1460) + NOP + wire.wscale(4), id="scale 255"),
    ],
)
@pytest.mark.case("A11", "A13")
def test_closed_syn_with_odd_options_opens(play, options, answer):
    play.connect().opens(options)
    play.attach()
    assert play.child.gets(SYN | ACK).options == answer
    play.child.sends(ACK)
    play.child.forgets()
    play.host.sends(b"works")
    play.child.gets(ACK, text=b"works")


ODD_OPTIONS = (
    b"\x02\x00",
    b"\x08\x01",
    b"\x05\x00",
    b"\xfe\x00\x00\x00",
    b"\x01\x01\x01\x03",
    b"\x02\x28\x05\xb4",
    b"\x02\x03\x05\x01",
    b"\x03\x04\x07\x00",
    b"\x05\x09" + bytes(10),
    b"\x05\x02",
    b"\xff" * 40,
    wire.wscale(0),
    wire.wscale(255),
    wire.mss(1),
    TIMESTAMPS,
    SACK_PERMITTED,
    b"\x05\x0a" + bytes(8),
)


@pytest.mark.case("A11", "A13")
@pytest.mark.parametrize("offered", [wire.mss(1460), wire.mss(1460) + SACK_PERMITTED + NOP + wire.wscale(7)])
def test_established_options_in_data_are_ignored(play, offered):
    play.establish(options=offered)
    for options in ODD_OPTIONS:
        play.child.sends(ACK, text=b"x", options=options)
        play.child.gets(ACK)
    play.host.gets(b"x" * len(ODD_OPTIONS))
    play.child.sends(ACK, window=1000)
    play.host.sends(bytes(2000), all_of_it=False)
    assert play.child.forgets()[0].gso_size in (0, 1460)  # no size, no scale was taken from them


@pytest.mark.case("A11", "A13")
@pytest.mark.parametrize("options", ODD_OPTIONS)
def test_syn_received_options_of_the_ack_are_ignored(play, options):
    play.connect().opens()
    play.attach()
    play.child.gets(SYN | ACK)
    play.child.sends(ACK, window=100, options=options)
    play.host.sends(bytes(2000), all_of_it=False)
    assert sum(len(s.text) for s in play.child.forgets()) == 100


@pytest.mark.case("A11", "A13")
@pytest.mark.parametrize("flags", [SYN, SYN | ACK])
@pytest.mark.parametrize("options", ODD_OPTIONS)
def test_syn_received_options_of_a_second_syn_are_ignored(play, flags, options):
    """A13: a window scale that comes only in a SYN|ACK counts for nothing."""
    play.connect().opens()
    play.attach()
    first = play.child.gets(SYN | ACK)
    play.child.sends(flags, seq=0, ack=1, window=100, options=options)
    assert all(s.options == first.options for s in play.child.forgets() if s.flags & SYN)
    play.child.sends(ACK, seq=1, ack=1, window=100)
    play.host.sends(bytes(2000), all_of_it=False)
    assert sum(len(s.text) for s in play.child.forgets()) == 100


# --- split handshake, simultaneous open (B26)


@pytest.mark.case("B26")
@pytest.mark.parametrize("isn", [0, 300, -300, 1 << 31])
@pytest.mark.parametrize("flags", [SYN, SYN | ACK])
def test_syn_received_syn_instead_of_the_ack_leaves_nothing_half_open(play, flags, isn):
    """The child answers our SYN-ACK with a SYN, or with a SYN-ACK: at most one answer to each, and it times out."""
    play.connect().opens()
    play.attach()
    play.child.gets(SYN | ACK)
    for _ in range(5):
        play.child.sends(flags, seq=isn)
        assert len(play.child.forgets()) <= 1
    assert play.stack.flow_count() == 1
    play.host.gets_nothing()
    for _ in range(8):
        play.clock.advance(ms=32_000)
    play.ended(End.TIMEOUT)
    assert play.stack.flow_count() == 0
    play.host.gets_reset()


@pytest.mark.case("B26")
@pytest.mark.parametrize("flags", [SYN, SYN | ACK])
def test_syn_received_simultaneous_open_ends_established(play, flags):
    """Once the child acknowledges our number, by whatever way it got there, the connection stands."""
    play.connect().opens()
    play.attach()
    play.child.gets(SYN | ACK)
    play.child.sends(flags, seq=0)
    play.child.gets(SYN | ACK, seq=0, ack=1)
    play.child.sends(ACK, text=b"open")
    play.child.gets(ACK, ack=5)
    play.host.gets(b"open")


@pytest.mark.case("B26")
@pytest.mark.parametrize("flags", [SYN | ACK, ACK, FIN | ACK])
def test_parked_answer_from_a_child_that_was_asked_nothing(play, flags):
    """A SYN-ACK before ours: the flow waits for its verdict as before, nothing is answered."""
    play.connect().opens()
    play.child.sends(flags, seq=0 if flags & SYN else 1, ack=77)
    play.child.gets_nothing()
    play.attach()
    play.child.gets(SYN | ACK, ack=1)


# --- a real host


def test_connecting_host_accepts(stage, family):
    play = stage(family=family)
    address = {4: socket.AF_INET, 6: socket.AF_INET6}[family]
    listener = play.owns(socket.create_server(("127.0.0.1" if family == 4 else "::1", 0), family=address))
    play.connect(remote=wire.LOOPBACK[family], remote_port=listener.getsockname()[1]).opens()
    flow = play.allow()
    play.until(lambda: play.child.inbox)
    e = play.connected()
    assert (e.flow, e.errno) == (flow, 0)
    play.child.gets(SYN | ACK)
    far = play.owns(listener.accept()[0])
    play.child.sends(ACK)
    play.child.sends(ACK, text=b"hello")
    assert far.recv(100) == b"hello"
    far.sendall(b"you too")
    play.until(lambda: len(play.child.inbox) > 1)
    play.child.gets(ACK, ack=6)
    play.child.gets(ACK, text=b"you too")


@pytest.mark.parametrize(("hop_limit", "arrives"), [(7, True), (6, True), (5, False)])
def test_connecting_hop_limit_is_one_less(play, hop_limit, arrives):
    """The listener takes nothing with a TTL under five."""
    listener = play.owns(socket.create_server(("127.0.0.1", 0)))
    listener.setsockopt(socket.IPPROTO_IP, IP_MINTTL, 5)
    listener.settimeout(0.05)
    play.connect(remote=wire.LOOPBACK[4], remote_port=listener.getsockname()[1]).opens(hop_limit=hop_limit)
    play.allow()
    if arrives:
        play.owns(listener.accept()[0])
        return
    with pytest.raises(TimeoutError):
        listener.accept()


def closed_port(family: int) -> int:
    with socket.socket({4: socket.AF_INET, 6: socket.AF_INET6}[family]) as s:
        s.bind(("127.0.0.1" if family == 4 else "::1", 0))
        return int(s.getsockname()[1])


def test_connecting_host_refuses(stage, family):
    play = stage(family=family)
    play.connect(remote=wire.LOOPBACK[family], remote_port=closed_port(family)).opens()
    play.allow()
    play.until(lambda: play.child.inbox)
    play.child.gets(RST | ACK, ack=1)
    assert play.connected().errno == errno.ECONNREFUSED
    play.ended(End.RST_HOST)
    assert play.stack.flow_count() == 0


def test_connecting_host_that_never_answers_ends_in_silence(play):
    """ETIMEDOUT: the kernel has given up after one retransmission (3 s). The child hears nothing: its own timer, which
    began before, is what it would have had without us."""
    retries = Path("/proc/sys/net/ipv4/tcp_syn_retries")
    before = retries.read_text()
    retries.write_text("1")
    try:
        listener = play.owns(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):  # fill the backlog: the next SYN gets no answer
            filler = play.owns(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        play.connect(remote=wire.LOOPBACK[4], remote_port=listener.getsockname()[1]).opens()
        flow = play.allow()
        play.until(lambda: play.stack.flow_count() == 0, seconds=10)
    finally:
        retries.write_text(before)
    e = play.connected()
    assert (e.flow, e.errno) == (flow, errno.ETIMEDOUT)
    assert play.ended(End.TIMEOUT).bytes_up == 0
    assert play.came() == 0


def test_connecting_no_route_is_net_unreachable(stage, family):
    """There is no route but loopback in the tests' namespace."""
    play = stage(family=family)
    play.connect().opens()
    play.allow()
    e = play.error()
    assert (e.sender, e.type, e.code) == (wire.GATEWAY[family], *{4: (3, 0), 6: (1, 0)}[family])
    assert play.connected().errno == errno.ENETUNREACH
    play.ended(End.RST_HOST)
    assert play.came() == 0


def test_connecting_forbidden_is_prohibited(play):
    """A TCP connect to a broadcast address is EACCES without a syscall filter in the way."""
    play.connect(remote=bytes((127, 255, 255, 255))).opens()
    play.allow()
    errno_seen = play.connected().errno
    assert errno_seen in (errno.EACCES, errno.ENETUNREACH)
    assert play.error().code == (13 if errno_seen == errno.EACCES else 0)
    play.ended(End.RST_HOST)


def test_answers_to_a_dead_flow_are_refused(play):
    play.connect().opens()
    flow = play.question().flow
    play.child.sends(RST, seq=1)
    for answer in (
        lambda: play.stack.allow(flow),
        lambda: play.stack.deny(flow, Denial.RESET),
        lambda: play.stack.attach(flow, 0),
    ):
        with pytest.raises(StackError):
            answer()


def test_answer_to_a_dead_flow_never_reaches_the_one_in_its_place(play):
    play.connect(1).opens()
    dead = play.question().flow
    play.child.sends(RST, seq=1)
    play.ended(End.RST_CHILD)
    play.connect(2).opens()
    alive = play.question().flow
    assert alive & 0xFFFFFFFF == dead & 0xFFFFFFFF  # the same slot
    with pytest.raises(StackError):
        play.stack.deny(dead, Denial.RESET)
    play.child.gets_nothing()
    play.stack.deny(alive, Denial.RESET)
    play.rest()
    play.child.gets(RST | ACK)


def test_second_verdict_is_refused(established: Play):
    with pytest.raises(StackError):
        established.stack.allow(established.flow)
    with pytest.raises(StackError):
        established.stack.deny(established.flow, Denial.RESET)


def test_parked_attach_of_no_socket_leaves_it_parked(play):
    play.connect().opens()
    flow = play.question().flow
    with pytest.raises(StackError):
        play.stack.attach(flow, 1_000_000)
    play.stack.deny(flow, Denial.RESET)
    play.rest()
    play.child.gets(RST | ACK)
