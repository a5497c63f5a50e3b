"""What the switchboard answers to each event of the stack."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from childflow.errors import UsageError
from childflow.netstack.events import Connected, Denial, End, Ended, Flight, Question, SlowKind, SlowPacket
from childflow.services import fragments
from childflow.services.switchboard import Switchboard
from childflow.settings import ADDRESSES, Settings
from tests.services.play import (
    FAR4,
    FAR6,
    GATEWAY4,
    GATEWAY6,
    FakeRecorder,
    FakeStack,
    datagram,
    fragments4,
    query,
    run,
    until,
)
from tests.services.test_neighbours import arp, solicitation

TCP, UDP = 6, 17
LOOPBACK = bytes((127, 0, 0, 1))


class Scene:
    def __init__(self, dns: str | None = "127.0.0.1:1") -> None:
        self.stack, self.recorder = FakeStack(), FakeRecorder()
        self.loop = asyncio.get_running_loop()
        settings = Settings(command=("true",), dns=dns)
        self.board = Switchboard(self.stack, settings, self.loop, self.recorder)  # type: ignore[arg-type]

    def ask(self, protocol: int, remote: bytes, port: int, flow: int = 1) -> None:
        self.board.handle([Question(flow, protocol, 40000, remote, port)])


def scene(play: Callable[[Scene], Awaitable[None]]) -> None:
    async def body() -> None:
        s = Scene()
        await play(s)
        s.board.close()

    run(body)


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("remote", [FAR4, FAR6])
def test_ordinary_question_is_allowed_and_recorded(protocol: int, remote: bytes) -> None:
    async def play(s: Scene) -> None:
        s.ask(protocol, remote, 443)
        assert (s.stack.allowed, s.stack.denied) == ([1], [])
        assert s.recorder.of("allowed")[0][0].remote == remote

    scene(play)


@pytest.mark.parametrize(
    ("protocol", "remote", "port", "how"),
    [
        (TCP, LOOPBACK, 80, Denial.RESET),
        (UDP, LOOPBACK, 80, Denial.PROHIBITED),
        (TCP, GATEWAY4, 80, Denial.RESET),
        (UDP, GATEWAY6, 123, Denial.PORT),
        (UDP, bytes(10) + b"\xff\xff" + GATEWAY4, 53, Denial.PORT),
        (UDP, bytes((224, 0, 0, 251)), 5353, Denial.SILENT),
    ],
)
def test_refused_question(protocol: int, remote: bytes, port: int, how: Denial) -> None:
    async def play(s: Scene) -> None:
        s.ask(protocol, remote, port)
        assert (s.stack.allowed, s.stack.denied) == ([], [(1, how)])
        assert len(s.recorder.of("denied")) == 1

    scene(play)


@pytest.mark.parametrize("remote", [FAR4, LOOPBACK, GATEWAY4])
def test_flow_that_died_meanwhile_is_passed_over_and_the_next_is_served(remote: bytes) -> None:
    async def play(s: Scene) -> None:
        s.stack.gone.add(1)
        s.board.handle([Question(1, TCP, 1, remote, 53), Question(2, TCP, 1, FAR4, 80)])
        assert (s.stack.allowed, s.recorder.of("denied")) == ([2], [])
        assert len(s.recorder.of("allowed")) == 1

    scene(play)


def test_fault_of_ours_opens_nothing_and_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from childflow.services import admission

    def broken(ask: Any, link: Any, rules: Any) -> None:
        if ask.port == 666:
            raise ZeroDivisionError
        return real(ask, link, rules)

    real: Any = admission.judge
    monkeypatch.setattr(admission, "judge", broken)

    async def play(s: Scene) -> None:
        said: list[Any] = []
        s.loop.set_exception_handler(lambda _, context: said.append(context))
        s.board.handle([Question(1, TCP, 1, FAR4, 666), Question(2, UDP, 1, FAR4, 666), Question(3, TCP, 1, FAR4, 80)])
        assert (s.stack.allowed, s.stack.denied) == ([3], [(1, Denial.RESET), (2, Denial.PROHIBITED)])
        assert [type(context["exception"]) for context in said] == [ZeroDivisionError] * 2

    scene(play)


@pytest.mark.case("D40")
def test_fault_in_reading_a_first_flight_refuses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would be held for ever."""

    async def play(s: Scene) -> None:
        said: list[Any] = []
        s.loop.set_exception_handler(lambda _, context: said.append(context))
        monkeypatch.setitem(s.board._by_type, Flight, lambda event: 1 // 0)
        s.board.handle([Flight(7, False), Question(8, TCP, 1, FAR4, 80)])
        assert (s.stack.denied, s.stack.allowed) == ([(7, Denial.RESET)], [8])
        assert [type(context["exception"]) for context in said] == [ZeroDivisionError]

    scene(play)


@pytest.mark.parametrize("gateway", [GATEWAY4, GATEWAY6])
def test_dns_over_tcp_is_attached_and_served(gateway: bytes) -> None:
    async def play(s: Scene) -> None:
        s.ask(TCP, gateway, 53)
        ((flow, fd),) = s.stack.attached
        assert flow == 1
        reader, writer = await asyncio.open_unix_connection(sock=socket.socket(fileno=fd))
        writer.write(b"\0\3abc")
        assert await reader.readexactly(4) == b"\0\x0cab"
        writer.close()
        assert s.recorder.of("allowed") == []

    scene(play)


def test_dns_connection_that_can_not_be_attached_is_closed() -> None:
    async def play(s: Scene) -> None:
        s.stack.gone.add(1)
        s.ask(TCP, GATEWAY4, 53)
        await until(lambda: not s.board._services.dns()._tcp._runs)

    scene(play)


def test_datagram_goes_to_the_dns_service() -> None:
    async def play(s: Scene) -> None:
        s.board.handle([datagram(b"nonsense" * 4), datagram(query())])
        await until(lambda: len(s.stack.replies) == 2)
        assert sorted(answer[3] & 15 for _, answer in s.stack.replies) == [1, 2]

    scene(play)


def test_connected_and_ended_go_to_the_recorder() -> None:
    async def play(s: Scene) -> None:
        connected, ended = Connected(1, 0, 5), Ended(1, End.FIN, 1, 2, 3)
        s.board.handle([connected, ended])
        assert (s.recorder.of("connected"), s.recorder.of("ended")) == ([(connected,)], [(ended,)])

    scene(play)


def test_neighbours_are_answered_or_counted() -> None:
    async def play(s: Scene) -> None:
        s.board.handle([SlowPacket(SlowKind.ARP, arp()), SlowPacket(SlowKind.ARP, b"")])
        s.board.handle([SlowPacket(SlowKind.ND, solicitation()), SlowPacket(SlowKind.ND, solicitation(hop=1))])
        assert (len(s.stack.frames), len(s.stack.ip), s.stack.drops) == (1, 1, ["bad_arp", "bad_nd"])

    scene(play)


def test_datagram_in_fragments_goes_back_in_and_its_question_is_answered() -> None:
    async def play(s: Scene) -> None:
        s.stack.waiting = [Question(9, UDP, 40000, FAR4, 9)]
        s.board.handle([SlowPacket(SlowKind.FRAGMENT, piece) for piece in fragments4(bytes(5000), 1480)])
        assert len(s.stack.inputs) == 1
        assert s.stack.allowed == [9]

    scene(play)


def test_half_received_datagram_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fragments, "TIMEOUT4_S", 0.5)

    async def play(s: Scene) -> None:
        s.board.handle([SlowPacket(SlowKind.FRAGMENT, fragments4(bytes(5000), 1480)[0])])
        await until(lambda: s.stack.drops == ["fragment_timeout"])

    scene(play)


def test_ping_of_the_gateway() -> None:
    from tests.services.test_echo import request

    async def play(s: Scene) -> None:
        s.board.handle([SlowPacket(SlowKind.ECHO, request(4, ADDRESSES.gateway4))])
        assert len(s.stack.ip) == 1

    scene(play)


def test_resolver_that_is_none_is_refused_at_once() -> None:
    async def body() -> None:
        with pytest.raises(UsageError):
            Scene(dns="example.test")

    run(body)


def test_unused_services_cost_nothing() -> None:
    async def play(s: Scene) -> None:
        s.ask(TCP, FAR4, 443)
        made = s.board._services
        assert (made._dns, made._watch, made._echo, made._fragments) == (None, None, None, None)
        assert (made._dialer, made._associations) == (None, None)

    scene(play)
