"""DNS answers: which names and addresses the asked name led to, and answers without their ECH keys. Bytes, no I/O.

An answer belongs to the name that was asked, along its own CNAME chain: what else a server puts into it (RFC 1035 4.1.1
has three sections for that) is nobody's evidence. Records may come in any order.

Invariants: a compression pointer is followed backwards only, names are at most 255 bytes, at most MAX_RECORDS records
            are looked at: the work is bounded however hostile the message is.
Not here:   queries (`dns.py`), what is done about an answer (`name_policy.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple

from childflow.services import dns

MAX_RECORDS = 1024  # 1,000 addresses of one name are 16 KB
TYPE_CNAME = 5
TYPE_OPT = 41
TYPE_SVCB = 64
TYPE_HTTPS = 65
_MANDATORY = 0  # SvcParamKeys, RFC 9460 14.3.2
_ECH = 5
_AD = 0x20
_HEADER = Struct("!HHHHHH")
_RECORD = Struct("!HHIH")  # type, class, TTL in seconds, length of the data
_PARAM = Struct("!HH")  # key, length of the value
_TO_QUESTION = b"\xc0\x0c"
_IN = dns.CLASS_IN
_SIZES = {dns.TYPE_A: 4, dns.TYPE_AAAA: 16}


class Address(NamedTuple):
    """An A or AAAA record: packed address, TTL in seconds."""

    address: bytes
    ttl: int


class Chain(NamedTuple):
    """What one name led to: the canonical names behind it, nearest first, and their addresses."""

    names: tuple[str, ...]
    addresses: list[Address]


class _Record(NamedTuple):
    """A record as it stands in the message; `owner` in lower case, without pointers; `data` as it came, from `at`."""

    owner: bytes
    rtype: int
    rclass: int
    ttl: int
    data: bytes
    at: int


class _Unreadable(Exception):
    """The message does not parse."""


def read_chain(message: bytes, question: bytes) -> Chain | None:
    """Where `message`, an answer to `question`, leads. None: it does not parse, and leads nowhere."""
    if message[4:6] != b"\0\1":
        return Chain((), [])
    plain = _own_addresses(message, question)
    if plain is not None:
        return Chain((), plain)
    try:
        return _read_chain(message, question)
    except _Unreadable:
        return None


def _own_addresses(message: bytes, question: bytes) -> list[Address] | None:
    """The addresses in the usual answer: every record is one of the asked name itself. None for any other."""
    found: list[Address] = []
    at = dns.HEADER_BYTES + len(question)
    for _ in range(message[6] << 8 | message[7]):
        if message[at : at + 2] != _TO_QUESTION or at + 12 > len(message):
            return None
        rtype, rclass, ttl, length = _RECORD.unpack_from(message, at + 2)
        at += 12 + length
        if rclass != _IN or _SIZES.get(rtype) != length or at > len(message) or len(found) >= MAX_RECORDS:
            return None
        found.append(Address(message[at - length : at], ttl))
    return found


def _read_chain(message: bytes, question: bytes) -> Chain:
    aliases: dict[bytes, list[bytes]] = {}
    found: dict[bytes, list[Address]] = {}
    for record in _answers(message, question):
        if record.rclass != _IN:
            continue
        if record.rtype == TYPE_CNAME:
            aliases.setdefault(record.owner, []).append(_name(message, record.at)[0])
        elif _SIZES.get(record.rtype) == len(record.data):
            found.setdefault(record.owner, []).append(Address(record.data, record.ttl))
    names = _follow(question[:-4].lower(), aliases)
    addresses = [address for name in names for address in found.get(name, ())]
    return Chain(tuple(dns.name_text(name) for name in names[1:]), addresses)


def _follow(asked: bytes, aliases: dict[bytes, list[bytes]]) -> list[bytes]:
    """`asked` and every name that its aliases lead to, each once. A name should have one alias; servers err."""
    names = {asked: None}
    waiting = [asked]
    while waiting:
        for target in aliases.get(waiting.pop(0), ()):
            if target not in names:
                names[target] = None
                waiting.append(target)
    return list(names)


def _answers(message: bytes, question: bytes) -> Iterator[_Record]:
    return _records(message, question, message[6] << 8 | message[7])


def _records(message: bytes, question: bytes, count: int) -> Iterator[_Record]:
    if count > MAX_RECORDS:
        raise _Unreadable
    at = dns.HEADER_BYTES + len(question)
    asked = question[:-4].lower()
    for _ in range(count):
        if message[at : at + 2] == _TO_QUESTION:
            owner, at = asked, at + 2
        else:
            owner, at = _name(message, at)
        if at + 10 > len(message):
            raise _Unreadable
        rtype, rclass, ttl, length = _RECORD.unpack_from(message, at)
        start = at + 10
        at = start + length
        if at > len(message):
            raise _Unreadable
        yield _Record(owner, rtype, rclass, ttl, message[start:at], start)


def _name(message: bytes, at: int) -> tuple[bytes, int]:
    """The name at `at` in lower case, pointers followed; and where the record goes on."""
    labels = bytearray()
    end = -1
    floor = at
    jumps = 0
    while at < len(message):
        length = message[at]
        if length == 0:
            labels.append(0)
            if len(labels) > dns.NAME_BYTES:
                break
            return bytes(labels).lower(), end if end >= 0 else at + 1
        if length <= dns.LABEL_BYTES:
            labels += message[at : at + 1 + length]
            at += 1 + length
            if len(labels) >= dns.NAME_BYTES:
                break
            continue
        if length < 0xC0 or at + 2 > len(message):
            break
        end = at + 2 if end < 0 else end
        at = (length & 0x3F) << 8 | message[at + 1]
        jumps += 1
        if not dns.HEADER_BYTES <= at < floor or jumps > dns.NAME_BYTES // 2:
            break
        floor = at
    raise _Unreadable


# ECH.


def without_ech(message: bytes, question: bytes) -> bytes | None:
    """`message` without the ECH keys in its SVCB and HTTPS records; itself where there are none. None: unreadable.

    An answer that has some is written anew with its CNAME, SVCB and HTTPS records and its OPT, not more: signatures
    don't hold any longer (so it isn't called authentic), and the other sections are a courtesy.
    """
    if message[4:6] != b"\0\1":
        return message
    try:
        if not any(_has_ech(record) for record in _all(message, question)):
            return message
        return _rewritten(message, question)
    except _Unreadable:
        return None


def _all(message: bytes, question: bytes) -> Iterator[_Record]:
    return _records(message, question, sum(_HEADER.unpack_from(message)[3:]))


def _has_ech(record: _Record) -> bool:
    return record.rtype in (TYPE_SVCB, TYPE_HTTPS) and any(key == _ECH for key, _ in _params(record.data))


def _params(data: bytes) -> list[tuple[int, bytes]]:
    """The SvcParams of a record's data (RFC 9460 2.2)."""
    at = _target_end(data)
    found = []
    while at < len(data):
        if at + 4 > len(data):
            raise _Unreadable
        key, length = _PARAM.unpack_from(data, at)
        at += 4 + length
        if at > len(data):
            raise _Unreadable
        found.append((key, data[at - length : at]))
    return found


