"""The proxy's URI, and the handshakes as bytes in and bytes out."""

from __future__ import annotations

from base64 import b64decode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from childflow.errors import DialError, UsageError
from childflow.netstack.events import Denial
from childflow.services.proxy import (
    REPLY_MAX,
    Bound,
    Handshake,
    Proxy,
    handshake,
    parse_proxy,
    read_socks_address,
    socks_address,
)

HTTP, SOCKS = parse_proxy("http://p:8080"), parse_proxy("socks5://p")
FOUR, SIX = bytes((203, 0, 113, 9)), bytes.fromhex("20010db8000000000000000000000009")


def play(shake: Handshake, *replies: bytes) -> tuple[list[bytes], Bound]:
    """What was sent, and the outcome; each reply comes byte by byte, and must end where it ends."""
    said = []
    data, end = next(shake)
    for reply in replies:
        said.append(data)
        ends = [end(reply[:size]) for size in range(len(reply) + 1)]
        assert ends[:-1] == [0] * len(reply)
        assert ends[-1] == len(reply)
        assert end(reply + b"early data") == len(reply)
        try:
            data, end = shake.send(reply)
        except StopIteration as through:
            return said, through.value
    raise AssertionError("it wants more")


# The URI.


@pytest.mark.parametrize(
    ("uri", "scheme", "host", "port"),
    [
        ("http://proxy.example:3128", "http", "proxy.example", 3128),
        ("HTTP://Proxy.Example:3128/", "http", "proxy.example", 3128),
        ("http://proxy", "http", "proxy", 1080),
        ("https://proxy", "https", "proxy", 443),
        ("socks5://192.0.2.1", "socks5", "192.0.2.1", 1080),
        ("socks5h://192.0.2.1:9050", "socks5", "192.0.2.1", 9050),
        ("socks5://[2001:db8::1]", "socks5", "2001:db8::1", 1080),
        ("http://[fe80::1%eth0]:80", "http", "fe80::1%eth0", 80),
        ("http://pr%6fxy:80", "http", "proxy", 80),
        ("http://bücher.example", "http", "xn--bcher-kva.example", 1080),
    ],
)
def test_uri(uri: str, scheme: str, host: str, port: int) -> None:
    assert parse_proxy(uri)[:3] == (scheme, host, port)


@pytest.mark.parametrize(
    "uri",
    [
        "proxy:3128", "ftp://proxy", "http://", "http://:80", "http://p:0", "http://p:65536", "http://p:8o",
        "http://p:²",
        "http://2001:db8::1", "http://[p]:80", "http://[::1", "http://[::1]80", "http://[::1%]:80", "http://p/path",
        "http://p?q", "http://a b", "http://p%0d%0a", "http://p%2fq", "http://" + "a" * 300, "http://[]", "//p", "",
        "http://p:99999999999999999999", "http://\udcff",
    ],
)  # fmt: skip
def test_uri_that_is_none(uri: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_proxy(uri)
    assert "\n" not in str(caught.value)


@pytest.mark.case("D22")
def test_the_password_is_in_no_text() -> None:
    proxy = parse_proxy("https://p", "anna", "s3cret")
    assert "s3cret" not in f"{proxy} {proxy!r} {proxy.text} {[proxy]}"
    with pytest.raises(UsageError) as caught:
        parse_proxy("http://anna:s3cret@p")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "user", "password", "word"),
    [
        ("socks5://p", "u" * 256, "p", "user"),
        ("socks5://p", "u", "é" * 128, "password"),
        ("socks5://p", "", "p", "user"),
        ("socks5://p", "u", "", "password"),
        ("http://p", "a:b", "p", "colon"),
        ("http://p", "a", "p\r\nX: y", "control"),
        ("socks5://p", "a\0", "p", "control"),
    ],
)
def test_credentials_that_cannot_be_sent(uri: str, user: str, password: str, word: str) -> None:
    with pytest.raises(UsageError, match=word) as caught:
        parse_proxy(uri, user, password)
    assert "é" not in str(caught.value)


def test_insecure_is_for_https() -> None:
    assert parse_proxy("https://p", insecure=True).insecure
    with pytest.raises(UsageError, match="--proxy-insecure"):
        parse_proxy("http://p", insecure=True)


# Destinations.


