"""TLS to an https proxy: the one case in which Python stays in a flow's way.

The connection to the proxy is opened and verified here, the handshake of `proxy.py` is spoken over it, and a relay
then carries bytes between it and a pair of loopback sockets whose other end the stack has. A pair of TCP sockets, not
of Unix ones, since only those can pass an RST on.

Ends: a close_notify is a FIN, both ways, and each way ends alone. Everything else that ends the TLS connection (a bare
FIN, an RST, a broken record) is an RST for the command: a stream that was cut off must not look complete. An RST by the
command is one for the proxy.

Verification is OpenSSL's against the system's store (SSL_CERT_FILE, SSL_CERT_DIR). `--proxy-insecure` skips trust; the
name is checked all the same, here, since OpenSSL does not check one without the other.

Invariants: a way holds at most one read (PLAIN_READ) that its sink has not taken, and reads no more before; as much
            may wait within TLS. At most RELAYS relays; a pump moves at most READS_AT_ONCE reads before others have
            their turn.
Not here:   what is said over the connection (`proxy.py`), the times within which (`dial.py`).
"""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
import struct
import time
from collections import deque
from typing import Protocol

from childflow.errors import DialError
from childflow.netstack.events import Denial
from childflow.services.dial import connected, readable, writable
from childflow.services.proxy import Proxy, ReplyEnd

RELAYS = 4096
PLAIN_READ = 64 << 10
RECORD = 16 << 10  # the largest text of a TLS record
READS_AT_ONCE = 16
DRAIN_QUIET_S, DRAIN_MAX_S, DRAIN_POLL_S = 1.0, 10.0, 0.02
KEEPALIVE_S = 60  # after the stack closed its end, which TCP does not tell
_EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
_AT_ONCE = struct.pack("ii", 1, 0)
_BATCH = 256


class TlsProxy:
    """Opens verified connections to one proxy, and runs the relays of those that became the command's."""

    def __init__(self, loop: asyncio.AbstractEventLoop, proxy: Proxy) -> None:
        self._loop = loop
        self._proxy = proxy
        self._context = _context(proxy.insecure)
        self.relays = Relays(loop)

    async def open(self, sock: socket.socket) -> TlsLine:
        """TLS over a connected socket, which is ours from now on. DialError when the proxy is not the one named."""
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            name = self._proxy.host.partition("%")[0]
            line = TlsLine(self._loop, Tls(sock, self._context, name), self.relays)
            await line.shake()
            if self._proxy.insecure:
                _check_name(line.tls.certificate(), name)
            return line
        except BaseException as error:
            sock.close()
            if isinstance(error, OSError):
                raise _refusal(error) from None
            raise

    def close(self) -> None:
        self.relays.close()


