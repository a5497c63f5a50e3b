"""An exception in any of our callbacks: what it was about is refused, it is told of, and everything else goes on."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from childflow.errors import StackError
from childflow.netstack import stack as doorway
from childflow.netstack.events import Connected, Denial, End, Ended, Event, Question, SlowKind, SlowPacket
from childflow.policy.policy import without_rules
from childflow.run import _Life
from childflow.services import (
    admission,
    dns_tcp,
    dns_udp,
    echo,
    fragments,
    neighbours,
    on_demand,
    resolvers,
    switchboard,
)
from childflow.services.resolvers import Resolvers
from childflow.services.watch import Watch
from childflow.settings import Settings
from tests.netstack.play import Play
from tests.netstack.wire import ACK, RST
from tests.services.play import (
    FAR4,
    GATEWAY4,
    FakeRecorder,
    FakeStack,
    datagram,
    fragments4,
    name_policy,
    query,
    run,
    until,
)

TCP, UDP = 6, 17
SETTINGS = Settings(command=("true",), dns="127.0.0.1:1")


class Bug(Exception):
    """One of ours."""


def broken(*_: object, **__: object) -> Any:
    raise Bug


class Scene:
    """A switchboard with a stack and a recorder that note what they are told, and what the loop was told of."""

    def __init__(self) -> None:
        self.stack, self.recorder = FakeStack(), FakeRecorder()
        self.loop = asyncio.get_running_loop()
        self.told: list[BaseException | None] = []
        self.loop.set_exception_handler(lambda _, context: self.told.append(context.get("exception")))
        self.board = switchboard.Switchboard(self.stack, SETTINGS, self.loop, self.recorder)  # type: ignore[arg-type]


def question(remote: bytes = FAR4, port: int = 443, protocol: int = TCP, flow: int = 1) -> Question:
    return Question(flow, protocol, 40_000, remote, port)


EVENTS: dict[str, tuple[Any, str, Event]] = {
    "judgement of TCP": (admission, "judge", question()),
    "judgement of UDP": (admission, "judge", question(protocol=UDP)),
    "allow": (FakeStack, "allow", question()),
    "deny": (admission.Admission, "_deny", question(remote=bytes((127, 0, 0, 1)))),
    "DNS over TCP": (on_demand.OnDemand, "dns", question(GATEWAY4, 53)),
    "attach": (FakeStack, "attach", question(GATEWAY4, 53)),
    "DNS datagram": (dns_udp.UdpForwarder, "query", datagram(query())),
    "ARP": (neighbours, "answer_arp", SlowPacket(SlowKind.ARP, bytes(60))),
    "neighbour discovery": (neighbours, "answer_nd", SlowPacket(SlowKind.ND, bytes(60))),
    "ping": (echo.Echo, "handle", SlowPacket(SlowKind.ECHO, bytes(60))),
    "fragment": (fragments.Reassembler, "take", SlowPacket(SlowKind.FRAGMENT, fragments4(bytes(64), 32)[0])),
    "connected": (FakeRecorder, "connected", Connected(1, 0, 0)),
    "ended": (FakeRecorder, "ended", Ended(1, End.FIN, 0, 0, 0)),
    "recorder at an allowed flow": (FakeRecorder, "allowed", question()),
    "recorder at a query": (FakeRecorder, "dns_query", datagram(query())),
}


@pytest.mark.case("E01")
@pytest.mark.parametrize("what", EVENTS)
def test_bug_in_a_callback_costs_one_event(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    place, name, event = EVENTS[what]

    async def play() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(place, name, broken, raising=False)
            s = Scene()
            s.board.handle([event])
        s.board.handle([question(port=80, flow=2)])
        assert [type(error) for error in s.told] == [Bug]
        assert 2 in s.stack.allowed
        if isinstance(event, Question) and what != "recorder at an allowed flow":  # that one was allowed already
            assert 1 not in s.stack.allowed
            assert 1 in [flow for flow, _ in s.stack.denied]
        s.board.close()

    run(play)


def test_flow_that_can_not_be_attached_is_refused_at_once() -> None:
    class NoMemory(FakeStack):
        def attach(self, flow: int, fd: int) -> None:
            raise StackError(-3, "no memory to watch it")

    async def play() -> None:
        s = Scene()
        s.board._admission._stack = s.stack = NoMemory()  # type: ignore[assignment]
        s.board.handle([question(GATEWAY4, 53)])
        assert s.stack.denied == [(1, Denial.RESET)]
        assert s.told == []
        s.board.close()

    run(play)


def test_no_memory_for_a_question_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    real, left = doorway._event, [1]

    def short_of_memory(event: Any) -> Event:
        if left.pop() if left else False:
            raise MemoryError
        return real(event)

    play = Play()
    monkeypatch.setattr(doorway, "_event", short_of_memory)
    play.connect().opens()
    play.child.gets(RST | ACK)
    play.forgets_events()  # of a flow that nobody has heard of
    play.establish(40_001)
    play.abandon()


# --- timers and sockets of the services -----------------------------------------------------------------------------


def test_callback_that_fails_stops_neither_the_others_nor_the_loop() -> None:
    async def play() -> None:
        s = Scene()
        watch = Watch(s.loop)
        pairs = [socket.socketpair() for _ in range(2)]
        calls = [0, 0]

        def bad() -> None:
            calls[0] += 1
            raise Bug

        def good() -> None:
            calls[1] += 1
            pairs[1][0].recv(1)

        watch.add(pairs[0][0].fileno(), bad)
        watch.add(pairs[1][0].fileno(), good)
        for _, far in pairs:
            far.send(b"x")
        await asyncio.sleep(0.2)
        assert calls[0] in (1, 2)  # it is not read, and yet does not keep us busy
        assert calls[1] == 1
        before = calls[0]
        pairs[0][1].send(b"y")
        await until(lambda: calls[0] > before)
        assert {type(error) for error in s.told} == {Bug}
        watch.close()
        for s_ in (*pairs[0], *pairs[1]):
            s_.close()

    run(play)


def test_dns_queries_end_though_looking_at_them_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_udp, "GIVE_UP_S", 0.3)

    async def play() -> None:
        s = Scene()
        silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        silent.bind(("127.0.0.1", 0))
        silent_one = Resolvers(f"127.0.0.1:{silent.getsockname()[1]}", s.loop.time)
        watch = Watch(s.loop)
        policy = name_policy(s.recorder)
        forwarder = dns_udp.UdpForwarder(s.stack, s.loop, watch, silent_one, s.recorder, policy)  # type: ignore[arg-type]
        real, failures = forwarder._look_at_all, [1, 1]

        def look(now: float) -> None:
            if failures:
                failures.pop()
                raise Bug
            real(now)

        monkeypatch.setattr(forwarder, "_look_at_all", look)
        forwarder.query(datagram(query()))
        await until(lambda: s.stack.replies)
        assert [type(error) for error in s.told] == [Bug, Bug]
        forwarder.close()
        watch.close()
        silent.close()

    run(play)


def test_expiry_goes_on_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switchboard, "EXPIRE_S", 0.02)

    async def play() -> None:
        s = Scene()
        calls = [0]

        def expire(_now: float) -> int:
            calls[0] += 1
            raise Bug

        monkeypatch.setattr(fragments.Reassembler, "expire", lambda _self, now: expire(now))
        s.board.handle([SlowPacket(SlowKind.FRAGMENT, fragments4(bytes(64), 32)[0])])
        await until(lambda: calls[0] >= 3)
        s.board.close()

    run(play)


def test_raw_socket_that_can_not_be_watched_is_not_kept() -> None:
    class Full(Watch):
        failures = 1

        def add(self, fd: int, ready: Callable[[], None]) -> None:
            if self.failures:
                self.failures -= 1
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            super().add(fd, ready)

    async def play() -> None:
        s = Scene()
        watch = Full(s.loop)
        pings = echo.Echo(s.stack, s.loop.time, watch, s.recorder, without_rules())  # type: ignore[arg-type]
        with pytest.raises(OSError, match="No space"):
            pings._raw_socket(echo.FAMILY4)
        assert pings._raw_socket(echo.FAMILY4).fileno() in watch._ready
        pings.close()
        watch.close()

    run(play)


def test_dns_session_that_can_not_begin_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_memory(**_: object) -> None:
        raise OSError(errno.ENOMEM, "no")

    async def play() -> None:
        s = Scene()
        monkeypatch.setattr(asyncio, "open_unix_connection", no_memory)
        resolver, policy = Resolvers("127.0.0.1:1", s.loop.time), name_policy(s.recorder)
        forwarder = dns_tcp.TcpForwarder(s.loop, resolver, s.recorder, policy)  # type: ignore[arg-type]
        end = forwarder.open(GATEWAY4)
        assert end is not None
        assert await s.loop.sock_recv(end, 1) == b""
        end.close()
        forwarder.close()
        assert s.told == []

    run(play)


def test_resolvers_that_could_not_be_read_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for long, or for ever, the default of a file that says nothing: that is this host itself."""
    file = tmp_path / "resolv.conf"
    file.write_text("nameserver 198.51.100.1\n")
    found = resolvers.Resolvers(None, lambda: 0.0, str(file))
    with monkeypatch.context() as patch:
        patch.setattr(resolvers, "parse_resolv_conf", broken)
        with pytest.raises(Bug):
            found.plan()
    assert [server.text for server in found.plan().servers] == ["198.51.100.1:53"]


