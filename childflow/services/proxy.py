"""The proxy that a run goes through: its URI, and what is said to it before a connection is the command's.

A handshake is a generator: it yields what to send and how to find the end of the reply, is sent the reply, and returns
when the connection is through. So it needs no socket, takes replies in any pieces, and never takes a byte after them.

HTTP CONNECT (RFC 9110 9.3.6): a 2xx reply ends with its header, whatever lengths that names; 1xx replies before it are
passed over. SOCKS5 (RFC 1928, 1929): names are handed over as names, and an address in a reply is not looked up.

Invariants: a reply is at most REPLY_MAX bytes. What a proxy says is shown in printable ASCII, SHOWN characters at most.
            The password is in no text of this module, `repr` included.
Not here:   sockets, times and TLS (`dial.py`), whether a destination is allowed (`policy/`).
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Generator
from typing import NamedTuple

from childflow.errors import DialError, UsageError
from childflow.netstack.events import Denial

REPLY_MAX = 64 << 10  # bytes, of an HTTP reply's header with all 1xx before it
SHOWN = 80
DEFAULT_PORTS = {"http": 1080, "https": 443, "socks5": 1080, "socks5h": 1080}  # curl's

CONNECT, UDP_ASSOCIATE = 1, 3
_NO_AUTHENTICATION, _USER_PASSWORD = 0, 2
_IPV4, _NAME, _IPV6 = 1, 3, 4

ReplyEnd = Callable[[bytes], int]  # length of the reply that the bytes begin with; 0: more is needed
Bound = tuple[bytes, int]  # address, empty for a name or none; port
Handshake = Generator[tuple[bytes, ReplyEnd], bytes, Bound]


class Proxy(NamedTuple):
    """`scheme`: http, https or socks5; `host`: a name, or an address without brackets."""

    scheme: str
    host: str
    port: int
    user: str | None = None
    password: str | None = None
    insecure: bool = False

    @property
    def text(self) -> str:
        """What users may read."""
        return f"{self.scheme}://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    def __repr__(self) -> str:
        return f"Proxy({self.text})"


# The URI.


def parse_proxy(uri: str, user: str | None = None, password: str | None = None, insecure: bool = False) -> Proxy:
    """Read `SCHEME://HOST[:PORT]`; UsageError for everything else and for credentials that can't be sent."""
    scheme, colon, rest = uri.partition("://")
    scheme = scheme.lower()
    if "@" in rest:
        raise UsageError("--proxy takes no user or password; give them as --proxy-user and CHILDFLOW_PROXY_PASSWORD")
    if not colon or scheme not in DEFAULT_PORTS:
        raise UsageError(f"--proxy {uri}: the scheme must be http, https, socks5 or socks5h")
    if insecure and scheme != "https":
        raise UsageError(f"--proxy-insecure is for https:// proxies, and this one is {scheme}://; leave it out")
    host, port = _split_host(rest.removesuffix("/"), uri)
    proxy = Proxy(scheme.removesuffix("h"), host, port or DEFAULT_PORTS[scheme], user, password, insecure)
    if user is not None and password is not None:
        _check_credentials(proxy)
    return proxy


def _split_host(text: str, uri: str) -> tuple[str, int]:
    """Host without brackets, and port, 0 for none."""
    if text.startswith("["):
        host, bracket, after = text[1:].partition("]")
        if not bracket or not _is_address6(host):
            raise UsageError(f"--proxy {uri}: there is no IPv6 address between the brackets")
    else:
        host, colon, after = text.partition(":")
        after = colon + after
        host = _ascii_host(host, uri)
    return host, _port(after, uri)


def _port(after: str, uri: str) -> int:
    if after in ("", ":"):
        return 0
    digits = after[1:]
    if after[0] != ":" or not (digits.isascii() and digits.isdigit()) or not 0 < int(digits[:6]) < 65536:
        hint = "; put an IPv6 address in brackets" if ":" in digits else ""
        raise UsageError(f"--proxy {uri}: the port must be a number from 1 to 65535, and nothing may follow it{hint}")
    return int(digits)


def _ascii_host(host: str, uri: str) -> str:
    """The name in lower case, percent-decoded, and in A-labels where it has other than ASCII letters."""
    if "%" in host:
        from urllib.parse import unquote

        host = unquote(host)
    try:
        name = host if host.isascii() else host.encode("idna").decode()
    except UnicodeError:
        name = ""
    if not name or not is_sendable(name):
        raise UsageError(f"--proxy {uri}: the host must be a name, an IPv4 address, or an IPv6 address in brackets")
    return name.lower()


def _is_address6(text: str) -> bool:
    address, percent, zone = text.partition("%")
    try:
        socket.inet_pton(socket.AF_INET6, address)
    except (OSError, ValueError):
        return False
    return not percent or bool(zone)


