"""Whose memory is whose: Python's objects come and go at the worst moments, and C keeps only what it copied (A39).

The collector runs after every frame and before every event; what is given to C is a temporary that is gone when C has
returned; flows end while their events are being read. `asan.py` runs the same under the sanitizer, the last test with
the debug hooks of Python's own allocator.
"""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys

import pytest

from childflow.errors import StackError
from childflow.netstack.events import Ended, Question, SlowPacket
from childflow.netstack.stack import Stack
from childflow.settings import ADDRESSES

from . import wire
from .play import ACK, CHILD_PORT, FIN, RST, SYN, Play, descriptors, text_of
from .test_slow_path import ARP_REQUEST, echo, query
from .wire import CHILD, REMOTE, frame

pytestmark = pytest.mark.case("A39")


@pytest.fixture
def collected(monkeypatch):
    """A play, with the collector running after every frame and before every batch of events. What the test process
    itself holds is put aside, so that a collection is quick."""
    gc.collect()
    gc.freeze()
    injects, hear = Play.injects, Play._hear
    monkeypatch.setattr(Play, "injects", lambda play, raw: (injects(play, raw), gc.collect()))
    monkeypatch.setattr(Play, "_hear", lambda play, events: (gc.collect(), hear(play, events)))
    play = Play()
    yield play
    play.close()
    gc.unfreeze()


def temporary(data: bytes) -> bytes:
    """A copy that nothing else refers to."""
    return bytes(bytearray(data))


def disturb() -> None:
    """Free what is free, and write over it."""
    gc.collect()
    for size in (64, 512, 1500, 65_000):
        for _ in range(8):
            bytearray(b"\xee" * size)


def datagram(port: int, text: bytes) -> bytes:
    return wire.ip(wire.udp(CHILD[4], REMOTE[4], port, 99, text), wire.UDP, CHILD[4], REMOTE[4])


def test_conversation_with_a_collection_after_every_frame(collected):
    play = collected
    play.establish(window=65_535)
    for at in range(0, 100_000, 5_000):
        play.child.sends(ACK, text=text_of(5_000, at))
        play.host.gets(text_of(5_000, at))
        play.host.sends(text_of(5_000, at))
        assert play.child.reads(5_000) == text_of(5_000, at)
    play.child.sends(FIN | ACK)
    play.host.gets_eof()
    play.host.closes()


def test_slow_packets_outlive_the_queue_they_came_in(collected):
    """C uses the queue's memory again at the next turn; what Python was given stays as it was."""
    play = collected
    packets = []
    for n in range(40):
        play.injects(frame(echo(4, text_of(600, n))))
        packets.append(play.slow())
        play.injects(frame(query(4, text_of(40, n))))
        packets.append(play.datagram())
        disturb()
    for n, (ping, question) in enumerate(zip(packets[::2], packets[1::2], strict=True)):
        assert isinstance(ping, SlowPacket)
        assert ping.packet.endswith(text_of(600, n))
        assert question.payload == text_of(40, n)


def test_what_is_sent_down_is_copied_before_the_call_returns(collected):
    play = collected
    for n in range(20):
        play.injects(frame(query(4, b"question")))
        asked = play.datagram()
        play.stack.reply_datagram(asked, temporary(text_of(500, n)))
        disturb()
        play.stack.send_ip(temporary(datagram(n + 1, b"")))
        disturb()
        play.stack.send_frame(temporary(ADDRESSES.child_mac + ADDRESSES.gateway_mac + b"\x08\x06" + ARP_REQUEST))
        disturb()
        raw = [play._tap.recv(1 << 17) for _ in range(3)]
        assert raw[0].endswith(text_of(500, n))
        assert raw[1][24:] == datagram(n + 1, b"")
        assert raw[2][24:] == ARP_REQUEST


def test_parked_datagrams_are_copies_of_what_came(collected):
    """They wait while other frames use the buffer they came in, some of them put in by Python."""
    play = collected
    host = play.owns(_receiver())
    remote, port = wire.LOOPBACK[4], host.getsockname()[1]
    for n in range(10):
        packet = wire.ip(wire.udp(CHILD[4], remote, 5000, port, text_of(900, n)), wire.UDP, CHILD[4], remote)
        if n % 2:
            play.stack.input_ip(temporary(packet))
        else:
            play.injects(frame(packet))
        play.injects(frame(echo(4, b"\xaa" * 1400)))
        disturb()
    play.rest()
    (asked,) = [e for e in play._new if isinstance(e, Question)]
    play.stack.allow(asked.flow)
    play.rest()
    assert [host.recv(2000) for _ in range(10)] == [text_of(900, n) for n in range(10)]
    play.forgets_events()


def _receiver():
    host = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    host.bind(("127.0.0.1", 0))
    host.settimeout(5)
    return host


def test_flows_that_end_while_their_events_are_read(collected):
    """Half of a batch of questions is answered when everything is closed; the rest are answers to the dead."""
    play = collected
    for port in range(CHILD_PORT, CHILD_PORT + 20):
        play.sends(wire.ip(wire.tcp(CHILD[4], REMOTE[4], port, 443, 1, 0, SYN), wire.TCP, CHILD[4], REMOTE[4]))
        play.sends(datagram(port, b"text"))
    questions = [e for e in play._new if isinstance(e, Question)]
    assert len(questions) == 40
    for n, asked in enumerate(questions):
        if n == 20:
            play.stack.close_all()
            gc.collect()
        if n < 20:
            play.stack.deny(asked.flow, 5)
        else:
            with pytest.raises(StackError):
                play.stack.deny(asked.flow, 5)
    play.forgets_events()
    play.rest()
    play._hear(play.stack.events())
    assert sum(isinstance(e, Ended) for e in play._new) == 40
    play.forgets_events()


def test_flow_that_is_reset_between_its_event_and_the_answer(collected):
    play = collected
    child = play.connect()
    for _ in range(20):
        child.opens()
        asked = play.question()
        child.sends(RST, seq=1)
        disturb()
        with pytest.raises(StackError):
            play.stack.allow(asked.flow)
        play.forgets_events()


def test_stack_that_is_dropped_without_being_closed():
    """Its memory and its descriptors go with the object, whatever it held."""
    before = descriptors()
    for _ in range(5):
        play = Play()
        play.establish()
        play.child.sends(ACK, text=text_of(3000))
        play.sends(datagram(1, b"parked"))
        play.injects(frame(echo(4, text_of(100))))
        opened = [*play._opened, play._stack_end, play._tap]
        del play.stack, play
        gc.collect()
        for s in opened:
            s.close()
        disturb()
    assert descriptors() == before


def test_config_is_copied():
    """The config and its strings are temporaries of the constructor."""
    play = Play()
    try:
        for _ in range(20):
            other = Stack(play._stack_end.fileno(), ADDRESSES, mtu=1500)
            disturb()
            other.turn(play.clock.now_us)
            other.close()
    finally:
        play.abandon()


def test_all_of_it_with_the_debug_hooks_of_pythons_allocator():
    environment = {**os.environ, "PYTHONMALLOC": "debug"}
    arguments = ["-q", "-p", "no:cacheprovider", "-k", "not debug_hooks", __file__]
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-m", "pytest", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
