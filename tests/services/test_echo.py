"""Pings: through ping sockets and raw ones, to an address that this test's own network namespace has on `lo`."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator

import pytest

from childflow.netstack.events import Denial
from childflow.policy.policy import without_rules
from childflow.services import echo, packets
from childflow.services.echo import Echo
from childflow.services.watch import Watch
from tests.services.play import (
    CHILD4,
    CHILD6,
    FAR4,
    FAR6,
    GATEWAY4,
    GATEWAY6,
    FakeRecorder,
    FakeStack,
    plain_checksum,
    run,
    until,
)

RANGE = "/proc/sys/net/ipv4/ping_group_range"
FAR = {4: FAR4, 6: FAR6}
CHILD = {4: CHILD4, 6: CHILD6}
GATEWAY = {4: GATEWAY4, 6: GATEWAY6}


@pytest.fixture(scope="module", autouse=True)
def far_addresses(namespaces: None) -> Iterator[None]:
    """The far host's addresses, on our own loopback."""
    addresses = (["198.51.100.7/32"], ["198.51.100.8/32"], ["2001:db8::7/128", "nodad"])
    for address in addresses:
        subprocess.run(["ip", "addr", "add", *address, "dev", "lo"], check=True)
    yield
    for address in addresses:
        subprocess.run(["ip", "addr", "del", address[0], "dev", "lo"], check=True)


@pytest.fixture(params=["ping socket", "raw socket"])
def kind(request: pytest.FixtureRequest) -> Iterator[str]:
    with open(RANGE, encoding="ascii") as file:
        before = file.read()
    _write(f"0 {os.getgid() + 100}" if request.param == "ping socket" else "1 0")
    yield request.param
    _write(before)


def _write(text: str) -> None:
    with open(RANGE, "w", encoding="ascii") as file:
        file.write(text)


def request(
    version: int, to: bytes, ident: int = 7, sequence: int = 1, data: bytes = b"x" * 56, ttl: int = 64
) -> bytes:
    kind = 8 if version == 4 else 128
    return packets.icmp_packet(CHILD[version], to, struct.pack("!BBHHH", kind, 0, 0, ident, sequence) + data, ttl)


class Reply:
    """An ICMP packet for the child, its checksums verified."""

    def __init__(self, packet: bytes) -> None:
        self.version = packet[0] >> 4
        if self.version == 4:
            assert plain_checksum(packet[:20]) == 0
            self.ttl, self.source, self.to, body = packet[8], packet[12:16], packet[16:20], packet[20:]
            assert plain_checksum(body) == 0
        else:
            self.ttl, self.source, self.to, body = packet[7], packet[8:24], packet[24:40], packet[40:]
            assert plain_checksum(self.source + self.to + struct.pack("!II", len(body), 58) + body) == 0
        self.kind, self.code, _, self.ident, self.sequence = struct.unpack_from("!BBHHH", body)
        self.data = body[8:]


class Scene:
    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.stack, self.recorder, self.watch = FakeStack(), FakeRecorder(), Watch(loop)
        self.echo = Echo(self.stack, loop.time, self.watch, self.recorder, without_rules())  # type: ignore[arg-type]

    def close(self) -> None:
        self.echo.close()
        self.watch.close()

    def replies(self) -> list[Reply]:
        return [Reply(packet) for packet in self.stack.ip]


def scene(play: Callable[[Scene], object]) -> None:
    async def body() -> None:
        s = Scene()
        await play(s)  # type: ignore[misc]
        s.close()

    run(body)


@pytest.mark.case("C12")
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("size", [0, 1, 56, 1472, 8000, 65507])
@pytest.mark.case("A20")
def test_ping_comes_back_as_the_child_sent_it(kind: str, version: int, size: int) -> None:
    async def play(s: Scene) -> None:
        data = os.urandom(size)
        s.echo.handle(request(version, FAR[version], ident=0xABCD, sequence=0xFFFF, data=data), size > 60_000)
        await until(lambda: s.stack.ip)
        (reply,) = s.replies()
        assert (reply.kind, reply.code) == ((0, 0) if version == 4 else (129, 0))
        assert (reply.source, reply.to) == (FAR[version], CHILD[version])
        assert (reply.ident, reply.sequence, reply.data, reply.ttl) == (0xABCD, 0xFFFF, data, 64)
        assert bool(s.echo._raw) == (kind == "raw socket")
        assert s.recorder.of("ping_sent") == s.recorder.of("ping_answered") == [(FAR[version],)]

    scene(play)


