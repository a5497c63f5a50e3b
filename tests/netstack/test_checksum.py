"""The checksum that the stack computes eight bytes at a time, against RFC 1071 word by word (A36)."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from childflow.netstack.stack import checksum

from .play import text_of
from .wire import plain_checksum


def test_checksum_of_every_length_and_alignment():
    """C is handed the inside of a bytes object, so `at` moves the alignment of what it reads."""
    from childflow._netstack import ffi, lib

    buffer = ffi.from_buffer(text_of(4096))
    for length in range(0, 2049, 1):
        at = length * 7 % 16
        assert lib.cf_checksum(buffer + at, length) == plain_checksum(text_of(4096)[at : at + length]), (length, at)
    for at in range(16):
        for length in (0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 1459, 1460):
            assert lib.cf_checksum(buffer + at, length) == plain_checksum(text_of(4096)[at : at + length]), (length, at)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.binary(max_size=300))
def test_checksum_of_any_bytes(data):
    assert checksum(data) == plain_checksum(data)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 70_000), st.sampled_from([b"\xff", b"\x00", b"\xff\x00", b"\xff\xfe\xff"]))
def test_checksum_of_long_carries(length, unit):
    """All ones carry at every addition."""
    data = (unit * (length // len(unit) + 1))[:length]
    assert checksum(data) == plain_checksum(data)


def test_checksum_of_random_long_ones():
    chance = random.Random(3)
    for _ in range(40):
        data = chance.randbytes(chance.randint(60_000, 66_000))
        assert checksum(data) == plain_checksum(data)
