"""Bytes worth hashing: a stream that never repeats a block, sent and received with SHA-256 computed on the way.

Both ends of a transfer use this file: clients here and the server host's actor (`tests/lab/serve.py`).
"""

from __future__ import annotations

import hashlib
import os
import socket
from typing import NamedTuple

BLOCK = 1 << 18


class Received(NamedTuple):
    """`count` bytes came, with SHA-256 `digest` (32 bytes)."""

    count: int
    digest: bytes


def send_pattern(sock: socket.socket, size: int, name: bytes) -> bytes:
    """Send `size` bytes (random block after random block, each with its number) and return their SHA-256."""
    hasher, noise, number = hashlib.sha256(), os.urandom(BLOCK), 0
    while size > 0:
        block = (name + number.to_bytes(8, "big") + noise)[: min(size, BLOCK)]
        sock.sendall(block)
        hasher.update(block)
        size -= len(block)
        number += 1
    return hasher.digest()


def receive_all(sock: socket.socket) -> Received:
    """Read to the end of file."""
    hasher, count, buffer = hashlib.sha256(), 0, bytearray(BLOCK)
    view = memoryview(buffer)
    while length := sock.recv_into(buffer):
        hasher.update(view[:length])
        count += length
    return Received(count, hasher.digest())


def receive_exactly(sock: socket.socket, size: int) -> bytes:
    """Read `size` bytes; EOFError when the stream ends before."""
    parts: list[bytes] = []
    while size:
        if not (part := sock.recv(min(size, BLOCK))):
            raise EOFError(f"{size} bytes are missing")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