def _check_credentials(proxy: Proxy) -> None:
    user, password = _credentials(proxy)
    if proxy.scheme == "socks5":
        for what, value in (("user", user), ("password", password)):
            if not 1 <= len(value) <= 255:
                raise UsageError(f"the proxy's {what} has {len(value)} bytes, and SOCKS5 takes 1 to 255 (RFC 1929)")
    elif b":" in user:
        raise UsageError("the proxy's user has a colon, which HTTP's Basic authentication can't send (RFC 7617)")
    if any(byte < 32 or byte == 127 for byte in user + password):
        raise UsageError("the proxy's user or password has a control character (a line end?); leave it out")


def _credentials(proxy: Proxy) -> tuple[bytes, bytes]:
    """As bytes: those of the command line, whatever their encoding."""
    return (
        (proxy.user or "").encode(errors="surrogateescape"),
        (proxy.password or "").encode(errors="surrogateescape"),
    )


# Destinations.


def is_sendable(name: str) -> bool:
    """Whether a proxy takes this name for what it is: letters, digits, hyphens, underscores and dots, 253 at most."""
    allowed = name.replace("-", "").replace("_", "").replace(".", "")
    return 0 < len(name) <= 253 and allowed.isascii() and allowed.isalnum()


def check_destination(host: str | bytes) -> None:
    """DialError for a name that a proxy might read as something else.

    A last label that is a number makes it an address to many (`127.1`, `0x7f000001`), which no rule has judged.
    """
    if isinstance(host, bytes):
        return
    last = host.rstrip(".").rpartition(".")[2]
    if not is_sendable(host):
        raise DialError(Denial.RESET, "the name has characters that can't be sent to a proxy")
    if last.isdigit() or last.startswith("0x"):
        raise DialError(Denial.RESET, "the name ends in a number, which a proxy would take for an address")


def address_text(address: bytes) -> str:
    """Packed address to text."""
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)


def handshake(proxy: Proxy, host: str | bytes, port: int) -> Handshake:
    """The handshake for a TCP connection to `host` (a name or a packed address)."""
    check_destination(host)
    return socks5(proxy, CONNECT, host, port) if proxy.scheme == "socks5" else http_connect(proxy, host, port)


# HTTP.


def http_connect(proxy: Proxy, host: str | bytes, port: int) -> Handshake:
    """CONNECT; DialError when the proxy refuses."""
    name = host if isinstance(host, str) else address_text(host)
    target = f"{f'[{name}]' if ':' in name else name}:{port}"
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if proxy.user is not None:
        from base64 import b64encode

        lines.append(f"Proxy-Authorization: Basic {b64encode(b':'.join(_credentials(proxy))).decode()}")
    reply = yield "\r\n".join([*lines, "", ""]).encode(), end_of_http_reply
    status, reason = _final_status(reply)
    if not 200 <= status <= 299:
        raise _http_refusal(proxy, status, reason)
    return b"", 0


def end_of_http_reply(data: bytes) -> int:
    """Where the first header that is no 1xx ends; 0: not yet. DialError when it can't become one."""
    start = 0
    while True:
        _check_status_line(data[start : start + 13])
        end = _end_of_header(data, start)
        if end > REPLY_MAX or (not end and len(data) >= REPLY_MAX):
            raise DialError(Denial.RESET, f"the proxy's reply has a header of more than {REPLY_MAX >> 10} KiB", True)
        if not end:
            return 0
        if data[start + 9 : start + 10] != b"1" or data[start + 9 : start + 12] == b"101":
            return end
        start = end


def _end_of_header(data: bytes, start: int) -> int:
    """The empty line may end in LF alone (RFC 9112 2.2)."""
    ends = [at + len(mark) for mark in (b"\n\r\n", b"\n\n") if (at := data.find(mark, start)) >= 0]
    return min(ends, default=0)


_STATUS_LINE = "HTTP/1.? ???"  # ? is a digit
_DIGITS = "0123456789"  # str.isdigit() takes superscripts, too


def _check_status_line(line: bytes) -> None:
    """`line` is what has come of its first 13 bytes."""
    fits = all(chr(byte) in (_DIGITS if w == "?" else w) for byte, w in zip(line, _STATUS_LINE, strict=False))
    if not fits or line[12:] not in (b"", b" ", b"\r", b"\n"):
        raise DialError(Denial.RESET, f"what answers there is no HTTP proxy: it said {shown(line)!r}", True)


def _final_status(reply: bytes) -> tuple[int, str]:
    start = 0
    while reply[start + 9 : start + 10] == b"1" and reply[start + 9 : start + 12] != b"101":
        start = _end_of_header(reply, start)
    line = reply[start : reply.index(b"\n", start)]
    return int(line[9:12]), shown(line[13:].strip())


