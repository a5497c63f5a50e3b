"""Fragments: the child's cut datagrams put together again, IPv4 (RFC 791) and IPv6 (RFC 8200 4.5).

A whole datagram goes back into the stack as if it had come so. A piece that is there already is passed over; a piece
that overlaps another in any other way spoils the whole datagram, and what else comes of it is refused until its time
is over (RFC 5722). Nobody is told: an overlap is an attack or a fault.

Invariants: at most MAX_DATAGRAMS datagrams and MAX_BYTES bytes, bookkeeping included; the oldest makes room.
            Pieces of one datagram never overlap, so it is complete when their lengths add up to its length.
            The clock is an argument.
Not here:   who may send fragments (the stack has checked the source), checksums of what is inside (the stack, after).
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from typing import NamedTuple

from childflow.services import packets

MAX_DATAGRAMS = 256
MAX_BYTES = 4 << 20
PIECE_COST = 128  # what a piece costs beyond its bytes
TIMEOUT4_S = 30.0  # as Linux; RFC 1122 3.3.2 allows 60 to 120, which serves floods more than users
TIMEOUT6_S = 60.0  # RFC 8200 4.5

_MAX_PACKET = 65535
_UDP = 17
_TCP = 6
_FRAGMENT = 44
_CHAINED = (0, 43, 60)  # hop-by-hop, routing, destination options: 8 bytes times (length + 1)
_UPPER_BYTES = {_TCP: 20, _UDP: 8, packets.ICMP6: 4}
_ND = range(133, 138)
_INCOMPLETE_CHAIN = 3  # RFC 7112: the code of ICMPv6 4 for a first fragment without the upper header


class Taken(NamedTuple):
    """What came of a fragment: a whole packet, an ICMP error for the child, a drop to count, how many others were
    `evicted` to make room."""

    packet: bytes | None = None
    error: bytes | None = None
    drop: str | None = None
    evicted: int = 0


KEPT = Taken()
BAD = Taken(drop="bad_fragment")


class Piece(NamedTuple):
    """One fragment: `key` names its datagram, `head` is the header for the whole (without the fragment header), `start`
    in bytes of the datagram's payload; `next_header` is the first's to say."""

    key: bytes
    head: bytes
    next_at: int  # where in `head` the next header's number stands (IPv6)
    next_header: int
    start: int
    more: bool
    data: bytes


class Partial:
    """A datagram of which something is missing. `spoiled` ones keep no bytes, only their place."""

    __slots__ = ("cost", "first", "pieces", "received", "spoiled", "starts", "total", "until")

    def __init__(self, now: float, timeout_s: float) -> None:
        self.until = now + timeout_s
        self.pieces: dict[int, bytes] = {}
        self.starts: list[int] = []  # of `pieces`, sorted
        self.total = -1  # payload bytes of the whole; -1 until the last piece came
        self.received = 0  # bytes
        self.first: Piece | None = None
        self.cost = PIECE_COST
        self.spoiled = False


class Reassembler:
    """Puts datagrams together. One for both families; times in seconds of any clock that never goes back."""

    def __init__(self, datagrams_max: int = MAX_DATAGRAMS, bytes_max: int = MAX_BYTES) -> None:
        self._datagrams_max = datagrams_max
        self._bytes_max = bytes_max
        self._open: dict[bytes, Partial] = {}  # by age
        self._bytes = 0

    def __len__(self) -> int:
        """Datagrams of which something is missing."""
        return len(self._open)

    def take(self, packet: bytes, now: float) -> Taken:
        """Add the fragment in the IP `packet`."""
        piece = _piece4(packet) if packet[:1] and packet[0] >> 4 == 4 else _piece6(packet)
        if not isinstance(piece, Piece):
            return piece
        if piece.start == 0 and not piece.more:  # an atomic fragment (RFC 6946) has nothing to do with others
            return self._whole(piece, piece.data)
        partial = self._open.get(piece.key)
        if partial is None:
            partial = self._open[piece.key] = Partial(now, TIMEOUT4_S if len(piece.key) < 16 else TIMEOUT6_S)
            self._bytes += partial.cost
        elif partial.until <= now:
            return self._start_anew(piece, packet, now)
        if partial.spoiled:
            return BAD
        taken = self._add(partial, piece)
        evicted = 0
        while self._bytes > self._bytes_max or len(self._open) > self._datagrams_max:
            self._remove(next(iter(self._open)))
            evicted += 1
        return taken._replace(evicted=evicted) if evicted else taken

    def expire(self, now: float) -> int:
        """Forget what has waited too long; returns how many datagrams that were."""
        late = [key for key, partial in self._open.items() if partial.until <= now]
        for key in late:
            self._remove(key)
        return len(late)

    def _start_anew(self, piece: Piece, packet: bytes, now: float) -> Taken:
        self._remove(piece.key)
        taken = self.take(packet, now)
        return taken if taken.drop is not None else taken._replace(drop="fragment_timeout")

    def _remove(self, key: bytes) -> None:
        self._bytes -= self._open.pop(key).cost

    def _add(self, partial: Partial, piece: Piece) -> Taken:
        """Put `piece` in its place, or find why it has none."""
        fault = _misfit(partial, piece)
        if fault is not None:
            return self._spoil(partial, fault) if fault else KEPT
        start, size = piece.start, len(piece.data)
        partial.starts.insert(bisect_left(partial.starts, start), start)
        partial.pieces[start] = piece.data
        partial.received += size
        partial.cost += size + PIECE_COST
        self._bytes += size + PIECE_COST
        if start == 0:
            partial.first = piece
        if not piece.more:
            partial.total = start + size
        if partial.received != partial.total or partial.first is None:
            return KEPT
        self._remove(piece.key)
        pieces = partial.pieces
        return self._whole(partial.first, b"".join([pieces[start] for start in partial.starts]))

    def _spoil(self, partial: Partial, reason: str) -> Taken:
        """The datagram is lost; its place stays taken, so that its other pieces don't make another one."""
        self._bytes -= partial.cost - PIECE_COST
        partial.cost = PIECE_COST
        partial.spoiled = True
        partial.pieces.clear()
        partial.starts.clear()
        partial.first = None
        return Taken(drop=reason)

    def _whole(self, first: Piece, payload: bytes) -> Taken:
        return _whole4(first, payload) if first.head[0] >> 4 == 4 else _whole6(first, payload)