@pytest.mark.case("C12")
def test_many_ids_and_sequences(kind: str) -> None:
    async def play(s: Scene) -> None:
        sent = [(ident, sequence) for ident in range(1, 60) for sequence in range(5)]
        for ident, sequence in sent:
            s.echo.handle(request(4, FAR4, ident, sequence))
            await asyncio.sleep(0)
        await until(lambda: len(s.stack.ip) == len(sent))
        assert sorted((reply.ident, reply.sequence) for reply in s.replies()) == sent

    scene(play)


@pytest.mark.case("C12")
@pytest.mark.soak
@pytest.mark.case("C12")
def test_every_id_is_kept(kind: str) -> None:
    """All 65,536, as many at a time as there may be sessions."""

    async def play(s: Scene) -> None:
        for first in range(0, 65536, echo.MAX_SESSIONS):
            idents = range(first, first + echo.MAX_SESSIONS)
            for ident in idents:
                s.echo.handle(request(4, FAR4, ident, ident ^ 0x5555, ident.to_bytes(2, "big")))
            await until(lambda: len(s.stack.ip) == echo.MAX_SESSIONS)
            got = sorted((reply.ident, reply.sequence, reply.data) for reply in s.replies())
            assert got == [(ident, ident ^ 0x5555, ident.to_bytes(2, "big")) for ident in idents]
            s.stack.ip.clear()

    scene(play)


@pytest.mark.case("C12")
def test_the_same_id_and_sequence_to_several_hosts_and_twice_to_one(kind: str) -> None:
    """Two programs may well share an id: each reply has what its own echo had."""
    other4 = bytes((198, 51, 100, 8))

    async def play(s: Scene) -> None:
        sent = [(4, FAR4, b"one"), (4, FAR4, b"two, longer"), (4, other4, b"three"), (6, FAR6, b"four")]
        for version, to, data in sent:
            s.echo.handle(request(version, to, 77, 1, data))
        await until(lambda: len(s.stack.ip) == len(sent))
        assert {(reply.ident, reply.sequence) for reply in s.replies()} == {(77, 1)}
        assert sorted((reply.version, reply.source, reply.data) for reply in s.replies()) == sorted(sent)

    scene(play)


@pytest.mark.case("C12")
@pytest.mark.parametrize("version", [4, 6])
def test_a_burst_of_500_comes_back_whole(kind: str, version: int) -> None:
    """They are all answered before we look once."""

    async def play(s: Scene) -> None:
        for sequence in range(500):
            s.echo.handle(request(version, FAR[version], 7, sequence))
        await until(lambda: len(s.stack.ip) == 500)
        assert sorted(reply.sequence for reply in s.replies()) == list(range(500))

    scene(play)


@pytest.mark.case("C10")
@pytest.mark.parametrize("version", [4, 6])
def test_too_big_for_the_path_is_told_with_its_mtu(kind: str, version: int) -> None:
    """Unless it may be cut: then it is."""
    to, far = ("198.51.100.9", "2001:db8:9::9")[version == 6], f"-{version}"
    route = ["local", to, "dev", "lo", "mtu", "1300"]
    address = socket.inet_pton(socket.AF_INET if version == 4 else socket.AF_INET6, to)

    async def play(s: Scene) -> None:
        asked = request(version, address, data=bytes(1400))
        for _ in range(2):
            s.echo.handle(asked)
            (reply,) = s.replies()
            assert (reply.kind, reply.code, reply.source) == ((3, 4) if version == 4 else (2, 0)) + (GATEWAY[version],)
            assert (reply.ident << 16 | reply.sequence) == 1300
            assert asked.startswith(reply.data[:60])
            s.stack.ip.clear()
        s.echo.handle(asked, may_fragment=True)
        await until(lambda: s.stack.ip)
        assert s.replies()[0].data == bytes(1400)

    subprocess.run(["ip", far, "route", "add", *route], check=True)
    try:
        scene(play)
    finally:
        subprocess.run(["ip", far, "route", "del", *route], check=True)


def test_flood_of_ids_is_bounded(kind: str) -> None:
    async def play(s: Scene) -> None:
        before = len(os.listdir("/proc/self/fd"))
        for ident in range(2000):
            s.echo.handle(request(4, FAR4, ident))
        assert len(s.echo._sessions) == len(s.echo._by_host) == echo.MAX_SESSIONS
        assert s.stack.drops.count("echo_limit") == 2000 - echo.MAX_SESSIONS
        assert len(os.listdir("/proc/self/fd")) <= before + echo.MAX_SESSIONS
        assert s.echo.expire(asyncio.get_running_loop().time() + 61) is False
        assert len(os.listdir("/proc/self/fd")) <= before + 1

    scene(play)


