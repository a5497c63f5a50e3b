"""A conversation through the C stack, without a TAP: what the child says, what the host says, and what time it is.

One end of a SOCK_SEQPACKET pair is the TAP (one message = virtio header + frame), a socket pair or a real loopback
connection is the host, and the clock is a number. Each verb lets the stack come to rest before it returns, so a script
reads in the order in which things happen:

    play.establish()
    play.child.sends(ACK, text=b"question")
    play.child.gets(ACK, ack=9)
    play.host.gets(b"question")

Sequence numbers are relative: the SYN of each side is 0, its first byte 1. A field that `gets` does not name is not
compared, except the flags, whose PSH is ignored.

Invariants, checked at the end of every test (`Play.close`): each flow that was asked about ended exactly once, with its
events in order; the table is empty, no payload is held, every descriptor is closed.
"""

from __future__ import annotations

import os
import random
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable

from childflow.netstack.events import (
    Connected,
    Datagram,
    Denial,
    End,
    Ended,
    Event,
    Flight,
    Question,
    SlowKind,
    SlowPacket,
)
from childflow.netstack.stack import Limits, Stack
from childflow.settings import ADDRESSES

from . import wire
from .wire import ACK, FIN, PSH, RST, SYN, IcmpError, Other, Reply, Segment

SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
CHILD_PORT, REMOTE_PORT = 40_000, 443
CHILD_ISN = 5_000
REST_TURNS = 2_000
FLAG_NAMES = "FSRPAUEC"

_BYTES = random.Random(1).randbytes(1 << 20)


def text_of(length: int, at: int = 0) -> bytes:
    """`length` bytes of one long text that repeats only after 1 MiB, from its byte `at` on."""
    at %= len(_BYTES)
    whole = _BYTES[at:] + _BYTES * ((length >> 20) + 1)
    return whole[:length]


def flag_word(flags: int) -> str:
    return "".join(name for bit, name in enumerate(FLAG_NAMES) if flags >> bit & 1) or "-"


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


class Clock:
    """Virtual time. It starts far from zero, as a machine's does."""

    def __init__(self, play: Play) -> None:
        self._play = play
        self.now_us = 86_400_000_000

    def advance(self, ms: float) -> None:
        """Let `ms` pass in one step; what is due happens once."""
        self.now_us += round(ms * 1000)
        self._play.rest()