def _misfit(partial: Partial, piece: Piece) -> str | None:
    """Why `piece` can't be added: a drop's name, "" for an exact duplicate; None when it can."""
    start, end = piece.start, piece.start + len(piece.data)
    starts = partial.starts
    if starts and start > starts[-1] and partial.total < 0:  # the common case: the next in order
        overlaps = starts[-1] + len(partial.pieces[starts[-1]]) > start
    else:
        if partial.pieces.get(start) == piece.data:
            return ""
        at = bisect_left(starts, start)
        before = at > 0 and starts[at - 1] + len(partial.pieces[starts[at - 1]]) > start
        overlaps = before or (at < len(starts) and starts[at] < end)
    beyond = partial.total >= 0 and (end > partial.total or not piece.more)
    return "fragment_overlap" if overlaps or beyond else _too_long(partial, piece, end)


def _too_long(partial: Partial, piece: Piece, end: int) -> str | None:
    """A last piece that ends before another, or a datagram that no length field could say."""
    if not piece.more and partial.starts and partial.starts[-1] >= end:
        return "fragment_overlap"
    fixed = len(piece.head) if len(piece.key) < 16 else len(piece.head) - packets.IP6_BYTES
    return "fragment_overflow" if end + fixed > _MAX_PACKET else None


# IPv4.


