"""Connections through the proxy: `Dialer.connect(host, port)` is a socket that the far host is at the other end of.

A connection is opened to the proxy, the handshake of `proxy.py` is spoken over it, and what stays is a socket that
the stack takes (`attach`). The proxy's replies are looked at (MSG_PEEK) before they are taken, so that what the far
host says at once stays in the socket. With an https proxy the socket is a relay's (`tls.py`).

The proxy's name is looked up once, when the dialer is made, as every program of the host would do it; all its addresses
are tried, first the one that worked last. The lookup has a thread of its own: the loop's getaddrinfo (libuv's) starts
four and aborts the process where it can't, and asyncio's would keep a run from ending while a resolver is silent.

Invariants: every step has a time limit, and all of them together have one (`Times`); whatever goes wrong ends in a
            DialError and a closed socket. Never is anything but the proxy connected to.
            At most DIALS connects are under way and WAITING wait for their turn; one more is refused.
Not here:   whether the destination is allowed (`policy/`), what the command is told (`switchboard.py`).
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from childflow.errors import DialError
from childflow.netstack.events import Denial
from childflow.services import proxy as protocol
from childflow.services.proxy import Bound, Handshake, Proxy, ReplyEnd

if TYPE_CHECKING:
    from childflow.services.tls import TlsProxy

DIALS = 256
WAITING = 1024
LOOK_AGAIN_S = 5.0  # after a lookup that failed
_CHUNK = 64 << 10

Sockaddr = tuple[Any, ...]


class Times(NamedTuple):
    """Seconds. `reply` is for each reply: the last comes when the proxy has connected to the far host itself."""

    connect: float = 10.0  # all addresses of the proxy
    attempt: float = 3.0  # one address, while there are others; a lost SYN is sent again after one second
    tls: float = 10.0
    reply: float = 20.0
    whole: float = 30.0


class Line(Protocol):
    """A connection to the proxy that the handshake is spoken over."""

    async def send(self, data: bytes) -> None: ...
    async def receive(self, end: ReplyEnd) -> bytes: ...
    async def hand_over(self) -> socket.socket: ...
    def close(self) -> None: ...


class Dialer:
    """Connects through one proxy."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        proxy: Proxy,
        warn: Callable[[str], None],
        times: Times | None = None,
    ) -> None:
        """`warn` takes a line about what is wrong with the proxy itself, once for each way to fail."""
        self.proxy = proxy
        self._loop = loop
        self._warn = warn
        self._warned: set[str] = set()
        self._times = times or Times()
        self._slots = asyncio.Semaphore(DIALS)
        self._waiting = 0
        self._where = ProxyAddresses(loop, proxy.host, proxy.port)
        self._tls: TlsProxy | None = None

    async def connect(self, host: str | bytes, port: int) -> socket.socket:
        """A non-blocking socket to `host` (a name or a packed address), the proxy's reply taken and nothing after it.

        DialError when there can't be one. May be cancelled at any time.
        """
        shake = protocol.handshake(self.proxy, host, port)
        _, sock = await self._guarded(self._through(shake))
        return sock

    async def associate(self) -> tuple[socket.socket, bytes, int]:
        """A SOCKS5 UDP association: its control connection, and address and port that datagrams go to."""
        shake = protocol.socks5(self.proxy, protocol.UDP_ASSOCIATE, bytes(4), 0)
        (address, port), sock = await self._guarded(self._through(shake))
        return sock, address, port

    def close(self) -> None:
        """End the relays of an https proxy. Connects under way are their callers' to cancel."""
        if self._tls is not None:
            self._tls.close()

    async def _guarded(self, dial: Any) -> tuple[Bound, socket.socket]:
        """Wait for a slot, keep the time, tell what is wrong with the proxy."""
        if self._waiting >= WAITING:
            dial.close()
            raise DialError(Denial.RESET, "too many connections wait for the proxy")
        self._waiting += 1
        try:
            async with asyncio.timeout(self._times.whole):
                async with self._slots:
                    return await dial  # type: ignore[no-any-return]
        except TimeoutError:
            self._tell(error := _silent("connecting through the proxy took too long"))
            raise error from None
        except DialError as error:
            self._tell(error)
            raise
        except OSError as error:
            raise DialError(Denial.RESET, f"the proxy can't be used: {error.strerror or error}") from None
        finally:
            self._waiting -= 1
            dial.close()

    def _tell(self, error: DialError) -> None:
        if error.proxy_fault and (kind := str(error)) not in self._warned and len(self._warned) < 8:
            self._warned.add(kind)
            self._warn(f"--proxy {self.proxy.text}: {error}")

    async def _through(self, shake: Handshake) -> tuple[Bound, socket.socket]:
        line = await self._open_line()
        try:
            bound = await self._speak(line, shake)
            return bound, await line.hand_over()
        except BaseException:
            line.close()
            raise

    async def _speak(self, line: Line, shake: Handshake) -> Bound:
        try:
            data, end = next(shake)
            while True:
                async with asyncio.timeout(self._times.reply):
                    await line.send(data)
                    reply = await line.receive(end)
                data, end = shake.send(reply)
        except StopIteration as through:
            return through.value  # type: ignore[no-any-return]
        except TimeoutError:
            raise _silent("the proxy does not answer") from None
        except (EOFError, OSError):
            raise DialError(Denial.RESET, "the proxy closed the connection instead of answering", True) from None

    # The connection to the proxy.

    async def _open_line(self) -> Line:
        sock = await self._connect_to_proxy()
        if self.proxy.scheme != "https":
            return PlainLine(self._loop, sock)
        if self._tls is None:
            from childflow.services.tls import TlsProxy

            self._tls = TlsProxy(self._loop, self.proxy)
        try:
            async with asyncio.timeout(self._times.tls):
                return await self._tls.open(sock)
        except TimeoutError:
            raise _silent("the proxy does not answer in TLS") from None

    async def _connect_to_proxy(self) -> socket.socket:
        """To the first address that answers; the others wait less long while there is a next one."""
        until = self._loop.time() + self._times.connect
        error: OSError = TimeoutError(errno.ETIMEDOUT, "no answer")
        addresses = await self._where.get()
        for number, (family, sockaddr) in enumerate(addresses):
            left = until - self._loop.time()
            share = left if number == len(addresses) - 1 else min(self._times.attempt, left)
            try:
                async with asyncio.timeout(share):
                    sock = await connected(self._loop, family, sockaddr)
                self._where.worked((family, sockaddr))
                return sock
            except OSError as failure:  # TimeoutError is one
                error = failure if failure.errno else error
        what = f"the proxy can't be reached ({error.strerror}); check the address, and that the proxy runs"
        raise DialError(Denial.RESET, what, True)


