"""What a hostile SOCKS5 proxy answers (D21), held against a plain reading of RFC 1928 and 1929.

The first byte says in what pieces the answers come, whether there is a user, and which command is asked for.
"""

from __future__ import annotations

from childflow.services import proxy

from .http_reply import LOGIN, OPEN, Outcome, check_same, outcome

SIZES = {1: 4, 4: 16}


def one(data: bytes) -> None:
    how, data = data[0] if data else 0, data[1:]
    asked = (LOGIN if how & 1 else OPEN)._replace(scheme="socks5")
    command, step = (proxy.CONNECT, proxy.UDP_ASSOCIATE)[how >> 1 & 1], 1 + (how >> 2)
    whole = outcome(proxy.socks5(asked, command, "a.test", 443), data, max(1, len(data)))
    check_same(outcome(proxy.socks5(asked, command, "a.test", 443), data, step), whole)
    expected = _plain(data, with_user=bool(how & 1))
    assert whole[::2] == expected[::2]
    assert whole[0] == "refused" or whole == expected


def _plain(data: bytes, *, with_user: bool) -> Outcome:
    """The same in one straight line. What is refused is refused at the byte that tells; its words are not compared."""
    if not data:
        return "more", "", 0
    if data[0] != 5:
        return "refused", "", 0
    if len(data) < 2:
        return "more", "", 0
    at = 2
    if data[1] not in ((0, 2) if with_user else (0,)):
        return "refused", "", at
    if data[1] == 2:
        if len(data) > at and data[at] not in (1, 5):
            return "refused", "", at
        if len(data) < at + 2:
            return "more", "", at
        at += 2
        if data[at - 1] != 0:
            return "refused", "", at
    return _plain_reply(data, at)


def _plain_reply(data: bytes, at: int) -> Outcome:
    if len(data) > at and data[at] != 5:
        return "refused", "", at
    if len(data) < at + 2:
        return "more", "", at
    if data[at + 1] != 0:
        return "refused", "", at + 2
    if len(data) > at + 3 and data[at + 3] not in (1, 3, 4):
        return "refused", "", at
    if len(data) < at + 5:
        return "more", "", at
    start = at + 4 if data[at + 3] in SIZES else at + 5
    end = start + SIZES.get(data[at + 3], data[at + 4])
    if len(data) < end + 2:
        return "more", "", at
    address = data[start:end] if data[at + 3] in SIZES else b""
    return "through", (address, int.from_bytes(data[end : end + 2], "big")), end + 2


def seeds() -> list[bytes]:
    greeted = [b"\5\0", b"\5\2\1\0", b"\5\2\5\0", b"\5\2\1\1", b"\5\xff", b"\5\2\2\0", b"\4\0"]
    bound = [b"\5\0\0\1" + bytes((203, 0, 113, 5, 4, 56)), b"\5\0\0\4" + bytes(18), b"\5\0\0\3\4host\0\1",
    b"\5\0\0\3\xff" + b"x" * 257,
             b"\5\0\0\3\0\0\1", b"\5\0\0\2" + bytes(9), b"\5\5\0\1" + bytes(6), b"\5\7", b"\5\x5b\0",
             b"\4\x5a" + bytes(6), b"HTTP/1.1 400"]  # fmt: skip
    wholes = (
        [hello + reply for hello in greeted[:2] for reply in bound] + greeted + [greeted[0] + bound[0] + b"early data"]
    )
    return [bytes((how,)) + one for one in wholes for how in (0, 1, 5, 0xFF)] + [b"", b"\0\5"]
