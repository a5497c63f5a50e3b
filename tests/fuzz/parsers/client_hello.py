"""First flights that begin as TLS, held against OpenSSL: what a server is told is what was read.

The first byte chooses: raw bytes as they came over TCP, or extensions for which the hello and its records (of a size
that the second byte tells) are made right; and where the segments are cut.
"""

from __future__ import annotations

import ssl
import sys

from childflow.services.first_flight import LIMIT, MORE, FirstFlight, read_flight
from tests.services import hellos

RAW = 1
_told: list[str | None] = []


def one(data: bytes) -> None:
    how, size, rest = data[:1] or b"\0", data[1:2] or b"\0", data[2:]
    if not how[0] & RAW:
        rest = hellos.records(hellos.message(hellos.body([rest])), 1 + size[0] * 4)
    flight = read_flight(rest)
    _check_splits(rest, how[0] >> 1)
    told = _openssl(rest)
    if not told:
        return
    if told == [None] and rest[0] & 0x80:  # SSL 2's hello has no place for a name: as good as unknown
        return
    assert flight.source == "sni", f"OpenSSL reads a hello where {flight} was read"
    name = told[0] and told[0].lower().removesuffix(".")
    assert flight.doubt or flight.name == name, f"OpenSSL reads {name} where {flight} was read"


def _check_splits(data: bytes, step: int) -> None:
    """Fed in pieces, a reader says MORE until it says what one that is fed at once says."""
    whole, reader, said = read_flight(data), FirstFlight(), MORE
    for cut in [*range(0, len(data), step * step + 1 + len(data) // 64), len(data)]:
        before, said = said, reader.feed(data[:cut])
        assert before in (MORE, said), "it changed its mind"
    assert said == whole, f"{said} in pieces, {whole} at once"
    assert read_flight(data, ended=True) in ((whole,) if whole is not MORE else (read_flight(data, ended=True),))
    assert read_flight(data, ended=True) is not MORE
    assert whole is not MORE or len(data) < LIMIT


def _note(_: object, name: str | None, __: object) -> int:
    _told.append(name)
    return ssl.AlertDescription.ALERT_DESCRIPTION_UNRECOGNIZED_NAME


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sni_callback = _note
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.set_ciphers("ALL:@SECLEVEL=0")
    return context


_CONTEXT = _context()


def _openssl(data: bytes) -> list[str | None]:
    """The name, or None, that OpenSSL's server is told; nothing where it does not get as far."""
    _told.clear()
    came = ssl.MemoryBIO()
    came.write(data)
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None  # a name that is no ASCII
    try:
        _CONTEXT.wrap_bio(came, ssl.MemoryBIO(), server_side=True).do_handshake()
    except ssl.SSLError:
        pass
    finally:
        sys.unraisablehook = hook
    return list(_told)


def seeds() -> list[bytes]:
    name, other = hellos.server_name(b"a.test"), hellos.server_name(b"a.test", b"b.test")
    odd = hellos.extension(0, b"\0\5\0\0\1ab"), hellos.server_name(b"x", kind=3) + name, name[:-1], name + name, other
    share, ech = hellos.extension(hellos.KEY_SHARE, bytes(70)), hellos.extension(hellos.ECH, b"\0")
    versions = hellos.extension(43, b"\2\3\4") + hellos.extension(13, b"\0\2\4\3") + hellos.extension(10, b"\0\2\0\x1d")
    inside = [name, share + name, name + ech, versions + name, b"", *odd]
    real = [hellos.by_python("www.example.test"), hellos.by_python(None)]
    wholes = [*real, hellos.hello(b"a.test", size=5), hellos.records(hellos.message(hellos.body(None)))]
    warning = hellos.records(b"\1\0", kind=21) + hellos.hello(b"a.test")
    old = b"\x80\x2e\1\3\1\0\x15\0\0\0\x10" + bytes(37)
    return [*(bytes((cut, size)) + one for one in inside for cut in (0, 4) for size in (0, 255)),
            *(b"\1\0" + one for one in (*wholes, warning, old, wholes[0][:40])), b"", b"\0"]  # fmt: skip
