"""What an answer says of the name that was asked, and nothing else; answers without ECH keys. Held against dnslib."""

from __future__ import annotations

import struct
import time

import dnslib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from childflow.services import dns
from childflow.services.dns_answer import Address, read_chain, without_ech
from tests.services.play import query

FAR = bytes((203, 0, 113, 5))
EVIL = bytes((6, 6, 6, 6))
LABELS = st.lists(
    st.text("abcdefghijklmnopqrstuvwxyzABCXYZ0123456789-_", min_size=1, max_size=20), min_size=1, max_size=6
)
ADDRESS = st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16))


def question_of(message: bytes) -> bytes:
    read = dns.read_query(message)
    assert isinstance(read, dns.Query)
    return read.question


def rr(owner: str, kind: str, data: dnslib.RD, ttl: int = 60) -> dnslib.RR:
    return dnslib.RR(owner, getattr(dnslib.QTYPE, kind), ttl=ttl, rdata=data)


def a(owner: str, address: bytes = FAR, ttl: int = 60) -> dnslib.RR:
    return rr(owner, "A", dnslib.A(tuple(address)), ttl)


def cname(owner: str, target: str) -> dnslib.RR:
    return rr(owner, "CNAME", dnslib.CNAME(target))


def answer(name: str, *records: dnslib.RR, kind: str = "A") -> tuple[bytes, bytes]:
    """An answer to `name` with `records`, and its question."""
    asked = dnslib.DNSRecord(q=dnslib.DNSQuestion(name, getattr(dnslib.QTYPE, kind)))
    reply = asked.reply()
    reply.add_answer(*records)
    return bytes(reply.pack()), question_of(bytes(asked.pack()))


@settings(max_examples=200, deadline=None)
@given(LABELS, st.lists(st.tuples(ADDRESS, st.integers(0, 2**31 - 1)), max_size=8))
def test_chain_reads_what_dnslib_wrote(labels: list[str], addresses: list[tuple[bytes, int]]) -> None:
    records = [cname(".".join(labels), "cdn.test")]
    for address, ttl in addresses:
        data = dnslib.A(tuple(address)) if len(address) == 4 else dnslib.AAAA(tuple(address))
        records.append(rr("cdn.test", "A" if len(address) == 4 else "AAAA", data, ttl))
    message, question = answer(".".join(labels), *records)
    assert dns.answers(message, question)
    names = () if ".".join(labels).lower() == "cdn.test" else ("cdn.test",)
    assert read_chain(message, question) == (names, [Address(a, t) for a, t in addresses])


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80), st.integers(0, 65535))
def test_chain_of_any_bytes_ends(tail: bytes, count: int) -> None:
    message = query()[:6] + count.to_bytes(2, "big") + query()[8:] + tail
    chain = read_chain(message, question_of(query()))
    assert chain is None or len(chain.addresses) <= count
    without_ech(message, question_of(query()))


@pytest.mark.case("D08")
def test_chain_is_that_of_the_asked_name_only() -> None:
    message, question = answer(
        "x.evil.test", a("x.evil.test", EVIL), a("allowed.test", FAR), cname("other.test", "allowed.test")
    )
    assert read_chain(message, question) == ((), [Address(EVIL, 60)])


@pytest.mark.case("D08")
def test_records_of_other_sections_are_no_evidence() -> None:
    asked = dnslib.DNSRecord.question("x.evil.test")
    reply = asked.reply()
    reply.add_auth(a("x.evil.test", FAR))
    reply.add_ar(a("x.evil.test", FAR))
    assert read_chain(bytes(reply.pack()), question_of(bytes(asked.pack()))) == ((), [])


@pytest.mark.case("D16")
def test_addresses_in_other_records_are_no_evidence() -> None:
    text = rr("x.test", "TXT", dnslib.TXT("\\# 4 06060606"))
    https = rr("x.test", "HTTPS", dnslib.RD(svcb((4, EVIL), (6, EVIL * 4))))
    wrong_size = rr("x.test", "A", dnslib.RD(EVIL * 4))
    message, question = answer("x.test", text, https, wrong_size)
    assert read_chain(message, question) == ((), [])


