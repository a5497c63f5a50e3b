"""TLS to the proxy: who is trusted, and a relay that passes on bytes, ends and breaks."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trustme

from childflow.errors import DialError
from childflow.services import dial, tls
from childflow.services.dial import Dialer, Times
from childflow.services.proxy import parse_proxy
from tests.services.play import run, until
from tests.services.proxies import OK, Script, answering, echo, header, reset, scripted

MIB = 1 << 20
SHORT = Times(connect=0.5, attempt=0.2, tls=0.3, reply=0.3, whole=2.0)
Scene = Callable[[Dialer, list[str]], Awaitable[None]]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusted(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> trustme.CA:
    """The authority, in the system's store."""
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    return authority


def server_context(authority: trustme.CA, *names: str, common_name: str | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names, common_name=common_name).configure_cert(context)
    return context


def scene(
    script: Script, context: ssl.SSLContext, what: Scene, host: str = "localhost", insecure: bool = False
) -> list[str]:
    """Run `what` with a dialer through a TLS proxy that follows `script`; returns the warnings."""
    warnings: list[str] = []

    async def play() -> None:
        with scripted(script, context) as port:
            proxy = parse_proxy(f"https://{host}:{port}", insecure=insecure)
            made = Dialer(asyncio.get_running_loop(), proxy, warnings.append, SHORT)
            await what(made, warnings)
            made.close()

    run(play)
    return warnings


async def says_hello(made: Dialer, _: list[str]) -> None:
    with await made.connect("x.example", 1) as sock:
        await asyncio.get_running_loop().sock_sendall(sock, b"hello")
        assert await asyncio.get_running_loop().sock_recv(sock, 100) == b"hello"


def is_refused(words: str) -> Scene:
    async def connect(made: Dialer, _: list[str]) -> None:
        with pytest.raises(DialError, match=words) as caught:
            await made.connect("x.example", 1)
        assert caught.value.proxy_fault

    return connect


# Who is trusted.


@pytest.mark.parametrize(("host", "name"), [("localhost", "localhost"), ("127.0.0.1", "127.0.0.1")])
def test_a_good_certificate(trusted: trustme.CA, host: str, name: str) -> None:
    assert scene(answering(OK), server_context(trusted, name), says_hello, host) == []


@pytest.mark.case("D21")
@pytest.mark.parametrize("insecure", [False, True])
@pytest.mark.parametrize(("host", "name"), [("localhost", "other.example"), ("127.0.0.1", "127.0.0.2")])
def test_a_certificate_for_another_host(trusted: trustme.CA, host: str, name: str, insecure: bool) -> None:
    """Also with --proxy-insecure."""
    warnings = scene(answering(OK), server_context(trusted, name), is_refused("mismatch"), host, insecure)
    assert len(warnings) == 1
    assert "name the proxy as its certificate does" in warnings[0]


def test_an_authority_that_nobody_knows(trusted: trustme.CA) -> None:
    context = server_context(trustme.CA(), "localhost")
    (warning,) = scene(answering(OK), context, is_refused("certificate is not accepted"))
    assert "--proxy-insecure" in warning
    assert scene(answering(OK), context, says_hello, insecure=True) == []


def test_insecure_takes_a_common_name_only_where_there_is_no_other() -> None:
    assert tls.is_named("proxy.example", {"*.example"}) is False
    assert tls.is_named("proxy.example.com", {"*.example.com"})
    assert not tls.is_named("a.proxy.example.com", {"*.example.com"})
    assert not tls.is_named("example.com", {"*.example.com"})
    assert not tls.is_named(".example.com", {"*.example.com"})
    assert tls.is_named("proxy.example.", {"proxy.example"})
    assert tls.is_named("::1", {"0:0:0:0:0:0:0:1"})
    assert not tls.is_named("192.0.2.1", {"*.0.2.1"})
    assert not tls.is_named("com", {"*"})
    assert not tls.is_named("proxy", set())


def test_a_proxy_without_tls() -> None:
    def script(sock: socket.socket) -> None:
        sock.recv(10)
        sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        echo(sock)

    async def play() -> None:
        with scripted(script) as port:
            made = Dialer(asyncio.get_running_loop(), parse_proxy(f"https://127.0.0.1:{port}"), [].append, SHORT)
            await is_refused("is it an http:// one")(made, [])
            made.close()

    run(play)


