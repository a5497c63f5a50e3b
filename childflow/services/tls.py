"""TLS to an https proxy: the one case in which Python stays in a flow's way.

The connection to the proxy is opened and verified here, the handshake of `proxy.py` is spoken over it, and a relay
then carries bytes between it and a pair of loopback sockets whose other end the stack has. A pair of TCP sockets, not
of Unix ones, since only those can pass an RST on.

Ends: a close_notify is a FIN, both ways, and each way ends alone. Everything else that ends the TLS connection (a bare
FIN, an RST, a broken record) is an RST for the command: a stream that was cut off must not look complete. An RST by the
command is one for the proxy.

Verification is OpenSSL's against the system's store (SSL_CERT_FILE, SSL_CERT_DIR). `--proxy-insecure` skips trust; the
name is checked all the same, here, since OpenSSL does not check one without the other.

Invariants: a way holds at most one read (PLAIN_READ or one record) that its sink has not taken, and reads no more
            before. At most RELAYS relays; a pump moves at most READS_AT_ONCE reads before others have their turn.
Not here:   what is said over the connection (`proxy.py`), the times within which (`dial.py`).
"""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
import struct
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeVar

from childflow.errors import DialError
from childflow.netstack.events import Denial
from childflow.services.dial import connected, readable, writable
from childflow.services.proxy import Proxy, ReplyEnd

RELAYS = 4096
PLAIN_READ = 64 << 10
RECORD = 16 << 10  # the largest text of a TLS record
READS_AT_ONCE = 16
KEEPALIVE_S = 60  # after the stack closed its end, which TCP does not tell
_EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
_AT_ONCE = struct.pack("ii", 1, 0)
_BATCH = 256

T = TypeVar("T")


class TlsProxy:
    """Opens verified connections to one proxy, and runs the relays of those that became the command's."""

    def __init__(self, loop: asyncio.AbstractEventLoop, proxy: Proxy) -> None:
        self._loop = loop
        self._proxy = proxy
        self._context = _context(proxy.insecure)
        self.relays = Relays(loop)

    async def open(self, sock: socket.socket) -> TlsLine:
        """TLS over a connected socket, which is ours from now on. DialError when the proxy is not the one named."""
        held: socket.socket = sock
        try:
            held = tls = self._wrap(sock)
            await _when_ready(self._loop, tls, tls.do_handshake)
            if self._proxy.insecure:
                _check_name(tls.getpeercert(binary_form=True) or b"", self._name)
            return TlsLine(self._loop, tls, self.relays)
        except BaseException as error:
            held.close()
            if isinstance(error, OSError):
                raise _refusal(error) from None
            raise

    @property
    def _name(self) -> str:
        return self._proxy.host.partition("%")[0]

    def _wrap(self, sock: socket.socket) -> ssl.SSLSocket:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return self._context.wrap_socket(
            sock, server_hostname=self._name, do_handshake_on_connect=False, suppress_ragged_eofs=False
        )

    def close(self) -> None:
        self.relays.close()


