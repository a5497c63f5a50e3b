"""Virtual names: an address for each name of a run, so that a connection to the address is one to the name.

IPv4 from 198.18.0.0/15 (RFC 2544's benchmarking range, which nothing on the Internet has), IPv6 from a ULA /64 beside
the link's own. One number stands for a name in both families.

Invariants: an address that was given out stays its name's for the whole run; none is ever given to two names.
            At most `limit` names; a name too many gets none.
Not here:   which names are allowed to have one (`verdict.py`), DNS (`services/name_policy.py`).
"""

from __future__ import annotations

PREFIX4 = bytes((198, 18))  # /15: 198.18 and 198.19
PREFIX6 = bytes.fromhex("fd6368696c640001")  # /64: fd63:6869:6c64:1::
LIMIT = (1 << 17) - 2  # the range's first and last address stay unused, as a network's
IPV4, IPV6 = 4, 6


class VirtualNames:
    """The names that have an address, and their addresses."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = min(limit, LIMIT)
        self._numbers: dict[str, int] = {}
        self._names: list[str] = []

    def __len__(self) -> int:
        return len(self._names)

    def address_of(self, name: str, family: int) -> bytes | None:
        """The packed address of `name` (`family` 4 or 6), the same at every call; None: there are too many names."""
        number = self._numbers.get(name)
        if number is None:
            if len(self._names) >= self._limit:
                return None
            self._names.append(name)
            number = self._numbers[name] = len(self._names)  # from 1
        return _address4(number) if family == IPV4 else _address6(number)

    def name_of(self, address: bytes) -> str | None:
        """The name that `address` was given to, or None."""
        number = _number(address)
        return self._names[number - 1] if 0 < number <= len(self._names) else None


def is_virtual(address: bytes) -> bool:
    """Whether `address` could be a virtual one: nothing else is ever reached there while names are virtual."""
    if len(address) == 4:
        return address[0] == PREFIX4[0] and address[1] | 1 == PREFIX4[1] | 1
    return address.startswith(PREFIX6)


def _address4(number: int) -> bytes:
    return (int.from_bytes(PREFIX4, "big") << 16 | number).to_bytes(4, "big")


def _address6(number: int) -> bytes:
    return PREFIX6 + number.to_bytes(8, "big")


def _number(address: bytes) -> int:
    """The number in `address`, 0 when it is none of ours."""
    if not is_virtual(address):
        return 0
    if len(address) == 4:
        return int.from_bytes(address, "big") - (int.from_bytes(PREFIX4, "big") << 16)
    return int.from_bytes(address[8:], "big")
