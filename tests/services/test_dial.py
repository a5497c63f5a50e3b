"""The dialer against scripted proxies, hostile ones among them."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import pytest

from childflow.errors import DialError
from childflow.netstack.events import Denial
from childflow.services import dial
from childflow.services.dial import Dialer, Times
from childflow.services.proxy import REPLY_MAX, parse_proxy
from tests.services.play import run, until
from tests.services.proxies import OK, Script, answering, header, reset, scripted, silent

SHORT = Times(connect=0.3, attempt=0.15, tls=0.2, reply=0.2, whole=2.0)  # for those that won't answer
LONG = Times()
FAR = bytes((203, 0, 113, 9))


@contextmanager
def dialer(
    uri: str, user: str | None = None, password: str | None = None, times: Times = SHORT
) -> Iterator[tuple[Dialer, list[str]]]:
    """A dialer and what it warned of."""
    warnings: list[str] = []
    made = Dialer(asyncio.get_running_loop(), parse_proxy(uri, user, password), warnings.append, times)
    yield made, warnings
    made.close()


def scene(
    script: Script, what: Callable[[Dialer, list[str]], Awaitable[None]], scheme: str = "http", times: Times = LONG
) -> None:
    """Run `what` with a dialer through a proxy that follows `script`."""

    async def play() -> None:
        with (
            scripted(script) as port,
            dialer(f"{scheme}://127.0.0.1:{port}", "anna", "s3cret", times) as (made, warnings),
        ):
            await what(made, warnings)
            assert not any("s3cret" in line for line in warnings)

    run(play)


async def receive(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        await dial.readable(asyncio.get_running_loop(), sock)
        data += sock.recv(size - len(data))
    return data


def refused(script: Script, scheme: str = "http", host: str | bytes = "example.com") -> tuple[DialError, list[str]]:
    """The error of one connect, after a second one has failed in the same way."""
    errors: list[DialError] = []
    said: list[str] = []

    async def twice(made: Dialer, warnings: list[str]) -> None:
        for _ in range(2):
            with pytest.raises(DialError) as caught:
                await made.connect(host, 443)
            errors.append(caught.value)
        said.extend(warnings)

    scene(script, twice, scheme, SHORT)
    assert {error.denial for error in errors} == {errors[0].denial}
    assert "s3cret" not in str(errors[0])
    return errors[0], said


@pytest.mark.case("D21")
@pytest.mark.parametrize(
    "pieces",
    [
        (OK + b"early data",),
        tuple(bytes((byte,)) for byte in OK + b"early data"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK[:9], OK[9:] + b"early data"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nTransfer-Encoding: chunked\r\n\r\nearly data",),
    ],
    ids=["one-segment", "byte-by-byte", "after-100", "lengths"],
)
def test_early_data_stays_in_the_socket(pieces: tuple[bytes, ...]) -> None:
    async def connect(made: Dialer, warnings: list[str]) -> None:
        sock = await made.connect("example.com", 443)
        with sock:
            assert not sock.getblocking()
            sock.send(b"late")
            assert await receive(sock, 14) == b"early datalate"
        assert warnings == []

    scene(answering(*pieces, pause=0.001), connect)


@pytest.mark.case("D21")
def test_socks_byte_by_byte_with_early_data() -> None:
    def script(sock: socket.socket) -> None:
        assert sock.recv(4) == b"\5\2\0\2"
        for byte in b"\5\2":
            sock.send(bytes((byte,)))
            time.sleep(0.001)
        assert sock.recv(64) == b"\1\4anna\6s3cret"
        sock.send(b"\1")
        time.sleep(0.01)
        sock.send(b"\0")
        assert sock.recv(64) == b"\5\1\0\1" + FAR + b"\0\x16"
        for byte in b"\5\0\0\3\xff" + b"n" * 255 + b"\1\2SSH-2.0":
            sock.send(bytes((byte,)))
        silent(sock)

    async def connect(made: Dialer, _: list[str]) -> None:
        with await made.connect(FAR, 22) as sock:
            assert await receive(sock, 7) == b"SSH-2.0"

    scene(script, connect, "socks5")


@pytest.mark.case("D21")
def test_407_with_a_body() -> None:
    body = b"x" * 100_000
    error, warnings = refused(
        answering(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 100000\r\n\r\n" + body)
    )
    assert error.denial == Denial.RESET
    assert len(warnings) == 1
    assert "--proxy-user" in warnings[0]


def test_a_refused_destination_is_no_fault_of_the_proxy() -> None:
    error, warnings = refused(answering(b"HTTP/1.1 403 Forbidden\r\n\r\n"))
    assert (error.denial, warnings) == (Denial.RESET, [])


@pytest.mark.case("D21")
@pytest.mark.parametrize("piece", [b"A: b\r\n", b"a"], ids=["lines", "one-line"])
def test_an_endless_header(piece: bytes) -> None:
    def script(sock: socket.socket) -> None:
        header(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\n")
        while True:
            sock.sendall(piece * 1000)

    error, warnings = refused(script)
    assert f"more than {REPLY_MAX >> 10} KiB" in str(error)
    assert len(warnings) == 1


@pytest.mark.case("D21")
def test_a_flood_of_1xx() -> None:
    def script(sock: socket.socket) -> None:
        header(sock)
        while True:
            sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)

    assert "more than" in str(refused(script)[0])


@pytest.mark.case("E11")
@pytest.mark.parametrize("scheme", ["http", "socks5", "https"])
@pytest.mark.parametrize("script", [silent, reset, lambda sock: None], ids=["silent", "reset", "closed"])
def test_a_proxy_that_does_not_answer(scheme: str, script: Script) -> None:
    began = time.monotonic()
    error, warnings = refused(script, scheme)
    assert time.monotonic() - began < 4
    assert error.denial == Denial.RESET
    assert len(warnings) == (1 if script is silent else len(set(warnings)))  # it may break off here or there
    assert warnings[0].startswith(f"--proxy {scheme}://127.0.0.1:")


@pytest.mark.case("E11")
def test_half_a_reply_and_silence() -> None:
    error, _ = refused(answering(b"HTTP/1.1 20"))
    assert "does not answer" in str(error)


def test_silence_costs_no_cpu_while_half_a_reply_waits() -> None:
    async def connect(made: Dialer, _: list[str]) -> None:
        began = time.process_time()
        with pytest.raises(DialError):
            await made.connect("x.example", 1)
        assert time.process_time() - began < 0.2

    scene(answering(b"HTTP/1.1 200 OK\r\nA"), connect, times=SHORT)


@pytest.mark.case("E11")
def test_a_proxy_that_refuses_and_one_that_swallows() -> None:
    async def play() -> None:
        with socket.socket() as closed, socket.socket() as full:
            closed.bind(("127.0.0.1", 0))
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            others = [socket.create_connection(full.getsockname())]
            for sock, word in ((closed, "refused"), (full, "no answer")):
                with dialer(f"http://127.0.0.1:{sock.getsockname()[1]}") as (made, warnings):
                    for _ in range(2):
                        with pytest.raises(DialError, match=word) as caught:
                            await made.connect("x.example", 1)
                assert caught.value.denial == Denial.RESET
                assert len(warnings) == 1
            for other in others:
                other.close()

    run(play)


def found(monkeypatch: pytest.MonkeyPatch, answers: list[list[tuple[str, int]] | OSError]) -> list[str]:
    """The host's resolver, scripted; returns the names that it is asked for."""
    asked: list[str] = []

    def getaddrinfo(host: str, port: int, flags: int = 0, **_: object) -> list[tuple[object, ...]]:
        if flags & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, "no number")
        asked.append(host)
        answer = answers[min(len(asked), len(answers)) - 1]
        if isinstance(answer, OSError):
            raise answer
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", where) for where in answer]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