def _silent(what: str) -> DialError:
    return DialError(Denial.RESET, f"{what}; check that --proxy names a proxy of this kind", True)


class PlainLine:
    """The connection itself."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        self._loop = loop
        self._sock = sock

    async def send(self, data: bytes) -> None:
        while data:
            try:
                data = data[self._sock.send(data) :]
            except BlockingIOError:
                await writable(self._loop, self._sock)

    async def receive(self, end: ReplyEnd) -> bytes:
        """One reply. While it has no end yet, all that came belongs to it and is taken: else the socket would stay
        readable and this a busy loop. EOFError at the end of the stream."""
        taken = b""
        while True:
            seen = await self._peek()
            length = end(taken + seen)
            taken += self._sock.recv(length - len(taken) if length else len(seen))
            if length == len(taken):
                return taken

    async def _peek(self) -> bytes:
        while True:
            try:
                seen = self._sock.recv(_CHUNK, socket.MSG_PEEK)
            except BlockingIOError:
                await readable(self._loop, self._sock)
                continue
            if not seen:
                raise EOFError
            return seen

    async def hand_over(self) -> socket.socket:
        return self._sock

    def close(self) -> None:
        self._sock.close()


class ProxyAddresses:
    """Where the proxy is: the addresses of its name, looked up once; a failure is tried again some time later."""

    def __init__(self, loop: asyncio.AbstractEventLoop, host: str, port: int) -> None:
        self._loop = loop
        self._host, self._port = host, port
        self._found: list[tuple[int, Sockaddr]] = []
        self._error = ""
        self._looked_at = -LOOK_AGAIN_S
        self._known = asyncio.Event()
        try:
            self._set(_look_up(host, port, socket.AI_NUMERICHOST), "")
        except OSError:
            self._look()

    async def get(self) -> list[tuple[int, Sockaddr]]:
        """(family, socket address), at least one. DialError when there is none."""
        if self._known.is_set() and not self._found and self._loop.time() >= self._looked_at + LOOK_AGAIN_S:
            self._look()
        await self._known.wait()
        if not self._found:
            what = f"the host's resolver does not find {self._host} ({self._error}); check the name"
            raise DialError(Denial.RESET, what, True)
        return list(self._found)

    def worked(self, address: tuple[int, Sockaddr]) -> None:
        """Try this one first from now on."""
        if address in self._found and self._found[0] != address:
            self._found.remove(address)
            self._found.insert(0, address)

    def _look(self) -> None:
        import threading

        self._known.clear()
        try:
            threading.Thread(target=self._look_here, daemon=True).start()
        except RuntimeError as error:
            self._set([], str(error))

    def _look_here(self) -> None:
        """In a thread."""
        found: list[tuple[int, Sockaddr]] = []
        why = ""
        try:
            found = _look_up(self._host, self._port, 0)
        except (OSError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or str(error)
        try:
            self._loop.call_soon_threadsafe(self._set, found, why)
        except RuntimeError:
            pass  # the run is over

    def _set(self, found: list[tuple[int, Sockaddr]], why: str) -> None:
        self._found, self._error = found, why
        self._looked_at = self._loop.time()
        self._known.set()


def _look_up(host: str, port: int, flags: int) -> list[tuple[int, Sockaddr]]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    return [(int(family), sockaddr) for family, _, _, _, sockaddr in found]


# Waiting for a socket. Not `loop.sock_connect`: see above.


async def connected(loop: asyncio.AbstractEventLoop, family: int, sockaddr: Sockaddr) -> socket.socket:
    """A new stream socket that is connected; OSError when it can't be."""
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        error = sock.connect_ex(sockaddr)
        if error == errno.EINPROGRESS:
            await writable(loop, sock)
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, os.strerror(error))
        return sock
    except BaseException:
        sock.close()
        raise


async def readable(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    """Until there is something to read, the end and errors included."""
    ready = loop.create_future()
    loop.add_reader(sock.fileno(), _settle, ready)
    try:
        await ready
    finally:
        loop.remove_reader(sock.fileno())


async def writable(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    """Until something can be written, or there is an error."""
    ready = loop.create_future()
    loop.add_writer(sock.fileno(), _settle, ready)
    try:
        await ready
    finally:
        loop.remove_writer(sock.fileno())


def _settle(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
