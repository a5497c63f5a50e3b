"""A stack that only notes what it is told, and the packets that a child would send: what service tests are made of."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable
from typing import Any

from childflow.errors import StackError
from childflow.netstack.events import Datagram, Denial
from childflow.policy.names import Names
from childflow.policy.rules import NO_RULES, Rules
from childflow.services.name_policy import NamePolicy
from childflow.settings import ADDRESSES

CHILD4, GATEWAY4 = ADDRESSES.child4, ADDRESSES.gateway4
CHILD6, GATEWAY6 = ADDRESSES.child6, ADDRESSES.gateway6
FAR4 = bytes((198, 51, 100, 7))
FAR6 = bytes.fromhex("20010db8000000000000000000000007")


class FakeStack:
    """Notes every call. Flows in `gone` died: a call about them is a StackError."""

    def __init__(self) -> None:
        self.allowed: list[int] = []
        self.denied: list[tuple[int, Denial]] = []
        self.attached: list[tuple[int, int]] = []
        self.replies: list[tuple[Datagram, bytes]] = []
        self.ip: list[bytes] = []
        self.frames: list[bytes] = []
        self.inputs: list[bytes] = []
        self.drops: list[str] = []
        self.gone: set[int] = set()
        self.waiting: list[Any] = []
        self.holds: list[int] = []
        self.passed: list[int] = []
        self.forgotten: list[int] = []
        self.elsewhere: list[tuple[int, bytes, int]] = []
        self.texts: dict[int, list[bytes]] = {}  # of held flows: segments, or datagrams

    def allow(self, flow: int) -> None:
        self._alive(flow)
        self.allowed.append(flow)

    def deny(self, flow: int, how: Denial) -> None:
        self._alive(flow)
        self.denied.append((flow, how))

    def hold(self, flow: int) -> None:
        self._alive(flow)
        self.holds.append(flow)

    def held(self, flow: int, index: int = 0) -> bytes:
        """All text of TCP at index 0; of a flow that was only held and not let out, its datagrams one by one."""
        self._alive(flow)
        texts = self.texts.get(flow, [])
        if flow in self.allowed or any(flow == other for other, *_ in [*self.elsewhere, *self.attached]):
            return b"".join(texts) if index == 0 else b""
        return texts[index] if index < len(texts) else b""

    def pass_on(self, flow: int) -> None:
        self._alive(flow)
        self.passed.append(flow)

    def allow_to(self, flow: int, address: bytes, port: int) -> None:
        self._alive(flow)
        self.elsewhere.append((flow, address, port))

    def forget(self, flow: int) -> None:
        self._alive(flow)
        self.forgotten.append(flow)

    def attach(self, flow: int, fd: int) -> None:
        self._alive(flow)
        self.attached.append((flow, fd))

    def reply_datagram(self, to: Datagram, payload: bytes) -> None:
        self.replies.append((to, payload))

    def send_ip(self, packet: bytes) -> None:
        self.ip.append(packet)

    def send_frame(self, frame: bytes) -> None:
        self.frames.append(frame)

    def input_ip(self, packet: bytes) -> None:
        self.inputs.append(packet)

    def drop(self, reason: str) -> None:
        self.drops.append(reason)

    def events(self) -> list[Any]:
        events, self.waiting = self.waiting, []
        return events

    def _alive(self, flow: int) -> None:
        if flow in self.gone:
            raise StackError(-1, f"flow {flow}")


class FakeRecorder:
    """Notes (method, arguments) of every call."""

    active = True

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: self.calls.append((name, arguments))

    def of(self, name: str) -> list[tuple[Any, ...]]:
        return [arguments for called, arguments in self.calls if called == name]


def name_policy(recorder: Any, rules: Rules = NO_RULES, **more: Any) -> NamePolicy:
    """What the DNS services ask, on the test's loop; `more` as NamePolicy has it."""
    names = more.pop("names", None)
    names = Names() if names is None else names
    return NamePolicy(rules, names, recorder, ADDRESSES, asyncio.get_running_loop().time, **more)


def run(scene: Callable[[], Awaitable[None]]) -> None:
    """Run `scene` on uvloop, as the engine does."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(_as_coroutine(scene), 30))


async def _as_coroutine(scene: Callable[[], Awaitable[None]]) -> None:
    await scene()


async def until(true: Callable[[], Any], seconds: float = 8.0) -> None:
    """Wait until `true()`; AssertionError when that takes too long."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while not true():
        assert loop.time() < end, "it did not happen"
        await asyncio.sleep(0.005)


def plain_checksum(data: bytes) -> int:
    """RFC 1071, written the slow way."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def fragments4(payload: bytes, size: int, ident: int = 7, protocol: int = 17) -> list[bytes]:
    """The IPv4 fragments of `payload`, each with `size` bytes of it (a multiple of 8)."""
    pieces = []
    for start in range(0, len(payload), size):
        data = payload[start : start + size]
        pieces.append(fragment4(start, data, start + size < len(payload), ident, protocol))
    return pieces


def fragment4(start: int, data: bytes, more: bool, ident: int = 7, protocol: int = 17) -> bytes:
    place = start // 8 | (0x2000 if more else 0)
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(data), ident, place, 64, protocol, 0, CHILD4, FAR4)
    return head[:10] + plain_checksum(head).to_bytes(2, "big") + head[12:] + data


def fragment6(start: int, data: bytes, more: bool, ident: int = 7, next_header: int = 17, before: bytes = b"") -> bytes:
    """An IPv6 fragment; `before` are destination options (8 bytes) that stand before the fragment header."""
    head = struct.pack("!BBHI", next_header, 0, start | more, ident)
    options = b"\x2c" + before[1:] if before else b""
    body = options + head + data
    return struct.pack("!IHBB16s16s", 6 << 28, len(body), 60 if before else 44, 64, CHILD6, FAR6) + body


def query(name: str = "example.test", qtype: int = 1, ident: int = 0x1234, extra: bytes = b"") -> bytes:
    """A DNS query; `extra` is an additional record."""
    labels = b"".join(bytes((len(label),)) + label.encode() for label in name.split("."))
    head = struct.pack("!HHHHHH", ident, 0x0100, 1, 0, 0, 1 if extra else 0)
    return head + labels + b"\0" + struct.pack("!HH", qtype, 1) + extra


def datagram(payload: bytes, child_port: int = 40000, to: bytes = GATEWAY4) -> Datagram:
    return Datagram(to, child_port, 53, payload)


def answer_to(message: bytes, address: bytes | None = b"\xc6\x33\x64\x07", rcode: int = 0, ttl: int = 60) -> bytes:
    """The answer to `message` with one A record, or none."""
    count = 1 if address is not None and rcode == 0 else 0
    head = message[:2] + struct.pack("!HHHHH", 0x8180 | rcode, 1, count, 0, 0)
    end = message.index(b"\0", 12) + 5
    record = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, ttl, 4) + address if count and address else b""
    return head + message[12:end] + record
