"""DNS both ways: what the child sends, read as a query, and what a resolver sends, read as an answer to it (A38).

The first two bytes say how long the child's message is; the rest is the resolver's. A query is passed on only if it is
one: one question, names and records that end where the message ends, which a plain reference decides again here.
"""

from __future__ import annotations

import struct

from childflow.services import dns, dns_answer, dns_reply

_HEADER = struct.Struct("!HHHHHH")


def one(data: bytes) -> None:
    size = int.from_bytes(data[:2], "big")
    asked, answered = data[2 : 2 + size], data[2 + size :]
    query = dns.read_query(asked)
    if isinstance(query, dns.Bad):
        _check_refusal(asked, query)
        return
    assert _is_query(asked), "passed on, though it is no query"
    _check_query(asked, query)
    _check_answer(asked, query, answered)
    _check_answer(asked, query, asked[:2] + b"\x81\x80" + asked[4:6] + answered[:6] + query.question + answered[6:])


def _check_refusal(asked: bytes, bad: dns.Bad) -> None:
    if bad.reply is None:
        assert len(asked) < 2
        return
    assert len(bad.reply) == dns.HEADER_BYTES
    assert bad.reply[:2] == asked[:2]
    assert bad.reply[2] & 0x80
    assert bad.reply[3] & 15 in (dns.FORMERR, dns.NOTIMP)
    assert bad.reply[3] & 15 == dns.NOTIMP or not _is_query(asked), "refused as malformed, though it is well-formed"


def _check_query(asked: bytes, query: dns.Query) -> None:
    assert asked[dns.HEADER_BYTES :].startswith(query.question)
    assert query.ident == int.from_bytes(asked[:2], "big")
    assert query.qtype == int.from_bytes(query.question[-4:-2], "big")
    name = dns.name_text(query.question)
    assert len(name) <= 4 * 255
    assert name.isascii()
    assert dns.type_name(query.qtype)
    empty = dns_reply.empty(asked, query.question, dns.SERVFAIL)
    assert dns.answers(empty, query.question)
    assert dns.rcode(empty) == dns.SERVFAIL
    assert dns_reply.wire_name(name) == query.question[:-4].lower()
    blocked = dns_reply.blocked(asked, query.question, name)
    assert dns.rcode(blocked) == dns.NOERROR
    assert (dns_reply.room(asked, query.question) is None) == (dns_reply.room(blocked, query.question) is None)


def _check_answer(asked: bytes, query: dns.Query, answered: bytes) -> None:
    if not dns.answers(answered, query.question):
        return
    assert dns.rcode(answered) < 16
    chain = dns_answer.read_chain(answered, query.question)
    if chain is not None:
        _check_chain(query, answered, chain)
    stripped = dns_answer.without_ech(answered, query.question)
    if stripped is not None and stripped is not answered:
        _check_stripped(query, answered, stripped, chain)


def _check_chain(query: dns.Query, answered: bytes, chain: dns_answer.Chain) -> None:
    assert len(chain.addresses) * 15 <= len(answered), "more addresses than bytes for them"
    assert len(set(chain.names)) == len(chain.names)
    assert dns.name_text(query.question) not in chain.names
    for address in chain.addresses:
        assert len(address.address) in (4, 16)
        assert address.address in answered
    if answered[4:6] == b"\0\1":
        assert chain == _plain_chain(answered, query.question), "another reader finds another chain"


def _plain_chain(message: bytes, question: bytes) -> dns_answer.Chain:
    """The plain reference: take names in until none is added, then the addresses of those."""
    records = []
    at = 12 + len(question)
    for _ in range(int.from_bytes(message[6:8], "big")):
        owner, end = _whole_name(message, at), _name(message, at, pointers=True)
        kind, klass, ttl, size = struct.unpack_from("!HHIH", message, end)
        at = end + 10 + size
        records.append((owner, kind, klass, ttl, message[end + 10 : at], end + 10))
    names = [question[:-4].lower()]
    for name in names:  # grows under way
        for owner, kind, klass, _, _, start in records:
            if (owner, kind, klass) == (name, 5, 1) and (target := _whole_name(message, start)) not in names:
                names.append(target)
    found = [
        dns_answer.Address(data, ttl)
        for name in names
        for owner, kind, klass, ttl, data, _ in records
        if (owner, klass) == (name, 1) and (kind, len(data)) in ((1, 4), (28, 16))
    ]
    return dns_answer.Chain(tuple(dns.name_text(name) for name in names[1:]), found)


def _whole_name(message: bytes, at: int) -> bytes:
    labels = b""
    while message[at]:
        if message[at] >= 0xC0:
            at = int.from_bytes(message[at : at + 2], "big") & 0x3FFF
            continue
        labels += message[at : at + 1 + message[at]]
        at += 1 + message[at]
    return labels.lower() + b"\0"


def _check_stripped(query: dns.Query, answered: bytes, stripped: bytes, chain: dns_answer.Chain | None) -> None:
    assert dns.answers(stripped, query.question)
    assert dns.rcode(stripped) == dns.rcode(answered)
    assert dns_answer.without_ech(stripped, query.question) is stripped, "there still are ECH keys"
    again = dns_answer.read_chain(stripped, query.question)
    assert again is not None
    assert chain is None or again.names == chain.names