@pytest.mark.case("D19")
@pytest.mark.parametrize("name", ["127.1", "2130706433", "0x7f000001", "0x7f.1", "a.0X1".lower(), "10.0.0.1."])
@pytest.mark.parametrize("proxy", [HTTP, SOCKS])
def test_a_name_that_is_a_number_is_refused(proxy: Proxy, name: str) -> None:
    with pytest.raises(DialError, match="number"):
        handshake(proxy, name, 80)


@pytest.mark.parametrize("name", ["", "a b", "a\r\nb", "a\\032b", "a:1", "[::1]", "a/b", "a" * 254, "é", "a@b", "a%2e"])
@pytest.mark.parametrize("proxy", [HTTP, SOCKS])
def test_a_name_that_a_proxy_may_misread_is_refused(proxy: Proxy, name: str) -> None:
    with pytest.raises(DialError):
        handshake(proxy, name, 80)


# HTTP.


@pytest.mark.parametrize(
    ("host", "target"),
    [
        ("example.com", "example.com:443"),
        (FOUR, "203.0.113.9:443"),
        (SIX, "[2001:db8::9]:443"),
        ("_a-b.c.", "_a-b.c.:443"),
    ],
)
def test_connect_request(host: str | bytes, target: str) -> None:
    said, _ = play(handshake(HTTP, host, 443), b"HTTP/1.1 200 Connection established\r\n\r\n")
    assert said == [f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode()]


def test_connect_with_basic_authentication() -> None:
    proxy = parse_proxy("http://p", "anna", "a:b \udcff")
    said, _ = play(handshake(proxy, "x", 1), b"HTTP/1.0 200\r\n\r\n")
    (line,) = [line for line in said[0].split(b"\r\n") if line.startswith(b"Proxy-Authorization: Basic ")]
    assert b64decode(line.rpartition(b" ")[2]) == b"anna:a:b \xff"


@pytest.mark.case("D21")
@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 204 No\nA: b\n\n",
        b"HTTP/1.1 200 OK\nA: b\n\r\n",
        b"HTTP/1.0 299 \r\n\r\n",
        b"HTTP/1.1 200\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nA: b\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 500 + b"\r\n\r\n",
    ],
)
def test_a_2xx_ends_with_its_header(reply: bytes) -> None:
    play(handshake(HTTP, "x", 1), reply)


@pytest.mark.case("D21")
@pytest.mark.parametrize(
    ("status", "denial", "fault", "words"),
    [
        (b"403 Forbidden", Denial.RESET, False, "403 Forbidden"),
        (b"407 Who?", Denial.RESET, True, "--proxy-user"),
        (b"502 Bad", Denial.RESET, False, "502"),
        (b"504 Late", Denial.UNREACHABLE_HOST, False, "504"),
        (b"101 Switching", Denial.RESET, False, "101"),
        (b"302 \x1b[31mFound\xff" + b"x" * 500, Denial.RESET, False, r"302 \?\[31mFound\?x"),
    ],
)
def test_a_refusal(status: bytes, denial: Denial, fault: bool, words: str) -> None:
    with pytest.raises(DialError, match=words) as caught:
        play(handshake(HTTP, "x", 1), b"HTTP/1.1 " + status + b"\r\nContent-Length: 9\r\n\r\n")
    assert (caught.value.denial, caught.value.proxy_fault) == (denial, fault)
    assert len(str(caught.value)) < 200
    assert str(caught.value).isprintable()


