"""Echo requests of the child, and ICMP errors about ours, which the kernel reports in its own structure.

The first byte chooses: a packet as the child's request; or a session and what its socket's error queue tells, or the
message that came on it, passed on as `Echo` does, with a stack that only listens.
"""

from __future__ import annotations

import struct
from typing import Any, cast

from childflow.policy.policy import without_rules
from childflow.record.null import NullRecorder
from childflow.services import echo, packets
from childflow.settings import ADDRESSES, Settings

REMOTE = {4: bytes((203, 0, 113, 5)), 6: bytes.fromhex("20010db8") + bytes(11) + b"\5"}
CHILD = {4: ADDRESSES.child4, 6: ADDRESSES.child6}


class Listener:
    """Stands where the stack is, and keeps what it is given."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.dropped: list[str] = []

    def send_ip(self, packet: bytes) -> None:
        self.sent.append(packet)

    def drop(self, reason: str) -> None:
        self.dropped.append(reason)


def one(data: bytes) -> None:
    if data[:1] and data[0] & 1:
        _error_comes(echo.FAMILY4 if data[0] & 2 else echo.FAMILY6, data[1:])
    elif data[:1] and data[0] & 4:
        _reply_comes(echo.FAMILY4 if data[0] & 2 else echo.FAMILY6, data[1:])
    else:
        _request_comes(data[1:])


def _request_comes(packet: bytes) -> None:
    request = echo.read_request(packet)
    if request is None:
        return
    assert packet.endswith(request.data) or request.data in packet
    assert len(request.quote) <= echo.QUOTE_BYTES
    assert len(request.remote) == len(request.child) == (4 if request.family is echo.FAMILY4 else 16)
    if request.remote in (ADDRESSES.gateway4, ADDRESSES.gateway6):  # answered here; anything else would open a socket
        listener, service = _service()
        service.handle(packet)
        assert len(listener.sent) + len(listener.dropped) == 1


def _service() -> tuple[Listener, echo.Echo]:
    listener = Listener()
    recorder = NullRecorder(Settings(()))
    return listener, echo.Echo(cast(Any, listener), lambda: 1.0, cast(Any, None), recorder, without_rules())


def _with_session(family: echo.Family) -> tuple[Listener, echo.Echo]:
    """A service whose child, with id 7, has pinged one host, sequence number 1, under the id 0x1234 on the wire."""
    listener, service = _service()
    remote, child = REMOTE[family.version], CHILD[family.version]
    message = struct.pack("!BBHHH", family.request, 0, 0, 7, 1) + b"data"
    request = echo.read_request(packets.icmp_packet(child, remote, message))
    assert request is not None
    session = echo.Session(family, 7, cast(Any, None), 0x1234)
    session.remember(request, 0.0)
    service._by_host[family.version, 0x1234] = session
    return listener, service


def _error_comes(family: echo.Family, data: bytes) -> None:
    listener, service = _with_session(family)
    quoted, report = b"\0\0\0\0\x12\x34\0\1" + data[:4], data[4:]
    if len(report) < echo._ERROR.size:  # as `_take_errors` sees to
        return
    report += bytes(max(0, echo._ERROR.size + 28 - len(report)))  # the kernel always adds a whole sockaddr
    service._take_error(family, quoted, report, REMOTE[family.version])
    assert len(listener.sent) <= 1
    for packet in listener.sent:
        _check_sent(family, packet)
        assert len(packet) <= (576 if family is echo.FAMILY4 else 1280)


def _reply_comes(family: echo.Family, message: bytes) -> None:
    listener, service = _with_session(family)
    service._take_reply(cast(Any, object()), family, message, [], REMOTE[family.version])
    assert len(listener.sent) <= 1
    for packet in listener.sent:
        _check_sent(family, packet)
        assert message[4:6] == b"\x12\x34"


def _check_sent(family: echo.Family, packet: bytes) -> None:
    """An IP packet for the child whose ICMP checksum is right."""
    header = 20 if family is echo.FAMILY4 else 40
    pseudo = b"" if family is echo.FAMILY4 else packet[8:40] + struct.pack("!II", len(packet) - 40, 58)
    assert packet[16:20] == CHILD[4] if family is echo.FAMILY4 else packet[24:40] == CHILD[6]
    assert packets.checksum(pseudo + packet[header:]) in (0, 0xFFFF)


def seeds() -> list[bytes]:
    out = []
    for version, kind, gateway in ((4, 8, ADDRESSES.gateway4), (6, 128, ADDRESSES.gateway6)):
        message = struct.pack("!BBHHH", kind, 0, 0, 7, 1) + b"data"
        out += [b"\0" + packets.icmp_packet(CHILD[version], to, message) for to in (REMOTE[version], gateway)]
    report = echo._ERROR.pack(111, 2, 3, 4, 1400, 0) + bytes(28)
    report6 = echo._ERROR.pack(111, 3, 2, 0, 1280, 0) + bytes(28)
    out += [b"\3" + b"more" + report, b"\1" + b"more" + report6, b"\1", b"\3abcd" + report[:10]]
    out += [
        b"\6" + bytes((0, 0, 0, 0, 0x12, 0x34, 0, 1)) + b"d",
        b"\4" + bytes((129, 0, 0, 0, 0x12, 0x34, 0, 1)),
        b"\4",
    ]
    return [*out, b"\0", b"", b"\0" + out[0][1:20], b"\0\x4f" + out[0][2:]]
