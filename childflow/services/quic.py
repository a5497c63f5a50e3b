"""QUIC: which name does a client's first flight ask for? Datagrams in, answer out, no I/O.

A client's Initial packets are encrypted with keys that anybody can compute from the connection id in them (RFC 9001
5.2; RFC 9369 for version 2), so that whoever reads them has shown that he speaks QUIC, and nothing else. `Initials` is
given one datagram after the other, takes its packets apart, opens the Initials, puts their CRYPTO frames together in
whatever order and pieces they come, and reads the ClientHello (`first_flight.py`).

What can't be read is UNREADABLE: another version, a packet that does not open, frames that a client's Initial may not
have, no QUIC at all. It is refused, and clients fall back to TCP.

Invariants: never raises; a bounded number of connections, of pieces and of bytes is kept; `cryptography` (some 10 ms)
            is imported with the first Initial and not before.
Not here:   Retry, the answers, later packets: nothing has reached a server yet, so the keys are the first ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from hmac import digest
from typing import NamedTuple

from childflow.services.first_flight import LIMIT, MORE, Cursor, Flight, Malformed, agreed, read_message

UNREADABLE = Flight("quic", None, "its QUIC packets can't be read")
CONNECTIONS_MAX = 4  # begun in one flow before its verdict; clients begin one
PIECES_MAX = 256  # CRYPTO frames of one connection that wait for one before them; Chrome sends some ten

_ID_BYTES_MAX = 20  # RFC 9000 17.2
_TAG_BYTES = 16
_SAMPLE_BYTES = 16

_PADDING, _PING, _ACK, _ACK_ECN, _CRYPTO = 0, 1, 2, 3, 6


class Version(NamedTuple):
    """What differs between versions: RFC 9001 5.2 and 5.1, RFC 9000 17.2; RFC 9369 3."""

    salt: bytes
    prefix: bytes  # of the labels
    initial: int  # the type bits of an Initial


VERSIONS = {
    1: Version(bytes.fromhex("38762cf7f55934b34d179ae6a4c80cadccbb7f0a"), b"quic", 0),
    0x6B3343CF: Version(bytes.fromhex("0dede3def700a6db819381be6e269dcbf9bd2ed9"), b"quicv2", 1),
}


# -- keys (RFC 9001 5) ------------------------------------------------------------------------------------------------


def _expand(secret: bytes, label: bytes, size: int) -> bytes:
    """HKDF-Expand-Label (RFC 8446 7.1) for `size` up to 32 bytes, without a context."""
    label = b"tls13 " + label
    info = size.to_bytes(2, "big") + bytes((len(label),)) + label + b"\0"
    return digest(secret, info + b"\1", sha256)[:size]


class Keys:
    """A client's Initial keys. Imports `cryptography`."""

    def __init__(self, version: Version, destination: bytes) -> None:
        from cryptography.hazmat.primitives.ciphers import Cipher
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        from cryptography.hazmat.primitives.ciphers.algorithms import AES
        from cryptography.hazmat.primitives.ciphers.modes import ECB

        secret = _expand(digest(version.salt, destination, sha256), b"client in", 32)
        self._packet = AESGCM(_expand(secret, version.prefix + b" key", 16))
        self._iv = int.from_bytes(_expand(secret, version.prefix + b" iv", 12), "big")
        self._header = Cipher(AES(_expand(secret, version.prefix + b" hp", 16)), ECB()).encryptor()

    def mask(self, sample: bytes) -> bytes:
        return self._header.update(sample)

    def open(self, number: int, header: bytes, sealed: bytes) -> bytes | None:
        """The payload of packet `number`, or None when it is not what was sealed."""
        from cryptography.exceptions import InvalidTag

        try:
            return self._packet.decrypt((self._iv ^ number).to_bytes(12, "big"), sealed, header)
        except InvalidTag:
            return None


# -- packets (RFC 9000 17.2) ------------------------------------------------------------------------------------------


class Packet(NamedTuple):
    """A packet with a long header of a known version: all its bytes, and where its packet number begins."""

    version: Version
    destination: bytes
    raw: bytes
    number_at: int

    @property
    def is_initial(self) -> bool:
        return self.raw[0] >> 4 & 3 == self.version.initial


def _varint(data: Cursor) -> int:
    """RFC 9000 16."""
    first = data.number(1)
    more = (1 << (first >> 6)) - 1
    return (first & 0x3F) << 8 * more | data.number(more)


def _id(data: Cursor) -> bytes:
    size = data.number(1)
    if size > _ID_BYTES_MAX:
        raise Malformed("a connection id is too long")
    return data.take(size)


def read_packet(datagram: bytes) -> Packet:
    """The packet at the beginning of `datagram`. Malformed where it is of another kind, or none."""
    data = Cursor(datagram)
    first, number = data.number(1), data.number(4)
    version = VERSIONS.get(number)
    if not first & 0x80 or version is None:
        raise Malformed("no long header of a known version")
    kind = first >> 4 & 3
    destination, _ = _id(data), _id(data)
    if kind == version.initial:
        data.take(_varint(data))  # token
    elif kind == (version.initial + 3) & 3:
        raise Malformed("a Retry, which clients don't send")
    size = _varint(data)
    number_at = data.at
    data.take(size)
    return Packet(version, destination, datagram[: data.at], number_at)


# -- one connection ---------------------------------------------------------------------------------------------------


