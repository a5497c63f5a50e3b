"""What Python handles, as C hands it over: ARP, neighbour discovery, echo, fragments, DNS; and how floods are held."""

from __future__ import annotations

import struct

import pytest

from childflow.errors import StackError
from childflow.limits import Limits
from childflow.netstack.events import Datagram, SlowKind
from childflow.settings import ADDRESSES

from . import wire
from .play import CHILD_PORT, Play, text_of
from .wire import CHILD, GATEWAY, REMOTE

ARP_REQUEST = struct.pack("!HHBBH", 1, wire.IPV4, 6, 4, 1) + ADDRESSES.child_mac + CHILD[4] + bytes(6) + GATEWAY[4]
GROUP6 = bytes.fromhex("ff0200000000000000000001ff000001")


def echo(family: int, text: bytes, dst: bytes | None = None, hop_limit: int = 64) -> bytes:
    dst = REMOTE[family] if dst is None else dst
    kind, protocol = (8, wire.ICMP) if family == 4 else (128, wire.ICMPV6)
    body = struct.pack("!HH", 7, 1) + text
    return wire.ip(
        wire.icmp(kind, 0, body, src=CHILD[family], dst=dst), protocol, CHILD[family], dst, hop_limit=hop_limit
    )


def solicitation(kind: int = 135, src: bytes = CHILD[6]) -> bytes:
    message = wire.icmp(kind, 0, bytes(4) + GATEWAY[6], src=src, dst=GROUP6)
    return wire.ipv6(message, wire.ICMPV6, src=src, dst=GROUP6, hop_limit=255)


def query(
    family: int, text: bytes, port: int = CHILD_PORT, *, server: bytes | None = None, hop_limit: int = 64
) -> bytes:
    """A datagram to port 53 of `server`, by default the gateway."""
    src, dst = CHILD[family], server or GATEWAY[family]
    return wire.ip(wire.udp(src, dst, port, 53, text), wire.UDP, src, dst, hop_limit=hop_limit)


def test_arp_is_handed_over_as_a_whole_frame(play):
    for to in (b"\xff" * 6, ADDRESSES.gateway_mac):
        raw = wire.frame(ARP_REQUEST, kind=wire.ARP, to=to)
        play.injects(raw)
        assert play.slow() == (SlowKind.ARP, raw[wire.VNET_LEN :])
    assert play.came() == 0


def test_arp_answer_reaches_the_child(play):
    play.stack.send_frame(ADDRESSES.child_mac + ADDRESSES.gateway_mac + b"\x08\x06" + bytes(28))
    play.rest()
    assert play.others.popleft().frame == bytes(10) + ADDRESSES.child_mac + ADDRESSES.gateway_mac + b"\x08\x06" + bytes(
        28
    )


@pytest.mark.parametrize("kind", [133, 134, 135, 136, 137])
@pytest.mark.parametrize("src", [CHILD[6], bytes(16), bytes.fromhex("fe800000000000000000000000000002")])
def test_neighbour_discovery_is_handed_over_whoever_says_it(play, kind, src):
    """The source is `::` or link-local as a rule; `neighbours.py` checks what it needs."""
    packet = solicitation(kind, src)
    play.sends(packet, to=b"\x33\x33\xff\x00\x00\x01")
    assert play.slow() == (SlowKind.ND, packet)
    assert play.came() == 0


@pytest.mark.parametrize("length", [0, 1, 56, 1472, 65_507])
@pytest.mark.case("A20")
def test_echo_is_handed_over_exactly(stage, family, length):
    play = stage(family=family)
    packet = echo(family, text_of(length))
    play.sends(packet)
    assert play.slow() == (SlowKind.ECHO, packet)
    assert play.came() == 0


def test_echo_to_the_gateway_too(stage, family):
    play = stage(family=family)
    packet = echo(family, b"abc", GATEWAY[family], hop_limit=1)
    play.sends(packet)
    assert play.slow() == (SlowKind.ECHO, packet)


def test_fragment_is_handed_over_unread(play):
    for fragment in (0x2000, 0x2001, 0x0001, 0x1FFF):
        packet = wire.ipv4(bytes(24), wire.UDP, fragment=fragment)
        play.sends(packet)
        assert play.slow() == (SlowKind.FRAGMENT, packet)
    packet = wire.ipv6(struct.pack("!BxHI", wire.UDP, 1, 9) + bytes(24), 44)
    play.sends(packet)
    assert play.slow() == (SlowKind.FRAGMENT, packet)


def test_reassembled_packet_takes_the_usual_way(stage, family):
    play = stage(family=family)
    src, dst = CHILD[family], REMOTE[family]
    play.stack.input_ip(wire.ip(wire.udp(src, dst, CHILD_PORT, 99, text_of(20_000)), wire.UDP, src, dst))
    play.rest()
    assert play.question().remote_port == 99