def _is_query(message: bytes) -> bool:
    """The plain reference: RFC 1035 4.1, one byte after the other."""
    if len(message) < 12:
        return False
    _, flags, questions, *counts = _HEADER.unpack_from(message)
    if flags & 0x8000 or questions != 1:
        return False
    try:
        at = _name(message, 12, pointers=False) + 4
        for _ in range(sum(counts)):
            at = _name(message, at, pointers=True) + 10
            at += int.from_bytes(message[at - 2 : at], "big")
            if at > len(message):
                return False
    except ValueError:
        return False
    return at == len(message)


def _name(message: bytes, at: int, *, pointers: bool) -> int:
    start = at
    while True:
        if at >= len(message):
            raise ValueError("cut")
        length = message[at]
        if length == 0:
            if at + 1 - start > 255:
                raise ValueError("too long")
            return at + 1
        if length >= 0xC0 and pointers:
            if at + 2 > len(message) or at + 1 - start > 255:
                raise ValueError("cut")
            return at + 2
        if length > 63:
            raise ValueError("no label")
        at += 1 + length


def _record(name: bytes, kind: int, data: bytes, length: int | None = None) -> bytes:
    return name + struct.pack("!HHIH", kind, 1, 60, len(data) if length is None else length) + data


def _query(
    name: bytes = b"\1a\4test\0", counts: tuple[int, int, int, int] = (1, 0, 0, 0), flags: int = 0x0100
) -> bytes:
    return _HEADER.pack(7, flags, *counts) + name + b"\0\1\0\1"


def seeds() -> list[bytes]:
    opt = _record(b"\0", 41, b"")
    answer = _HEADER.pack(7, 0x8180, 1, 2, 0, 0) + b"\1a\4test\0\0\1\0\1"
    answer += _record(b"\xc0\x0c", 1, bytes((203, 0, 113, 5))) + _record(b"\xc0\x0c", 28, bytes(16))
    queries = [
        _query(), _query(counts=(1, 0, 0, 1)) + opt, _query(counts=(1, 0, 0, 1)) + _record(b"\0", 41, b"abc", 9),
        _query(b"\xc0\x0c"), _query(b"\xc0\x20"), _query(b"\xc1\x00"), _query(b"\3abc\xc0\x0c"),
        *(_query(bytes((n,)) + bytes(n) + b"\0") for n in (63, 64, 127, 128, 191)),
        _query((b"\x3f" + b"x" * 63) * 4 + b"\0"), _query((b"\x3f" + b"x" * 63) * 3 + b"\x3d" + b"x" * 61 + b"\0"),
        *(_query(counts=counts) for counts in ((65535,) * 4, (0, 0, 0, 0), (2, 0, 0, 0), (1, 65535, 0, 0))),
        *(_query(counts=counts) for counts in ((1, 0, 65535, 0), (1, 0, 0, 65535))),
        _query(flags=0x8180), _query(flags=0x2800), _query()[:-4] + b"\0\xfc\0\1", _query()[:-4] + b"\0\xfb\0\1",
        _query() + b"more", b"", b"\0", b"\0\1",
    ]  # fmt: skip
    good = _query()
    queries += [good[:at] for at in range(len(good))]
    chain = _HEADER.pack(7, 0x8180, 1, 128, 0, 0) + b"\1a\4test\0\0\1\0\1"
    chain += b"".join(
        _record(struct.pack("!H", 0xC000 | 12 + 16 * n), 5, struct.pack("!H", 0xC000)) for n in range(128)
    )
    answers = [answer, chain, *(answer[:at] for at in range(12, len(answer), 3)), answer[:6] + b"\xff\xff" + answer[8:]]
    answers += [answer[:30] + b"\xff\xff" + answer[32:], _HEADER.pack(7, 0x8182, 0, 0, 0, 0), _query()]
    answers += _chains() + _bindings()
    both = [(q, b"") for q in queries] + [(good, a) for a in answers]
    return [len(q).to_bytes(2, "big") + q + a for q, a in both]


def _answered(*records: bytes) -> bytes:
    return _HEADER.pack(7, 0x81A0, 1, len(records), 0, 0) + b"\1a\4test\0\0\1\0\1" + b"".join(records)


def _chains() -> list[bytes]:
    far = bytes((203, 0, 113, 5))
    alias = _record(b"\xc0\x0c", 5, b"\3cdn\xc0\x0e")  # cdn.test
    return [
        _answered(alias, _record(b"\xc0\x24", 1, far)),
        _answered(_record(b"\3CDN\4test\0", 1, far), alias, _record(b"\3cdn\4test\0", 5, b"\xc0\x0c")),
        _answered(alias, _record(b"\5other\0", 1, far), _record(b"\5other\0", 5, b"\3cdn\4test\0")),
    ]


def _bindings() -> list[bytes]:
    ech = b"\0\5\0\6\0\4\xfe\x0d\0\0"
    head = b"\0\1\0\0\1\0\3\2h2"
    return [
        _answered(_record(b"\xc0\x0c", kind, data))
        for kind in (64, 65)
        for data in (head + ech, head, b"\0\1\0\0\0\0\4\0\1\0\5" + ech, b"\0\0\3cdn\4test\0" + ech, head + ech[:-1])
    ] + [
        _answered(
            _record(b"\xc0\x0c", 5, b"\3cdn\xc0\x0e"), _record(b"\xc0\x24", 65, head + ech), _record(b"\0", 41, b"")
        )
    ]
