"""First flights that begin as HTTP, held against a strict server's reader (h11) and a lenient one (http.server).

The first byte says where the segments are cut. Whatever host a server reads is the one that was read, or the flight is
in doubt; what a server takes for HTTP is never "unknown". The lenient one has handlers for methods of letters alone,
and answers 501 to others whatever the host.
"""

from __future__ import annotations

import io
from http.server import BaseHTTPRequestHandler

import h11

from childflow.services.first_flight import Flight, read_flight

from .client_hello import _check_splits

ODD_BLANKS = b"\x1c\x1d\x1e\x1f\x85\xa0"  # at which http.server, and no server that is meant for use, cuts a line


class Lenient(BaseHTTPRequestHandler):
    """http.server's reader, without a connection. It takes the end of the data for the end of the head."""

    def __init__(self, data: bytes) -> None:
        self.rfile, self.wfile = io.BytesIO(data), io.BytesIO()
        self.raw_requestline = self.rfile.readline(65537)
        self.requestline, self.request_version, self.command = "", "", ""
        self.accepted = bool(self.raw_requestline.strip()) and self.parse_request()

    def send_error(self, *_: object, **__: object) -> None:
        pass

    def handle_expect_100(self) -> bool:
        return True


def one(data: bytes) -> None:
    how, data = data[0] if data else 0, data[1:]
    _check_splits(data, how)
    _check_strict(data)
    _check_lenient(data)


def _check_strict(data: bytes) -> None:
    server = h11.Connection(h11.SERVER, max_incomplete_event_size=100_000)
    try:
        server.receive_data(data)
        event = server.next_event()
    except h11.RemoteProtocolError:
        return
    if isinstance(event, h11.Request):
        hosts = [bytes(value) for name, value in event.headers if name == b"host"]
        _check(read_flight(data), [host.decode("latin-1") for host in hosts], bytes(event.target).decode("latin-1"))


def _check_lenient(data: bytes) -> None:
    server = Lenient(data)
    if server.raw_requestline.translate(None, ODD_BLANKS) != server.raw_requestline:
        return
    if server.accepted and server.command.isascii() and server.command.isalpha():
        path = server.path if isinstance(server.path, str) else ""
        _check(read_flight(data, ended=True), server.headers.get_all("host", []), path)


def _check(flight: Flight, hosts: list[str], target: str) -> None:
    """A server serves the target's host if it has one, else the Host field's, the first or the last."""
    named = [host for text in hosts if (host := _plain(text))]
    if not target.startswith("/") and "://" in target:
        named.append(_plain(target.partition("://")[2].partition("/")[0].partition("?")[0].partition("#")[0]))
    if flight.source == "none":
        assert not named, f"unknown, but a server reads {named}"
        return
    assert flight.source == "host", f"a server reads a request where {flight} was read"
    for name in named:
        assert flight.doubt or name == flight.name, f"a server reads {named} where {flight} was read"


def _plain(text: str) -> str:
    text = text.strip()
    host = text[1:].partition("]")[0] if text.startswith("[") else text.partition(":")[0]
    return host.lower().removesuffix(".")


def seeds() -> list[bytes]:
    heads = [
        b"Host: a.test", b"host:A.test.:80 ", b"Host: a.test\r\nHost: b.test", b"Host: [::1]:80",
        b"A: b\r\n c: d\r\nHost : a.test",
        b"Host: a.test\r\n b", b"A: b\rHost: b.test\r\nHost: a.test", b"", b"Host:", b" Host: b.test", b"Host: a\0b",
        b"Host: a, b",
        b"A\r\nHost: a.test", b"\xff: b\r\nHost: a.test", b"Expect: 100-continue\r\nHost: a.test",
        b"Host: a.test\n\nHost: b.test",
    ]  # fmt: skip
    lines = [b"GET / HTTP/1.1", b"GET http://a.test/ HTTP/1.1", b"CONNECT a.test:443 HTTP/1.1", b"OPTIONS * HTTP/1.0",
    b"GET /",
             b"get /a b http/1.1", b"PRI * HTTP/2.0", b"GET http://a.test@b.test/ HTTP/1.1", b"EHLO a.test",
             b"GET / RTSP/1.0", b"\r\n\nGET\t/ HTTP/1.1"]  # fmt: skip
    made = [b"\0" + line + b"\r\n" + head + b"\r\n\r\n" for line in lines for head in (heads[0], b"")]
    made += [b"\3" + lines[0] + b"\r\n" + head + b"\r\n\r\n" for head in heads]
    return [*made, made[0].replace(b"\r", b""), made[0][:20], b"", b"\0SSH-2.0-x\r\n", b"\0*1\r\n", b"\x000032git x\0"]
