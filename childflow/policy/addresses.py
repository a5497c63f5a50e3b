"""Addresses: what one really reaches, whether it may ever leave, and how people write it.

Invariants: addresses are packed bytes, 4 or 16 of them; nothing here imports `ipaddress` (14 ms).
Not here:   what the rules say of an address (`verdict.py`), the special ranges (`special.py`).
"""

from __future__ import annotations

from socket import AF_INET, AF_INET6, inet_aton, inet_ntop, inet_pton

_ZERO12 = bytes(12)
_MAPPED = bytes(10) + b"\xff\xff"
_TRANSLATED = bytes(8) + b"\xff\xff\0\0"
_NAT64 = bytes.fromhex("0064ff9b") + bytes(8)
_NAT64_LOCAL = bytes.fromhex("0064ff9b0001")
_6TO4 = b"\x20\x02"
_LOOPBACK6 = bytes(15) + b"\x01"
_UNSPECIFIED6 = bytes(16)


def reached(address: bytes) -> bytes:
    """The address that a packet to `address` ends at: IPv4 where an IPv6 form only carries one, else unchanged.

    Forms: IPv4-mapped, IPv4-compatible and IPv4-translated (RFC 4291, 2765), 6to4 (RFC 3056), NAT64 (RFC 6052, 8215).
    """
    if len(address) == 4:
        return address
    head = address[:12]
    if head in (_MAPPED, _TRANSLATED, _NAT64):
        return address[12:]
    if head == _ZERO12:
        return address if address in (_UNSPECIFIED6, _LOOPBACK6) else address[12:]
    if address[:2] == _6TO4:
        return address[2:6]
    if address[:6] == _NAT64_LOCAL:
        return _local_nat64(address)
    return address


def _local_nat64(address: bytes) -> bytes:
    """The likeliest IPv4 address in RFC 8215's prefix: a zero tail tells a /48 from a /96."""
    likely = _nat64_of_48(address) if not any(address[11:]) else address[12:]
    return likely if likely[0] else next(iter(readings(address)), likely)


def _nat64_of_48(address: bytes) -> bytes:
    return address[6:8] + address[9:11]


def readings(address: bytes) -> tuple[bytes, ...]:
    """Every IPv4 address that an address in RFC 8215's prefix may carry; none for all others.

    How long a site's prefix is can't be seen (RFC 6052 2.2: /48, /56, /64, /96), and behind the shorter ones may stand
    anything. Nothing of 0.0.0.0/8 is ever translated.
    """
    if address[:6] != _NAT64_LOCAL or len(address) != 16:
        return ()
    of_56, of_64 = address[7:8] + address[9:12], address[9:13]
    return tuple(end for end in (_nat64_of_48(address), of_56, of_64, address[12:]) if end[0])


def martian_kind(address: bytes) -> str | None:
    """Why `address` (as `reached` gives it) must never leave: a word for the sentence, or None."""
    return _martian4(address) if len(address) == 4 else _martian6(address)


def _martian4(address: bytes) -> str | None:
    first = address[0]
    if first == 127:
        return "loopback"
    if first == 0:
        return "unspecified"
    if 224 <= first <= 239:
        return "multicast"
    return "broadcast" if address == b"\xff\xff\xff\xff" else None


def _martian6(address: bytes) -> str | None:
    first = address[0]
    if first == 0xFF:
        return "multicast"
    if first == 0xFE and address[1] & 0xC0 == 0x80:
        return "link-local"
    if first == 0 and address == _LOOPBACK6:
        return "loopback"
    return "unspecified" if first == 0 and address == _UNSPECIFIED6 else None


def address_text(address: bytes) -> str:
    """`address` (4 or 16 bytes) as people write it."""
    return inet_ntop(AF_INET if len(address) == 4 else AF_INET6, address)


def address_in_name(name: str) -> bytes | None:
    """The address that whoever resolves `name` would take it for, without asking anybody; None for a real name.

    Besides the usual notations these are inet_aton's: `2130706433`, `0x7f.1`, `127.1`. No top-level domain is a number,
    so what ends in one is no real name.
    """
    text = name[1:-1] if name[:1] == "[" and name[-1:] == "]" else name
    try:
        if ":" in text:
            return inet_pton(AF_INET6, text.partition("%")[0])
        return inet_aton(text) if _ends_in_number(text) else None
    except (OSError, ValueError):
        return None


def _ends_in_number(text: str) -> bool:
    last = text.rpartition(".")[2]
    return last.isascii() and (last.isdigit() or last[:2].lower() == "0x")
