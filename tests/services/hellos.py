"""ClientHellos, written by hand and made by Python's ssl: what first flights in tests and fuzzers are made of."""

from __future__ import annotations

import ssl
from collections.abc import Iterable

KEY_SHARE = 51
PADDING = 21
ECH = 0xFE0D


def block(size: int, data: bytes) -> bytes:
    """`data` behind its length, a number of `size` bytes."""
    return len(data).to_bytes(size, "big") + data


def extension(kind: int, data: bytes) -> bytes:
    return kind.to_bytes(2, "big") + block(2, data)


def server_name(*names: bytes, kind: int = 0) -> bytes:
    """A server_name extension (RFC 6066 3) with these names."""
    return extension(0, block(2, b"".join(bytes((kind,)) + block(2, name) for name in names)))


def body(extensions: Iterable[bytes] | None, *, version: int = 0x0303, session: bytes = bytes(32)) -> bytes:
    """A ClientHello without its header; None: one that has no extensions at all."""
    head = version.to_bytes(2, "big") + bytes(range(32)) + block(1, session) + block(2, b"\x13\x01\x13\x02") + b"\1\0"
    return head if extensions is None else head + block(2, b"".join(extensions))


def message(data: bytes, kind: int = 1) -> bytes:
    """A handshake message (RFC 8446 4)."""
    return bytes((kind,)) + block(3, data)


def records(data: bytes, size: int = 16384, version: int = 0x0301, kind: int = 22) -> bytes:
    """`data` in records of at most `size` bytes (RFC 8446 5.1)."""
    head = bytes((kind,)) + version.to_bytes(2, "big")
    return b"".join(head + block(2, data[at : at + size]) for at in range(0, len(data), size))


def hello(*names: bytes, before: Iterable[bytes] = (), after: Iterable[bytes] = (), size: int = 16384) -> bytes:
    """A whole first flight: one server_name with `names`, other extensions around it."""
    return records(message(body([*before, server_name(*names), *after])), size)


def by_python(name: str | None, *, least: int = 0, version: ssl.TLSVersion | None = None) -> bytes:
    """What Python's ssl sends first, with as many ALPN protocols as `least` bytes need."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if version is not None:
        context.minimum_version = context.maximum_version = version
        context.set_ciphers("ALL:@SECLEVEL=0")
    context.set_alpn_protocols(["h2", "http/1.1", *(f"{n:0200}" for n in range((least + 200) // 201))])
    out = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name)
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return out.read()