def test_all_addresses_of_a_name_are_tried_and_the_good_one_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play() -> None:
        with socket.socket() as full, scripted(answering(OK)) as port:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            with socket.create_connection(full.getsockname()):
                dead = full.getsockname()
                asked = found(monkeypatch, [[("192.0.2.1", 9), dead, ("127.0.0.1", port)]])
                with dialer("http://proxy.example:9") as (made, warnings):
                    for limit in (1.0, 0.15, 0.15):
                        began = time.monotonic()
                        (await made.connect("x.example", 1)).close()
                        assert time.monotonic() - began < limit
        assert (asked, warnings) == (["proxy.example"], [])

    run(play)


def test_a_name_that_is_not_found_is_looked_up_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dial, "LOOK_AGAIN_S", 0.3)

    async def play() -> None:
        with scripted(answering(OK)) as port:
            asked = found(monkeypatch, [socket.gaierror(-3, "try again"), [("127.0.0.1", port)]])
            with dialer("http://proxy.example:9") as (made, warnings):
                for _ in range(2):
                    with pytest.raises(DialError, match=r"does not find proxy\.example"):
                        await made.connect("x.example", 1)
                assert (len(asked), len(warnings)) == (1, 1)
                await asyncio.sleep(0.4)
                (await made.connect("x.example", 1)).close()

    run(play)


def test_a_destination_is_checked_before_anything_is_sent() -> None:
    touched: list[int] = []

    async def connect(made: Dialer, _: list[str]) -> None:
        with pytest.raises(DialError):
            await made.connect("127.1", 22)
        assert not touched

    scene(lambda sock: touched.append(1), connect)


def test_a_cancelled_connect_closes_its_socket() -> None:
    gone: list[bytes] = []

    def script(sock: socket.socket) -> None:
        header(sock)
        gone.append(sock.recv(1))

    async def connect(made: Dialer, _: list[str]) -> None:
        task = asyncio.ensure_future(made.connect("x.example", 1))
        await asyncio.sleep(0.1)
        task.cancel()
        await until(lambda: gone == [b""])

    scene(script, connect)


def test_more_than_can_wait_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dial, "DIALS", 3)
    monkeypatch.setattr(dial, "WAITING", 10)

    async def connect(made: Dialer, _: list[str]) -> None:
        dials = [asyncio.ensure_future(made.connect("x.example", 1)) for _ in range(20)]
        done = await asyncio.gather(*dials, return_exceptions=True)
        socks = [sock for sock in done if isinstance(sock, socket.socket)]
        assert len(socks) == 10
        assert all("too many" in str(error) for error in done if error not in socks)
        for sock in socks:
            sock.close()
        (await made.connect("x.example", 1)).close()

    scene(answering(OK, pause=0.05), connect)


def test_hundreds_at_once() -> None:
    async def connect(made: Dialer, _: list[str]) -> None:
        socks = await asyncio.gather(*(made.connect("x.example", 1) for _ in range(300)))
        for number, sock in enumerate(socks):
            sock.send(b"%4d" % number)
        for number, sock in enumerate(socks):
            assert await receive(sock, 4) == b"%4d" % number
            sock.close()

    scene(answering(OK), connect)
