"""The name in a first flight: TLS, HTTP, neither; whole and in pieces; odd and hostile."""

from __future__ import annotations

import socket
import ssl
import subprocess
from subprocess import DEVNULL

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from childflow.services.first_flight import LIMIT, MORE, UNKNOWN, FirstFlight, Flight, plain_name, read_flight

from . import hellos
from .hellos import KEY_SHARE, block, body, by_python, extension, hello, message, records, server_name

NAME = "www.example.test"
RAW = NAME.encode()
SNI = Flight("sni", NAME)


def in_pieces(data: bytes, cuts: list[int]) -> Flight:
    """What a reader says that is fed up to each of `cuts` and then all; it must not change its mind."""
    reader, said = FirstFlight(), MORE
    for cut in [*sorted(cuts), len(data)]:
        before, said = said, reader.feed(data[:cut])
        assert before in (MORE, said)
    return said


# -- TLS ---------------------------------------------------------------------------------------------------------------

TLS_VERSIONS = [None, ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize("version", TLS_VERSIONS)
def test_hello_of_python(version):
    assert read_flight(by_python(NAME, version=version)) == SNI
    assert read_flight(by_python(None, version=version)) == Flight("sni", None)


@pytest.mark.parametrize("version", ["tls1", "tls1_1", "tls1_2", "tls1_3"])
def test_hello_of_openssl(version):
    command = ["openssl", "s_client", "-connect", "127.0.0.1:PORT", f"-{version}", "-cipher", "ALL:@SECLEVEL=0"]
    for names, name in ((["-servername", NAME], NAME), (["-noservername"], None)):
        assert read_flight(_sent_by([*command, *names])) == Flight("sni", name)


CURL = {
    "https://WWW.example.test./": SNI, "http://www.example.test:81/path": Flight("host", NAME),
    "--proxy http://127.0.0.1:PORT --noproxy x http://www.example.test": Flight("host", NAME),
    "--proxytunnel --proxy http://127.0.0.1:PORT --noproxy x http://www.example.test": Flight("host", NAME),
    "--http2 http://www.example.test": Flight("host", NAME),
    "--http2-prior-knowledge http://www.example.test": Flight("host", None, "it is HTTP/2 without TLS"),
}  # fmt: skip


@pytest.mark.parametrize("options", CURL)
def test_first_flight_of_curl(options):
    here = [] if "--proxy" in options else ["--connect-to", "::127.0.0.1:PORT"]
    command = ["curl", "-s", "-k", "--max-time", "20", *here, *options.split()]
    assert read_flight(_sent_by(command)) == CURL[options]


def _sent_by(command: list[str]) -> bytes:
    """The first bytes that a command sends to a server at port PORT of 127.0.0.1, which then hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        argv = [word.replace("PORT", port) for word in command]
        with subprocess.Popen(argv, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL) as client:
            server.settimeout(20)
            peer, _ = server.accept()
            with peer:
                peer.settimeout(20)
                sent = peer.recv(65536)
            client.wait(20)
    return sent


@pytest.mark.case("D17")
@pytest.mark.parametrize("size", [1, 2, 5, 100, 16384])
@pytest.mark.parametrize("filling", [0, 1200, 4400, 30_000])
def test_hello_split_into_records_and_segments(size, filling):
    """Key shares of 4 KiB and more before the name, records of one byte, segments of one byte."""
    data = hello(RAW, before=[extension(KEY_SHARE, bytes(filling))], size=size)
    if len(data) > LIMIT:
        data = hello(RAW, before=[extension(KEY_SHARE, bytes(9000))], size=size)
    assert read_flight(data) == SNI
    assert read_flight(data[:-1]) is MORE
    assert in_pieces(data, list(range(len(data)))) == SNI


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (b"Example.TEST", "example.test"), (b"example.test.", "example.test"), (b"a", "a"),
        (b"a_b-c.test", "a_b-c.test"),
        (b"203.0.113.5", "203.0.113.5"), (b"xn--bcher-kva.test", "xn--bcher-kva.test"),
        (b"x" * 63 + b".test", "x" * 63 + ".test"),
    ],
)  # fmt: skip
def test_server_name(raw, name):
    assert read_flight(hello(raw)) == Flight("sni", name)


ODD_NAMES = [
    b"", b".", b"..", b"a..b", b".a", b"a..", b"b\xc3\xbccher.test", b"a\0.test", b"a b", b"a\t", b"[::1]",
    b"2001:db8::1",
    b"a/b", b"a:443", b"*.test", b"x" * 64, b"x" * 64 + b".test", b".".join([b"x" * 63] * 4), b"x" * 20_000, b"\xff",
    b"%61",
]  # fmt: skip


@pytest.mark.parametrize("raw", ODD_NAMES)
def test_name_that_no_host_has_is_in_doubt(raw):
    said = read_flight(hello(raw))
    assert (said.source, said.name) == ("sni", None)
    assert "malformed" in said.doubt
    assert read_flight(b"GET / HTTP/1.1\r\nHost: " + raw + b"x/\r\n\r\n").doubt


def test_one_name_is_told_or_none():
    several = [
        hello(b"a.test", b"b.test"), hello(b"a.test", after=[server_name(b"b.test")]),
        hello(b"a.test", before=[server_name(b"b.test")]),
    ]  # fmt: skip
    for data in several:
        assert read_flight(data) == Flight("sni", None, "it names several hosts")
    for data in (hello(RAW, RAW.upper()), hello(RAW, after=[server_name(RAW + b".")])):
        assert read_flight(data) == SNI
    other = extension(0, block(2, b"\7" + block(2, b"x\0y") + b"\0" + block(2, RAW)))
    assert read_flight(records(message(body([other])))) == SNI
    assert read_flight(records(message(body([server_name(RAW, kind=7)])))) == Flight("sni", None)


def test_outer_name_of_an_encrypted_hello():
    assert read_flight(hello(RAW, after=[extension(hellos.ECH, bytes(200))])) == Flight("sni", NAME, ech=True)


GOOD = body([server_name(RAW), extension(hellos.PADDING, bytes(30))])
MALFORMED = [
    GOOD[:-1], GOOD + b"\0", GOOD[:34] + b"\xff" + GOOD[35:], body([b"\0"]), body([extension(0, b"")]),
    body([extension(0, b"\0\0")]),
    body([extension(0, b"\0\5\0\0\1a")]), body([extension(0, b"\0\4\0\0\1ab")]), body([extension(0, b"\0\4\0\0\2a")]),
    b"", b"\3", body(None)[:-1], GOOD[:40], body([server_name(RAW)[:-1] + b"", b"\0\0"]),
]  # fmt: skip


@pytest.mark.parametrize("data", MALFORMED)
def test_malformed_hello_is_in_doubt(data):
    said = read_flight(records(message(data)))
    assert said.source == "sni"
    assert "malformed" in said.doubt


def test_other_records_around_the_hello():
    warning, change, beat = records(b"\1\0", kind=21), records(b"\1", kind=20), records(b"\1\0\0", kind=24)
    cut = message(GOOD)
    split = records(cut[:9]) + warning + records(cut[9:])
    for data in (warning + hello(RAW), change + hello(RAW), beat + hello(RAW), b"\x16\3\1\0\0" + hello(RAW), split):
        assert read_flight(data) == SNI
        assert in_pieces(data, list(range(len(data)))) == SNI
    assert read_flight(records(cut[:9]) + records(b"x", kind=23)).doubt
    assert read_flight(records(message(GOOD, kind=2))).doubt
    assert read_flight(records(b"\0\0\0\0" + cut)).doubt
    assert read_flight(hello(RAW) + b"anything") == SNI


@pytest.mark.parametrize("version", [0x0300, 0x0301, 0x0303, 0x0304, 0x03FF, 0x0200, 0x7F00])
def test_version_of_the_record_proves_nothing(version):
    assert read_flight(records(message(GOOD), version=version)) == SNI


@pytest.mark.parametrize("version", [None, 0x0300, 0x0301, 0x0303])
def test_version_of_the_hello_proves_nothing(version):
    assert read_flight(records(message(body([server_name(RAW)], version=version or 0x0002)))) == SNI
    assert read_flight(records(message(body(None, version=version or 0x0002, session=b"")))) == Flight("sni", None)


def test_hello_that_is_too_long():
    announced = records(b"\1" + (LIMIT + 1).to_bytes(3, "big") + bytes(20))
    assert read_flight(announced).doubt == "its ClientHello is longer than 64 KiB"
    whole = records(message(body([server_name(RAW), *(extension(hellos.PADDING, bytes(16_000)) for _ in range(4))])))
    assert len(whole) < LIMIT
    assert read_flight(whole) == SNI
    whole = hello(RAW, before=[extension(KEY_SHARE, bytes(20_000))], size=1)
    assert in_pieces(whole[:LIMIT], [LIMIT - 1]).doubt == "its first flight is longer than 64 KiB"
    assert read_flight(whole[: LIMIT - 1]) is MORE


def test_end_within_a_hello_is_in_doubt():
    data = hello(RAW)
    for cut in range(1, len(data)):
        assert read_flight(data[:cut]) is MORE
        assert read_flight(data[:cut], ended=True) == Flight("sni", None, "it ends within its ClientHello")
    assert read_flight(data, ended=True) == SNI


# -- HTTP --------------------------------------------------------------------------------------------------------------

HOST = Flight("host", NAME)
HTTP = {
    "GET / HTTP/1.1\r\nHost: www.example.test\r\n\r\n": NAME,
    "GET / HTTP/1.1\r\nhOsT:www.EXAMPLE.test.:8080 \t\r\nA: b\r\n\r\n": NAME,
    "PRI * HTTP/1.1\r\nHost: a.test\r\n\r\n": "a.test",
    "M-SEARCH * HTTP/1.1\r\nHost: a.test\r\n\r\nbody": "a.test",
    "get / http/1.1\nHost : a.test\n\n": "a.test",
    "\r\n\n \t\r\nGET\t/\tHTTP/1.1\r\nHost: a.test\r\n\r\n": "a.test",
    "GET / HTTP/1.0\r\n\r\n": None,
    "GET / HTTP/1.0\r\nHost:\r\nHost: \r\n\r\n": None,
    "GET / HTTP/1.1\r\nX-Host: a.test\r\nHos: b.test\r\n\r\n": None,
    "GET / HTTP/1.1\r\nHost: a.test\r\nhost: A.test:80\r\n\r\n": "a.test",
    "GET / HTTP/1.1\r\nA: b\r\n c: d\r\nHost: a.test\r\n\r\n": "a.test",
    "GET http://a.test:80/x?y=http://b.test HTTP/1.1\r\nHost: a.test\r\n\r\n": "a.test",
    "GET http://a.test?q HTTP/1.1\r\n\r\n": "a.test",
    "GET HTTPS://[2001:DB8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]\r\n\r\n": "2001:db8::1",
    "GET /http://b.test HTTP/1.1\r\nHost: a.test\r\n\r\n": "a.test",
    "GET /two words HTTP/1.1\r\nHost: a.test\r\n\r\n": "a.test",
    "CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n": "a.test",
    "connect [::1]:22 HTTP/1.0\r\n\r\n": "::1",
    "OPTIONS * HTTP/1.1\r\nHost: 203.0.113.5:80\r\n\r\n": "203.0.113.5",
    "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAM\r\n\r\n": "a.test",
}  # fmt: skip


@pytest.mark.parametrize("request_text", HTTP)
def test_request(request_text):
    data = request_text.encode()
    assert read_flight(data) == Flight("host", HTTP[request_text])
    assert in_pieces(data, list(range(len(data)))) == Flight("host", HTTP[request_text])
    assert read_flight(data + b"\x16\3\1 Host: other.test") == Flight("host", HTTP[request_text])


DOUBTFUL = [
    "Host: a.test\r\nHost: b.test", "Host: a.test\r\nHost:", "Host: a.test\r\n b.test", "Host: a.test\r\n\t",
    " Host: b.test\r\nHost: a.test",
    "A: b\r\n Host: b.test\r\nHost: a.test", "A: b\rHost: b.test", "Host: a.test\r\nHost\t: b.test",
    "Host: a.test, b.test",
    "Host: a.test b.test", "Host: a.test@b.test", "Host: a.test:80:80", "Host: a.test:x", "Host: a.test:123456",
    "Host: [::1", "Host: [::1]x",
    "Host: []", "Host: [a.test]", "Host: :80", "Host: a\0.test", "Host: http://a.test",
    "Host: a.test\r\nA: b\n\nHost: b.test", "\nHost: a.test",
    "Host: a%2etest",
]  # fmt: skip


@pytest.mark.case("D17")
@pytest.mark.parametrize("fields", DOUBTFUL)
def test_fields_that_servers_read_differently(fields):
    said = read_flight(b"GET / HTTP/1.1\r\n" + fields.encode() + b"\r\n\r\n")
    assert (said.source, said.name) == ("host", None)
    assert said.doubt


@pytest.mark.parametrize(
    "line",
    [
        "GET http://b.test/ HTTP/1.1", "GET h?tp://a.test/ HTTP/1.1", "GET a.test",
        "GET http://a.test@b.test/ HTTP/1.1", "GET http:///x HTTP/1.1",
        "CONNECT b.test:443 HTTP/1.1",
        "GET http://b.test /x HTTP/1.1", "GET http://b.test\\@a.test/ HTTP/1.1", "CONNECT :443 HTTP/1.1",
        "CONNECT a HTTP/1.1 HTTP/1.1",
        "GET /", "get / ", "GET http://a.test/", "GET /x y", "PRI * HTTP/2.0",
    ],
)  # fmt: skip
def test_request_line_that_does_not_agree_with_its_host(line):
    said = read_flight(line.encode() + b"\r\nHost: a.test\r\n\r\n")
    assert (said.source, said.name) == ("host", None)
    assert said.doubt


@pytest.mark.parametrize("data",
[b"", b"\r\n", b"G", b"GET", b"GET ", b"GET /", b"GET /\0 HTTP/1.1", b"GET / HTTP/1.1\r\nHost: a.test\r\n",
                                  b"GET / HTTP/1.1\r\nHost: a.test\r\n\r", b"SSH-2.0-x", b"0032git",
                                  b"PRI * HTTP/2.0"])  # fmt: skip
def test_beginning_of_a_request(data):
    assert read_flight(data) is MORE


def test_request_that_never_ends():
    long = b"GET /" + b"x" * LIMIT
    assert in_pieces(long[: LIMIT - 1], [5, 100]) is MORE
    assert in_pieces(long, [5, 100]) == Flight("host", None, "its first flight is longer than 64 KiB")
    fits = b"GET /" + b"x" * (LIMIT - 60) + b" HTTP/1.1\r\nHost: www.example.test\r\n\r\n"
    assert len(fits) < LIMIT
    assert read_flight(fits) == HOST


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", UNKNOWN), (b"\r\n", UNKNOWN), (b"hello", UNKNOWN), (b"GET / HTTP/1.1\r\nHost: www.example.test", HOST),
        (b"GET / HTTP/1.1\nHost: www.example.test\n", HOST), (b"GET / HTTP/1.0", Flight("host", None)),
        (b"GET http://www.example.test/ HTTP/1.0", HOST),
        (b"GET /", Flight("host", None, "its request has no HTTP version")),
    ],
)  # fmt: skip
def test_request_that_ends_with_the_connection(data, said):
    assert read_flight(data) is MORE
    assert read_flight(data, ended=True) == said


@pytest.mark.case("D17")
@pytest.mark.parametrize(
    "header", [b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", b"PROXY UNKNOWN\r\n", b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"]
)
def test_what_stands_behind_a_proxy_header_is_in_doubt(header):
    """A server that takes one reads a hello or a request behind it."""
    for data in (header, header + hello(b"a.test")):
        assert "PROXY" in in_pieces(data, list(range(1, len(data)))).doubt
        assert all(read_flight(data[:size]).source in ("more", "sni") for size in range(len(header) + 1))


# -- neither -----------------------------------------------------------------------------------------------------------

OTHERS = {
    "nats": b'CONNECT {"url":"nats://a.test"}\r\n', "stomp": b"CONNECT\nhost:a.test\n",
    "ssh": b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", "smtp": b"EHLO me.test\r\n", "redis": b"*1\r\n$4\r\nPING\r\n",
    "inline": b"PING\r\n",
    "postgres": bytes.fromhex("0000000804d2162f"), "mysql": bytes.fromhex("20000001"), "memcached": b"get foo\r\n",
    "irc": b"NICK me\r\n",
    "git": b"0032git-upload-pack /project.git\0host=a.test\0", "xmpp": b"<?xml version='1.0'?>", "json": b'{"id": 1}',
    "rtsp": b"OPTIONS rtsp://a.test/x RTSP/1.0\r\n",
    "sip": b"REGISTER sip:a.test SIP/2.0\r\n", "icecast": b"SOURCE /live ICE/1.0\r\n", "mqtt": b"\x10\x10",
    "socks4": b"\4\1", "socks5": b"\5\1", "sslv2": b"\x80\x2e\1\0\2",
    "amqp": b"AMQP\0\0\x09\1", "bittorrent": b"\x13BitTorrent protocol",
    "mongo": bytes.fromhex("3a000000"),
    "gopher": b"/", "imap": b"a001 LOGIN x y\r\n", "beanstalk": b"put 0 0 60 5\r\n", "ldap": b"0\x0c\2\1\1",
    "long ldap": b"0\x20\2\1\1", "22 bytes": bytes.fromhex("160000000007"), "record 0": bytes.fromhex("1600000000"),
    "21 bytes": bytes.fromhex("1500000007"), "20 bytes": b"\x14\0", "24 bytes": b"\x18\0", "data": b"\x17\3\3\0\1x",
    "stats": b"a.b:1|c\n", "graphite": b"a.b.c 3.2 1234567\n",
}  # fmt: skip


@pytest.mark.parametrize("protocol", OTHERS)
def test_other_protocols_are_known_to_be_unknown_at_once(protocol):
    data = OTHERS[protocol]
    assert read_flight(data) == UNKNOWN
    assert in_pieces(data, list(range(len(data)))) == UNKNOWN


# -- any bytes ---------------------------------------------------------------------------------------------------------

FLIGHTS = [hello(RAW), hello(RAW, size=3), hello(b"a.test", b"b.test"), by_python(NAME),
*(text.encode() for text in HTTP),
           *(b"GET / HTTP/1.1\r\n" + text.encode() + b"\r\n\r\n" for text in DOUBTFUL), *OTHERS.values()]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(FLIGHTS), st.data())
def test_mutations_split_anyhow_say_the_same(data, draw):
    mutated = bytearray(data)
    for _ in range(draw.draw(st.integers(0, 4))):
        at = draw.draw(st.integers(0, len(mutated)))
        mutated[at : at + draw.draw(st.integers(0, 2))] = draw.draw(st.binary(max_size=3))
    whole = bytes(mutated)
    cuts = draw.draw(st.lists(st.integers(0, len(whole)), max_size=6))
    assert in_pieces(whole, cuts) == read_flight(whole)
    assert read_flight(whole, ended=True) is not MORE
    if (name := read_flight(whole).name) is not None and ":" not in name:
        assert plain_name(name.encode()) == name


class Counted(bytes):
    """Counts the bytes that are cut out of it or searched."""

    work = 0

    def __getitem__(self, key):
        got = super().__getitem__(key)
        Counted.work += len(got) if isinstance(got, bytes) else 1
        return got

    def find(self, what, start=0):
        Counted.work += len(self) - start
        return super().find(what, start)


LONG = {
    "one record": hello(RAW, before=[extension(KEY_SHARE, bytes(16_000))], size=LIMIT),
    "records of one byte": hello(b"x" * 4000, size=1),
    "a target": b"GET /" + b"x" * 16_000, "a method": b"x" * 16_000, "blank lines": b"\n" * 16_000,
    "binary": b"0x " + b"x" * 16_000,
    "fields": b"GET / HTTP/1.1\r\n" + b"a:b\r\n" * 3000, "a field": b"GET / HTTP/1.1\r\na:" + b"b" * 16_000,
    "alerts": records(b"\1\0", kind=21) * 2000,
}  # fmt: skip


@pytest.mark.parametrize("data", LONG.values(), ids=LONG)
def test_work_for_segments_of_one_byte_is_linear(data):
    reader, Counted.work = FirstFlight(), 0
    for at in range(len(data)):
        reader.feed(Counted(data[:at]))
    assert Counted.work < 20 * len(data)
