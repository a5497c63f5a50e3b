"""Datagrams that the child's kernel cuts: fragments in any order, twice, or not all of them, up to the host's socket.

The reassembler stands between, as in the engine: the stack hands it each fragment and takes the whole back."""

from __future__ import annotations

import random
import struct

import pytest

from childflow.netstack.events import SlowKind, SlowPacket
from childflow.services.fragments import TIMEOUT4_S, TIMEOUT6_S, Reassembler

from . import wire
from .play import CHILD_PORT, Play, text_of
from .test_udp import Peer
from .wire import UDP

MTU = 1500
LARGEST = {4: 65_507, 6: 65_527}


def fragments(family: int, peer: Peer, text: bytes, ident: int = 7) -> list[bytes]:
    """What a kernel makes of a datagram on a link of 1,500 bytes."""
    src = wire.CHILD[family]
    datagram = wire.udp(src, peer.address, CHILD_PORT, peer.port, text)
    room = (MTU - (20 if family == 4 else 48)) // 8 * 8
    pieces = []
    for start in range(0, len(datagram), room):
        data, more = datagram[start : start + room], start + room < len(datagram)
        if family == 4:
            place = start // 8 | (0x2000 if more else 0)
            pieces.append(wire.ip(data, UDP, src, peer.address, fragment=place, identification=ident))
        else:
            head = struct.pack("!BBHI", UDP, 0, start | more, ident)
            pieces.append(wire.ip(head + data, 44, src, peer.address))
    return pieces


class Way:
    """The child's fragments on their way through stack and reassembler."""

    def __init__(self, play: Play) -> None:
        self._play, self._reassembler = play, Reassembler()
        self.drops: list[str] = []

    def sends(self, pieces: list[bytes]) -> int:
        """How many whole datagrams came of `pieces`."""
        whole = 0
        for piece in pieces:
            self._play.sends(piece)
            event = self._play.event(SlowPacket)
            assert isinstance(event, SlowPacket)
            assert event.kind == SlowKind.FRAGMENT
            taken = self._reassembler.take(event.packet, self._play.clock.now_us / 1e6)
            self.drops += [taken.drop] if taken.drop else []
            if taken.packet is not None:
                whole += 1
                self._play.stack.input_ip(taken.packet)
                self._play.rest()
        return whole

    def expires(self) -> int:
        return self._reassembler.expire(self._play.clock.now_us / 1e6)


@pytest.fixture
def opened(stage, family: int) -> tuple[Play, Peer, Way]:
    """A flow that stands, so that what comes is sent on at once."""
    play = stage(family=family)
    peer = Peer(play)
    peer.hears(CHILD_PORT, b"go")
    play.allow()
    peer.gets(b"go")
    return play, peer, Way(play)


@pytest.mark.case("C08")
@pytest.mark.parametrize("seed", range(4))
def test_fragments_in_any_order_and_twice_are_delivered_once(opened, family: int, seed: int) -> None:
    _, peer, way = opened
    chance = random.Random(seed)
    text = text_of(LARGEST[family], seed)
    pieces = fragments(family, peer, text)
    mixed = pieces + chance.sample(pieces, len(pieces) // 5)
    chance.shuffle(mixed)
    assert len(pieces) >= 45
    assert way.sends(mixed) == 1
    peer.gets(text)
    peer.gets_nothing()
    assert way.drops == []


@pytest.mark.case("C08")
@pytest.mark.parametrize("lost", [0, 20, -1])
def test_a_lost_fragment_is_a_lost_datagram_and_nothing_else(opened, family: int, lost: int) -> None:
    """The next datagram is whole; the half one is forgotten after its time, and never mixed with one of the same id."""
    play, peer, way = opened
    text, other = text_of(LARGEST[family]), text_of(8000, 99)
    pieces = fragments(family, peer, text)
    missing = pieces.pop(lost)
    assert way.sends(pieces) == 0
    assert way.sends(fragments(family, peer, other, ident=8)) == 1
    peer.gets(other)
    play.clock.advance(ms=1000 * (TIMEOUT4_S if family == 4 else TIMEOUT6_S))
    assert way.expires() == 1
    assert way.sends([missing]) == 0
    peer.gets_nothing()