# --- the engine -----------------------------------------------------------------------------------------------------


def test_engine_that_stumbles_neither_spins_nor_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    from childflow.engine import Engine
    from childflow.sandbox.link import LinkPlan

    async def play() -> None:
        s = Scene()
        ours, tap = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        plan = LinkPlan(mtu=1500, ipv4=True, ipv6=True)
        engine = Engine(ours.fileno(), True, plan, SETTINGS, s.loop, s.recorder)  # type: ignore[arg-type]
        engine.start()
        real, calls = engine._turn, [0]

        def turn() -> bool:
            calls[0] += 1
            raise Bug

        monkeypatch.setattr(engine, "_turn", turn)
        used = time.process_time()
        tap.send(bytes(100))  # stays unread, so that the stack's descriptor is ready all the time
        await asyncio.sleep(0.5)
        assert 2 <= calls[0] <= 15
        assert time.process_time() - used < 0.25
        monkeypatch.setattr(engine, "_turn", real)
        await until(engine._stack.counters)  # the frame was read, and dropped by its name
        assert {type(error) for error in s.told} == {Bug}
        engine.stop()
        ours.close()
        tap.close()

    run(play)


def test_bug_is_said_once(capfd: pytest.CaptureFixture[str]) -> None:
    life = _Life(SETTINGS, *[None] * 5)  # type: ignore[arg-type]
    for _ in range(1_000):
        life._on_bug(None, {"message": "it broke", "exception": Bug("here")})
    assert len(capfd.readouterr().err.splitlines()) == 1
    for number in range(1_000):
        life._on_bug(None, {"message": "it broke", "exception": Bug(number)})
    assert len(capfd.readouterr().err.splitlines()) < 20