def _target_end(data: bytes) -> int:
    """Past the priority and the TargetName, which has no pointers."""
    at = 2
    while at < len(data) and data[at]:
        if data[at] > dns.LABEL_BYTES:
            raise _Unreadable
        at += 1 + data[at]
    if at >= len(data):
        raise _Unreadable
    return at + 1


def _rewritten(message: bytes, question: bytes) -> bytes:
    ident, flags, _, answers, _, _ = _HEADER.unpack_from(message)
    kept, extra = [], []
    for number, record in enumerate(_all(message, question)):
        if record.rtype == TYPE_OPT:
            extra.append(_packed(record, record.data))
        elif number < answers and record.rtype == TYPE_CNAME:
            kept.append(_packed(record, _name(message, record.at)[0]))
        elif number < answers and record.rtype in (TYPE_SVCB, TYPE_HTTPS):
            kept.append(_packed(record, _stripped(record.data)))
    head = _HEADER.pack(ident, flags & ~_AD, 1, len(kept), 0, len(extra))
    return b"".join((head, message[dns.HEADER_BYTES : dns.HEADER_BYTES + len(question)], *kept, *extra))


def _stripped(data: bytes) -> bytes:
    parts = [data[: _target_end(data)]]
    for key, value in _params(data):
        if key == _MANDATORY:
            parts.append(_mandatory(value))
        elif key != _ECH:
            parts.append(_PARAM.pack(key, len(value)) + value)
    return b"".join(parts)


def _mandatory(keys: bytes) -> bytes:
    """The param that lists `keys`, less ECH; none when that leaves none (RFC 9460 8)."""
    kept = b"".join(keys[i : i + 2] for i in range(0, len(keys), 2) if keys[i : i + 2] != b"\0\5")
    return _PARAM.pack(_MANDATORY, len(kept)) + kept if kept else b""


def _packed(record: _Record, data: bytes) -> bytes:
    return record.owner + _RECORD.pack(record.rtype, record.rclass, record.ttl, len(data)) + data