@pytest.mark.parametrize(
    ("packet", "why"),
    [
        pytest.param(b"\x45", "bad_ip_header", id="one byte"),
        pytest.param(bytes(40), "bad_ip_header", id="zeros"),
        pytest.param(
            wire.ipv4(wire.udp(CHILD[4], REMOTE[4], 1, 2, b"x", checksum="wrong"), 17), "bad_udp_checksum", id="sum"
        ),
        pytest.param(wire.ipv4(bytes(8), 17, src=REMOTE[4]), "spoofed_source", id="spoofed"),
    ],
)
def test_reassembled_rubbish_is_dropped_as_if_it_had_come_in_a_frame(play, packet, why):
    play.stack.input_ip(packet)
    play.rest()
    assert play.stack.counters() == {why: 1}
    assert play.spoofed() == ([packet] if why == "spoofed_source" else [])
    play.no_event()


# --- DNS


OTHER = {
    4: [GATEWAY[4], REMOTE[4], bytes((10, 0, 0, 1)), bytes((127, 0, 0, 53)), bytes(4), bytes((198, 18, 0, 7))],
    6: [GATEWAY[6], REMOTE[6], bytes(15) + b"\1", bytes(16), bytes.fromhex("fd00000000000000000000000000abcd")],
}


@pytest.mark.case("D15")
@pytest.mark.parametrize("which", range(5))
def test_dns_query_to_any_address_is_a_datagram_and_no_flow(stage, family, which):
    """It says which address was asked, and the answer comes from there: the child's resolver takes no other."""
    play, server = stage(family=family), OTHER[family][which]
    play.sends(query(family, b"who is", server=server))
    d = play.datagram()
    assert d == Datagram(server, CHILD_PORT, 53, b"who is")
    assert play.stack.flow_count() == 0
    play.stack.reply_datagram(d, b"it is")
    play.rest()
    r = play.replies.popleft()
    assert (r.remote, r.remote_port, r.child_port, r.text) == (server, 53, CHILD_PORT, b"it is")
    play.sends(query(family, b"and who", server=server))
    assert play.datagram().payload == b"and who"
    play.no_event()


def test_dns_query_that_is_large(stage, family):
    """Put together of fragments it takes the same way; the queue takes any size."""
    play = stage(family=family)
    play.stack.input_ip(query(family, text_of(60_000), server=REMOTE[family]))
    play.rest()
    assert play.datagram() == Datagram(REMOTE[family], CHILD_PORT, 53, text_of(60_000))


def test_dns_query_at_its_last_hop_is_answered_by_the_gateway_only(play):
    """Traceroute to port 53 sees the gateway, as to any port."""
    play.sends(query(4, b"q", server=REMOTE[4], hop_limit=1))
    assert (play.error().type, play.stack.counters()) == (11, {"hop_limit": 1})
    play.no_event()


def test_dns_queries_to_others_are_held_back_by_the_queue_too(play):
    """What is too much is counted, and no flow is made of it."""
    for i in range(5000):
        play.stack.input_ip(query(4, b"%d" % i, server=bytes((203, 0, i >> 8, i & 255))))
    kept = play.stack.events()
    assert 0 < len(kept) < 5000
    assert play.stack.counters() == {"slow_path_full": 5000 - len(kept)}
    assert play.stack.flow_count() == 0


def test_dns_over_tcp_to_any_address_is_a_question(stage, family):
    play = stage(family=family)
    play.connect(remote_port=53).opens()
    assert play.question().remote_port == 53


def test_dns_query_is_a_datagram_and_no_flow(stage, family):
    play = stage(family=family)
    play.sends(query(family, b"who is"))
    d = play.datagram()
    assert d == Datagram(GATEWAY[family], CHILD_PORT, 53, b"who is")
    assert play.stack.flow_count() == 0
    for answer in (b"it is", b"", text_of(4096), text_of(65_507)):
        play.stack.reply_datagram(d, answer)
        play.rest()
        r = play.replies.popleft()
        assert (r.remote, r.remote_port, r.child_port, r.text) == (GATEWAY[family], 53, CHILD_PORT, answer)


def test_dns_answer_that_no_datagram_holds_is_the_callers_fault(play):
    with pytest.raises(StackError):
        play.stack.reply_datagram(Datagram(GATEWAY[4], 1, 53, b""), bytes(65_508))


def test_dns_over_tcp_to_the_gateway_is_a_flow(play):
    play.connect(remote=GATEWAY[4], remote_port=53).opens()
    q = play.question()
    assert (q.remote, q.remote_port) == (GATEWAY[4], 53)


def test_other_gateway_ports_are_questions(play):
    src, dst = CHILD[4], GATEWAY[4]
    play.sends(wire.ip(wire.udp(src, dst, CHILD_PORT, 54, b"x"), wire.UDP, src, dst))
    assert play.question().remote_port == 54


