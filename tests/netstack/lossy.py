"""A child whose wire loses, duplicates and reorders, in each direction, with a clock: what a kernel does at its end of
a connection, in small. It receives as RFC 9293 and RFC 2018 say and sends with a window, SACK and a plain timer.

Frames are cut into segments of one MSS before the wire decides about each (a 64 KiB frame is not lost as one).
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass

from . import wire
from .play import ACK, FIN, Play

STEP_MS = 0.1  # what a round trip takes
MSS = 1460
OPTIONS = wire.mss(MSS) + wire.NOP + wire.NOP + wire.SACK_PERMITTED + wire.NOP + wire.wscale(7)
RTO_MS = 200.0


def sack_option(blocks: list[tuple[int, int]]) -> bytes:
    """`blocks` as absolute sequence numbers."""
    body = b"".join(struct.pack("!II", start & 0xFFFFFFFF, end & 0xFFFFFFFF) for start, end in blocks)
    return wire.NOP + wire.NOP + bytes((5, 2 + len(body))) + body if blocks else b""


def sack_blocks(options: bytes) -> list[tuple[int, int]]:
    """The blocks that an option field holds."""
    at = 0
    while at < len(options) and options[at]:
        if options[at] == 1:
            at += 1
            continue
        if options[at] == 5:
            return [struct.unpack_from("!II", options, i) for i in range(at + 2, at + options[at + 1], 8)]
        at += options[at + 1]
    return []


@dataclass
class Wire:
    """What happens to each segment of one direction: chances from 0 to 1."""

    lose: float = 0
    duplicate: float = 0
    reorder: float = 0

    def carry(self, chance: random.Random, segments: list) -> list:
        out = []
        for s in segments:
            if chance.random() < self.lose:
                continue
            out.append(s)
            if chance.random() < self.duplicate:
                out.append(s)
        for i in range(len(out) - 1):
            if chance.random() < self.reorder:
                j = min(i + chance.randrange(1, 8), len(out) - 1)
                out[i], out[j] = out[j], out[i]
        return out


class LossyChild:
    """Drives `play.child` over two wires until both texts are through."""

    def __init__(self, play: Play, *, down: Wire, up: Wire, seed: int = 1, sack: bool = True) -> None:
        self.play, self.down, self.up, self.sack = play, down, up, sack
        self.chance = random.Random(seed)
        self.received = bytearray()
        self.held: dict[int, bytes] = {}  # relative number -> text, ahead of a gap
        self.newest = 0
        self.fin_at: int | None = None
        self.eof = False
        self.elapsed_ms = 0.0
        self.segments_down = 0
        # sending
        self.text = b""
        self.acked = 1
        self.sacked: set[int] = set()  # numbers of whole segments
        self.window = 65535
        self.sent_at: dict[int, float] = {}
        self.segments_up = 0
        self.progress_at = 0.0

    # --- receiving

    def _cut(self) -> list[tuple[int, bytes, bool, int, int, bytes]]:
        cut = []
        child = self.play.child
        for s in child.inbox:
            at, fin = child.relative(s), bool(s.flags & FIN)
            pieces = range(0, max(len(s.text), 1), MSS)
            for i in pieces:
                text = s.text[i : i + MSS]
                last = i + MSS >= len(s.text)
                cut.append((at + i, text, fin and last, child.acked(s), s.window, s.options))
        child.inbox.clear()
        self.segments_down += sum(1 for c in cut if c[1])
        return cut

    def _ranges(self) -> list[tuple[int, int]]:
        ranges: list[tuple[int, int]] = []
        for at in sorted(self.held):
            end = at + len(self.held[at])
            if ranges and at <= ranges[-1][1]:
                ranges[-1] = (ranges[-1][0], max(ranges[-1][1], end))
            else:
                ranges.append((at, end))
        return ranges

    def _blocks(self) -> bytes:
        if not self.sack or not self.held:
            return b""
        ranges = self._ranges()
        ranges.sort(key=lambda r: not r[0] <= self.newest < r[1])
        base = self.play.child.peer_isn
        return sack_option([(base + a, base + b) for a, b in ranges[:4]])

    def _take_text(self, at: int, text: bytes, fin: bool) -> None:
        child = self.play.child
        if fin:
            self.fin_at = at + len(text)
        if at > child.got:
            if text:
                self.held.setdefault(at, text)
                self.newest = at
        elif at + len(text) > child.got:
            self._deliver(text[child.got - at :])
        if self.fin_at == child.got:
            child.got += 1
            self.eof = True

    def _deliver(self, text: bytes) -> None:
        child = self.play.child
        self.received += text
        child.got += len(text)
        while self.held:
            at = min(self.held)
            if at > child.got:
                return
            text = self.held.pop(at)[child.got - at :]
            self.received += text
            child.got += len(text)

    # --- sending

    def _take_ack(self, ack: int, window: int, options: bytes) -> None:
        if ack > self.acked:
            self.acked = ack
            self.progress_at = self.elapsed_ms
        if ack >= self.acked:
            self.window = window << 4
        child = self.play.child
        for start, end in sack_blocks(options):
            first, last = (start - child.isn) & 0xFFFFFFFF, (end - child.isn) & 0xFFFFFFFF
            assert ack < first < last <= len(self.text) + 1, (ack, first, last)
            self.sacked.update(n for n in range(1, len(self.text) + 1, MSS) if first <= n and n + MSS <= last)

    def _packets(self) -> list[bytes]:
        """What may be sent now: new segments in the window, and those before a reported one, each once a few steps."""
        child, packets = self.play.child, []
        newest = max(self.sacked, default=0)
        timeout = self.elapsed_ms - self.progress_at > RTO_MS
        for n in range(1 + (self.acked - 1) // MSS * MSS, len(self.text) + 1, MSS):
            if n + MSS > self.acked + self.window:
                break
            if n in self.sacked:
                continue
            last = self.sent_at.get(n)
            again = timeout or (n < newest and last is not None and self.elapsed_ms - last > 5 * STEP_MS)
            if last is None or again:
                self.sent_at[n] = self.elapsed_ms
                self.segments_up += 1
                packets.append(child.packet(ACK, seq=n, text=self.text[n - 1 : n - 1 + MSS]))
        if timeout:
            self.progress_at = self.elapsed_ms
        return packets

    # --- running

    def step(self) -> None:
        """One round trip."""
        arrived = self.down.carry(self.chance, self._cut())
        packets = []
        for at, text, fin, ack, window, options in arrived:
            self._take_ack(ack, window, options)
            if text or fin:
                self._take_text(at, text, fin)
                packets.append(self.play.child.packet(ACK, options=self._blocks()))
        packets += self._packets()
        for packet in self.up.carry(self.chance, packets):
            self.play._tap.send(wire.frame(packet))
        self.elapsed_ms += STEP_MS
        self.play.clock.advance(STEP_MS)

    def runs(self, done, limit_ms: float) -> None:
        while not done():
            assert self.elapsed_ms < limit_ms, (len(self.received), self.acked)
            self.step()
