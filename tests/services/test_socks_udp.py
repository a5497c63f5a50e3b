"""UDP through a SOCKS5 proxy that follows a script."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import pytest

from childflow.errors import DialError
from childflow.limits import Limits
from childflow.netstack.events import Denial
from childflow.policy.policy import policy_of
from childflow.record.null import NullRecorder
from childflow.services import socks_udp
from childflow.services.dial import Dialer, Times
from childflow.services.on_demand import OnDemand
from childflow.services.proxy import parse_proxy, read_socks_address, socks_address
from childflow.services.socks_udp import LOOPBACK, Associations, relay_sockaddr
from childflow.services.watch import Watch
from childflow.settings import Settings
from tests.services.play import FakeStack, run, until
from tests.services.proxies import scripted, silent

FAR, OTHER = bytes((203, 0, 113, 9)), bytes((203, 0, 113, 10))
SHORT = Times(reply=0.5, whole=2.0)


class UdpProxy:
    """A SOCKS5 proxy whose relay is a socket of the test's. `bound`: what it says its relay's address is."""

    def __init__(self, relay: socket.socket, bound: bytes, refusal: int = 0) -> None:
        self._reply = b"\5" + bytes((refusal,)) + b"\0" + bound + relay.getsockname()[1].to_bytes(2, "big")
        self.requests: list[bytes] = []
        self.controls: list[socket.socket] = []
        self.forgotten: list[int] = []  # flows that the stack was told to end

    def __call__(self, sock: socket.socket) -> None:
        sock.recv(3)
        sock.sendall(b"\5\0")
        self.requests.append(sock.recv(64))
        self.controls.append(sock)
        sock.sendall(self._reply)
        silent(sock)


Scene = Callable[[Associations, socket.socket, UdpProxy], Awaitable[None]]


def scene(what: Scene, bound: bytes = b"\1" + bytes(4), refusal: int = 0, scheme: str = "socks5") -> None:
    async def play() -> None:
        with datagrams() as relay:
            proxy = UdpProxy(relay, bound, refusal)
            with scripted(proxy) as port:
                loop = asyncio.get_running_loop()
                watch = Watch(loop)
                dialer = Dialer(loop, parse_proxy(f"{scheme}://127.0.0.1:{port}"), [].append, SHORT)
                associations = Associations(dialer, watch, proxy.forgotten.append)
                await what(associations, relay, proxy)
                associations.close()
                assert len(associations) == 0
                watch.close()

    run(play)


@contextmanager
def datagrams() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        yield sock


async def arrives(sock: socket.socket) -> tuple[bytes, tuple[str, int]]:
    got: list[tuple[bytes, tuple[str, int]]] = []

    def look() -> bool:
        try:
            got.append(sock.recvfrom(65535))
        except BlockingIOError:
            pass
        return bool(got)

    await until(look, 3)
    return got[0]


async def opened(associations: Associations, flow: int, host: str | bytes, stack: socket.socket) -> None:
    address, port = await associations.open(flow, host, 5000)
    assert address == LOOPBACK
    stack.connect(("127.0.0.1", port))


@pytest.mark.parametrize("bound", [b"\1" + bytes(4), b"\3\xff" + b"n" * 255, b"\4" + bytes(16), b"\1\x7f\0\0\1"])
@pytest.mark.parametrize("host", [FAR, bytes(12) + FAR, "example.com"])
def test_there_and_back(host: str | bytes, bound: bytes) -> None:
    async def talk(associations: Associations, relay: socket.socket, proxy: UdpProxy) -> None:
        with datagrams() as stack:
            await opened(associations, 1, host, stack)
            assert proxy.requests == [b"\5\3\0\1" + bytes(6)]
            for payload in (b"hello", b"", b"x" * 60_000):
                stack.send(payload)
                data, sender = await arrives(relay)
                assert data == bytes(3) + socks_address(host, 5000) + payload
                origin = socks_address(host if isinstance(host, bytes) else FAR, 5000)
                relay.sendto(bytes(3) + origin + payload[::-1], sender)
                assert (await arrives(stack))[0] == payload[::-1]

    scene(talk, bound)


@pytest.mark.parametrize(
    "bad",
    [
        b"\0\0\1" + socks_address(FAR, 5000) + b"a fragment",
        bytes(3) + socks_address(OTHER, 5000) + b"another host",
        bytes(3) + socks_address(FAR, 5001) + b"another port",
        bytes(3) + socks_address("example.com", 5000) + b"a name",
        bytes(3) + b"\2" + FAR + b"\x13\x88no such type",
        bytes(3) + socks_address(FAR, 5000)[:-1],
        b"\0\0",
        b"",
    ],
)
def test_what_is_not_from_the_destination_is_dropped(bad: bytes) -> None:
    async def talk(associations: Associations, relay: socket.socket, _: UdpProxy) -> None:
        with datagrams() as stack, datagrams() as stranger:
            await opened(associations, 1, FAR, stack)
            stack.send(b"hello")
            _, sender = await arrives(relay)
            good = bytes(3) + socks_address(FAR, 5000)
            stranger.sendto(good + b"from somebody else", sender)
            relay.sendto(bad, sender)
            relay.sendto(good + b"right", sender)
            assert (await arrives(stack))[0] == b"right"

    scene(talk)


def test_a_name_is_the_address_that_answered_first() -> None:
    async def talk(associations: Associations, relay: socket.socket, _: UdpProxy) -> None:
        with datagrams() as stack:
            await opened(associations, 1, "example.com", stack)
            stack.send(b"hello")
            _, sender = await arrives(relay)
            for origin, payload in ((FAR, b"one"), (OTHER, b"two"), (FAR, b"three")):
                relay.sendto(bytes(3) + socks_address(origin, 5000) + payload, sender)
            assert (await arrives(stack))[0] == b"one"
            assert (await arrives(stack))[0] == b"three"

    scene(talk)


def test_another_process_on_loopback_is_not_heard() -> None:
    async def talk(associations: Associations, relay: socket.socket, _: UdpProxy) -> None:
        with datagrams() as stack, datagrams() as stranger:
            await opened(associations, 1, FAR, stack)
            stack.send(b"first")
            await arrives(relay)
            stranger.sendto(b"intruder", stack.getpeername())
            stack.send(b"second")
            assert (await arrives(relay))[0].endswith(b"second")

    scene(talk)


def test_it_ends_with_its_control_connection() -> None:
    async def talk(associations: Associations, relay: socket.socket, proxy: UdpProxy) -> None:
        with datagrams() as stack, datagrams() as other:
            await opened(associations, 1, FAR, stack)
            await opened(associations, 2, FAR, other)
            proxy.controls[0].shutdown(socket.SHUT_RDWR)
            await until(lambda: len(associations) == 1)
            assert proxy.forgotten == [1]  # else the stack went on sending to whoever has that port next
            other.send(b"alive")
            assert (await arrives(relay))[0].endswith(b"alive")
            stack.send(b"x")
            with pytest.raises(ConnectionRefusedError):
                await arrives(stack)

    scene(talk)


def test_it_ends_with_the_flow() -> None:
    async def talk(associations: Associations, relay: socket.socket, proxy: UdpProxy) -> None:
        with datagrams() as stack:
            await opened(associations, 1, FAR, stack)
            associations.ended(1)
            associations.ended(1)
            await until(lambda: proxy.controls[0].fileno() < 0)
            assert proxy.forgotten == []

    scene(talk)


def test_the_idlest_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socks_udp, "ASSOCIATIONS", 2)

    async def talk(associations: Associations, relay: socket.socket, proxy: UdpProxy) -> None:
        with datagrams() as first, datagrams() as second, datagrams() as third:
            await opened(associations, 1, FAR, first)
            await opened(associations, 2, FAR, second)
            first.send(b"x")
            await arrives(relay)
            await opened(associations, 3, FAR, third)
            assert set(associations._of) == {1, 3}
            assert proxy.forgotten == [2]

    scene(talk)


def test_the_last_datagram_before_the_end_still_goes_out() -> None:
    async def talk(associations: Associations, relay: socket.socket, _: UdpProxy) -> None:
        with datagrams() as stack:
            await opened(associations, 1, FAR, stack)
            stack.send(b"last words")
            associations.ended(1)
            assert (await arrives(relay))[0].endswith(b"last words")

    scene(talk)


@pytest.mark.parametrize(("code", "again"), [(7, False), (1, True)])
def test_a_proxy_that_refuses(code: int, again: bool) -> None:
    """A proxy that can't is asked once."""

    async def talk(associations: Associations, _: socket.socket, proxy: UdpProxy) -> None:
        for _attempt in range(2):
            with pytest.raises(DialError) as caught:
                await associations.open(1, FAR, 5000)
            assert caught.value.denial == Denial.PROHIBITED
        assert len(proxy.requests) == (2 if again else 1)

    scene(talk, refusal=code)