def _context(insecure: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _refusal(error: OSError) -> DialError:
    """What is wrong, when it is TLS."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return DialError(Denial.RESET, _distrust(error.verify_message), True)
    if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
        what = f"the proxy does not speak TLS as it should ({error.reason or error}); is it an http:// one?"
        return DialError(Denial.RESET, what, True)
    return DialError(Denial.RESET, "the proxy closed the connection instead of answering in TLS", True)


def _distrust(why: str) -> str:
    remedy = "name the proxy as its certificate does"
    if "mismatch" not in why:
        remedy = "have SSL_CERT_FILE name its authority, or give --proxy-insecure"
    return f"the proxy's certificate is not accepted ({why.rstrip('.')}); {remedy}"


def _check_name(certificate: bytes, name: str) -> None:
    """Whether a certificate that nobody vouches for is for `name`; as OpenSSL, by RFC 6125."""
    from cryptography import x509

    try:
        names = _names(x509.load_der_x509_certificate(certificate))
    except ValueError:
        names = set()
    if not is_named(name, names):
        listed = ", ".join(sorted(names)[:3]) or "nobody"
        raise DialError(Denial.RESET, _distrust(f"hostname mismatch, it is for {listed[:120]!a}"), True)


def _names(certificate: object) -> set[str]:
    """DNS names and addresses of the alternative names; without any, the common name."""
    from cryptography import x509

    assert isinstance(certificate, x509.Certificate)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        common = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        return {str(attribute.value).lower() for attribute in common}
    dns = {value.lower() for value in names.get_values_for_type(x509.DNSName)}
    return dns | {str(address) for address in names.get_values_for_type(x509.IPAddress)}


def is_named(name: str, names: set[str]) -> bool:
    """`name` is a lower-case name or address; a wildcard stands for the whole first label, and for no address."""
    canonical = _canonical(name)
    if canonical is not None:
        return canonical in {_canonical(listed) for listed in names}
    label, dot, parent = name.rstrip(".").partition(".")
    return name.rstrip(".") in names or (bool(label) and "." in parent and f"*{dot}{parent}" in names)


def _canonical(text: str) -> bytes | None:
    """A packed address, or None for a name."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            return socket.inet_pton(family, text)
        except OSError:
            continue
    return None


async def _when_ready(loop: asyncio.AbstractEventLoop, tls: ssl.SSLSocket, step: Callable[[], T]) -> T:
    """Do `step` as soon as TLS has what it takes."""
    while True:
        try:
            return step()
        except ssl.SSLWantReadError:
            await readable(loop, tls)
        except ssl.SSLWantWriteError:
            await writable(loop, tls)


class TlsLine:
    """A connection to the proxy in TLS. What comes after the proxy's reply is kept for the relay."""

    def __init__(self, loop: asyncio.AbstractEventLoop, tls: ssl.SSLSocket, relays: Relays) -> None:
        self._loop = loop
        self._tls = tls
        self._relays = relays
        self._early = b""

    async def send(self, data: bytes) -> None:
        while data:
            data = data[await _when_ready(self._loop, self._tls, partial(self._tls.send, data)) :]

    async def receive(self, end: ReplyEnd) -> bytes:
        """One reply; EOFError at the end of the stream."""
        data, self._early = self._early, b""
        while not data or not (length := end(data)):
            more = await _when_ready(self._loop, self._tls, partial(self._tls.recv, RECORD))
            if not more:
                raise EOFError
            data += more
        self._early = data[length:]
        return data[:length]

    async def hand_over(self) -> socket.socket:
        return await self._relays.join(self._tls, self._early)

    def close(self) -> None:
        self._tls.close()


# The relays.


class Side(Protocol):
    """One of the two connections of a relay. OSError means that it broke."""

    def read(self) -> bytes | None: ...  # None: nothing yet; empty: the peer has finished
    def write(self, data: memoryview) -> int: ...  # how much was taken; 0: nothing now
    def finish(self) -> bool: ...  # say that nothing more will be written; False: not now


class PlainSide:
    """Towards the stack."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def read(self) -> bytes | None:
        try:
            return self.sock.recv(PLAIN_READ)
        except BlockingIOError:
            return None

    def write(self, data: memoryview) -> int:
        try:
            return self.sock.send(data)
        except BlockingIOError:
            return 0

    def finish(self) -> bool:
        self.sock.shutdown(socket.SHUT_WR)
        return True


class TlsSide:
    """Towards the proxy."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self.sock = sock
        self._over = False  # both close_notify are through: what comes now is not TLS, and nobody's

    def read(self) -> bytes | None:
        if self._over:
            return b""
        try:
            return self.sock.recv(RECORD)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None
        except ssl.SSLZeroReturnError:  # close_notify, after ours
            return b""

    def write(self, data: memoryview) -> int:
        try:
            return self.sock.send(data)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0

    def finish(self) -> bool:
        """Send close_notify. OpenSSL then looks for the peer's: what it finds instead is read later."""
        try:
            self.sock.unwrap()
            self._over = True
        except ssl.SSLWantWriteError:
            return False
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            if error.reason != "APPLICATION_DATA_AFTER_CLOSE_NOTIFY":
                raise
        return True


class Way:
    """One direction of a relay."""

    def __init__(self, source: Side, sink: Side, early: bytes = b"") -> None:
        self._source, self._sink = source, sink
        self._waiting = memoryview(early)
        self._ended = False
        self.done = False  # the sink knows of the end

    def pump(self) -> bool:
        """Move what can be moved; True when there may be more at once."""
        for _ in range(READS_AT_ONCE):
            if not self._waiting and not self._ended:
                data = self._source.read()
                if data is None:
                    return False
                self._waiting, self._ended = memoryview(data), not data
            if self._waiting:
                self._waiting = self._waiting[self._sink.write(self._waiting) :]
                if self._waiting:
                    return False
            if self._ended:
                self.done = self.done or self._sink.finish()
                return False
        return True


class Relay:
    """Two sides and the ways between them."""

    def __init__(self, tls: ssl.SSLSocket, near: socket.socket, early: bytes) -> None:
        self.sockets = (tls, near)
        self.descriptors = (tls.fileno(), near.fileno())
        proxy, stack = TlsSide(tls), PlainSide(near)
        self.ways = (Way(stack, proxy), Way(proxy, stack, early))

    @property
    def done(self) -> bool:
        return all(way.done for way in self.ways)

    def pump(self) -> bool:
        """Both ways, whatever the first one says."""
        more = [way.pump() for way in self.ways if not way.done]
        return any(more)

    def close(self, reset: bool) -> None:
        for sock in self.sockets:
            if reset:
                try:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
                except OSError:
                    pass
            sock.close()


class Relays:
    """All relays of a run, behind one descriptor of the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._of: dict[int, Relay] = {}  # by either descriptor
        self._again: deque[Relay] = deque()
        loop.add_reader(self._epoll.fileno(), self._run)

    def __len__(self) -> int:
        return len(self._of) // 2

    async def join(self, tls: ssl.SSLSocket, early: bytes) -> socket.socket:
        """Begin to relay, `early` down first; returns the stack's end. DialError when there are too many."""
        if len(self) >= RELAYS:
            raise DialError(Denial.RESET, f"there are {RELAYS} connections through the https proxy already")
        near, end = await loopback_pair(self._loop)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_S)
        relay = Relay(tls, near, early)
        for descriptor in relay.descriptors:
            self._of[descriptor] = relay
            self._epoll.register(descriptor, _EVENTS)
        self._soon(relay)
        return end

    def close(self) -> None:
        """End every relay at once, as broken."""
        if self._epoll.closed:
            return
        self._loop.remove_reader(self._epoll.fileno())
        for relay in set(self._of.values()):
            self._end(relay, reset=True)
        self._epoll.close()

    def _run(self) -> None:
        ready = {relay: None for fd, _ in self._epoll.poll(0, _BATCH) if (relay := self._of.get(fd))}
        for relay in ready:
            self._pump(relay)

    def _pump(self, relay: Relay) -> None:
        try:
            more = relay.pump()
        except OSError:  # ssl.SSLError is one: a stream that was cut off
            self._end(relay, reset=True)
            return
        except Exception as error:
            self._end(relay, reset=True)
            self._loop.call_exception_handler({"message": "childflow: a relay failed", "exception": error})
            return
        if relay.done:
            self._end(relay, reset=False)
        elif more:
            self._soon(relay)

    def _soon(self, relay: Relay) -> None:
        """Edge-triggered events won't come for what is there already."""
        if not self._again:
            self._loop.call_soon(self._run_again)
        self._again.append(relay)

    def _run_again(self) -> None:
        waiting, self._again = self._again, deque()
        for relay in waiting:
            if self._of.get(relay.descriptors[0]) is relay:
                self._pump(relay)

    def _end(self, relay: Relay, reset: bool) -> None:
        for descriptor in relay.descriptors:
            if self._of.pop(descriptor, None) is not None:
                self._epoll.unregister(descriptor)
        relay.close(reset)


async def loopback_pair(loop: asyncio.AbstractEventLoop) -> tuple[socket.socket, socket.socket]:
    """Two TCP sockets that are connected with each other, and with nobody who came between."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(8)
        near = await connected(loop, socket.AF_INET, listener.getsockname())
        try:
            while True:
                await readable(loop, listener)
                far, peer = listener.accept()
                if peer == near.getsockname():
                    far.setblocking(False)
                    far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    return near, far
                far.close()
        except BaseException:
            near.close()
            raise