class Child:
    """The child's end of one TCP connection."""

    def __init__(self, play: Play, port: int, remote: bytes, remote_port: int, isn: int) -> None:
        self._play = play
        self.port, self.remote, self.remote_port, self.isn = port, remote, remote_port, isn
        self.address = wire.CHILD[4 if len(remote) == 4 else 6]
        self.inbox: deque[Segment] = deque()
        self.history: list[Segment] = []  # all that ever came
        self.peer_isn = 0
        self.next = 0  # of what this child sends, relative
        self.got = 0  # the next number it wants, relative
        self.window = 65535  # as it stands in the header

    # --- speaking

    def packet(
        self,
        flags: int,
        *,
        seq: int | None = None,
        ack: int | None = None,
        text: bytes = b"",
        window: int | None = None,
        options: bytes = b"",
        urgent: int = 0,
        doff: int | None = None,
        checksum: str = "full",
        hop_limit: int = 64,
    ) -> bytes:
        """An IP packet of this connection; `seq` and `ack` default to what is next."""
        seq = self.next if seq is None else seq
        ack = self.got if ack is None else ack
        self.next = max(self.next, seq + len(text) + bool(flags & SYN) + bool(flags & FIN))
        segment = wire.tcp(
            self.address, self.remote, self.port, self.remote_port, self.isn + seq,
            self.peer_isn + ack if flags & ACK else 0, flags, window=self.window if window is None else window,
            options=options, text=text, urgent=urgent, doff=doff, checksum=checksum,
        )  # fmt: skip
        return wire.ip(segment, wire.TCP, self.address, self.remote, hop_limit=hop_limit)

    def sends(
        self,
        flags: int,
        *,
        seq: int | None = None,
        ack: int | None = None,
        text: bytes = b"",
        window: int | None = None,
        options: bytes = b"",
        urgent: int = 0,
        hop_limit: int = 64,
    ) -> None:
        self._play.sends(
            self.packet(
                flags, seq=seq, ack=ack, text=text, window=window, options=options, urgent=urgent, hop_limit=hop_limit
            )
        )

    # --- listening

    def hears(self, segment: Segment) -> None:
        if segment.flags & SYN:
            self.peer_isn = segment.seq
        self.inbox.append(segment)
        self.history.append(segment)

    def relative(self, segment: Segment) -> int:
        """The segment's sequence number, relative and unwrapped around what this child waits for."""
        distance = (segment.seq - self.peer_isn - self.got) & 0xFFFFFFFF
        return self.got + (distance - (1 << 32) if distance >> 31 else distance)

    def acked(self, segment: Segment) -> int:
        """The segment's acknowledgement, relative and unwrapped around what this child sent."""
        distance = (segment.ack - self.isn - self.next) & 0xFFFFFFFF
        return self.next + (distance - (1 << 32) if distance >> 31 else distance)

    def gets(
        self,
        flags: int,
        *,
        seq: int | None = None,
        ack: int | None = None,
        text: bytes | None = None,
        window: int | None = None,
    ) -> Segment:
        """The next segment from the stack, which must be as told."""
        assert self.inbox, f"nothing came, {flag_word(flags)} was expected"
        s = self.inbox.popleft()
        said = (flag_word(s.flags & ~PSH), self.relative(s), self.acked(s) if s.flags & ACK else None)
        assert s.flags & ~PSH == flags & ~PSH, said
        if seq is not None:
            assert self.relative(s) == seq, said
        if ack is not None:
            assert self.acked(s) == ack, said
        if text is not None:
            assert s.text == text, (said, len(s.text), len(text))
        if window is not None:
            assert s.window == window, s.window
        self._take(s)
        return s

    def _take(self, s: Segment) -> None:
        if self.relative(s) == self.got:
            self.got += len(s.text) + bool(s.flags & SYN) + bool(s.flags & FIN)

    def gets_nothing(self) -> None:
        assert not self.inbox, [(flag_word(s.flags), self.relative(s), len(s.text)) for s in self.inbox]

    def forgets(self) -> list[Segment]:
        """What came is lost on its way."""
        lost = list(self.inbox)
        self.inbox.clear()
        return lost

    # --- as a kernel would

    def opens(self, options: bytes = wire.mss(1460), **fields: int) -> None:
        self.sends(SYN, seq=0, options=options, **fields)
        self.next = 1

    def reads(self, length: int, *, window: int | None = None) -> bytes:
        """Take `length` in-order bytes, acknowledging each frame as it comes."""
        out = bytearray()
        while len(out) < length:
            assert self.inbox, f"{length - len(out)} of {length} bytes did not come"
            s = self.inbox.popleft()
            assert self.relative(s) == self.got, "not in order"
            self._take(s)
            out += s.text
            if s.text or s.flags & FIN:
                self.sends(ACK, window=window)
        assert len(out) == length, "more came than was asked for"
        return bytes(out)

    def writes(self, data: bytes, size: int = 1460) -> None:
        """Send all of `data` in segments of `size`, whatever the window says."""
        for at in range(0, len(data), size):
            self.sends(ACK, text=data[at : at + size])


class Host:
    """The far end of the stack's host socket."""

    def __init__(self, play: Play, end: socket.socket) -> None:
        self._play = play
        self.end = end
        end.setblocking(False)

    def sends(self, data: bytes, all_of_it: bool = True) -> int:
        """Write to the stack; returns how much its socket took, which must be all unless the test says otherwise."""
        sent = 0
        while sent < len(data):
            try:
                sent += self.end.send(data[sent:])
            except BlockingIOError:
                before = self._play.frames
                self._play.rest()
                if self._play.frames == before and not select.select([], [self.end], [], 0)[1]:
                    break
        self._play.rest()
        assert sent == len(data) or not all_of_it, f"{sent} of {len(data)} bytes taken"
        return sent

    def reads(self, limit: int = 1 << 30) -> bytes:
        """All that waits, at most `limit` bytes."""
        out = bytearray()
        while len(out) < limit:
            try:
                got = self.end.recv(min(limit - len(out), 1 << 20))
            except BlockingIOError:
                self._play.rest()
                try:
                    got = self.end.recv(min(limit - len(out), 1 << 20))
                except BlockingIOError:
                    break
            if not got:
                break
            out += got
            self._play.rest()
        return bytes(out)

    def gets(self, data: bytes) -> None:
        came = self.reads(len(data))
        assert came == data, (len(came), len(data))

    def gets_nothing(self) -> None:
        try:
            came = self.end.recv(1 << 16)
        except BlockingIOError:
            return
        raise AssertionError(f"{came!r} came" if came else "the stream ended")

    def gets_eof(self) -> None:
        assert self.end.recv(1) == b""

    def gets_reset(self) -> None:
        """The stack's RST; on a socket pair (which has none) any end."""
        try:
            assert self.end.recv(1 << 16) == b""
            assert self.end.family == socket.AF_UNIX, "the stream ended in good order"
        except ConnectionResetError:
            pass

    def half_closes(self) -> None:
        self.end.shutdown(socket.SHUT_WR)
        self._play.rest()

    def closes(self) -> None:
        self.end.close()
        self._play.rest()

    def resets(self) -> None:
        """RST; the host end must be a real connection (`establish(host="tcp")`)."""
        assert self.end.family != socket.AF_UNIX
        self.end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.end.close()
        self._play.rest()


