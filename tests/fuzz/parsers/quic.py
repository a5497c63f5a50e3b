"""Initials. The first byte chooses: raw datagrams, frames of any bytes in a packet that opens, or pieces of a hello.

Pieces are three bytes each: where, how long, and in which version of the text, so that some overlap with other bytes.
They are held against a plain table of the bytes: a name is told only if all of them came and nobody disagrees.
"""

from __future__ import annotations

from childflow.services.first_flight import MORE, Flight
from childflow.services.quic import UNREADABLE, Initials, read_initials
from tests.services import hellos, quic_client

TEXT = hellos.message(hellos.body([hellos.server_name(b"www.example.test")]))
TEXTS = (TEXT, TEXT.replace(b"www", b"ftp"))
STEP = 4
PIECES_MAX = 40
NAME_AT = TEXT.index(b"www")
VERSIONS = (quic_client.V1, quic_client.V2)


def one(data: bytes) -> None:
    how, data = data[0] if data else 0, data[1:]
    version = VERSIONS[how >> 2 & 1]
    if how & 3 == 0:
        _raw(data, how >> 3)
    elif how & 3 == 1:
        _frames(data, version)
    else:
        _pieces(data, version, 1 + (how >> 3))


def _raw(data: bytes, size: int) -> None:
    """Datagrams of any bytes; only who knows the keys can say a name."""
    reader = Initials()
    for cut in (data, data[:size], data[size:]):
        said = reader.take(cut)
        assert said in (MORE, UNREADABLE) or b"www" not in data
        assert said is not MORE or cut[:1] >= b"\x80"


def _frames(frames: bytes, version: int) -> None:
    packet = quic_client.initial(frames, version=version, fill=0)
    said = read_initials([packet])
    assert said.source in ("more", "quic")
    assert read_initials([packet, packet]) == said
    assert read_initials([packet + packet]) == said
    if said.name is not None:
        assert said.name.encode() in frames.lower()


def _pieces(data: bytes, version: int, together: int) -> None:
    frames, there, disagree = [], {}, False
    for at in range(0, min(len(data), 3 * PIECES_MAX) - 2, 3):
        place, size, which = data[at : at + 3]
        start = place * STEP % len(TEXT)
        piece = TEXTS[which & 1][start : start + size]
        for offset, byte in enumerate(piece, start):
            disagree |= there.setdefault(offset, byte) != byte
        frames.append(quic_client.crypto(start, piece))
    groups = [b"".join(frames[at : at + together]) for at in range(0, len(frames), together)]
    packets = [quic_client.initial(group, n, version=version, fill=0) for n, group in enumerate(groups)]
    _check(read_initials(packets), there, disagree)


def _check(said: Flight, there: dict[int, int], disagree: bool) -> None:
    if disagree:
        assert said.name is None, "a name, though it was said in different words"
    elif len(there) < len(TEXT):
        assert said is MORE
    else:
        name = bytes(there[at] for at in range(NAME_AT, len(TEXT)))  # each letter out of one text or the other
        assert said == Flight("quic", name.decode())


def seeds() -> list[bytes]:
    good = [quic_client.initial(quic_client.crypto(0, TEXT), version=version, fill=300) for version in VERSIONS]
    early = quic_client.early_data()
    raw = [*good, good[0] + good[1], good[0][:60], early, early + good[0], b"\x40" + good[0], b"\xc0" + bytes(20), b""]
    text = quic_client.crypto(0, TEXT)
    frames = [text, b"\1\0\0" + text, b"\2\0\0\1\0\0\0" + text, b"\3\0\0\0\0\0\0\0" + text,
    quic_client.crypto(5, TEXT[5:]) + text,
              b"\x40\0" + text, b"\x1c\0\0\0", text[:30], b"\6\xff\xff\xff\xff\xff\xff\xff\xff\1a", b"",
              quic_client.crypto(0, b"\1\1\0\0")]  # fmt: skip
    pieces = [bytes((n, STEP, 0)) for n in range(len(TEXT) // STEP + 1)]
    orders = [
        pieces,
        pieces[::-1],
        [*pieces[1::2], *pieces[::2]],
        pieces[:-1],
        [b"\0\xff\0", *pieces],
        [b"\0\xff\1", *pieces],
    ]
    return [*(b"\0" + one for one in raw), *(bytes((1 | 4 * n,)) + one for one in frames for n in (0, 1)),
            *(bytes((2 | how,)) + b"".join(order) for order in orders for how in (0, 8, 0xF8, 4)), b""]  # fmt: skip
