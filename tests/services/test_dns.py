"""Reading DNS messages, held against dnslib."""

from __future__ import annotations

import struct

import dnslib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from childflow.services import dns, dns_reply
from tests.services.play import answer_to, query

EDNS = b"\0" + struct.pack("!HHIH", 41, 4096, 0, 0)


def test_query_that_parses() -> None:
    message = query("Www.Example.test", qtype=28, extra=EDNS)
    read = dns.read_query(message)
    assert isinstance(read, dns.Query)
    assert (read.ident, read.qtype, dns.name_text(read.question)) == (0x1234, 28, "www.example.test")


def refused(message: bytes) -> int | None:
    """The response code of the refusal; None when there was no answer at all."""
    read = dns.read_query(message)
    assert isinstance(read, dns.Bad)
    if read.reply is None:
        return None
    assert read.reply[:2] == message[:2]
    assert read.reply[2] & 0x80
    return read.reply[3] & 15


@pytest.mark.parametrize("size", range(2, len(query("a.test"))))
def test_query_cut_anywhere_is_formerr(size: int) -> None:
    assert refused(query("a.test")[:size]) == dns.FORMERR


@pytest.mark.parametrize("message", [b"", b"\x12"])
def test_query_without_an_id_gets_no_answer(message: bytes) -> None:
    assert refused(message) is None


HEAD = struct.pack("!HHHHHH", 1, 0x0100, 1, 0, 0, 0)
HOSTILE = {
    "answer": struct.pack("!HHHHHH", 1, 0x8180, 1, 0, 0, 0) + query()[12:],
    "no question": struct.pack("!HHHHHH", 1, 0x0100, 0, 0, 0, 0),
    "two questions": struct.pack("!HHHHHH", 1, 0x0100, 2, 0, 0, 0) + query()[12:] * 2,
    "65535 answers": struct.pack("!HHHHHH", 1, 0x0100, 1, 65535, 0, 0) + query()[12:],
    "65535 additionals": struct.pack("!HHHHHH", 1, 0x0100, 1, 0, 0, 65535) + query()[12:] + EDNS,
    "pointer to itself": HEAD + b"\xc0\x0c\0\1\0\1",
    "pointer forward": HEAD + b"\xc0\x20\0\1\0\1",
    "label of 64": HEAD + b"\x40" + b"a" * 64 + b"\0\0\1\0\1",
    "label of 191": HEAD + b"\xbf" + b"a" * 191 + b"\0\0\1\0\1",
    "name of 256": HEAD + (b"\x3f" + b"a" * 63) * 3 + b"\x3f" + b"a" * 63 + b"\0\0\1\0\1",
    "data past the end": query(extra=b"\0" + struct.pack("!HHIH", 41, 4096, 0, 4)),
    "bytes behind": query() + b"GET / HTTP/1.0\r\n\r\n",
    "http": b"GET / HTTP/1.0\r\nHost: example.test\r\n\r\n",
    "zeros": bytes(512),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_query_is_formerr(what: str) -> None:
    assert refused(HOSTILE[what]) in (dns.FORMERR, dns.NOTIMP)


def test_longest_name_parses() -> None:
    name = (b"\x3f" + b"a" * 63) * 3 + b"\x3d" + b"a" * 61 + b"\0"
    assert len(name) == 255
    assert isinstance(dns.read_query(HEAD + name + b"\0\1\0\1"), dns.Query)


def test_update_and_zone_transfer_are_not_implemented() -> None:
    update = query()[:2] + b"\x28\x00" + query()[4:]
    assert refused(update) == dns.NOTIMP
    assert refused(query(qtype=252)) == dns.NOTIMP


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_a_query_or_refused(message: bytes) -> None:
    read = dns.read_query(message)
    if isinstance(read, dns.Query):
        parsed = dnslib.DNSRecord.parse(message)
        assert (parsed.header.id, parsed.q.qtype) == (read.ident, read.qtype)
        dns.name_text(read.question)


LABELS = st.lists(
    st.text("abcdefghijklmnopqrstuvwxyzABCXYZ0123456789-_", min_size=1, max_size=20), min_size=1, max_size=6
)


@settings(max_examples=200, deadline=None)
@given(LABELS, st.integers(1, 65535).filter(lambda t: t not in (251, 252)), st.integers(0, 65535))
def test_query_reads_as_dnslib_made_it(labels: list[str], qtype: int, ident: int) -> None:
    message = dnslib.DNSRecord(dnslib.DNSHeader(id=ident, rd=1), q=dnslib.DNSQuestion(".".join(labels), qtype)).pack()
    read = dns.read_query(bytes(message))
    assert isinstance(read, dns.Query)
    assert (read.ident, read.qtype, dns.name_text(read.question)) == (ident, qtype, ".".join(labels).lower())


def question_of(message: bytes) -> bytes:
    read = dns.read_query(message)
    assert isinstance(read, dns.Query)
    return read.question


def test_answers_matches_the_question_only() -> None:
    question = question_of(query("a.test"))
    assert dns.answers(answer_to(query("a.test")), question)
    assert dns.answers(answer_to(query("A.TEST")), question)
    assert not dns.answers(answer_to(query("b.test")), question)
    assert not dns.answers(query("a.test"), question)
    assert dns.answers(struct.pack("!HHHHHH", 1, 0x8185, 0, 0, 0, 0), question)
    assert not dns.answers(struct.pack("!HHHHHH", 1, 0x8180, 0, 0, 0, 0), question)
    assert not dns.answers(b"", question)


def test_servfail_repeats_id_question_and_recursion() -> None:
    message = query("a.test", ident=0xBEEF)
    parsed = dnslib.DNSRecord.parse(dns_reply.empty(message, question_of(message), dns.SERVFAIL))
    assert (parsed.header.id, parsed.header.rcode, parsed.header.qr, parsed.header.rd, parsed.header.ra) == (
        0xBEEF, 2, 1, 1, 1,
    )  # fmt: skip
    assert str(parsed.q.qname) == "a.test."


@pytest.mark.parametrize(
    ("wire", "text"),
    [
        (b"\0", "."),
        (b"\3a.b\1c\0", "a\\046b.c"),
        (b"\2\x07\xff\0", "\\007\\255"),
        (b"\4_dmc\0", "_dmc"),
        (b"\3a b\0", "a\\032b"),
        (b"\3*AB\0", "*ab"),
    ],
)
def test_name_text(wire: bytes, text: str) -> None:
    assert dns.name_text(wire + b"\0\1\0\1") == text


@pytest.mark.parametrize(("qtype", "name"), [(1, "A"), (65, "HTTPS"), (257, "CAA"), (65280, "TYPE65280")])
def test_type_name(qtype: int, name: str) -> None:
    assert dns.type_name(qtype) == name
