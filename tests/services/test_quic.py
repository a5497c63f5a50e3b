"""The name in a client's first QUIC packets: the RFCs' examples, a real client's, and what no client sends."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from hypothesis import given, settings
from hypothesis import strategies as st

from childflow.services import quic
from childflow.services.first_flight import LIMIT, MORE, Flight
from childflow.services.quic import UNREADABLE, Initials, read_initials

from . import hellos
from .quic_client import ID, PING, V1, V2, crypto, early_data, initial, seal, varint

RAW = b"www.example.test"
NAMED = Flight("quic", RAW.decode())
VERSIONS = pytest.mark.parametrize("version", [V1, V2], ids=["v1", "v2"])


def message(*names: bytes, filling: int = 0) -> bytes:
    """A ClientHello with a key share of `filling` bytes before its name."""
    extensions = [hellos.extension(hellos.KEY_SHARE, bytes(filling)), hellos.server_name(*names or (RAW,))]
    return hellos.message(hellos.body(extensions))


def scattered(text: bytes, size: int) -> list[bytes]:
    """CRYPTO frames of `size` bytes each."""
    return [crypto(at, text[at : at + size]) for at in range(0, len(text), size)]


# -- the RFCs' examples: RFC 9001 A.2, RFC 9369 A.2 --------------------------------------------------------------------

EXAMPLE_FRAMES = bytes.fromhex(
    "060040f1010000ed0303ebf8fa56f12939b9584a3896472ec40bb863cfd3e86804fe3a47f06a2b69484c000004130113020100"
    "00c000000010000e00000b6578616d706c652e636f6dff01000100000a00080006001d0017001800100007000504616c706e00"
    "0500050100000000003300260024001d00209370b2c9caa47fbabaf4559fedba753de171fa71f50f1ce15d43e994ec74d74800"
    "2b0003020304000d0010000e0403050306030203080408050806002d00020101001c00024001003900320408ffffffffffffff"
    "ff05048000ffff07048000ffff0801100104800075300901100f088394c8f03e51570806048000ffff"
).ljust(1162, b"\0")
EXAMPLES = {  # header before it is protected, the packet's beginning, its tag: which stands for all that is between
    V1: ("c300000001088394c8f03e5157080000449e00000002",
         "c000000001088394c8f03e5157080000449e7b9aec34d1b1c98dd7689fb8ec11", "e221af44860018ab0856972e194cd934"),
    V2: ("d36b3343cf088394c8f03e5157080000449e00000002",
         "d76b3343cf088394c8f03e5157080000449ea0c95e82ffe67b6abcdb4298b485", "a18b2faa745b6fe189cf772a9f84cbfc"),
}  # fmt: skip


@VERSIONS
def test_example_of_the_rfc(version):
    header, beginning, tag = (bytes.fromhex(part) for part in EXAMPLES[version])
    packet = seal(version, header, 4, EXAMPLE_FRAMES)
    assert packet.startswith(beginning)
    assert packet.endswith(tag)
    assert len(packet) == 1200
    assert read_initials([packet]) == Flight("quic", "example.com")


# -- a real client -----------------------------------------------------------------------------------------------------


def by_aioquic(name: str | None, version: int, token: bytes = b"", protocols: int = 1) -> list[bytes]:
    configuration = QuicConfiguration(is_client=True, server_name=name, original_version=version, token=token)
    configuration.alpn_protocols = [f"{n:040}" for n in range(protocols)]
    client = QuicConnection(configuration=configuration)
    client.connect(("203.0.113.5", 443), now=0.0)
    return [data for data, _ in client.datagrams_to_send(now=0.0)]


@VERSIONS
def test_client_of_aioquic(version):
    for token in (b"", bytes(100)):
        assert read_initials(by_aioquic("WWW.example.test", version, token)) == NAMED
    assert read_initials(by_aioquic(None, version)) == Flight("quic", None)
    long = by_aioquic("www.example.test", version, protocols=100)
    assert len(long) > 3
    assert read_initials(reversed(long)) == NAMED
    assert read_initials(long[:-1]) is MORE


# -- packets and frames ------------------------------------------------------------------------------------------------


@VERSIONS
@pytest.mark.parametrize("number_bytes", [1, 2, 3, 4])
@pytest.mark.parametrize("ids", [(ID, b""), (b"", b"\7"), (b"\1", bytes(20)), (bytes(range(20)), b"x")])
def test_headers(version, number_bytes, ids):
    frames, (destination, source) = crypto(0, message()), ids
    for token in (b"", b"t", bytes(70)):
        packet = initial(frames, 3, version=version, destination=destination, source=source, token=token,
                         number_bytes=number_bytes)  # fmt: skip
        assert len(packet) == 1200
        assert read_initials([packet]) == NAMED


@pytest.mark.parametrize("numbers", [[0, 127, 250, 257, 300, 290, 420], [5, 4, 3, 2, 1, 0], [128, 100, 256, 140]])
def test_packet_numbers_of_one_byte(numbers):
    """RFC 9000 A.3: the nearest to the one that is expected, above or below."""
    frames = scattered(message(), len(message()) // len(numbers) + 1)
    packets = [initial(frame, number, number_bytes=1) for frame, number in zip(frames, numbers, strict=True)]
    assert read_initials(packets) == NAMED


@VERSIONS
@pytest.mark.parametrize("size", [1, 7, 500])
def test_scattered_and_reordered_as_chrome_does(version, size):
    frames = scattered(message(filling=100), size)
    frames = [*frames[1::2], PING, bytes(3), *frames[::2], PING]
    assert read_initials([initial(b"".join(frames), version=version)]) == NAMED


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("filling", [1500, 4400, 16_000])
def test_hello_over_several_datagrams(filling, order):
    """Post-quantum key shares: no single datagram has the name."""
    frames = scattered(message(filling=filling), 1000)
    datagrams = [initial(frame + PING, number) for number, frame in enumerate(frames)][::order]
    reader = Initials()
    for datagram in datagrams[:-1]:
        assert reader.take(datagram) is MORE
        assert reader.take(datagram) is MORE  # sent twice
    assert reader.take(datagrams[-1]) == NAMED


def test_coalesced_packets():
    one, two = scattered(message(), 60)[:1], scattered(message(), 60)[1:]
    first, second = initial(b"".join(two), 0, fill=0), initial(b"".join(one), 1, fill=0)
    for datagram in (
        first + second,
        first + early_data() + second,
        first + second + bytes(900),
        first + early_data() + second + b"\x40x",
    ):
        assert read_initials([datagram]) == NAMED
    assert read_initials([first, early_data(), second]) == NAMED
    assert read_initials([early_data()]) is MORE


def test_what_is_said_twice():
    text = message()
    assert read_initials([initial(crypto(0, text[:50]) + crypto(20, text[20:]))]) == NAMED
    assert read_initials([initial(crypto(20, text[20:]) + crypto(0, text[:50]))]) == NAMED
    assert read_initials([initial(crypto(20, text[20:40]) + crypto(20, text[20:]) + crypto(0, text[:20]))]) == NAMED
    assert read_initials([initial(crypto(9, b"") + crypto(0, text)), initial(crypto(0, text[:3]), 1)]) == NAMED
    other = text.replace(b"www", b"ftp")
    for frames in (
        crypto(0, text[:150]) + crypto(0, other),
        crypto(20, text[20:]) + crypto(20, other[20:]) + crypto(0, text[:20]),
    ):
        assert read_initials([initial(frames)]) is UNREADABLE
    assert read_initials([initial(crypto(0, text)), initial(crypto(0, other), 1)]) is UNREADABLE


def test_acknowledgements_are_passed_over():
    ack = b"\2" + varint(9) + varint(70) + varint(2) + varint(0) + varint(1) * 4
    for frames in (ack, b"\3" + ack[1:] + varint(20_000) * 3):
        assert read_initials([initial(frames + crypto(0, message()))]) == NAMED


def test_two_connections_have_to_agree():
    other = initial(crypto(0, message(b"b.test")), destination=b"another one")
    same = initial(crypto(0, message()), destination=b"another one")
    cut = initial(crypto(0, message()[:40]), destination=b"another one")
    mine = initial(crypto(0, message()))
    assert read_initials([mine, same]) == NAMED
    assert read_initials([mine, other]) == Flight("quic", None, "it names several hosts")
    assert read_initials([mine, cut]) is MORE
    assert read_initials([cut, mine]) is MORE
    many = [initial(crypto(0, message()), destination=bytes((n,)) * 8) for n in range(quic.CONNECTIONS_MAX + 1)]
    assert read_initials(many[:-1]) == NAMED
    assert read_initials(many) is UNREADABLE


def test_hello_in_doubt():
    assert read_initials([initial(crypto(0, message(b"a.test", b"b.test")))]) == Flight(
        "quic", None, "it names several hosts"
    )
    assert read_initials([initial(crypto(0, message(b"a b")))]).doubt
    assert (
        read_initials([initial(crypto(0, hellos.message(b"x", kind=2)))]).doubt == "its first message is no ClientHello"
    )
    assert read_initials([initial(crypto(0, b"\1\xff\xff\xff"))]).doubt == "its ClientHello is longer than 64 KiB"


GOOD = initial(crypto(0, message()))
VERSION0 = GOOD[:1] + bytes(4) + GOOD[5:]
GREASED = GOOD[:1] + bytes.fromhex("1a2a3a4a") + GOOD[5:]
UNREADABLES = {
    "nothing": b"", "short header": b"\x40" + bytes(40), "dtls": bytes.fromhex("16fefd0000000000000000"),
    "stun": bytes.fromhex("000100002112a442"),
    "version negotiation": VERSION0, "greased version": GREASED,
    "draft 29": GOOD[:1] + bytes.fromhex("ff00001d") + GOOD[5:], "cut": GOOD[:-1],
    "cut in its header": GOOD[:15], "changed": GOOD[:-1] + bytes((GOOD[-1] ^ 1,)),
    "wrong id": GOOD[:6] + b"x" + GOOD[7:], "long id": GOOD[:5] + b"\x15" + bytes(30),
    "retry": b"\xf0" + GOOD[1:], "retry of v2": b"\xc0" + V2.to_bytes(4, "big") + GOOD[5:],
    "v1 packet as v2": GOOD[:1] + V2.to_bytes(4, "big") + GOOD[5:],
    "no sample": GOOD[:16] + varint(10, 2) + GOOD[18:28], "unknown frame": initial(b"\x1e"),
    "stream frame": initial(b"\x08\0x"), "close": initial(b"\x1c\0\0\0"),
    "cut frame": initial(b"\6\0\x44\xd0"), "cut ack": initial(b"\2\0\0\xff\xff\xff\xff\xff\xff\xff\xff", fill=0),
    "far away": initial(crypto(LIMIT, b"x")),
    "too many pieces": initial(b"".join(crypto(2 * n + 1, b"x") for n in range(quic.PIECES_MAX + 1)), fill=1500),
    "second one broken": GOOD + GREASED,
}  # fmt: skip


@pytest.mark.parametrize("datagram", UNREADABLES.values(), ids=UNREADABLES)
def test_unreadable(datagram):
    assert read_initials([datagram]) is UNREADABLE
    reader = Initials()
    assert reader.take(datagram) is UNREADABLE
    assert reader.take(GOOD) is UNREADABLE
    assert reader.answer() is UNREADABLE


def test_padding_of_a_large_datagram_costs_little():
    """65,000 bytes of padding and pings: read byte by byte, each once."""
    assert read_initials([initial(crypto(0, message()) + b"\1\0" * 32_000, fill=65_000)]) == NAMED


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_split_in_any_order(draw):
    text, version = message(filling=draw.draw(st.integers(0, 3000))), draw.draw(st.sampled_from((V1, V2)))
    cuts = sorted({0, len(text), *draw.draw(st.lists(st.integers(0, len(text)), max_size=12))})
    frames = [crypto(a, text[a:b]) for a, b in pairwise(cuts)]
    frames = draw.draw(st.permutations(frames))
    packets = [initial(PING + frame, number, version=version, fill=100) for number, frame in enumerate(frames)]
    assert read_initials(packets) == NAMED
    if len(packets) > 1:
        assert read_initials(packets[:-1]) is MORE


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([GOOD, *UNREADABLES.values()]), st.data())
def test_mutations_never_raise(datagram, draw):
    mutated = bytearray(datagram)
    for _ in range(draw.draw(st.integers(1, 3))):
        at = draw.draw(st.integers(0, len(mutated)))
        mutated[at : at + draw.draw(st.integers(0, 2))] = draw.draw(st.binary(max_size=3))
    assert read_initials([bytes(mutated)]) in (MORE, UNREADABLE, NAMED)


def test_cryptography_is_imported_with_the_first_initial():
    script = (
        "import sys; from childflow.services import quic; print('cryptography' in sys.modules)\n"
        "quic.read_initials([b'x']); print('cryptography' in sys.modules)\n"
        f"print(quic.read_initials([bytes.fromhex('{GOOD.hex()}')]).name, 'cryptography' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["False", "False", "www.example.test", "True"]
