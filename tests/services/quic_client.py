"""A client's Initial packets, made by hand: frames, packets and their protection, for tests and fuzzers.

Written from RFC 9000, 9001 and 9369 apart from `childflow/services/quic.py`; the tests hold it against the examples in
the RFCs' appendices and against aioquic.
"""

from __future__ import annotations

import hashlib
import hmac
import struct

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

V1, V2 = 1, 0x6B3343CF
ID = bytes.fromhex("8394c8f03e515708")
DATAGRAM = 1200
SALT = {V1: "38762cf7f55934b34d179ae6a4c80cadccbb7f0a", V2: "0dede3def700a6db819381be6e269dcbf9bd2ed9"}
LABEL = {V1: b"quic ", V2: b"quicv2 "}
FIRST = {V1: 0xC0, V2: 0xD0}  # an Initial's first byte, with a packet number of one byte
PING = b"\1"


def varint(number: int, size: int | None = None) -> bytes:
    size = size or next(bits for bits in (1, 2, 4, 8) if number < 1 << 8 * bits - 2)
    return (number | {1: 0, 2: 1, 4: 2, 8: 3}[size] << 8 * size - 2).to_bytes(size, "big")


def crypto(offset: int, text: bytes) -> bytes:
    return b"\6" + varint(offset) + varint(len(text)) + text


def keys(version: int, destination: bytes) -> tuple[bytes, bytes, bytes]:
    """Key, iv and header protection key of a client."""
    initial = hmac.new(bytes.fromhex(SALT[version]), destination, hashlib.sha256).digest()
    client = _expand(initial, b"client in", 32)
    return tuple(_expand(client, LABEL[version] + b, n) for b, n in ((b"key", 16), (b"iv", 12), (b"hp", 16)))  # type: ignore[return-value]


def _expand(secret: bytes, label: bytes, size: int) -> bytes:
    label = b"tls13 " + label
    info = struct.pack("!HB", size, len(label)) + label + b"\0\1"
    return hmac.new(secret, info, hashlib.sha256).digest()[:size]


def seal(
    version: int, header: bytes, number_bytes: int, payload: bytes, destination: bytes = ID, beyond: int = 0
) -> bytes:
    """A protected packet out of its header, whose last `number_bytes` are the packet number, and its payload.

    `beyond`: what of the packet number is too large for those bytes (RFC 9000 17.1)."""
    key, iv, hp = keys(version, destination)
    number = int.from_bytes(header[-number_bytes:], "big") + beyond
    nonce = (int.from_bytes(iv, "big") ^ number).to_bytes(12, "big")
    sealed = AESGCM(key).encrypt(nonce, payload, header)
    mask = Cipher(AES(hp), ECB()).encryptor().update(sealed[4 - number_bytes :][:16])
    at = len(header) - number_bytes
    hidden = bytes(a ^ b for a, b in zip(header[at:], mask[1:], strict=False))
    return bytes((header[0] ^ mask[0] & 0x0F,)) + header[1:at] + hidden + sealed


def initial(
    frames: bytes, number: int = 0, *, version: int = V1, destination: bytes = ID, source: bytes = b"",
    token: bytes = b"",
    number_bytes: int = 2, fill: int = DATAGRAM,
) -> bytes:  # fmt: skip
    """An Initial with these frames, filled with PADDING to `fill` bytes in all."""
    head = bytes((FIRST[version] | number_bytes - 1,)) + version.to_bytes(4, "big")
    for one in (destination, source):
        head += bytes((len(one),)) + one
    head += varint(len(token)) + token
    frames = frames.ljust(max(4, fill - len(head) - 2 - number_bytes - 16), b"\0")
    size = number_bytes + len(frames) + 16
    low = number % (1 << 8 * number_bytes)
    head += varint(size, 2 if size < 1 << 14 else 4) + low.to_bytes(number_bytes, "big")
    return seal(version, head, number_bytes, frames, destination, number - low)


def early_data(version: int = V1, size: int = 40) -> bytes:
    """A 0-RTT packet, as far as one without its key can tell."""
    first = {V1: 0xD0, V2: 0xE0}[version]
    return bytes((first,)) + version.to_bytes(4, "big") + bytes((len(ID),)) + ID + b"\0" + varint(size) + bytes(size)
