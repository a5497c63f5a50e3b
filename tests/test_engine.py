"""The engine under a flood whose questions it is slow to answer: frames come before questions."""

from __future__ import annotations

import asyncio
import resource
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from childflow import engine as engine_module
from childflow.engine import Engine
from childflow.netstack.events import Denial, Question
from childflow.record.null import NullRecorder
from childflow.sandbox.link import LinkPlan
from childflow.settings import Settings
from tests.netstack import wire
from tests.netstack.test_limits import syn

SLOW_S = 0.002  # an answer, forty times slower than ours


class Recorder(NullRecorder):
    """Keeps the warnings."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


class Scene:
    """An engine on a packet socket in place of a TAP; `child` is the other end."""

    def __init__(self, **limits: int) -> None:
        settings = Settings(command=("true",), limits=tuple(limits.items()))
        self.recorder = Recorder(settings)
        self.child, self.tap = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.child.setblocking(False)
        self.loop = asyncio.new_event_loop()
        self.engine = Engine(self.tap.fileno(), True, LinkPlan(1500, True, False), settings, self.loop, self.recorder)
        self.stack = self.engine._stack

    def close(self) -> None:
        self.engine.stop()
        self.loop.close()
        self.child.close()
        self.tap.close()

    def fill(self, frames: Iterator[bytes]) -> int:
        """Send until the packet socket takes no more."""
        for count, raw in enumerate(frames):
            try:
                self.child.send(raw)
            except BlockingIOError:
                return count
        raise AssertionError("the queue takes everything")


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Scene]]:
    made: list[Scene] = []

    def make(**limits: int) -> Scene:
        made.append(Scene(**limits))
        return made[-1]

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield make
    for s in made:
        s.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.case("B33")
def test_frames_are_read_on_while_answers_are_slow(
    scene: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each turn reads what it may and answers a handful: what is a canary's gets through behind a thousand SYNs."""
    s, answered = scene(), []

    def slowly(question: Question) -> None:
        time.sleep(SLOW_S)
        answered.append(question)
        s.stack.deny(question.flow, Denial.SILENT)

    s.engine._switchboard._by_type[Question] = slowly
    monkeypatch.setattr(engine_module, "ANSWERS_US", 1_000)
    ports, sent, read, turns = iter(range(1, 60_000)), 0, 0, 0
    for _ in range(20):
        sent += s.fill(syn(port) for port in ports)
        s.engine._turn()
        turns += 1
        read = s.stack.flow_count() + len(answered)
    assert sent > 1_000
    assert read > sent * 0.8
    assert len(answered) <= turns * engine_module.EVENTS_AT_ONCE


def test_all_that_waits_is_answered_in_the_end(scene: Callable[..., Scene]) -> None:
    s, asked = scene(), 0

    def deny(question: Question) -> None:
        nonlocal asked
        asked += 1
        s.stack.deny(question.flow, Denial.SILENT)

    s.engine._switchboard._by_type[Question] = deny
    sent = s.fill(syn(port) for port in range(1, 60_000))
    while s.engine._turn():
        pass
    assert asked == sent
    assert s.stack.flow_count() == 0


@pytest.mark.case("B34")
def test_what_is_full_is_told_once(scene: Callable[..., Scene]) -> None:
    s = scene(max_flows=4, max_half_open=2, max_sockets=4)
    listener = socket.create_server(("127.0.0.1", 0))

    def allow(question: Question) -> None:
        s.stack.allow(question.flow)

    s.engine._switchboard._by_type[Question] = allow
    port = listener.getsockname()[1]
    for own in range(1, 21):  # established, one after the other: four have a socket, and a place
        segment = wire.tcp(wire.CHILD[4], wire.LOOPBACK[4], own, port, 1000, 0, wire.SYN, window=65535)
        s.child.send(wire.frame(wire.ip(segment, wire.TCP, wire.CHILD[4], wire.LOOPBACK[4])))
        until(s, lambda own=own: answers(s, own, port))
    assert len(s.recorder.warnings) == 1
    assert s.recorder.warnings[0].startswith("no room is left for new flows")
    assert s.recorder.warnings[0].endswith("raise --limit max_flows (now 4)")
    listener.close()


def until(s: Scene, true: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not true():
        assert time.monotonic() < end, "it did not happen"
        s.engine._serve()


def answers(s: Scene, own: int, port: int) -> bool:
    """Acknowledge a SYN-ACK; true when it or an RST came."""
    try:
        came = wire.view(s.child.recv(1 << 17), True)
    except BlockingIOError:
        return False
    assert isinstance(came, wire.Segment)
    assert came.child_port == own
    if came.flags & wire.SYN:
        ack = wire.tcp(wire.CHILD[4], wire.LOOPBACK[4], own, port, 1001, came.seq + 1, wire.ACK, window=65535)
        s.child.send(wire.frame(wire.ip(ack, wire.TCP, wire.CHILD[4], wire.LOOPBACK[4])))
        s.engine._serve()
    return True
