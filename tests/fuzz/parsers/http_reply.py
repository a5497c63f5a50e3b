"""What a hostile HTTP proxy answers to CONNECT (D21), held against h11 as the client.

The first byte says in what pieces the reply comes, and whether a user was told. Wherever h11 reads a final response,
its status and the first byte after its header are the same; what is shown of the proxy's words is printable and short.
"""

from __future__ import annotations

import h11

from childflow.errors import DialError
from childflow.services import proxy

PASSWORD = "hunter2"
OPEN = proxy.Proxy("http", "proxy.test", 3128)
LOGIN = OPEN._replace(user="me", password=PASSWORD)
Outcome = tuple[str, str | proxy.Bound, int]  # "through", "refused" or "more"; the words or the address; bytes consumed


def one(data: bytes) -> None:
    how, data = data[0] if data else 0, data[1:]
    asked = LOGIN if how & 1 else OPEN
    whole = outcome(proxy.http_connect(asked, "a.test", 443), data, max(1, len(data)))
    check_same(outcome(proxy.http_connect(asked, "a.test", 443), data, 1 + (how >> 1)), whole)
    read = _by_h11(data)
    if read is not None:
        status, left = read
        if 200 <= status <= 299:
            assert whole == ("through", (b"", 0), len(data) - left), f"h11 reads {status} with {left} bytes behind it"
        else:
            assert whole[0] == "refused", f"h11 reads {status}"
            assert str(status) in str(whole[1])


def outcome(handshake: proxy.Handshake, data: bytes, step: int) -> Outcome:
    """Play a proxy that sends `data`, `step` bytes at a time, whatever it is told."""
    done = came = 0
    try:
        _, end = next(handshake)
        while True:
            while not (length := end(data[done:came])):
                if came >= len(data):
                    return "more", "", done
                came = min(len(data), came + step)
            assert 0 < length <= came - done, "a reply that has not come"
            reply, done = data[done : done + length], done + length
            _, end = handshake.send(reply)
    except StopIteration as through:
        return "through", through.value, done
    except DialError as refused:
        return "refused", str(refused), done


def check_same(pieces: Outcome, whole: Outcome) -> None:
    """The pieces change nothing but how much of a strange answer is quoted."""
    assert pieces[::2] == whole[::2]
    assert whole[0] == "refused" or pieces == whole
    _check_words(pieces)
    _check_words(whole)


def _check_words(said: Outcome) -> None:
    if said[0] == "refused":
        words = str(said[1])
        assert words.isascii()
        assert words.isprintable()
        assert len(words) < 300
        assert PASSWORD not in words


def _by_h11(data: bytes) -> tuple[int, int] | None:
    """Status, and how many bytes come after the header; None where h11 reads no final response."""
    client = h11.Connection(h11.CLIENT, max_incomplete_event_size=100_000)
    client.send(h11.Request(method="CONNECT", target="a.test:443", headers=[("Host", "a.test:443")]))
    client.send(h11.EndOfMessage())
    try:
        client.receive_data(data)
        while isinstance(event := client.next_event(), h11.InformationalResponse):
            if event.status_code == 101 or not event.http_version.startswith(b"1."):
                return None
        if not isinstance(event, h11.Response) or not event.http_version.startswith(b"1."):
            return None
        return event.status_code, len(client.trailing_data[0])
    except h11.RemoteProtocolError:
        return None


def seeds() -> list[bytes]:
    ok = b"HTTP/1.1 200 Connection established\r\n\r\n"
    replies = [
        ok, ok + b"\x16\3\1early", ok.replace(b"\r", b""), b"HTTP/1.0 200 \r\nA: b\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + ok,
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nhello",
        b"HTTP/1.1 407 No\r\nContent-Length: 2\r\n\r\nno",
        b"HTTP/1.1 101 Switching\r\n\r\n", b"HTTP/1.1 504 Late\r\n\r\n", b"HTTP/1.1 200\r\n\r\n",
        b"HTTP/2 200\r\n\r\n", b"SSH-2.0-x\r\n",
        b"HTTP/1.1 403 \x1b[31m\xff\r\n\r\n", b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n" * 3 + ok, b"\5\0", b"",
        b"HTTP/1.1 2", ok[:-2],
        b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n", b"HTTP/1.1 200 OK\r\nA: b\n\r\nrest", b"HTTP/1.1 204 None\r\n\r\nx",
    ]  # fmt: skip
    return [bytes((how,)) + reply for reply in replies for how in (0, 3)]