# The relay.


@pytest.mark.case("D21")
@pytest.mark.parametrize(
    "pieces", [(OK + b"early data",), tuple(bytes((byte,)) for byte in OK + b"early data")], ids=["at-once", "bytes"]
)
def test_early_data(trusted: trustme.CA, pieces: tuple[bytes, ...]) -> None:
    async def connect(made: Dialer, _: list[str]) -> None:
        with await made.connect("x.example", 1) as sock:
            data = b""
            while len(data) < 10:
                data += await asyncio.get_running_loop().sock_recv(sock, 100)
            assert data == b"early data"

    scene(answering(*pieces), server_context(trusted, "localhost"), connect)


def after_ok(then: Script) -> Script:
    def script(sock: socket.socket) -> None:
        header(sock)
        sock.sendall(OK)
        then(sock)

    return script


def close_notify(sock: socket.socket) -> None:
    assert isinstance(sock, ssl.SSLSocket)
    sock.settimeout(0)
    try:
        sock.unwrap()
    except ssl.SSLWantReadError:
        pass
    sock.settimeout(20)


async def everything(sock: socket.socket) -> bytes:
    data = b""
    while more := await asyncio.get_running_loop().sock_recv(sock, 65536):
        data += more
    return data


@pytest.mark.case("B01")
def test_the_command_finishes_first(trusted: trustme.CA) -> None:
    def script(sock: socket.socket) -> None:
        data = b""
        while more := sock.recv(65536):
            data += more
        sock.sendall(b"got %d" % len(data))
        time.sleep(0.1)
        sock.sendall(b", bye")
        close_notify(sock)

    async def connect(made: Dialer, _: list[str]) -> None:
        with await made.connect("x.example", 1) as sock:
            await asyncio.get_running_loop().sock_sendall(sock, b"x" * MIB)
            sock.shutdown(socket.SHUT_WR)
            assert await everything(sock) == b"got 1048576, bye"
        await until(lambda: not made._tls or not len(made._tls.relays))

    scene(after_ok(script), server_context(trusted, "localhost"), connect)


@pytest.mark.case("B02")
def test_the_far_host_finishes_first(trusted: trustme.CA) -> None:
    got: list[int] = []

    def script(sock: socket.socket) -> None:
        sock.sendall(b"bye")
        close_notify(sock)
        size = 0
        try:
            while more := sock.recv(65536):
                size += len(more)
        except ssl.SSLZeroReturnError:
            pass
        got.append(size)

    async def connect(made: Dialer, _: list[str]) -> None:
        with await made.connect("x.example", 1) as sock:
            assert await everything(sock) == b"bye"
            await asyncio.get_running_loop().sock_sendall(sock, b"x" * MIB)
            sock.shutdown(socket.SHUT_WR)
            await until(lambda: got == [MIB])

    scene(after_ok(script), server_context(trusted, "localhost"), connect)


def test_the_command_finishes_while_the_far_host_sends(trusted: trustme.CA) -> None:
    """OpenSSL finds text where it looks for the answer to its close_notify."""
    size = 8 * MIB

    async def connect(made: Dialer, _: list[str]) -> None:
        with await made.connect("x.example", 1) as sock:
            await asyncio.sleep(0.05)
            sock.shutdown(socket.SHUT_WR)
            assert len(await everything(sock)) == size

    def script(sock: socket.socket) -> None:
        sock.sendall(b"x" * size)
        assert sock.recv(1) == b""
        close_notify(sock)

    scene(after_ok(script), server_context(trusted, "localhost"), connect)


def bare_fin(sock: socket.socket) -> None:
    sock.sendall(b"half of it")
    time.sleep(0.05)
    sock.shutdown(socket.SHUT_RDWR)


def broken_record(sock: socket.socket) -> None:
    sock.sendall(b"half of it")
    time.sleep(0.05)
    with socket.socket(fileno=sock.detach()) as raw:
        raw.sendall(b"\x17\x03\x03\x00\x20" + b"!" * 32)
        time.sleep(0.2)