@pytest.mark.parametrize("version", [4, 6])
def test_gateway_answers_itself(version: int) -> None:
    async def play(s: Scene) -> None:
        s.echo.handle(request(version, GATEWAY[version], ttl=1))
        (reply,) = s.replies()
        assert (reply.source, reply.kind, reply.ident, reply.data) == (
            GATEWAY[version], 0 if version == 4 else 129, 7, b"x" * 56,
        )  # fmt: skip
        assert s.echo._sessions == {}

    scene(play)


@pytest.mark.case("C14")
@pytest.mark.parametrize("version", [4, 6])
def test_ttl_of_one_ends_at_the_gateway(version: int) -> None:
    async def play(s: Scene) -> None:
        packet = request(version, FAR[version], ttl=1)
        s.echo.handle(packet)
        (reply,) = s.replies()
        assert (reply.source, reply.kind, reply.code) == (GATEWAY[version], 11 if version == 4 else 3, 0)
        assert reply.data == packet[: echo.QUOTE_BYTES]

    scene(play)


@pytest.mark.case("C13")
@pytest.mark.parametrize("version", [4, 6])
def test_neither_socket_allowed_is_prohibited_and_said_once(version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(echo, "_ping_socket", refuse)
    monkeypatch.setattr(echo, "_raw_socket", refuse)

    async def play(s: Scene) -> None:
        for sequence in range(3):
            s.echo.handle(request(version, FAR[version], sequence=sequence))
        assert [(reply.source, reply.kind, reply.code) for reply in s.replies()] == [
            (GATEWAY[version], *((3, 13) if version == 4 else (1, 1)))
        ] * 3
        ((text,),) = s.recorder.of("notice")
        assert s.recorder.of("ping_failed") == [(FAR[version], errno.EACCES)] * 3
        assert "ping_group_range" in text

    scene(play)


@pytest.mark.parametrize(("version", "to"), [(4, bytes((127, 0, 0, 1))), (6, bytes(15) + b"\1")])
def test_martian_is_prohibited_and_recorded(version: int, to: bytes) -> None:
    async def play(s: Scene) -> None:
        s.echo.handle(request(version, to))
        (reply,) = s.replies()
        assert (reply.kind, reply.code) == ((3, 13) if version == 4 else (1, 1))
        ((protocol, remote, verdict),) = s.recorder.of("icmp_denied")
        assert (protocol, remote, verdict.reason_code) == (1 if version == 4 else 58, to, "martian")

    scene(play)


@pytest.mark.case("C20")
def test_multicast_is_dropped_without_an_error() -> None:
    async def play(s: Scene) -> None:
        s.echo.handle(request(4, bytes((224, 0, 0, 1))))
        assert (s.stack.ip, s.stack.drops) == ([], ["martian"])
        assert s.recorder.of("icmp_denied")[0][2].denial is Denial.SILENT

    scene(play)


def test_host_without_a_route_is_unreachable(kind: str) -> None:
    async def play(s: Scene) -> None:
        s.echo.handle(request(4, bytes((203, 0, 113, 9))))
        s.echo.handle(request(6, bytes.fromhex("20010db8000100000000000000000001")))
        assert [(reply.kind, reply.code) for reply in s.replies()] == [(3, 0), (1, 0)]

    scene(play)


MALFORMED = {
    "empty": b"",
    "cut": request(4, FAR4)[:24],
    "cut at once": request(4, FAR4)[:3],
    "reply": packets.icmp_packet(CHILD4, FAR4, bytes(8)),
    "code": packets.icmp_packet(CHILD4, FAR4, b"\x08\x01" + bytes(6)),
    "udp": packets.ip4(17, CHILD4, FAR4, bytes(8)),
    "ipv6 cut": request(6, FAR6)[:44],
    "ipv6 udp": packets.ip6(17, CHILD6, FAR6, bytes(8)),
}


@pytest.mark.parametrize("what", MALFORMED)
@pytest.mark.case("A20")
def test_malformed_is_dropped(what: str) -> None:
    async def play(s: Scene) -> None:
        s.echo.handle(MALFORMED[what])
        assert (s.stack.ip, s.stack.drops) == ([], ["bad_icmp"])

    scene(play)


def test_reply_from_an_address_that_was_not_pinged_is_not_passed_on(kind: str) -> None:
    async def play(s: Scene) -> None:
        s.echo.handle(request(4, FAR4))
        await until(lambda: s.stack.ip)
        session = next(iter(s.echo._sessions.values()))
        message = struct.pack("!BBHHH", 0, 0, 0, session.host_id, 2) + b"forged"
        if kind == "raw socket":
            message = packets.ip4(1, bytes((198, 51, 100, 8)), FAR4, message)
        s.echo._take_reply(session.sock, echo.FAMILY4, message, [], bytes((198, 51, 100, 8)))
        assert len(s.stack.ip) == 1

    scene(play)
