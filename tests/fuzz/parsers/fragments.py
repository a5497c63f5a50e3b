"""Reassembly, held against a plain reference.

The input is a list of pieces of few datagrams, three bytes each: which datagram, where, how long, more or not, and a
version of the text, so that pieces overlap with equal and with different bytes; a piece may also be raw bytes. The
reference keeps a plain list and knows one rule: a piece that touches another in any way but being the same spoils the
datagram.
"""

from __future__ import annotations

import struct

from childflow.services import fragments, packets
from childflow.settings import ADDRESSES

REMOTE = {4: bytes((203, 0, 113, 5)), 6: bytes.fromhex("20010db8") + bytes(11) + b"\5"}
LENGTHS = (8, 16, 24, 64, 256, 1480, 8, 7, 1, 15, 0, 65_000, 40, 8, 4096, 32)
STEP = 8
PIECES_MAX = 60
TEXTS = {version: bytes((at * 7 + at // 251 + version) & 0xFF for at in range(70_000)) for version in (0, 8)}


class Plain:
    """One datagram as RFC 8200 4.5 describes it, without a thought for speed."""

    def __init__(self) -> None:
        self.pieces: list[tuple[int, bytes, bool]] = []
        self.spoiled = False

    def add(self, start: int, text: bytes, more: bool) -> bytes | None:
        """The whole payload, once it is there."""
        if self.spoiled or any((s, t) == (start, text) for s, t, _ in self.pieces):
            return None
        end, total = start + len(text), self.total()
        overlap = any(start < s + len(t) and s < end for s, t, _ in self.pieces)
        beyond = total is not None and (not more or end > total)
        cuts = not more and any(s + len(t) > end for s, t, _ in self.pieces)
        if overlap or beyond or cuts:
            self.spoiled = True
            return None
        self.pieces.append((start, text, more))
        return self.whole()

    def total(self) -> int | None:
        return next((s + len(t) for s, t, more in self.pieces if not more), None)

    def whole(self) -> bytes | None:
        joined, at = b"", 0
        for start, text, _ in sorted(self.pieces):
            if start != at:
                return None
            joined, at = joined + text, at + len(text)
        return joined if at == self.total() else None


def one(data: bytes) -> None:
    reassembler = fragments.Reassembler()
    plain: dict[tuple[int, int], Plain] = {}
    now = 1.0
    for at in range(1, min(len(data), 3 * PIECES_MAX), 3):
        which, place, shape = data[at : at + 3].ljust(3, b"\0")
        if which & 0x80:  # as the wire brings it
            reassembler.take(data[at + 1 : at + 100], now)
            plain.clear()
            reassembler = fragments.Reassembler()
            continue
        family, ident = 6 if which & 1 else 4, which >> 1 & 3
        start, text, more = place * STEP, _text(place * STEP, LENGTHS[shape & 15], which & 8), bool(shape & 0x80)
        taken = reassembler.take(_packet(family, ident, start, text, more), now)
        _check_bounds(reassembler)
        _compare(plain, (family, ident), start, text, more, taken)
    assert reassembler.expire(now + 100) >= 0
    assert len(reassembler) == 0
    assert reassembler._bytes == 0


def _compare(
    plain: dict[tuple[int, int], Plain],
    key: tuple[int, int],
    start: int,
    text: bytes,
    more: bool,
    taken: fragments.Taken,
) -> None:
    if not text or (more and len(text) % 8):
        assert taken == fragments.BAD
        return
    if start == 0 and not more:
        assert taken.packet is not None
        assert taken.packet.endswith(text)
        return
    expected = plain.setdefault(key, Plain())
    if start + len(text) + (20 if key[0] == 4 else 0) > 65535:  # IPv6 does not count its header
        if not expected.spoiled and taken.drop is not None:
            expected.spoiled = True
        return
    whole = expected.add(start, text, more)
    if whole is None:
        assert taken.packet is None, "put together too soon"
        assert not expected.spoiled or taken.drop is not None, "an overlap that nobody counted"
        return
    assert taken.packet is not None, "not put together"
    assert taken.packet[20 if key[0] == 4 else 40 :] == whole
    del plain[key]


def _check_bounds(reassembler: fragments.Reassembler) -> None:
    assert reassembler._bytes <= fragments.MAX_BYTES
    assert len(reassembler) <= fragments.MAX_DATAGRAMS


def _text(start: int, size: int, version: int) -> bytes:
    return TEXTS[version][start : start + size]


def _packet(family: int, ident: int, start: int, text: bytes, more: bool) -> bytes:
    text = text[: 65535 - 48]
    if family == 6:
        head = struct.pack("!BBHI", 99, 0, start | more, ident)
        return packets.ip6(44, ADDRESSES.child6, REMOTE[6], head + text)
    packet = packets.ip4(99, ADDRESSES.child4, REMOTE[4], text, ident=ident)
    return packet[:6] + struct.pack("!H", start >> 3 | (0x2000 if more else 0)) + packet[8:]


def seeds() -> list[bytes]:
    whole = bytes((0, 0, 0x80)) + bytes((0, 1, 0x80)) + bytes((0, 2, 0))
    return [
        b"\0" + whole, b"\0" + whole[6:] + whole[:6], b"\0" + whole[:3] * 2 + whole[3:], b"\0\1\0\x80\1\1\x80\1\2\7",
        b"\0\0\0\x81\0\1\x80\0\2\0", b"\0\0\0\x80\x08\0\x80\0\1\0", b"\0\0\2\0\0\4\x80\0\0\x81", b"\0\x80" + bytes(60),
        b"\0\0\xff\x0b\0\xff\x8b", b"\0" + b"".join(bytes((n & 1, 40 - n, 0x80)) for n in range(40)), b"",
        b"\0\x80" + _packet(6, 1, 0, b"\0" * 16, True), b"\0\x80" + _packet(4, 1, 8, b"x" * 16, True),
        b"\0\x80" + packets.ip6(0, ADDRESSES.child6, REMOTE[6], b"\x2c" + bytes(7) + b"\x11\0\0\1\0\0\0\1" + bytes(16)),
    ]  # fmt: skip
