"""The first flight of a TCP connection: which name does it ask for? Bytes in, answer out, no I/O.

A `FirstFlight` is fed with all that the child has sent so far, again each time more came, until it answers something
else than MORE. It goes on where it stopped, so that 64 KiB in segments of one byte cost as much as in one.

    TLS   the server_name of the ClientHello (RFC 8446 4.1.2, RFC 6066 3), over any split into records and segments
    HTTP  the Host field and the target of the request (RFC 9110 7.2, RFC 9112 3.2); HTTP/2 without TLS is in
          doubt: many of its clients wait for the server's settings before they name anybody
    else  UNKNOWN, as soon as no server could take it for one of these

A server may be more lenient than the RFCs. Where servers are known to differ, every reading is collected, and a name is
told only if all of them agree; else the flight is in `doubt`.

Invariants: never raises; an answer never changes when more comes; a name is lower-case ASCII without a trailing dot.
Not here:   whether the name is allowed (`policy/verdict.py`), who waits for how long (`switchboard.py`);
            QUIC (`quic.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

LIMIT = 65536  # bytes: what stays incomplete beyond them is in doubt
NAME_BYTES = 253  # RFC 1035 2.3.4, as text
LABEL_BYTES = 63


class Flight(NamedTuple):
    """What a first flight says. `source` is "sni", "host", "quic", "none" (an unknown protocol) or "more" (see MORE).

    `name` is None where the client names nobody. `doubt`, when not empty, tells why no name can be told although the
    server may find one: such a flight agrees with no name and is to be refused wherever a name counts. `ech`: the hello
    has an encrypted one inside (or pretends to, as browsers always do); `name` is the outer one.
    """

    source: str
    name: str | None = None
    doubt: str = ""
    ech: bool = False


MORE = Flight("more")
UNKNOWN = Flight("none")
_BEHIND_PROXY_HEADER = Flight("sni", None, "it begins with a PROXY protocol header, behind which anything may stand")


class Malformed(ValueError):
    """What is read is not what it should be; the text says how. Never leaves this package."""


_HANDSHAKE = 22
_ALERT = 21
_CHANGE = 20
_HEARTBEAT = 24
_TLS_FIRST = frozenset((_CHANGE, _ALERT, _HANDSHAKE, _HEARTBEAT))  # some server ignores each but the hello
_CLIENT_HELLO = 1
_SERVER_NAME = 0
_ENCRYPTED_CLIENT_HELLO = 0xFE0D
_RECORD_HEADER = 5
_MESSAGE_HEADER = 4

_PROXY_V1, _PROXY_V2 = b"PROXY", b"\r\n\r\n\0\r\nQUIT\n"  # haproxy's PROXY protocol, 2.1 and 2.2
_BLANKS = b" \t\r\n\x0b\x0c"
_TOKEN = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"  # RFC 9110 5.6.2
_NAME = b"-._0123456789abcdefghijklmnopqrstuvwxyz"
_SCHEME = b"+-.0123456789abcdefghijklmnopqrstuvwxyz"
_CONTROLS = bytes((*range(9), *range(14, 32)))
_IP6 = b".:0123456789abcdef"


# -- names ------------------------------------------------------------------------------------------------------------


def plain_name(raw: bytes) -> str:
    """`raw` as names are written everywhere here. Malformed if it can't be a host's name (nor an IPv4 address)."""
    name = raw.lower().removesuffix(b".")
    if name.translate(None, _NAME):
        raise Malformed("a name has odd bytes")
    if len(name) > NAME_BYTES or not all(0 < len(label) <= LABEL_BYTES for label in name.split(b".")):
        raise Malformed("a name is empty or too long")
    return name.decode("ascii")


def agreed(source: str, names: Iterable[str | None], *, ech: bool = False) -> Flight:
    """The one name of `names`, or doubt."""
    different = set(names)
    if len(different) > 1:
        return Flight(source, None, "it names several hosts", ech)
    return Flight(source, different.pop() if different else None, "", ech)


def _authority_name(raw: bytes) -> str:
    """The host in `host[:port]` (RFC 3986 3.2). User information is in doubt: servers differ about where it ends."""
    if raw.startswith(b"["):
        host, closed, port = raw[1:].lower().partition(b"]")
        if not closed or not host or host.translate(None, _IP6) or (port and not port.startswith(b":")):
            raise Malformed("a bracket is not an IPv6 address")
        _check_port(port[1:])
        return host.decode("ascii")
    host, _, port = raw.partition(b":")
    _check_port(port)
    return plain_name(host)


def _check_port(port: bytes) -> None:
    if port and not (port.isdigit() and len(port) <= 5):
        raise Malformed("a port is no number")


# -- TLS --------------------------------------------------------------------------------------------------------------


class Cursor:
    """Reads numbers and blocks from bytes, front to back. Malformed where they end too soon."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        self._data = data
        self.at = at

    def left(self) -> int:
        return len(self._data) - self.at

    def take(self, size: int) -> bytes:
        if size > self.left():
            raise Malformed("a length reaches beyond the end")
        self.at += size
        return self._data[self.at - size : self.at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def skip(self, filling: bytes) -> int:
        """Past all bytes that are `filling`; how many are left. The look ahead grows: short runs are cheap."""
        size = 16
        while True:
            window = self._data[self.at : self.at + size]
            run = len(window) - len(window.lstrip(filling))
            self.at += run
            if run < size:
                return self.left()
            size *= 2

    def block(self, size: int) -> bytes:
        """A block behind its own length, a number of `size` bytes."""
        return self.take(self.number(size))


def read_client_hello(body: bytes, source: str = "sni") -> Flight:
    """The answer to a ClientHello; `body` is the handshake message without its header. Never raises."""
    try:
        names: list[str | None] = []
        ech = False
        for kind, data in _extensions(body):
            ech |= kind == _ENCRYPTED_CLIENT_HELLO
            if kind == _SERVER_NAME:
                names += _server_names(data)
        return agreed(source, names, ech=ech)
    except Malformed as error:
        return Flight(source, None, f"its ClientHello is malformed: {error}")


def _extensions(body: bytes) -> list[tuple[int, bytes]]:
    hello = Cursor(body)
    hello.take(2 + 32)  # version, random
    hello.block(1)  # session id
    hello.block(2)  # cipher suites
    hello.block(1)  # compression methods
    if not hello.left():
        return []  # before RFC 4366
    inner = Cursor(hello.block(2))
    if hello.left():
        raise Malformed("bytes behind the extensions")
    found = []
    while inner.left():
        found.append((inner.number(2), inner.block(2)))
    return found


def _server_names(extension: bytes) -> list[str | None]:
    """The host names of one extension. Names of other types have no meaning yet (RFC 6066 3) and are passed over."""
    whole = Cursor(extension)
    entries = Cursor(whole.block(2))
    if whole.left() or not entries.left():
        raise Malformed("server_name is not a list")
    names: list[str | None] = []
    while entries.left():
        kind, raw = entries.number(1), entries.block(2)
        if kind == 0:
            names.append(plain_name(raw))
    return names


# -- the reader -------------------------------------------------------------------------------------------------------


class FirstFlight:
    """Reads one connection's first flight, step after step; a step answers, or sets the next one and returns None."""

    def __init__(self) -> None:
        self._step: Callable[[bytes], Flight | None] = self._begin
        self._at = 0  # what stands before is done with
        self._seen = 0  # no line ends between `_at` and here
        self._start = self._method_end = 0  # of the request line
        self._message = bytearray()  # handshake bytes out of their records
        self._names: list[str | None] = []
        self._in_host = False  # the line before was a Host field
        self._answer = MORE
        self._line_ends: set[bytes] = set()

    def feed(self, data: bytes, *, ended: bool = False) -> Flight:
        """What `data`, all that came so far, says. `ended`: no more will come; the answer is not MORE then."""
        if self._answer is MORE:
            self._answer = self._run(data)
        if self._answer is MORE and ended:
            self._answer = self._at_end(data)
        if self._answer is MORE and len(data) >= LIMIT:
            self._answer = Flight(self._source(), None, "its first flight is longer than 64 KiB")
        return self._answer

    def _run(self, data: bytes) -> Flight:
        while (flight := self._step(data)) is None:
            pass
        return flight

    def _source(self) -> str:
        return "sni" if self._step == self._records else "host"

    def _at_end(self, data: bytes) -> Flight:
        """Lenient servers take the end of the connection for the end of the head; no server does so with TLS."""
        if self._step == self._records:
            return Flight("sni", None, "it ends within its ClientHello")
        flight = self._run(data + (b"\n\n" if self._line_ends == {b"\n"} else b"\r\n\r\n"))
        return UNKNOWN if flight is MORE else flight

    def _begin(self, data: bytes) -> Flight | None:
        if data[:1] and data[0] in _TLS_FIRST:
            self._step = self._records
            return None
        if data.startswith(_PROXY_V2):
            return _BEHIND_PROXY_HEADER
        if _PROXY_V2.startswith(data):
            return MORE
        rest = data[self._at :].lstrip(_BLANKS)  # RFC 9112 2.2, and more
        self._at = self._start = len(data) - len(rest)
        if not rest:
            return MORE
        self._step = self._method
        return None

    # TLS: records (RFC 8446 5.1) into one message.

    def _records(self, data: bytes) -> Flight | None:
        while True:
            head = data[self._at : self._at + _RECORD_HEADER + 1]
            if not self._message and (odd := _not_tls(head)) is not None:
                return odd
            if len(head) < _RECORD_HEADER:
                return MORE
            end = self._at + _RECORD_HEADER + (head[3] << 8 | head[4])
            if len(data) < end:
                return MORE
            if head[0] == _HANDSHAKE:
                self._message += data[self._at + _RECORD_HEADER : end]
            elif head[0] not in _TLS_FIRST:
                return Flight("sni", None, "its ClientHello is interrupted")
            self._at = end
            if (flight := read_message(self._message)) is not MORE:
                return flight

    # HTTP: one request line, one head.

    def _method(self, data: bytes) -> Flight | None:
        rest = data[self._at :].lstrip(_TOKEN)
        self._at = self._seen = self._method_end = len(data) - len(rest)
        if not rest:
            return MORE
        if self._at == self._start or rest[0] not in _BLANKS:
            return UNKNOWN
        self._step = self._request_line
        return None

    def _request_line(self, data: bytes) -> Flight | None:
        new, method = data[self._seen :].partition(b"\n")[0], data[self._start : self._method_end]
        line = self._line(data, self._start)
        if _has_controls(new) and not method.isalpha():
            return UNKNOWN
        if line is None:
            return MORE
        words = line.split()
        if words[0] == _PROXY_V1:
            return _BEHIND_PROXY_HEADER
        if len(words) < 2:
            return UNKNOWN
        if not words[-1].upper().startswith(b"HTTP/"):
            return _without_version(words)
        if words[0] == b"PRI" and words[-1] == b"HTTP/2.0":  # RFC 9113 3.4
            return Flight("host", None, "it is HTTP/2 without TLS")
        try:
            self._names = _target_names(words)
        except Malformed as error:
            return Flight("host", None, f"its request is malformed: {error}")
        self._step = self._fields
        return None

    def _fields(self, data: bytes) -> Flight | None:
        while (line := self._line(data, self._at)) is not None:
            if line == b"":
                return self._head_is_complete()
            try:
                self._take_field(line)
            except Malformed as error:
                return Flight("host", None, f"its request is malformed: {error}")
        return MORE

    def _line(self, data: bytes, start: int) -> bytes | None:
        """The line at `start` without its end, or None; the next one is at `_at` then."""
        end = data.find(b"\n", self._seen)
        if end < 0:
            self._seen = len(data)
            return None
        self._at = self._seen = end + 1
        cr = end > start and data[end - 1] == 13
        self._line_ends.add(b"\r\n" if cr else b"\n")
        return data[start : end - cr]

    def _take_field(self, line: bytes) -> None:
        """Every line that some server might take for a Host field counts: blanks around its name, a folded one."""
        if b"\r" in line:
            raise Malformed("a lone carriage return")  # RFC 9112 2.2
        name, colon, value = line.partition(b":")
        is_host = bool(colon) and name.strip().lower() == b"host"
        if self._in_host and line[0] in b" \t" and not is_host:
            raise Malformed("its Host field is folded")
        self._in_host = is_host
        if is_host:
            value = value.strip()
            self._names.append(_authority_name(value) if value else None)

    def _head_is_complete(self) -> Flight:
        if len(self._line_ends) > 1:  # a server that knows only one kind finds the end elsewhere
            return Flight("host", None, "its request is malformed: two kinds of line ends")
        return agreed("host", self._names)


def _has_controls(line: bytes) -> bool:
    """Whether `line` is rather binary: git's first word starts with digits and NULs follow, LDAP's is a digit. Behind a
    method of letters it counts as a request's all the same: some server might take such a target."""
    return len(line.translate(None, _CONTROLS)) < len(line)


def _not_tls(head: bytes) -> Flight | None:
    """UNKNOWN as soon as `head`, a record's header and one byte more, begins no TLS. The version proves little: some
    servers ignore it in the first record (Go's take all below 16.0)."""
    if not head:
        return None
    kind, major, whole = head[0], head[1:2], len(head) >= _RECORD_HEADER
    size = head[3] << 8 | head[4] if whole else 0
    if kind == _HANDSHAKE:
        odd = whole and major != b"\3" and (not size or head[5:] not in (b"", b"\1"))
    elif kind == _ALERT:
        odd = major >= b"\x10" or (whole and size != 2)
    else:
        odd = kind not in _TLS_FIRST or major not in (b"", b"\3") or (kind == _CHANGE and whole and size != 1)
    return UNKNOWN if odd else None


def read_message(message: bytes | bytearray, source: str = "sni") -> Flight:
    """What the handshake message at the beginning of `message` says: MORE until it is complete."""
    if not message:
        return MORE
    if message[0] != _CLIENT_HELLO:
        return Flight(source, None, "its first message is no ClientHello")
    if len(message) < _MESSAGE_HEADER:
        return MORE
    end = _MESSAGE_HEADER + int.from_bytes(message[1:4], "big")
    if end > LIMIT:
        return Flight(source, None, "its ClientHello is longer than 64 KiB")
    return MORE if len(message) < end else read_client_hello(bytes(message[_MESSAGE_HEADER:end]), source)


def _without_version(words: list[bytes]) -> Flight:
    """A line whose last word is no HTTP version. Some servers take it for HTTP/0.9 and read fields all the same."""
    if not words[0].translate(None, b"-_").isalpha():
        return UNKNOWN
    target = words[1].startswith(b"/") or _has_scheme(words[1])
    if not target and (len(words) > 2 or words[0] != b"GET"):
        return UNKNOWN  # as memcached's "get name"
    other, _, version = words[-1].partition(b"/")
    if len(words) > 2 and other.isalpha() and version[:1].isdigit():  # RTSP/1.0, ICAP/1.0
        return UNKNOWN
    return Flight("host", None, "its request has no HTTP version")


def _has_scheme(target: bytes) -> bool:
    """Whether `target` begins like a URL (RFC 3986 3.1)."""
    scheme, absolute, _ = target.partition(b"://")
    return bool(absolute and scheme) and not scheme.lower().translate(None, _SCHEME)


def _target_names(words: list[bytes]) -> list[str | None]:
    """The host in the request's target, in a list; none of them in origin-form and asterisk-form (RFC 9112 3.2)."""
    method, target = words[0], words[1]
    if len(words) > 2 and method.upper() == b"CONNECT":
        return [_authority_name(target)]
    _, absolute, rest = target.partition(b"://")
    if not absolute or target.startswith(b"/"):
        return []
    if not _has_scheme(target) or len(words) > 3:
        raise Malformed("its target is no URL")
    for end in (b"/", b"?", b"#"):
        rest = rest.partition(end)[0]
    return [_authority_name(rest)]


def read_flight(data: bytes, *, ended: bool = False) -> Flight:
    """What `data` says, read at once."""
    return FirstFlight().feed(data, ended=ended)