def _context(insecure: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF  # Python's default, which takes a bare FIN for an end
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


class Tls:
    """TLS over a non-blocking socket, which is the proxy's side of a relay.

    Through memory, since OpenSSL on the socket itself could not finish one way while the other goes on: `unwrap` looks
    for the peer's close_notify at once, and finding text instead breaks the connection.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, name: str) -> None:
        self.sock = sock
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname=name)
        self._unsent = memoryview(b"")
        self._finished = False

    def certificate(self) -> bytes:
        return self._tls.getpeercert(binary_form=True) or b""

    def shake(self) -> bool:
        """A step of the handshake; True when it is complete."""
        try:
            self._tls.do_handshake()
            return True
        except ssl.SSLWantReadError:
            return False
        finally:
            self.flush()  # an alert, too

    def feed(self) -> bool:
        """Take what has come; False when nothing has."""
        try:
            data = self.sock.recv(PLAIN_READ)
        except BlockingIOError:
            return False
        if data:
            self._in.write(data)
        else:
            self._in.write_eof()
        return True

    def flush(self) -> bool:
        """Send what is to be sent; False when the socket does not take it all."""
        while self._unsent or self._out.pending:
            if not self._unsent:
                self._unsent = memoryview(self._out.read())
            try:
                self._unsent = self._unsent[self.sock.send(self._unsent) :]
            except BlockingIOError:
                return False
        return True

    def read(self) -> bytes | None:
        """A few records' text. An end without close_notify is an SSLEOFError."""
        while True:
            try:
                data = self._tls.read(RECORD)
                break
            except ssl.SSLWantReadError:
                self.flush()
                if not self.feed():
                    return None
            except ssl.SSLZeroReturnError:
                return b""
        if len(data) == RECORD and self._in.pending > RECORD:
            return data + self._more()
        return data

    def _more(self) -> bytes:
        """Records that have come with the first."""
        parts = []
        for _ in range(PLAIN_READ // RECORD - 1):
            try:
                parts.append(self._tls.read(RECORD))
            except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):  # which `read` will say again
                break
        return b"".join(parts)

    def write(self, data: memoryview) -> int:
        """All or nothing: it is only taken when all before it was sent."""
        if not self.flush():
            return 0
        taken = self._tls.write(data)
        self.flush()
        return taken

    def finish(self) -> bool:
        """Send close_notify."""
        if not self._finished:
            self._finished = True
            self._say_end()
        return self.flush()

    def _say_end(self) -> None:
        come = self._in.read()  # OpenSSL shall not find it
        try:
            self._tls.unwrap()
        except ssl.SSLWantReadError:
            pass
        if come:
            self._in.write(come)


class TlsLine:
    """A connection to the proxy in TLS. What comes after the proxy's reply is kept for the relay."""

    def __init__(self, loop: asyncio.AbstractEventLoop, tls: Tls, relays: Relays) -> None:
        self._loop = loop
        self.tls = tls
        self._relays = relays
        self._early = b""

    async def shake(self) -> None:
        while not self.tls.shake():
            if not self.tls.feed():
                await readable(self._loop, self.tls.sock)

    async def send(self, data: bytes) -> None:
        self.tls.write(memoryview(data))
        while not self.tls.flush():
            await writable(self._loop, self.tls.sock)

    async def receive(self, end: ReplyEnd) -> bytes:
        """One reply; EOFError at the end of the stream."""
        data, self._early = self._early, b""
        while not data or not (length := end(data)):
            more = self.tls.read()
            if more == b"":
                raise EOFError
            if more is None:
                await readable(self._loop, self.tls.sock)
            else:
                data += more
        self._early = data[length:]
        return data[:length]

    async def hand_over(self) -> socket.socket:
        return await self._relays.join(self.tls, self._early)

    def close(self) -> None:
        self.tls.sock.close()


# The relays.


class Side(Protocol):
    """One of the two connections of a relay. OSError means that it broke."""

    def read(self) -> bytes | None: ...  # None: nothing yet; empty: the peer has finished
    def write(self, data: memoryview) -> int: ...  # how much was taken; 0: nothing now
    def finish(self) -> bool: ...  # say that nothing more will be written; False: not now


class Plain:
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


class Way:
    """One direction of a relay."""

    def __init__(self, source: Side, sink: Side, early: bytes = b"") -> None:
        self._source, self._sink = source, sink
        self._waiting = memoryview(early)
        self._ended = self._more = False
        self.done = False  # the sink knows of the end

    def is_waiting(self) -> bool:
        """Whether the sink must still be told something."""
        return self._more or bool(self._waiting) or self._ended > self.done

    def pump(self) -> bool:
        """Move what can be moved; True when there may be more at once."""
        self._more = self._move()
        return self._more

    def _move(self) -> bool:
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

    def __init__(self, proxy: Tls, stack: Plain, early: bytes) -> None:
        self._proxy = proxy
        self._sockets = (proxy.sock, stack.sock)
        self.descriptors = (proxy.sock.fileno(), stack.sock.fileno())
        self.up = Way(stack, proxy)
        self.ways = (self.up, Way(proxy, stack, early))

    @property
    def done(self) -> bool:
        return all(way.done for way in self.ways)

    def waiting_up(self) -> bool:
        """Whether the command has said something that has not gone out."""
        return self.up.is_waiting() or not self._proxy.flush()

    def pump(self) -> bool:
        """Both ways, whatever the first one says. First what TLS could not send before: nothing else would."""
        self._proxy.flush()
        more = [way.pump() for way in self.ways if not way.done]
        return any(more)

    def close(self, reset: bool) -> None:
        for sock in self._sockets:
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

    async def join(self, tls: Tls, early: bytes) -> socket.socket:
        """Begin to relay, `early` down first; returns the stack's end. DialError when there are too many."""
        if len(self) >= RELAYS:
            raise DialError(Denial.RESET, f"there are {RELAYS} connections through the https proxy already")
        near, end = await loopback_pair(self._loop)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_S)
        relay = Relay(tls, Plain(near), early)
        for descriptor in relay.descriptors:
            self._of[descriptor] = relay
            self._epoll.register(descriptor, _EVENTS)
        self._soon(relay)
        return end

    def close(self) -> None:
        """End every relay, after what the command sent before its end has gone out. The loop need not run any more."""
        if self._epoll.closed:
            return
        self._loop.remove_reader(self._epoll.fileno())
        self._drain()
        for relay in set(self._of.values()):
            self._end(relay, reset=not relay.up.done)
        self._epoll.close()

    def _drain(self) -> None:
        """For a bounded time, as the engine does with what the stack has."""
        now = quiet_since = time.monotonic()
        until = now + DRAIN_MAX_S
        while now < min(until, quiet_since + DRAIN_QUIET_S):
            waiting = 0
            for relay in set(self._of.values()):
                self._pump(relay)
                waiting += relay.waiting_up() if relay.descriptors[0] in self._of else 0
            if not waiting:
                return
            if self._epoll.poll(DRAIN_POLL_S, _BATCH):
                quiet_since = time.monotonic()
            now = time.monotonic()

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
