"""Whatever a child has done, as long as it has not ended the connection: once it behaves, all the text comes.

Random conversations: losses, old ACKs, windows that close, shrink and open, invented selective acknowledgements, time
that passes; then a child that takes what comes, acknowledges it and keeps its window open. What stalls is a state that
nothing leads out of: a hole that nobody remembers, a timer that nobody set.
"""

from __future__ import annotations

import random

import pytest

from childflow.netstack.stack import Limits

from . import wire
from .lossy import OPTIONS, sack_option
from .play import ACK, FIN, Play, text_of

SEEDS_AT_ONCE = 25
PATIENCE_MS = 130_000  # two timeouts at their longest
NO_SACK = wire.mss(1460) + wire.NOP + wire.wscale(7)


class Taker:
    """The child's receiving end: which of `total` bytes it has, in segments of any order."""

    def __init__(self, play: Play, chance: random.Random, total: int) -> None:
        self.play, self.chance, self.total = play, chance, total
        self.have = bytearray(total + 2)  # 1 for each sequence number that came
        self.text = bytearray(total)
        self.fin = False
        self.wants = 1

    def takes(self, lose: float) -> None:
        child = self.play.child
        for s in child.inbox:
            child.got = self.wants
            at = child.relative(s)
            for i in range(0, len(s.text), 1460):
                if self.chance.random() >= lose:
                    self._put(at + i, s.text[i : i + 1460])
            self.fin = self.fin or (bool(s.flags & FIN) and self.chance.random() >= lose)
        child.inbox.clear()
        self.wants = max(self.wants, self.have.index(0, self.wants) if self.wants <= self.total else 0)
        if self.fin and self.wants == self.total + 1:
            self.wants += 1
        child.got = self.wants

    def _put(self, at: int, text: bytes) -> None:
        assert 1 <= at <= self.total + 1 - len(text), "what the host never sent"
        self.text[at - 1 : at - 1 + len(text)] = text
        self.have[at : at + len(text)] = b"\1" * len(text)

    def blocks(self, lie: bool) -> bytes:
        """Up to four of the ranges beyond a gap; a lie comes first."""
        ranges, at = [], self.wants
        while len(ranges) < 40 and (start := self.have.find(1, at)) >= 0:
            at = self.have.index(0, start)
            ranges.append((start, at))
        self.chance.shuffle(ranges)
        if lie:
            start = self.wants + self.chance.randrange(200_000)
            ranges.insert(0, (start, start + self.chance.randrange(1, 50_000)))
        base = self.play.child.peer_isn
        return sack_option([(base + a, base + b) for a, b in ranges[:4]])


def hold_the_large_ring(play: Play) -> None:
    play.establish(39_999, options=OPTIONS)
    play.child.sends(ACK, seq=11, text=b"x")
    play.child.forgets()


class Conversation:
    def __init__(self, stage, seed: int) -> None:
        self.chance = chance = random.Random(seed)
        self.options = chance.choice([OPTIONS, OPTIONS, OPTIONS, NO_SACK])
        scarce = chance.random() < 0.2
        limits = Limits(flow_window=65_536, buffer_limit=65_536 if scarce else 1 << 30)
        self.play = stage(offload=chance.random() < 0.5, limits=limits if chance.random() < 0.5 or scarce else None)
        if scarce:
            hold_the_large_ring(self.play)
        self.play.establish(
            options=self.options, window=chance.choice([0, 1, 12, 512, 4096]), isn=chance.randrange(1 << 32)
        )
        self.total = chance.choice([1, 1460, 5000, 60_000, 300_000])
        self.taker = Taker(self.play, chance, self.total)
        self.liar = chance.random() < 0.4
        self.sent, self.up, self.ended = 0, 0, False

    def host_sends(self, most: int) -> None:
        if self.sent < self.total:
            piece = text_of(min(self.total - self.sent, most), self.sent)
            self.sent += self.play.host.sends(piece, all_of_it=False)
        elif not self.ended:
            self.play.host.half_closes()
            self.ended = True

    def acknowledges(self, ack: int, lie: bool) -> None:
        blocks = self.taker.blocks(lie) if self.options is OPTIONS else b""
        self.play.child.sends(ACK, ack=ack, options=blocks)

    def misbehaves(self) -> None:
        chance, child, taker = self.chance, self.play.child, self.taker
        what = chance.random()
        if what < 0.25:
            self.host_sends(chance.choice([1, 1000, 20_000, 300_000]))
        elif what < 0.5:
            taker.takes(chance.choice([0, 0.1, 0.5, 1]))
        elif what < 0.8:
            child.window = chance.choice([child.window, child.window, 0, 0, 1, 11, 512, 4096])
            self.acknowledges(
                chance.choice([taker.wants] * 4 + [chance.randrange(1, taker.wants + 1)]),
                self.liar and chance.random() < 0.5,
            )
        elif what < 0.85:
            child.sends(ACK, ack=taker.wants, text=text_of(100, self.up))
            self.up += 100
        else:
            self.play.clock.advance(chance.choice([1, 5, 11, 50, 220, 500, 3000]))

    def behaves(self) -> None:
        """Until all has come."""
        waited = 0
        self.play.child.window = 4096
        while self.taker.wants < self.total + 2:
            self.host_sends(self.total)
            self.taker.takes(0)
            self.acknowledges(self.taker.wants, lie=False)
            if not self.play.child.inbox:
                self.play.clock.advance(100)
                waited += 100
            assert waited < PATIENCE_MS, f"stalled at {self.taker.wants} of {self.total}"
            assert self.play.stack.flow_count() > 0, "given up"


@pytest.mark.case("B12", "B13", "B30")
@pytest.mark.parametrize("first", range(0, 10 * SEEDS_AT_ONCE, SEEDS_AT_ONCE))
def test_a_child_that_behaves_at_last_gets_all(stage, first):
    for seed in range(first, first + SEEDS_AT_ONCE):
        talk = Conversation(stage, seed)
        for _ in range(talk.chance.randrange(5, 60)):
            talk.misbehaves()
        talk.behaves()
        assert talk.taker.text == text_of(talk.total), seed
        assert talk.play.host.reads() == text_of(talk.up), seed