def _http_refusal(proxy: Proxy, status: int, reason: str) -> DialError:
    said = f"the proxy answered {status} {reason}".rstrip()
    if status == 407:
        remedy = "check --proxy-user and the password" if proxy.user else "give --proxy-user and a password"
        return DialError(Denial.RESET, f"{said}; {remedy}", True)
    return DialError(Denial.UNREACHABLE_HOST if status == 504 else Denial.RESET, said)


def shown(text: bytes) -> str:
    """What a stranger said, fit for a terminal and a log."""
    return "".join(chr(byte) if 32 <= byte < 127 else "?" for byte in text[:SHOWN])


# SOCKS5.

_SOCKS_REFUSALS = {
    1: (Denial.RESET, "general failure"),
    2: (Denial.RESET, "its rules don't allow that connection"),
    3: (Denial.UNREACHABLE_NET, "network unreachable"),
    4: (Denial.UNREACHABLE_HOST, "host unreachable"),
    5: (Denial.RESET, "connection refused"),
    6: (Denial.UNREACHABLE_HOST, "TTL expired"),
    7: (Denial.RESET, "command not supported"),
    8: (Denial.RESET, "address type not supported"),
}
COMMAND_NOT_SUPPORTED = 7


def socks5(proxy: Proxy, command: int, host: str | bytes, port: int) -> Handshake:
    """Method, user and password, request; returns the address and port that the proxy is bound to."""
    methods = bytes((_NO_AUTHENTICATION, _USER_PASSWORD) if proxy.user is not None else (_NO_AUTHENTICATION,))
    chosen = yield bytes((5, len(methods))) + methods, end_of_method
    if chosen[1] not in methods:
        remedy = "check --proxy-user and the password" if proxy.user else "give --proxy-user and a password"
        raise DialError(Denial.RESET, f"the SOCKS proxy accepts no login of ours; {remedy}", True)
    if chosen[1] == _USER_PASSWORD:
        user, password = _credentials(proxy)
        told = yield bytes((1, len(user))) + user + bytes((len(password),)) + password, end_of_login
        if told[1] != 0:
            raise DialError(Denial.RESET, "the SOCKS proxy refused the user or the password; check them", True)
    reply = yield bytes((5, command, 0)) + socks_address(host, port), end_of_socks_reply
    if reply[1] != 0:
        denial, meaning = _SOCKS_REFUSALS.get(reply[1], (Denial.RESET, "an unknown reason"))
        raise DialError(denial, f"the SOCKS proxy answered {reply[1]}: {meaning}", code=reply[1])
    return read_socks_address(reply[3:])[:2]


def socks_address(host: str | bytes, port: int) -> bytes:
    """ATYP, address and port."""
    if isinstance(host, bytes):
        kind, packed = (_IPV4 if len(host) == 4 else _IPV6), host
    else:
        kind, packed = _NAME, bytes((len(host),)) + host.encode()
    return bytes((kind,)) + packed + port.to_bytes(2, "big")


def read_socks_address(data: bytes) -> tuple[bytes, int, int]:
    """Address (empty for a name), port and length of what `socks_address` writes; length 0: more is needed."""
    if not data:
        return b"", 0, 0
    if data[0] == _NAME:
        start, end = 2, 2 + (data[1] if len(data) > 1 else 255)
    elif data[0] in (_IPV4, _IPV6):
        start, end = 1, 1 + (4 if data[0] == _IPV4 else 16)
    else:
        raise DialError(Denial.RESET, f"the SOCKS proxy gave an address of unknown type {data[0]}", True)
    if len(data) < end + 2:
        return b"", 0, 0
    address = data[start:end] if data[0] != _NAME else b""
    return address, int.from_bytes(data[end : end + 2], "big"), end + 2


def end_of_method(data: bytes) -> int:
    """VER METHOD."""
    return _two_bytes(data, 5)


def end_of_login(data: bytes) -> int:
    """VER STATUS of RFC 1929; some servers say 5 for the version there."""
    return _two_bytes(data, 1 if data[:1] != b"\x05" else 5)


def _two_bytes(data: bytes, version: int) -> int:
    if data[:1] not in (b"", bytes((version,))):
        raise DialError(Denial.RESET, f"what answers there is no SOCKS5 proxy: it said {shown(data)!r}", True)
    return 2 if len(data) >= 2 else 0


def end_of_socks_reply(data: bytes) -> int:
    """VER REP RSV and an address. A refusal is one after two bytes: some servers say no more."""
    if not _two_bytes(data, 5) or data[1] != 0:
        return _two_bytes(data, 5)
    length = read_socks_address(data[3:])[2]
    return 3 + length if length else 0