@pytest.mark.case("E11")
@pytest.mark.parametrize("end", [bare_fin, reset, broken_record])
def test_a_stream_that_was_cut_off_is_no_clean_end(trusted: trustme.CA, end: Script) -> None:
    """Others live."""
    scripts: list[Script] = [after_ok(echo), after_ok(lambda sock: end(sock) if sock.recv(1) else None)]

    def script(sock: socket.socket) -> None:
        scripts.pop(0)(sock)

    async def connect(made: Dialer, _: list[str]) -> None:
        with await made.connect("x.example", 1) as other, await made.connect("x.example", 1) as sock:
            sock.send(b"x")
            with pytest.raises(ConnectionResetError):
                await everything(sock)
            await asyncio.get_running_loop().sock_sendall(other, b"alive")
            assert await asyncio.get_running_loop().sock_recv(other, 100) == b"alive"

    scene(script, server_context(trusted, "localhost"), connect)


@pytest.mark.case("B04")
def test_a_reset_by_the_command_is_one_for_the_proxy(trusted: trustme.CA) -> None:
    ends: list[type[BaseException] | None] = []

    def script(sock: socket.socket) -> None:
        sock.sendall(sock.recv(1))
        with socket.socket(fileno=sock.detach()) as raw:  # below TLS, where an end and a reset differ
            raw.settimeout(20)
            try:
                ends.append(raw.recv(1) and None)
            except OSError as error:
                ends.append(type(error))

    async def connect(made: Dialer, _: list[str]) -> None:
        sock = await made.connect("x.example", 1)
        await asyncio.get_running_loop().sock_sendall(sock, b"x")
        assert await asyncio.get_running_loop().sock_recv(sock, 1) == b"x"
        reset(sock)
        await until(lambda: ends == [ConnectionResetError])
        await until(lambda: not made._tls or not len(made._tls.relays))

    scene(after_ok(script), server_context(trusted, "localhost"), connect)