def test_packets_for_the_child_go_as_they_are(stage, family):
    play = stage(family=family)
    src, dst = GATEWAY[family], CHILD[family]
    packet = wire.ip(wire.udp(src, dst, 53, 99, b"from python"), wire.UDP, src, dst)
    play.stack.send_ip(packet)
    play.rest()
    assert play.replies.popleft().text == b"from python"


# --- spoofed


def test_spoofed_packet_is_told_of_by_its_head(stage, family):
    play = stage(family=family)
    src, dst = REMOTE[family], GATEWAY[family]
    packet = wire.ip(wire.udp(src, dst, 9, 53, text_of(500)), wire.UDP, src, dst)
    play.sends(packet)
    assert play.slow() == (SlowKind.SPOOFED, packet[:128])
    assert play.came() == 0
    assert play.stack.flow_count() == 0
    assert play.stack.counters() == {"spoofed_source": 1}


def test_spoofed_packets_are_told_of_once_a_second_and_all_counted(play):
    packet = wire.ipv4(bytes(8), wire.UDP, src=REMOTE[4])
    flood(play, wire.frame(packet), 1000)
    assert play.spoofed() == [packet]
    play.clock.advance(ms=999)
    flood(play, wire.frame(packet), 10)
    assert play.spoofed() == []
    play.clock.advance(ms=1)
    flood(play, wire.frame(packet), 10)
    assert play.spoofed() == [packet]
    assert play.stack.counters() == {"spoofed_source": 1020}
    play.sends(echo(4, b"the others go on"))
    assert play.slow().kind == SlowKind.ECHO


def test_spoofed_packet_is_counted_once_when_the_queue_is_full(play):
    for i in range(5000):
        play.stack.input_ip(query(4, b"%d" % i))
    before = play.stack.counters()
    play.stack.input_ip(wire.ipv4(bytes(8), wire.UDP, src=REMOTE[4]))
    assert play.stack.counters() == {**before, "spoofed_source": 1}


def test_queue_that_is_never_empty_has_room_for_what_comes(stage):
    """A steady load: each turn brings ten datagrams and ten are taken, while others wait. Found with 5,000 queries a
    second, a fourth of which were dropped."""
    play = stage(limits=Limits(slow_packets=64))
    sent, came = [], []
    for number in range(600):
        text = b"%d" % number * (1 + number % 7)
        sent.append(text)
        play.stack.input_ip(query(4, text))
        if number >= 30 and number % 10 == 0:
            play.stack.turn(play.clock.now_us)
            came += [event.payload for event in play.stack.some_events(10)]
    assert len(came) < len(sent)
    came += [event.payload for event in play.stack.events()]
    assert came == sent
    assert play.stack.counters() == {}


# --- floods


def flood(play: Play, raw: bytes, count: int) -> None:
    for _ in range(count):
        play._tap.send(raw)
    play.rest()


def test_control_packets_are_limited(play):
    """Ten thousand a second, a thousand at once; what is over is counted, and it is over soon."""
    flood(play, wire.frame(ARP_REQUEST, kind=wire.ARP), 1500)
    assert play.stack.counters() == {"slow_path_rate": 500}
    play.forgets_events()
    play.clock.advance(ms=1)
    flood(play, wire.frame(echo(4, b"x")), 20)
    assert play.stack.counters() == {"slow_path_rate": 510}


def test_control_flood_starves_neither_dns_nor_fragments(play):
    flood(play, wire.frame(ARP_REQUEST, kind=wire.ARP), 1100)
    play.forgets_events()
    play.sends(query(4, b"q"))
    play.datagram()
    play.sends(wire.ipv4(bytes(24), wire.UDP, fragment=0x2000))
    assert play.slow().kind == SlowKind.FRAGMENT


def test_queue_that_python_does_not_read_is_bounded(play):
    """What is in the queue when it is full is kept, what comes later is counted; reading makes room."""
    stack, sent = play.stack, 5000
    for i in range(sent):
        stack.input_ip(query(4, b"%d" % i))
    kept = [e.payload for e in stack.events()]
    dropped = stack.counters()["slow_path_full"]
    assert len(kept) + dropped == sent
    assert kept == [b"%d" % i for i in range(len(kept))]
    play.rest()
    play.sends(query(4, b"after"))
    assert play.datagram().payload == b"after"


def test_queue_is_bounded_in_bytes(play):
    for _ in range(40):
        play.stack.input_ip(query(4, text_of(60_000)))
    kept = play.stack.events()
    assert len(kept) == (1 << 20) // 60_000
    assert all(e.payload == text_of(60_000) for e in kept)


def test_unknown_drop_reason_is_the_callers_fault(play):
    with pytest.raises(KeyError):
        play.stack.drop("no such reason")
    play.stack.drop("martian")
    assert play.stack.counters() == {"martian": 1}
