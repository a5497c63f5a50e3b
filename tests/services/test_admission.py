"""Admission: verdicts carried out, first flights held and judged, ways out through proxies and to virtual names."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from childflow.errors import DialError, StackError
from childflow.netstack.events import Denial, End, Ended, Flight, Question
from childflow.policy.policy import policy_of
from childflow.policy.verdict import Action
from childflow.services import admission
from childflow.services.admission import Admission
from childflow.services.lookup import Found, NoSuchName
from childflow.settings import Settings
from tests.services.hellos import hello
from tests.services.play import FAR4, FakeRecorder, FakeStack, run, until

TCP, UDP = 6, 17
NAME = "good.example"


class Services:
    """What the admission asks for; each a note of what it was asked."""

    def __init__(self) -> None:
        self.dialled: list[tuple[Any, int]] = []
        self.ended: list[int] = []
        self.connection: Any = None
        self.asked: list[bytes] = []
        self.answer: Any = None  # a socket, or an error
        self.found: Any = [FAR4]
        self.aliases: tuple[str, ...] = ()

    def dialer(self) -> Services:
        return self

    def lookup(self) -> Services:
        return self

    def dns(self) -> Services:
        return self

    def open_connection(self, remote: bytes) -> Any:
        self.asked.append(remote)
        return self.connection

    def flow_ended(self, flow: int) -> None:
        self.ended.append(flow)

    async def connect(self, target: Any, port: int) -> Any:
        self.dialled.append((target, port))
        while self.answer is None:
            await asyncio.sleep(0.001)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def find(self, name: str) -> Found:
        if isinstance(self.found, Exception):
            raise self.found
        return Found(list(self.found), self.aliases)


class Scene:
    def __init__(self, **rules: Any) -> None:
        self.loop = asyncio.get_running_loop()
        self.stack, self.recorder, self.services = FakeStack(), FakeRecorder(), Services()
        self.policy = policy_of(Settings(("true",), **rules), self.loop.time)
        self.admission = Admission(self.stack, self.loop, self.recorder, self.policy, self.services)  # type: ignore[arg-type]

    def ask(self, remote: bytes = FAR4, port: int = 443, protocol: int = TCP, flow: int = 1) -> None:
        self.admission.question(Question(flow, protocol, 40000, remote, port))

    def learn(self, name: str = NAME, address: bytes = FAR4) -> None:
        self.policy.names.learn(name, (), [(address, 60)], self.loop.time())

    def says(self, text: bytes, *, ended: bool = False, flow: int = 1) -> None:
        self.stack.texts.setdefault(flow, []).append(text)
        self.admission.flight(Flight(flow, ended))

    def over(self, flow: int = 1) -> None:
        self.stack.gone.add(flow)
        self.admission.ended(Ended(flow, End.RST_CHILD, 0, 0, 0))


def scene(play: Callable[[Scene], Awaitable[None]], **rules: Any) -> None:
    async def body() -> None:
        s = Scene(**rules)
        await play(s)
        s.admission.close()
        await until(lambda: not s.admission._tasks)

    run(body)


GOOD = {"allow_domains": (NAME,), "default_policy": "deny"}


def test_no_rules_no_hold() -> None:
    async def play(s: Scene) -> None:
        s.ask()
        assert (s.stack.allowed, s.stack.holds, s.stack.denied) == ([1], [], [])

    scene(play)


def test_offline_refuses_everything() -> None:
    async def play(s: Scene) -> None:
        s.ask(protocol=TCP, flow=1)
        s.ask(protocol=UDP, flow=2)
        assert s.stack.denied == [(1, Denial.RESET), (2, Denial.PROHIBITED)]
        assert [verdict.reason_code for _, verdict in s.recorder.of("denied")] == ["offline", "offline"]

    scene(play, offline=True)


# --- the first flight


@pytest.mark.parametrize("split", [1, 7, 100_000])
def test_named_flow_is_held_until_its_name_was_read(split: int) -> None:
    async def play(s: Scene) -> None:
        s.learn()
        s.ask()
        assert (s.stack.holds, s.stack.allowed) == ([1], [1])  # connected, but nothing leaves
        text = hello(NAME.encode())
        for at in range(0, len(text), split):
            assert s.stack.passed == []
            s.says(text[at : at + split])
        assert s.stack.passed == [1]
        assert s.stack.denied == []
        assert s.recorder.of("judged")[0][2] == NAME

    scene(play, **GOOD)


@pytest.mark.parametrize(
    "text",
    [
        hello(b"evil.example"),
        b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"GET http://evil.example/ HTTP/1.1\r\nHost: good.example\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: good.example\r\nHost: evil.example\r\n\r\n",
    ],
    ids=["SNI", "Host", "target", "two hosts"],
)
def test_another_name_is_refused_before_a_byte_left(text: bytes) -> None:
    async def play(s: Scene) -> None:
        s.learn()
        s.ask()
        s.says(text)
        assert (s.stack.passed, s.stack.denied) == ([], [(1, Denial.RESET)])
        ((_, verdict),) = s.recorder.of("denied")
        assert verdict.reason_code == "sni_mismatch"
        assert verdict.sentence

    scene(play, **GOOD)


def test_allowed_name_at_another_address_is_refused() -> None:
    async def play(s: Scene) -> None:
        s.learn("other.good.example")
        s.ask()
        s.says(hello(NAME.encode()))
        assert (s.stack.passed, s.stack.denied) == ([], [(1, Denial.RESET)])

    scene(play, **GOOD)


def test_server_that_speaks_first_passes_on_its_address() -> None:
    async def play(s: Scene) -> None:
        s.learn()
        s.ask(port=22)
        s.says(b"SSH-2.0-OpenSSH_9.9\r\n")
        assert (s.stack.passed, s.stack.denied) == ([1], [])

    scene(play, **GOOD)


def test_address_that_no_name_led_to_is_refused() -> None:
    async def play(s: Scene) -> None:
        s.ask()
        assert s.stack.denied == [(1, Denial.RESET)]
        assert s.recorder.of("denied")[0][1].reason_code == "default_deny"

    scene(play, **GOOD)


def test_flight_that_never_ends_is_refused_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "FLIGHT_S", 0.02)

    async def play(s: Scene) -> None:
        s.learn()
        s.ask()
        s.says(hello(NAME.encode())[:-1])
        await until(lambda: s.stack.denied == [(1, Denial.RESET)])
        s.says(hello(NAME.encode())[-1:])  # too late
        assert s.stack.passed == []

    scene(play, **GOOD)


def test_flight_that_breaks_off_is_refused() -> None:
    async def play(s: Scene) -> None:
        s.learn()
        s.ask()
        s.says(hello(NAME.encode())[:-1], ended=True)
        assert (s.stack.passed, s.stack.denied) == ([], [(1, Denial.RESET)])

    scene(play, **GOOD)


def test_held_flow_that_is_over_is_forgotten() -> None:
    async def play(s: Scene) -> None:
        s.learn()
        s.ask()
        s.says(hello(NAME.encode())[:50])
        s.over()
        assert not s.admission._held

    scene(play, **GOOD)


def test_quic_is_not_let_out_before_it_was_read() -> None:
    async def play(s: Scene) -> None:
        s.learn()
        s.ask(protocol=UDP)
        assert (s.stack.holds, s.stack.allowed) == ([1], [])
        s.says(b"no QUIC at all")
        assert (s.stack.allowed, s.stack.denied) == ([], [(1, Denial.PROHIBITED)])
        assert s.recorder.of("denied")[0][1].reason_code == "quic_unreadable"

    scene(play, **GOOD)


# --- through a proxy


PROXY = {"proxy": "socks5://192.0.2.1:1080", "dns_mode": "forward"}


def test_proxied_flow_gets_the_dialled_socket() -> None:
    async def play(s: Scene) -> None:
        ours, theirs = socket.socketpair()
        s.ask()
        await until(lambda: s.services.dialled == [(FAR4, 443)])
        assert s.stack.attached == []
        s.services.answer = ours
        await until(lambda: len(s.stack.attached) == 1)
        assert ours.fileno() == -1  # the stack's now
        assert s.stack.allowed == []
        theirs.close()

    scene(play, **PROXY)


def test_proxy_that_refuses_is_a_refusal() -> None:
    async def play(s: Scene) -> None:
        s.services.answer = DialError(Denial.UNREACHABLE_HOST, "host unreachable")
        s.ask()
        await until(lambda: s.stack.denied == [(1, Denial.UNREACHABLE_HOST)])
        assert s.stack.allowed == []
        ((flow, what, _),) = s.recorder.of("not_connected")
        assert (flow, what) == (1, "host unreachable")

    scene(play, **PROXY)


def test_bug_on_the_way_is_a_refusal() -> None:
    async def play(s: Scene) -> None:
        told: list[Any] = []
        s.loop.set_exception_handler(lambda _, context: told.append(context))
        s.services.answer = ValueError("a bug")
        s.ask()
        await until(lambda: s.stack.denied == [(1, Denial.RESET)])
        assert told

    scene(play, **PROXY)


def test_child_that_gives_up_ends_the_dial() -> None:
    async def play(s: Scene) -> None:
        s.ask()
        await until(lambda: bool(s.services.dialled))
        s.over()
        await until(lambda: not s.admission._tasks)
        assert s.stack.attached == []

    scene(play, **PROXY)


def test_flow_that_died_while_dialling_costs_no_socket() -> None:
    async def play(s: Scene) -> None:
        ours, theirs = socket.socketpair()
        s.ask()
        s.stack.gone.add(1)
        s.services.answer = ours
        await until(lambda: not s.admission._tasks)
        assert ours.fileno() == -1
        assert theirs.recv(1) == b""  # closed
        theirs.close()

    scene(play, **PROXY)


# --- virtual names

VIRTUAL = {"dns_mode": "virtual"}


def virtual(s: Scene, name: str = NAME) -> bytes:
    assert s.policy.virtual is not None
    address = s.policy.virtual.address_of(name, 4)
    assert address is not None
    return address


def test_virtual_address_leads_to_where_the_name_is() -> None:
    async def play(s: Scene) -> None:
        s.ask(virtual(s))
        await until(lambda: s.stack.elsewhere == [(1, FAR4, 443)])
        assert s.stack.allowed == []

    scene(play, **VIRTUAL)


@pytest.mark.parametrize("remote", [FAR4, bytes((198, 18, 0, 1))])
def test_dns_over_tcp_is_served_whatever_the_address(remote: bytes) -> None:
    async def play(s: Scene) -> None:
        ours, theirs = socket.socketpair()
        s.services.connection = ours
        s.ask(remote, 53)
        assert s.services.asked == [remote]
        assert [flow for flow, _ in s.stack.attached] == [1]
        assert (s.stack.allowed, s.stack.elsewhere) == ([], [])
        theirs.close()

    scene(play, **VIRTUAL)


def test_no_ping_reaches_a_virtual_address() -> None:
    async def play(s: Scene) -> None:
        assert s.policy.judge(1, virtual(s), 0).action is Action.DENY
        assert s.policy.judge(1, FAR4, 0).action is Action.ALLOW

    scene(play, **VIRTUAL)


def test_virtual_address_without_a_name_leads_nowhere() -> None:
    async def play(s: Scene) -> None:
        s.ask(bytes((198, 18, 0, 9)))
        assert s.stack.denied == [(1, Denial.UNREACHABLE_HOST)]

    scene(play, **VIRTUAL)


def test_virtual_name_that_is_not_there_leads_nowhere() -> None:
    async def play(s: Scene) -> None:
        s.services.found = NoSuchName(NAME)
        s.ask(virtual(s))
        await until(lambda: s.stack.denied == [(1, Denial.UNREACHABLE_HOST)])

    scene(play, **VIRTUAL)


def test_virtual_name_whose_alias_is_denied_is_refused() -> None:
    async def play(s: Scene) -> None:
        s.services.aliases = ("evil.example",)
        s.ask(virtual(s))
        await until(lambda: s.stack.denied == [(1, Denial.RESET)])
        assert s.stack.elsewhere == []

    scene(play, deny_domains=("evil.example",), **VIRTUAL)


@pytest.mark.case("D10")
def test_virtual_name_that_leads_inside_is_refused() -> None:
    """Rebinding: what the name is now is judged, not what it was."""

    async def play(s: Scene) -> None:
        for flow, inside in enumerate([bytes((127, 0, 0, 1)), bytes((10, 0, 0, 1)), bytes((169, 254, 169, 254))], 1):
            s.services.found = [inside]
            s.ask(virtual(s), flow=flow)
            await until(lambda flow=flow: (flow, Denial.RESET) in s.stack.denied)  # type: ignore[misc]
        assert s.stack.elsewhere == []
        assert [verdict.reason_code for _, verdict in s.recorder.of("denied")] == ["martian", "private", "private"]

    scene(play, block_private=True, **VIRTUAL)


def test_virtual_name_through_a_proxy_is_the_name() -> None:
    async def play(s: Scene) -> None:
        s.ask(virtual(s))
        await until(lambda: s.services.dialled == [(NAME, 443)])

    scene(play, proxy="http://192.0.2.1:3128")


def test_denied_virtual_name_is_refused() -> None:
    async def play(s: Scene) -> None:
        s.ask(virtual(s, "evil.example"))
        assert s.stack.denied == [(1, Denial.RESET)]

    scene(play, deny_domains=("evil.example",), **VIRTUAL)


def test_virtual_name_and_another_one_on_the_wire() -> None:
    async def play(s: Scene) -> None:
        s.ask(virtual(s))
        await until(lambda: s.stack.elsewhere == [(1, FAR4, 443)])
        s.says(hello(b"sub.good.example"))
        assert (s.stack.passed, s.stack.denied) == ([], [(1, Denial.RESET)])

    scene(play, **GOOD, **VIRTUAL)


def test_flow_that_ends_before_its_work_begins_leaves_nothing(recwarn: pytest.WarningsRecorder) -> None:
    """Question and end may come before the loop runs again. What was not begun is not left behind with a warning."""

    async def play(s: Scene) -> None:
        for flow in range(20):
            s.ask(flow=flow)
            s.over(flow)
        await asyncio.sleep(0)
        await until(lambda: not s.admission._tasks)
        assert s.services.dialled == []

    scene(play, proxy="socks5://127.0.0.1:1")
    gc.collect()
    assert [str(w.message) for w in recwarn.list] == []


def test_what_the_stack_will_not_have_is_refused() -> None:
    """The stack takes no address that is not unicast: the flow is alive, and would wait for a minute."""

    async def play(s: Scene) -> None:
        def refuses(flow: int, address: bytes, port: int) -> None:
            raise StackError(-2, "no unicast address")

        s.stack.allow_to = refuses  # type: ignore[method-assign]
        s.ask(virtual(s))
        await until(lambda: s.stack.denied)
        assert s.stack.denied == [(1, Denial.RESET)]

    scene(play, **VIRTUAL)