def _piece4(packet: bytes) -> Piece | Taken:
    header = (packet[0] & 15) * 4
    total, ident, flags = struct.unpack_from("!HHH", packet, 2) if len(packet) >= packets.IP4_BYTES else (0, 0, 0)
    if header < packets.IP4_BYTES or not header < total <= len(packet):
        return BAD
    more = bool(flags & 0x2000)
    if more and (total - header) % 8:
        return BAD
    key = packet[12:20] + packet[9:10] + ident.to_bytes(2, "big")
    return Piece(key, packet[:header], 0, packet[9], (flags & 0x1FFF) * 8, more, packet[header:total])


def _whole4(first: Piece, payload: bytes) -> Taken:
    head = first.head
    total = len(head) + len(payload)
    if total > _MAX_PACKET:
        return Taken(drop="fragment_overflow")
    head = head[:2] + total.to_bytes(2, "big") + head[4:6] + b"\0\0" + head[8:10] + b"\0\0" + head[12:]
    head = head[:10] + packets.checksum(head).to_bytes(2, "big") + head[12:]
    return Taken(packet=head + payload)


# IPv6.


def _piece6(packet: bytes) -> Piece | Taken:
    if len(packet) < packets.IP6_BYTES:
        return BAD
    end = packets.IP6_BYTES + (packet[4] << 8 | packet[5])
    next_at, at = _fragment_header(packet)
    if at < 0 or end > len(packet) or at + 8 >= end:
        return BAD
    next_header, _, place, ident = struct.unpack_from("!BBHI", packet, at)
    more = bool(place & 1)
    data = packet[at + 8 : end]
    if more and len(data) % 8:
        return BAD
    if next_header == _FRAGMENT:
        return BAD  # one header a packet: a nest of them would be unpacked one by one
    piece = Piece(
        packet[8:40] + ident.to_bytes(4, "big"), packet[:at], next_at, next_header, place & 0xFFF8, more, data
    )
    if piece.start:
        return piece
    upper = _upper_header(next_header, data)
    return _incomplete_chain(packet) if upper is None else BAD if upper == _FRAGMENT else piece


def _fragment_header(packet: bytes) -> tuple[int, int]:
    """Where the number that announces the fragment header stands, and where that header is; (0, -1) without one."""
    next_at, at = 6, packets.IP6_BYTES
    while packet[next_at] in _CHAINED and at + 8 <= len(packet):
        next_at, at = at, at + 8 * (packet[at + 1] + 1)
    return (next_at, at) if packet[next_at] == _FRAGMENT and at + 8 <= len(packet) else (0, -1)


def _upper_header(next_header: int, data: bytes) -> int | None:
    """The number of the header behind the chain that starts `data`; None when `data` ends before or within it."""
    at = 0
    while next_header in _CHAINED:
        if at + 2 > len(data):
            return None
        next_header, at = data[at], at + 8 * (data[at + 1] + 1)
    return next_header if at + _UPPER_BYTES.get(next_header, 0) <= len(data) else None


def _incomplete_chain(packet: bytes) -> Taken:
    source, to = packet[8:24], packet[24:40]
    if to[0] == 0xFF:
        return BAD
    error = packets.icmp_error(to, source, packets.PARAMETER6, _INCOMPLETE_CHAIN, packet)
    return Taken(error=error, drop="bad_fragment")


def _whole6(first: Piece, payload: bytes) -> Taken:
    if first.next_header == packets.ICMP6 and payload[:1] and payload[0] in _ND:
        return Taken(drop="bad_nd")  # RFC 6980: never in fragments
    head = first.head
    length = len(head) - packets.IP6_BYTES + len(payload)
    if length > _MAX_PACKET:
        return Taken(drop="fragment_overflow")
    head = head[: first.next_at] + bytes((first.next_header,)) + head[first.next_at + 1 :]
    return Taken(packet=head[:4] + length.to_bytes(2, "big") + head[6:] + payload)