class Connection:
    """The Initials of one connection, and the beginning of their CRYPTO stream as far as it is whole."""

    def __init__(self, version: Version, destination: bytes) -> None:
        self._keys = Keys(version, destination)
        self._largest = -1  # packet number
        self._text = bytearray()
        self._waiting: dict[int, bytes] = {}  # pieces beyond a gap, by their offset

    def take(self, packet: Packet) -> None:
        """Read an Initial. Malformed if it does not open or has what does not belong there."""
        self._take_frames(Cursor(self._open(packet)))
        self._join()

    def answer(self) -> Flight:
        return read_message(self._text, "quic")

    def _open(self, packet: Packet) -> bytes:
        """RFC 9001 5.4: the header tells the number's length, and is part of what is authenticated."""
        raw, at = bytearray(packet.raw), packet.number_at
        sample = packet.raw[at + 4 : at + 4 + _SAMPLE_BYTES]
        if len(sample) < _SAMPLE_BYTES:
            raise Malformed("a packet is too short")
        mask = self._keys.mask(sample)
        raw[0] ^= mask[0] & 0x0F
        end = at + (raw[0] & 3) + 1
        for index in range(at, end):
            raw[index] ^= mask[1 + index - at]
        number = self._number(int.from_bytes(raw[at:end], "big"), 8 * (end - at))
        payload = self._keys.open(number, bytes(raw[:end]), packet.raw[end:])
        if payload is None:
            raise Malformed("a packet does not open")
        self._largest = max(self._largest, number)
        return payload

    def _number(self, low: int, bits: int) -> int:
        """The whole packet number, of which `low` is what was sent (RFC 9000 A.3)."""
        expected, window = self._largest + 1, 1 << bits
        number = expected & -window | low
        if number <= expected - window // 2 and number < (1 << 62) - window:
            return number + window
        return number - window if number > expected + window // 2 and number >= window else number

    def _take_frames(self, payload: Cursor) -> None:
        """RFC 9000 12.4: what an Initial may have, less the end of a connection that has hardly begun."""
        while payload.skip(b"\0"):
            kind = _varint(payload)
            if kind == _CRYPTO:
                self._take_piece(_varint(payload), payload.take(_varint(payload)))
            elif kind in (_ACK, _ACK_ECN):
                _skip_ack(payload, kind)
            elif kind not in (_PADDING, _PING):  # padding in more bytes than it needs
                raise Malformed("a frame that no Initial has")

    def _take_piece(self, offset: int, piece: bytes) -> None:
        if offset + len(piece) > LIMIT:
            raise Malformed("its ClientHello is longer than 64 KiB")
        other = self._waiting.get(offset, b"")
        if not (piece.startswith(other) or other.startswith(piece)):
            raise Malformed("it says one thing twice in different words")
        self._waiting[offset] = max(piece, other, key=len)
        if len(self._waiting) > PIECES_MAX:
            raise Malformed("too many pieces")

    def _join(self) -> None:
        """Move to the text what follows it without a gap. What is there twice has to be the same."""
        for offset in sorted(self._waiting):
            have = len(self._text)
            if offset > have:
                return
            piece = self._waiting.pop(offset)
            if self._text[offset : offset + len(piece)] != piece[: have - offset]:
                raise Malformed("it says one thing twice in different words")
            self._text += piece[have - offset :]


def _skip_ack(payload: Cursor, kind: int) -> None:
    """RFC 9000 19.3."""
    for _ in range(2):
        _varint(payload)
    ranges = _varint(payload)
    for _ in range(1 + 2 * ranges + (3 if kind == _ACK_ECN else 0)):
        _varint(payload)


# -- the reader -------------------------------------------------------------------------------------------------------


class Initials:
    """Reads the datagrams that a child sends to one address and port, until the name is known."""

    def __init__(self) -> None:
        self._connections: dict[tuple[Version, bytes], Connection] = {}
        self._spoiled = False

    def take(self, datagram: bytes) -> Flight:
        """What all datagrams so far say, this one included: MORE while a hello is incomplete. UNREADABLE is final."""
        if not self._spoiled:
            try:
                self._take_packets(datagram)
            except Malformed:
                self._spoiled = True
        return self.answer()

    def answer(self) -> Flight:
        """The answer so far. All connections that were begun have to ask for the same name."""
        if self._spoiled:
            return UNREADABLE
        answers = [connection.answer() for connection in self._connections.values()]
        doubtful = [answer for answer in answers if answer.doubt]
        if doubtful:
            return doubtful[0]
        if not answers or MORE in answers:
            return MORE
        return agreed("quic", [answer.name for answer in answers], ech=any(answer.ech for answer in answers))

    def _take_packets(self, datagram: bytes) -> None:
        """One or several packets (RFC 9000 12.2). What stands behind the first one and is none is filling."""
        packet = read_packet(datagram)
        self._take_packet(packet)
        while rest := datagram[len(packet.raw) :]:
            if not rest[0] & 0x80:
                return
            datagram, packet = rest, read_packet(rest)
            self._take_packet(packet)

    def _take_packet(self, packet: Packet) -> None:
        """An Initial is read; others (0-RTT) say nothing about names, and can't be opened without one."""
        if not packet.is_initial:
            return
        key = packet.version, packet.destination
        if key not in self._connections:
            if len(self._connections) == CONNECTIONS_MAX:
                raise Malformed("too many connections")
            self._connections[key] = Connection(*key)
        self._connections[key].take(packet)


def read_initials(datagrams: Iterable[bytes]) -> Flight:
    """What `datagrams`, all that came so far, say."""
    initials, flight = Initials(), MORE
    for datagram in datagrams:
        flight = initials.take(datagram)
    return flight
