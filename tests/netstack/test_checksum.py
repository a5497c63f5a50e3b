"""The checksum that the stack computes eight bytes at a time, against RFC 1071 word by word (A36)."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from childflow.netstack.stack import checksum, ffi, lib

from .play import text_of
from .wire import plain_checksum


@pytest.mark.case("A36")
@pytest.mark.parametrize("at", range(16))
def test_checksum_of_every_length_and_alignment(at):
    """C is handed the inside of one buffer, so `at` moves the alignment of what it reads; the reference adds byte by
    byte."""
    text = text_of(4096)
    buffer = ffi.from_buffer(text)
    start = int(ffi.cast("uintptr_t", buffer))
    at = (at - start) % 16
    total = 0
    for length in range(2049):
        assert lib.cf_checksum(buffer + at, length) == total ^ 0xFFFF, (length, at)
        total += text[at + length] << (0 if length % 2 else 8)
        total = (total & 0xFFFF) + (total >> 16)


@pytest.mark.case("A36")
@pytest.mark.parametrize("length", [65_535, 65_536, 65_537])
def test_checksum_of_64_kib_at_every_alignment(length):
    text = text_of(length + 16)
    buffer = ffi.from_buffer(text)
    for at in range(16):
        assert lib.cf_checksum(buffer + at, length) == plain_checksum(text[at : at + length]), at


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
