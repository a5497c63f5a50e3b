"""Checksums and headers against plain ones and dpkt."""

from __future__ import annotations

import dpkt
from hypothesis import given
from hypothesis import strategies as st

from childflow.services import packets
from tests.services.play import CHILD4, CHILD6, FAR4, FAR6, plain_checksum


@given(st.binary(max_size=2100))
def test_checksum_is_the_plain_one(data: bytes) -> None:
    assert packets.checksum(data) == plain_checksum(data)


def test_checksum_of_sums_that_wrap() -> None:
    for data in (b"", b"\0\0", b"\xff\xff", b"\xff\xff" * 40000, b"\xff\xfe\0\1", b"\0" * 65536):
        assert packets.checksum(data) == plain_checksum(data)


def test_ip4_reads_back() -> None:
    packet = packets.ip4(17, CHILD4, FAR4, b"payload", ttl=9, ident=77)
    ip = dpkt.ip.IP(packet)
    assert (ip.src, ip.dst, ip.ttl, ip.id, ip.p, ip.len) == (CHILD4, FAR4, 9, 77, 17, len(packet))
    assert plain_checksum(packet[:20]) == 0


def test_error_quotes_what_fits() -> None:
    quoted = packets.ip4(17, CHILD4, FAR4, bytes(2000))
    assert len(packets.icmp_error(FAR4, CHILD4, 3, 1, quoted)) == 576
    quoted = packets.ip6(17, CHILD6, FAR6, bytes(2000))
    error = packets.icmp_error(FAR6, CHILD6, 2, 0, quoted, rest=1280)
    assert (len(error), error[44:48]) == (1280, (1280).to_bytes(4, "big"))
