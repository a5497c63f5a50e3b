"""Fragments as the wire brings them: one or two packets of any bytes, for each family's parser and its header walk."""

from __future__ import annotations

from childflow.services import fragments

from .fragments import _check_bounds
from .fragments import seeds as piece_seeds


def one(data: bytes) -> None:
    reassembler = fragments.Reassembler()
    cut = 1 + (data[0] if data else 0)
    for packet in (data[1:cut], data[cut:], data[1:cut]):
        taken = reassembler.take(packet, 1.0)
        assert taken.packet is None or len(taken.packet) <= 65535 + 40
        assert taken.error is None or taken.drop is not None
        _check_bounds(reassembler)


def seeds() -> list[bytes]:
    packets = [one[2:] for one in piece_seeds() if one[1:2] == b"\x80"]
    return [bytes((len(p),)) + p + q for p in packets for q in packets]
