"""DNS replies that childflow writes itself: empty ones, blocked ones that say why, and virtual addresses.

Invariants: a reply repeats id, question, RD and CD of its query, and has an OPT record if and only if the query had one
            (RFC 6891 6.1.1).
Not here:   when which is given (`name_policy.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct

from childflow.services import dns

TYPE_PTR = 12
TTL_S = 60  # of a virtual name: its address stays for the whole run, and no longer
EDE_BLOCKED = 15  # RFC 8914 4.16: the policy of the one who operates this resolver, which is the user
LEAST_ROOM = 512  # RFC 1035 2.3.4
_OUR_ROOM = 1232  # what we say that we take; nobody sends us more than a query
_EDE_TEXT_BYTES = 200
_OPTION_EDE = 15
_TYPE_OPT = 41
_DO = 0x8000
_TC = 0x02
_HEADER = Struct("!HHHHHH")
_RECORD = Struct("!HHIH")
_EDE = Struct("!HHH")  # option, length, info code


def empty(query: bytes, question: bytes, code: int = dns.NOERROR) -> bytes:
    """`code` and no record."""
    return _reply(query, question, code, [], _opt(query, question, b""))


def blocked(query: bytes, question: bytes, why: str) -> bytes:
    """No record and NOERROR: the name exists, and has nothing for this child. `why` goes along if EDNS can carry it."""
    text = why.encode("utf-8")[:_EDE_TEXT_BYTES].decode("utf-8", "ignore").encode("utf-8")
    return _reply(query, question, dns.NOERROR, [], _opt(query, question, _ede(text)))


def addresses(query: bytes, question: bytes, found: Sequence[bytes]) -> bytes:
    """The packed addresses, as records of the name that was asked."""
    records = [_record(dns.TYPE_A if len(address) == 4 else dns.TYPE_AAAA, address) for address in found]
    return _reply(query, question, dns.NOERROR, records, _opt(query, question, b""))


def pointer(query: bytes, question: bytes, name: str) -> bytes:
    """A PTR record with `name`, text as `dns.name_text` writes it."""
    return _reply(query, question, dns.NOERROR, [_record(TYPE_PTR, wire_name(name))], _opt(query, question, b""))


def fitted(answer: bytes, query: bytes, question: bytes) -> bytes:
    """`answer` if a datagram to the one who asked holds it, else an empty one that says so (TC)."""
    if len(answer) <= max(room(query, question) or LEAST_ROOM, LEAST_ROOM):
        return answer
    short = empty(query, question, dns.rcode(answer))
    return short[:2] + bytes((short[2] | _TC,)) + short[3:]


def room(query: bytes, question: bytes) -> int | None:
    """Bytes that the one who asked takes in a datagram; None without EDNS."""
    found = _find_opt(query, question)
    return None if found is None else found[0]


def wire_name(name: str) -> bytes:
    """`name` (as `dns.name_text` writes it) as a message has it. ValueError for what is no name."""
    labels = bytearray()
    for label in name.split(".") if name not in (".", "") else ():
        octets = _label(label)
        if not 0 < len(octets) <= dns.LABEL_BYTES:
            raise ValueError(f"{name!r} is no name: a label has 1 to {dns.LABEL_BYTES} bytes")
        labels.append(len(octets))
        labels += octets
    if len(labels) >= dns.NAME_BYTES:
        raise ValueError(f"{name!r} is no name: it has at most {dns.NAME_BYTES} bytes")
    return bytes(labels) + b"\0"


def _label(text: str) -> bytes:
    if "\\" not in text:
        return text.encode("ascii")
    head, *rest = text.split("\\")
    octets = bytearray(head.encode("ascii"))
    for part in rest:
        if not part[:3].isdigit() or len(part) < 3:
            raise ValueError(f"{text!r} has a broken escape")
        octets.append(int(part[:3]))
        octets += part[3:].encode("ascii")
    return bytes(octets)


def _reply(query: bytes, question: bytes, code: int, records: list[bytes], opt: bytes) -> bytes:
    flags = 0x8080 | (query[2] & 0x79) << 8 | (query[3] & 0x10) | code  # opcode, RD and CD as asked; RA
    head = _HEADER.pack(query[0] << 8 | query[1], flags, 1, len(records), 0, 1 if opt else 0)
    return b"".join((head, question, *records, opt))


def _record(rtype: int, data: bytes) -> bytes:
    return b"\xc0\x0c" + _RECORD.pack(rtype, dns.CLASS_IN, TTL_S, len(data)) + data


def _ede(text: bytes) -> bytes:
    return _EDE.pack(_OPTION_EDE, 2 + len(text), EDE_BLOCKED) + text


def _opt(query: bytes, question: bytes, options: bytes) -> bytes:
    """Our OPT record with `options`; nothing where the query had none."""
    found = _find_opt(query, question)
    if found is None:
        return b""
    return b"\0" + _RECORD.pack(_TYPE_OPT, _OUR_ROOM, found[1] & _DO, len(options)) + options


def _find_opt(query: bytes, question: bytes) -> tuple[int, int] | None:
    """Room and flags of the query's OPT record. `query` has parsed, so its records end where it ends."""
    answers, authorities, additionals = _HEADER.unpack_from(query)[3:]
    at = dns.HEADER_BYTES + len(question)
    for _ in range(answers + authorities + additionals):
        at = dns.skip_name(query, at)
        rtype, rclass, ttl, length = _RECORD.unpack_from(query, at)
        if rtype == _TYPE_OPT:
            return rclass, ttl & 0xFFFF
        at += 10 + length
    return None