@pytest.mark.case("D21")
@pytest.mark.parametrize(
    "reply",
    [
        b"SSH-2.0-x\r\n", b"HTTP/1.1 \xb200 OK\r\n\r\n", b"\x05\x00", b"HTTP/2", b"HTTP/1.1\t", b"HTTP/1.x",
        b"HTTP/1.1 2O0", b"HTTP/1.1 2000",
        b"\r\n", b"HTTP/1.1 20 x",
        b"HTTP/1.1 100 \r\n\r\nnonsense",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * (REPLY_MAX // 6),
        b"HTTP/1.1 200 " + b"a" * REPLY_MAX,
        b"HTTP/1.1 100 \r\n\r\n" * (REPLY_MAX // 17 + 1),
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * (REPLY_MAX // 6) + b"\r\n",
    ],
)  # fmt: skip
def test_what_is_no_reply_is_refused_at_once(reply: bytes) -> None:
    _, end = next(handshake(HTTP, "x", 1))
    with pytest.raises(DialError) as caught:
        end(reply)
    assert caught.value.proxy_fault


@given(st.binary(max_size=300))
def test_any_reply_is_an_end_or_an_error(data: bytes) -> None:
    for proxy in (HTTP, SOCKS):
        _, end = next(handshake(proxy, "x", 1))
        try:
            assert 0 <= end(data) <= len(data)
        except DialError:
            pass


# SOCKS5.

OK4 = b"\x05\x00\x00" + socks_address(bytes(4), 0)


def test_socks_without_login() -> None:
    said, bound = play(handshake(SOCKS, "example.com", 443), b"\5\0", b"\5\0\0" + socks_address(FOUR, 9))
    assert said == [b"\5\1\0", b"\5\1\0\3\x0bexample.com\1\xbb"]
    assert bound == (FOUR, 9)


@pytest.mark.parametrize(("host", "packed"), [(FOUR, b"\1" + FOUR), (SIX, b"\4" + SIX), ("x", b"\3\1x")])
def test_socks_targets(host: str | bytes, packed: bytes) -> None:
    said, _ = play(handshake(SOCKS, host, 80), b"\5\0", OK4)
    assert said[1] == b"\5\1\0" + packed + b"\0\x50"


@pytest.mark.parametrize("version", [b"\1", b"\5"])
def test_socks_login(version: bytes) -> None:
    proxy = parse_proxy("socks5://p", "u" * 255, "é" * 127)
    said, _ = play(handshake(proxy, "x", 1), b"\5\2", version + b"\0", OK4)
    assert said[:2] == [b"\5\2\0\2", b"\1\xff" + b"u" * 255 + b"\xfe" + "é".encode() * 127]


def test_socks_login_that_is_not_wanted() -> None:
    said, _ = play(handshake(parse_proxy("socks5://p", "a", "b"), "x", 1), b"\5\0", OK4)
    assert len(said) == 2


@pytest.mark.parametrize(
    ("proxy", "replies", "words"),
    [
        (SOCKS, [b"\5\xff"], "give --proxy-user"),
        (SOCKS, [b"\5\2"], "give --proxy-user"),  # not offered
        (parse_proxy("socks5://p", "a", "s3cret"), [b"\5\xff"], "check --proxy-user"),
        (parse_proxy("socks5://p", "a", "s3cret"), [b"\5\2", b"\1\1"], "refused the user"),
    ],
)
def test_socks_login_refused(proxy: Proxy, replies: list[bytes], words: str) -> None:
    with pytest.raises(DialError, match=words) as caught:
        play(handshake(proxy, "x", 1), *replies)
    assert caught.value.proxy_fault
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("code", "denial"),
    [
        (1, Denial.RESET), (2, Denial.RESET), (3, Denial.UNREACHABLE_NET), (4, Denial.UNREACHABLE_HOST),
        (5, Denial.RESET),
        (6, Denial.UNREACHABLE_HOST), (7, Denial.RESET), (8, Denial.RESET), (9, Denial.RESET), (255, Denial.RESET),
    ],
)  # fmt: skip
def test_socks_refusals(code: int, denial: Denial) -> None:
    with pytest.raises(DialError) as caught:
        play(handshake(SOCKS, "x", 1), b"\5\0", bytes((5, code)))
    assert (caught.value.denial, caught.value.code, caught.value.proxy_fault) == (denial, code, False)


@pytest.mark.case("D21")
@pytest.mark.parametrize("length", [0, 1, 255])
def test_a_name_in_a_socks_reply_is_read_over_and_not_looked_up(length: int) -> None:
    reply = b"\5\0\0\3" + bytes((length,)) + b"n" * length + b"\0\7"
    _, bound = play(handshake(SOCKS, "x", 1), b"\5\0", reply)
    assert bound == (b"", 7)


@pytest.mark.parametrize("first", [b"HTTP/1.1 400 Bad", b"\4\0", b"\0"])
def test_what_is_no_socks5_proxy(first: bytes) -> None:
    _, end = next(handshake(SOCKS, "x", 1))
    with pytest.raises(DialError, match="no SOCKS5"):
        end(first)


def test_an_address_type_that_nobody_knows() -> None:
    shake = handshake(SOCKS, "x", 1)
    next(shake)
    _, end = shake.send(b"\5\0")
    with pytest.raises(DialError, match="unknown type 2"):
        end(b"\5\0\0\2\1\1\1\1\0\0")


@given(st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16)), st.integers(0, 65535))
def test_socks_addresses_are_read_as_written(address: bytes, port: int) -> None:
    packed = socks_address(address, port)
    assert read_socks_address(packed + b"more") == (address, port, len(packed))
    assert read_socks_address(packed[:-1])[2] == 0