def test_an_http_proxy_is_not_even_asked() -> None:
    async def talk(associations: Associations, _: socket.socket, proxy: UdpProxy) -> None:
        with pytest.raises(DialError) as caught:
            await associations.open(1, FAR, 5000)
        assert (caught.value.denial, proxy.requests) == (Denial.PROHIBITED, [])

    scene(talk, scheme="http")


class Control:
    """A control connection's two questions."""

    def __init__(self, peer: str) -> None:
        self.family = socket.AF_INET6 if ":" in peer else socket.AF_INET
        self._peer = peer

    def getpeername(self) -> tuple[str, int]:
        return self._peer, 1080


@pytest.mark.parametrize(
    ("peer", "said", "where"),
    [
        ("198.51.100.1", FAR, "203.0.113.9"),
        ("198.51.100.1", bytes(4), "198.51.100.1"),
        ("198.51.100.1", LOOPBACK, "198.51.100.1"),
        ("198.51.100.1", b"\xa9\xfe\xa9\xfe", "198.51.100.1"),
        ("198.51.100.1", b"\xe0\0\0\1", "198.51.100.1"),
        ("198.51.100.1", b"", "198.51.100.1"),
        ("198.51.100.1", bytes(15) + b"\1", "198.51.100.1"),
        ("2001:db8::1", FAR, "2001:db8::1"),
        ("2001:db8::1", bytes(10) + b"\xff\xff" + LOOPBACK, "2001:db8::1"),
        ("2001:db8::1", bytes.fromhex("20010db8000000000000000000000009"), "2001:db8::9"),
        ("127.0.0.1", LOOPBACK, "127.0.0.1"),
    ],
)
def test_where_the_relay_is(peer: str, said: bytes, where: str) -> None:
    assert relay_sockaddr(Control(peer), said, 9) == (where, 9)  # type: ignore[arg-type]


def test_a_datagram_address_is_read_as_written() -> None:
    assert read_socks_address(socks_address("example.com", 5)) == (b"", 5, 15)


def test_the_flow_ends_in_the_stack_before_its_sockets() -> None:
    """On demand, as a run makes them; a flow that is over already is nobody's fault."""

    async def play() -> None:
        with datagrams() as relay, scripted(UdpProxy(relay, b"\1" + bytes(4))) as port:
            stack, loop = FakeStack(), asyncio.get_running_loop()
            settings = Settings(("true",), proxy=f"socks5://127.0.0.1:{port}")
            policy = policy_of(settings, loop.time)
            services = OnDemand(stack, loop, NullRecorder(settings), settings, policy, Limits())  # type: ignore[arg-type]
            associations = services.associations()
            for flow in (1, 2):
                await associations.open(flow, FAR, 5000)
            stack.gone.add(2)
            associations._lose(1)
            associations._lose(2)
            assert (stack.forgotten, len(associations)) == ([1], 0)
            services.close()

    run(play)