class Play:
    """One stack, its child, its hosts and its clock. `child` and `host` are those of the last connection opened."""

    child: Child
    host: Host

    def __init__(
        self, *, family: int = 4, offload: bool = True, mtu: int = 1500, limits: Limits | None = None,
        tap_buffer: int = 32 << 20,
    ) -> None:  # fmt: skip
        self.family, self.offload, self.mtu = family, offload, mtu
        self._before = descriptors()
        ours, self._tap = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, self._tap):
            try:
                end.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, tap_buffer)
            except PermissionError:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, tap_buffer)
        self._stack_end = ours
        self._tap.setblocking(False)
        self.clock = Clock(self)
        self.stack = Stack(
            ours.fileno(), ADDRESSES, mtu=mtu, offload=offload, limits=limits, clock=lambda: self.clock.now_us
        )
        self._poll = select.poll()
        self._poll.register(self.stack.fd, select.POLLIN)
        self.frames = 0  # that came down
        self.talking: dict[tuple[bytes, int, int], Child] = {}
        self.history: list[Event] = []
        self._new: deque[Event] = deque()
        self.replies: deque[Reply] = deque()
        self.errors: deque[IcmpError] = deque()
        self.others: deque[Other] = deque()
        self.strays: deque[Segment] = deque()  # of no connection that the test opened
        self._opened: list[socket.socket] = []
        self.deaf = False  # the child's kernel does not read
        self.rest()

    # --- running

    def rest(self) -> None:
        """Let the stack work until it waits for something. Its timer runs in real time and may fire before the virtual
        deadline, so a descriptor that is ready and brings nothing counts as rest."""
        idle = 0
        for _ in range(REST_TURNS):
            more = self.stack.turn(self.clock.now_us)
            if self.stack.has_events:
                self._hear(self.stack.events())
            moved = not self.deaf and self._drain()
            idle = 0 if more or moved else idle + 1
            if idle > 2 or (idle and not self._poll.poll(0)):
                return
        raise AssertionError("the stack does not come to rest")

    def until(self, true: Callable[[], object], seconds: float = 5.0) -> None:
        """For real sockets, which take real time: run until `true()`."""
        give_up = time.monotonic() + seconds
        self.rest()
        while not true():
            assert time.monotonic() < give_up, "it did not happen"
            self._poll.poll(20)
            self.rest()

    def _hear(self, events: list[Event]) -> None:
        self.history += events
        self._new.extend(events)

    def _drain(self) -> bool:
        before = self.frames
        while True:
            try:
                raw = self._tap.recv(1 << 17)
            except BlockingIOError:
                return self.frames > before
            self.frames += 1
            self._sort(wire.view(raw, self.offload))

    def _sort(self, v: Segment | Reply | IcmpError | Other) -> None:
        if isinstance(v, Segment):
            child = self.talking.get((v.remote, v.child_port, v.remote_port))
            if child:
                child.hears(v)
            else:
                self.strays.append(v)
        elif isinstance(v, Reply):
            self.replies.append(v)
        elif isinstance(v, IcmpError):
            self.errors.append(v)
        else:
            self.others.append(v)

    # --- the child's wire

    def injects(self, raw: bytes) -> None:
        """A frame as it is, virtio header and all."""
        self._tap.send(raw)
        self.rest()

    def sends(self, packet: bytes, **fields: object) -> None:
        """An IP packet in a frame."""
        self.injects(wire.frame(packet, **fields))  # type: ignore[arg-type]

    def came(self) -> int:
        """Frames for the child that no test has looked at."""
        waiting = sum(len(c.inbox) for c in self.talking.values())
        return waiting + len(self.replies) + len(self.errors) + len(self.others) + len(self.strays)

    # --- events and answers

    def event(self, kind: type[Event]) -> Event:
        """The next event, which must be of this kind."""
        assert self._new, f"no event, {kind.__name__} was expected"
        e = self._new.popleft()
        assert isinstance(e, kind), e
        return e

    def forgets_events(self) -> None:
        self._new.clear()

    def no_event(self) -> None:
        assert not self._new, list(self._new)

    def question(self) -> Question:
        e = self.event(Question)
        assert isinstance(e, Question)
        return e

    def connected(self) -> Connected:
        e = self.event(Connected)
        assert isinstance(e, Connected)
        return e

    def flight(self) -> Flight:
        e = self.event(Flight)
        assert isinstance(e, Flight)
        return e

    def ended(self, end: End) -> Ended:
        e = self.event(Ended)
        assert isinstance(e, Ended)
        assert e.end == end, e
        return e

    def datagram(self) -> Datagram:
        e = self.event(Datagram)
        assert isinstance(e, Datagram)
        return e

    def spoofed(self) -> list[bytes]:
        """The heads of packets that were told of as spoofed, wherever they stand among the events."""
        told = [e for e in self._new if isinstance(e, SlowPacket) and e.kind == SlowKind.SPOOFED]
        for e in told:
            self._new.remove(e)
        return [e.packet for e in told]

    def slow(self) -> SlowPacket:
        e = self.event(SlowPacket)
        assert isinstance(e, SlowPacket)
        return e

    def allow(self) -> int:
        flow = self.question().flow
        self.stack.allow(flow)
        self.rest()
        return flow

    def hold(self) -> int:
        """Hold the flow that is asked about."""
        flow = self.question().flow
        self.stack.hold(flow)
        self.rest()
        return flow

    def passes(self) -> None:
        """Let the last flow that was attached go."""
        self.stack.pass_on(self.flow)
        self.rest()

    def refuses(self) -> None:
        """Deny the last flow that was attached, which is held."""
        self.stack.deny(self.flow, Denial.RESET)
        self.rest()

    def deny(self, how: Denial) -> int:
        flow = self.question().flow
        self.stack.deny(flow, how)
        self.rest()
        return flow

    def error(self) -> IcmpError:
        assert self.errors, "no ICMP error came"
        return self.errors.popleft()

    # --- hosts

    def owns(self, s: socket.socket) -> socket.socket:
        """Close `s` with the play."""
        self._opened.append(s)
        return s

    def attach(self, host: str = "pair", buffer: int | None = None, *, held: bool = False) -> None:
        """Answer the waiting question with a connected socket: one of a pair, or of a real loopback connection.
        `held`: hold the flow first."""
        q = self.question()
        if held:
            self.stack.hold(q.flow)
        near, far = socket.socketpair() if host == "pair" else self._loopback_pair()
        if buffer is not None:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
            far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.host = Host(self, self.owns(far))
        self.flow = q.flow
        self.stack.attach(q.flow, near.detach())
        self.rest()
        assert self.connected() == Connected(q.flow, 0, 0)

    def _loopback_pair(self) -> tuple[socket.socket, socket.socket]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            near = socket.create_connection(listener.getsockname())
            far, _ = listener.accept()
        return near, far

    def connect(
        self,
        port: int = CHILD_PORT,
        *,
        remote: bytes | None = None,
        remote_port: int = REMOTE_PORT,
        isn: int = CHILD_ISN,
    ) -> Child:
        """A child that has said nothing yet."""
        remote = wire.REMOTE[self.family] if remote is None else remote
        self.child = Child(self, port, remote, remote_port, isn)
        self.talking[remote, port, remote_port] = self.child
        return self.child

    def establish(
        self, port: int = CHILD_PORT, *, options: bytes = wire.mss(1460), window: int = 65535, host: str = "pair",
        isn: int = CHILD_ISN, buffer: int | None = None, held: bool = False,
    ) -> None:  # fmt: skip
        """SYN, attach, SYN-ACK, ACK."""
        child = self.connect(port, isn=isn)
        child.window = window
        child.opens(options)
        self.attach(host, buffer, held=held)
        child.gets(SYN | ACK, seq=0, ack=1)
        child.sends(ACK)
        assert all(not s.text for s in child.forgets())  # with scaling, the window that a SYN can't tell

    # --- the end

    def close(self) -> None:
        """End everything and hold the stack to its books."""
        self.stack.close_all()
        self._hear(self.stack.events())
        assert self.stack.flow_count() == 0
        assert self.stack.buffered() == 0
        self.stack.close()
        for s in (*self._opened, self._stack_end, self._tap):
            s.close()
        assert descriptors() == self._before, "descriptors are left open"
        self._check_history()

    def abandon(self) -> None:
        """Free what a failed test left."""
        self.stack.close()
        for s in (*self._opened, self._stack_end, self._tap):
            s.close()

    def _check_history(self) -> None:
        order = {Question: 0, Connected: 1, Ended: 2}  # flights come wherever something was held
        said: dict[int, list[int]] = {}
        for e in self.history:
            if isinstance(e, Question | Connected | Ended):
                said.setdefault(e.flow, []).append(order[type(e)])
        for flow, kinds in said.items():
            assert kinds in ([0, 2], [0, 1, 2]), f"events of flow {flow:#x}: {kinds}"


__all__ = ["ACK", "FIN", "RST", "SYN", "Child", "Host", "Play", "text_of"]