def test_records_in_any_order_and_case_and_several_aliases() -> None:
    message, question = answer(
        "A.test", a("C.test"), cname("B.test", "c.TEST"), cname("a.test", "b.test"), cname("a.test", "d.test")
    )
    assert read_chain(message, question) == (("b.test", "d.test", "c.test"), [Address(FAR, 60)])


def test_aliases_in_a_circle_end() -> None:
    message, question = answer("a.test", cname("a.test", "b.test"), cname("b.test", "a.test"), a("b.test"))
    assert read_chain(message, question) == (("b.test",), [Address(FAR, 60)])


HEAD = struct.pack("!HHHHHH", 1, 0x8180, 1, 1, 0, 0) + query("a.test")[12:]
AT = len(HEAD)
BROKEN = {
    "owner points to itself": HEAD + struct.pack("!HHHIH", 0xC000 | AT, 1, 1, 60, 4) + FAR,
    "owner points forward": HEAD + struct.pack("!HHHIH", 0xC000 | AT + 4, 1, 1, 60, 4) + FAR,
    "owner points into the header": HEAD + struct.pack("!HHHIH", 0xC000, 1, 1, 60, 4) + FAR,
    "owner cut": HEAD + b"\xc0",
    "no label": HEAD + b"\x80",
    "record cut": HEAD + b"\xc0\x0c\0\1\0\1\0\0\0\0",
    "data cut": HEAD + b"\xc0\x0c\0\1\0\1\0\0\0\0\0\5" + FAR,
    "alias is no name": HEAD + b"\xc0\x0c\0\5\0\1\0\0\0\0\0\1\5",
    "owner too long": HEAD + (b"\x3f" + b"a" * 63) * 4 + b"\0" + b"\0\1\0\1\0\0\0\0\0\4" + FAR,
    "too many records": HEAD[:6] + b"\x04\x01" + HEAD[8:] + (b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4" + FAR) * 1025,
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_does_not_parse_leads_nowhere(what: str) -> None:
    assert read_chain(BROKEN[what], question_of(query("a.test"))) is None
    assert without_ech(BROKEN[what], question_of(query("a.test"))) in (None, BROKEN["alias is no name"])


def test_pointers_to_pointers_are_bounded_in_time() -> None:
    """1,000 names of 32 KB of pointers each."""
    head = struct.pack("!HHHHHH", 1, 0x8180, 1, 1000, 0, 0) + query("a.test")[12:]
    ladder = b"".join(struct.pack("!H", 0xC000 | len(head) + 12 + 2 * n) for n in range(-1, 8000))
    first = b"\xc0\x0c" + struct.pack("!HHIH", 16, 1, 0, len(ladder)) + ladder
    top = 0xC000 | len(head) + 12 + 2 * 7000
    rest = struct.pack("!HHHIH", top, 1, 1, 60, 4) + FAR
    start = time.process_time()
    assert read_chain(head + first + rest * 999, question_of(query("a.test"))) is None
    assert time.process_time() - start < 1


# -- ECH ------------------------------------------------------------------------------------------------------------

ALPN = (1, b"\2h2\2h3")
HINT = (4, FAR)
ECH = (5, b"\0\x04\xfe\x0d\0\0")


def svcb(*params: tuple[int, bytes], target: bytes = b"\0", priority: int = 1) -> bytes:
    return struct.pack("!H", priority) + target + b"".join(struct.pack("!HH", k, len(v)) + v for k, v in params)


def https(*records: dnslib.RR) -> tuple[bytes, bytes]:
    return answer("web.test", *records, kind="HTTPS")


def record(data: bytes, owner: str = "web.test", kind: str = "HTTPS") -> dnslib.RR:
    return rr(owner, kind, dnslib.RD(data))


def datas(message: bytes) -> list[bytes]:
    """The rdata of each SVCB record, by a reader of another kind: dnslib, each record told apart by it."""
    found = []
    for one in dnslib.DNSRecord.parse(message).rr:
        if one.rtype in (64, 65):
            buffer = dnslib.DNSBuffer()
            one.rdata.pack(buffer)
            found.append(bytes(buffer.data))
    return found


@pytest.mark.case("D16")
@pytest.mark.parametrize("kind", ["HTTPS", "SVCB"])
def test_ech_is_taken_out_and_the_rest_stays(kind: str) -> None:
    message, question = https(
        record(svcb(ALPN, HINT, ECH, (6, FAR * 4)), kind=kind), record(svcb(ALPN, target=b"\3cdn\4test\0"), kind=kind)
    )
    stripped = without_ech(message, question)
    assert stripped is not None
    assert datas(stripped) == [svcb(ALPN, HINT, (6, FAR * 4)), svcb(ALPN, target=b"\3cdn\4test\0")]
    assert b"\xfe\x0d" not in stripped
    assert without_ech(stripped, question) == stripped


def test_mandatory_no_longer_names_ech() -> None:
    message, question = https(record(svcb((0, b"\0\1\0\5"), ALPN, ECH)), record(svcb((0, b"\0\5"), ECH)))
    stripped = without_ech(message, question)
    assert stripped is not None
    assert datas(stripped) == [svcb((0, b"\0\1"), ALPN), svcb()]


def test_answer_without_ech_stays_as_it_came() -> None:
    message, question = https(record(svcb(ALPN, HINT)), a("web.test"))
    assert without_ech(message, question) is message


def test_alias_before_the_record_stays_and_the_signature_goes() -> None:
    signature = rr("cdn.test", "RRSIG", dnslib.RD(b"\0\x41" + bytes(16) + b"\4test\0" + b"s" * 64))
    asked = dnslib.DNSRecord.question("web.test", "HTTPS")
    reply = asked.reply()
    reply.header.ad = 1
    reply.add_answer(cname("web.test", "cdn.test"), record(svcb(ECH), "cdn.test"), signature)
    reply.add_ar(dnslib.EDNS0(udp_len=1232, flags="do"), record(svcb(ECH), "cdn.test"))
    stripped = without_ech(bytes(reply.pack()), question_of(bytes(asked.pack())))
    assert stripped is not None
    parsed = dnslib.DNSRecord.parse(stripped)
    assert [(str(one.rname), one.rtype) for one in parsed.rr] == [("web.test.", 5), ("cdn.test.", 65)]
    assert (parsed.header.ad, parsed.header.rcode, len(parsed.ar)) == (0, 0, 1)
    assert parsed.ar[0].edns_len == 1232
    assert str(parsed.rr[0].rdata) == "cdn.test."


BROKEN_SVCB = {
    "empty": b"",
    "no target": b"\0\1",
    "target cut": b"\0\1\3ab",
    "target is a pointer": b"\0\1\xc0\x0c" + svcb(ECH)[3:],
    "value cut": svcb(ECH)[:-1],
    "param cut": svcb(ECH) + b"\0\6\0",
}


@pytest.mark.parametrize("what", BROKEN_SVCB)
def test_record_that_does_not_parse_is_not_passed_on(what: str) -> None:
    raw = struct.pack("!HHHHHH", 1, 0x8180, 1, 1, 0, 0) + query("web.test", 65)[12:]
    raw += b"\xc0\x0c" + struct.pack("!HHIH", 65, 1, 60, len(BROKEN_SVCB[what])) + BROKEN_SVCB[what]
    assert without_ech(raw, question_of(query("web.test", 65))) is None


PARAM = st.tuples(st.integers(0, 9), st.binary(max_size=12))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(PARAM, max_size=5, unique_by=lambda p: p[0]), max_size=4))
def test_stripping_equals_a_plain_filter(records: list[list[tuple[int, bytes]]]) -> None:
    ordered = [sorted((k, v + b"\0" * (len(v) % 2 if k == 0 else 0)) for k, v in one) for one in records]
    message, question = https(*(record(svcb(*one)) for one in ordered))
    stripped = without_ech(message, question)
    assert stripped is not None
    with_ech = any(key == 5 for one in ordered for key, _ in one)
    assert datas(stripped) == [svcb(*(_plain_filter(one) if with_ech else one)) for one in ordered]
    assert without_ech(stripped, question) == stripped


def _plain_filter(params: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    kept = []
    for key, value in params:
        if key == 0:
            words = [value[i : i + 2] for i in range(0, len(value), 2) if value[i : i + 2] != b"\0\5"]
            if words:
                kept.append((key, b"".join(words)))
        elif key != 5:
            kept.append((key, value))
    return kept