def test_both_ways_at_once_with_equal_digests(trusted: trustme.CA) -> None:
    size, digests = 24 * MIB, []
    block = bytes(range(256)) * 256

    def script(sock: socket.socket) -> None:
        digest = hashlib.sha256()
        for _ in range(size // len(block)):  # the socket of ssl is not for two threads: in turns, with much on its way
            sock.sendall(block)
            digest.update(sock.recv(len(block)))
        while more := sock.recv(65536):
            digest.update(more)
        digests.append(digest.hexdigest())
        close_notify(sock)

    async def connect(made: Dialer, _: list[str]) -> None:
        ours = hashlib.sha256()
        loop = asyncio.get_running_loop()

        async def send() -> None:
            for _ in range(size // len(block)):
                await loop.sock_sendall(sock, block)
            sock.shutdown(socket.SHUT_WR)

        with await made.connect("x.example", 1) as sock:
            sending = asyncio.ensure_future(send())
            while data := await loop.sock_recv(sock, 65536):
                ours.update(data)
            await sending
        expected = hashlib.sha256(block * (size // len(block))).hexdigest()
        assert (ours.hexdigest(), digests) == (expected, [expected])

    scene(after_ok(script), server_context(trusted, "localhost"), connect)


def test_a_side_that_does_not_read_stops_the_other(trusted: trustme.CA) -> None:
    """The relay holds no more than one read; what is on its way is the kernel's, a few MiB."""
    sent: list[int] = [0]

    def script(sock: socket.socket) -> None:
        while True:
            sock.sendall(b"x" * 65536)
            sent[0] += 65536

    async def connect(made: Dialer, _: list[str]) -> None:
        with await made.connect("x.example", 1) as sock:
            before = -1
            while before != sent[0]:
                before = sent[0]
                await asyncio.sleep(0.3)
            assert 0 < sent[0] < 32 * MIB
            assert made._tls is not None
            (relay,) = set(made._tls.relays._of.values())
            assert [len(way._waiting) <= tls.PLAIN_READ for way in relay.ways] == [True, True]
            for _ in range(200):
                await dial.readable(asyncio.get_running_loop(), sock)
                assert sock.recv(65536)
            await until(lambda: sent[0] > before)

    scene(after_ok(script), server_context(trusted, "localhost"), connect)


def test_what_was_written_goes_out_while_the_other_way_is_full(trusted: trustme.CA) -> None:
    """The command sends, but does not read; the far host reads late."""
    size, got = 4 * MIB, []

    def script(sock: socket.socket) -> None:
        sock.setblocking(False)
        try:
            while True:
                sock.send(b"x" * 16384)
        except ssl.SSLWantWriteError:
            pass
        time.sleep(0.5)
        sock.settimeout(20)
        while sum(got) < size:
            got.append(len(sock.recv(65536)))

    async def connect(made: Dialer, _: list[str]) -> None:
        with await made.connect("x.example", 1) as sock:
            await asyncio.get_running_loop().sock_sendall(sock, b"y" * size)
            await until(lambda: sum(got) == size)

    scene(after_ok(script), server_context(trusted, "localhost"), connect)


@pytest.mark.parametrize("slow", [0.0, 0.4])
def test_what_was_said_before_the_end_still_goes_out(trusted: trustme.CA, slow: float) -> None:
    """The loop does not run any more when the dialer is closed."""
    got: list[int | str] = []

    def script(sock: socket.socket) -> None:
        time.sleep(slow)
        while data := sock.recv(65536):
            got.append(len(data))
        got.append("end")

    async def connect(made: Dialer, _: list[str]) -> None:
        sock = await made.connect("x.example", 1)
        sent = 0
        while sent < 8 * MIB:
            try:
                sent += sock.send(b"x" * 65536)
            except BlockingIOError:
                break
        sock.close()
        made.close()
        await until(lambda: "end" in got)
        assert sum(size for size in got if isinstance(size, int)) == sent

    scene(after_ok(script), server_context(trusted, "localhost"), connect)


def test_the_end_does_not_wait_for_a_proxy_that_reads_nothing(
    trusted: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "DRAIN_QUIET_S", 0.3)

    async def connect(made: Dialer, _: list[str]) -> None:
        with await made.connect("x.example", 1) as sock:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await asyncio.get_running_loop().sock_sendall(sock, b"x" * 64 * MIB)
        began = time.monotonic()
        made.close()
        assert 0.2 < time.monotonic() - began < 2

    scene(after_ok(lambda _: time.sleep(2)), server_context(trusted, "localhost"), connect)


def test_hundreds_of_flows(trusted: trustme.CA) -> None:
    async def connect(made: Dialer, _: list[str]) -> None:
        loop = asyncio.get_running_loop()
        made._times = Times()
        socks = await asyncio.gather(*(made.connect("x.example", 1) for _ in range(200)))
        for number, sock in enumerate(socks):
            await loop.sock_sendall(sock, b"%4d" % number * 1000)
        for number, sock in enumerate(socks):
            data = b""
            while len(data) < 4000:
                data += await loop.sock_recv(sock, 4000)
            assert data == b"%4d" % number * 1000
            sock.shutdown(socket.SHUT_WR)
        assert made._tls is not None
        relays = made._tls.relays
        await until(lambda: not len(relays))
        for sock in socks:
            sock.close()

    def script(sock: socket.socket) -> None:
        echo(sock)
        close_notify(sock)

    scene(after_ok(script), server_context(trusted, "localhost"), connect)


def test_more_relays_than_there_may_be(trusted: trustme.CA, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "RELAYS", 1)

    async def connect(made: Dialer, _: list[str]) -> None:
        with await made.connect("x.example", 1):
            with pytest.raises(DialError, match="already"):
                await made.connect("x.example", 1)

    assert scene(after_ok(echo), server_context(trusted, "localhost"), connect) == []


def test_a_pair_is_joined_with_nobody_who_came_between(monkeypatch: pytest.MonkeyPatch) -> None:
    strangers: list[socket.socket] = []
    connected = dial.connected

    async def raced(loop: asyncio.AbstractEventLoop, family: int, sockaddr: tuple[str, int]) -> socket.socket:
        strangers.append(socket.create_connection(sockaddr))
        return await connected(loop, family, sockaddr)

    monkeypatch.setattr(tls, "connected", raced)

    async def play() -> None:
        near, far = await tls.loopback_pair(asyncio.get_running_loop())
        with near, far:
            assert near.getpeername() == far.getsockname()
            assert far.getpeername() == near.getsockname()
        assert strangers[0].recv(1) == b""
        strangers[0].close()

    run(play)
