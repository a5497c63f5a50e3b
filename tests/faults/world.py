"""A small world around the C stack for the fault sweep: children's connections that behave as a kernel does, and hosts.

Nothing here is scripted to the frame: a connection sends what it has, sends again what gets lost, and says how it
ended, so that it lives through any single fault. Time is a number, moved on only when nothing moves by itself.

    world = World()
    errands = world.usual_errands()
    world.run()                      # until each errand is `done`, `refused` (told so) or `stuck`
    world.finish()                   # all flows gone, no payload held, no descriptor left

Not here: which call fails when (`sweep.py`).
"""

from __future__ import annotations

import hashlib
import random
import select
import socket
import struct
import time
from collections.abc import Callable

from childflow.errors import StackError
from childflow.netstack.events import Denial, Event, Question
from childflow.netstack.stack import Limits, Stack
from childflow.settings import ADDRESSES
from tests.netstack import wire
from tests.netstack.play import SO_SNDBUFFORCE, descriptors
from tests.netstack.wire import ACK, FIN, RST, SYN

TEXT = random.Random(7).randbytes(48_000)
UP, DOWN = 40_000, 48_000
DIGEST = hashlib.sha256(TEXT[:UP]).digest()
MSS = 1460
IDLE_MS = 100  # of virtual time, when nothing moves
PATIENCE_MS = 60_000
TURNS_MAX = 200  # in one step; a stack that wants more than these is spinning
LIMITS = Limits(max_flows=512, max_sockets=128, flow_window=1 << 16, buffer_limit=1 << 24)
LOOPBACK = wire.LOOPBACK


class Errand:
    """Something that the child does. `how` is "" while it goes on, then done, refused or stuck."""

    name = ""
    how = ""
    why = ""

    def __init__(self, world: World, port: int, remote: bytes, remote_port: int) -> None:
        self.world, self.port, self.remote, self.remote_port = world, port, remote, remote_port
        self.address = wire.CHILD[4 if len(remote) == 4 else 6]
        self.moved_at = self.begun_at = world.now_ms

    def end(self, how: str, why: str = "") -> None:
        if not self.how:
            self.how, self.why = how, why

    def passed(self) -> None:
        """Time has passed."""


class Tcp(Errand):
    """A connection that sends `text`, then ends its side unless it `waits` for the host's end, and wants `answer`.

    `slow`: it reads only now and then, so that the window it tells is often closed. `aborts`: it resets half-way.
    `closed`: nobody listens there, and to be told so is what it wants.
    """

    def __init__(
        self, world: World, port: int, remote: bytes, remote_port: int, text: bytes, answer: bytes,
        *, waits: bool = False, slow: bool = False, aborts: bool = False, closed: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(world, port, remote, remote_port)
        self.text, self.answer, self.waits, self.slow, self.aborts = text, answer, waits, slow, aborts
        self.closed = closed
        self.isn = 1000 + port
        self.state = "syn"
        self.una = self.next = 0  # relative: SYN is 0, text from 1
        self.window = 0
        self.peer_isn = 0
        self.got = 0  # relative to the peer's ISN
        self.received = bytearray()
        self.unread = 0
        self.peer_ended = False
        self.ack_due = False
        self.backoff_ms = 300
        self._send(SYN, 0, options=wire.mss(MSS))
        self.next = 1

    # --- out

    def _window(self) -> int:
        return max(0, 6000 - self.unread) if self.slow else 65535

    def _send(self, flags: int, seq: int, text: bytes = b"", options: bytes = b"") -> None:
        ack = (self.peer_isn + self.got) & 0xFFFFFFFF if flags & ACK else 0
        segment = wire.tcp(
            self.address, self.remote, self.port, self.remote_port, (self.isn + seq) & 0xFFFFFFFF, ack, flags,
            window=self._window(), options=options, text=text,
        )  # fmt: skip
        self.world.wire_up(wire.ip(segment, wire.TCP, self.address, self.remote))
        self.ack_due = False

    def _fin_seq(self) -> int:
        return 1 + len(self.text)

    def _may_end(self) -> bool:
        return not self.waits or self.peer_ended

    def _limit(self) -> int:
        """One beyond the last number that may be sent: what there is, what the window takes."""
        return min(self._fin_seq() + self._may_end(), self.una + max(self.window, 0))

    def output(self) -> None:
        while self.state == "open" and self.next < self._limit():
            text = self.text[self.next - 1 : min(self.next - 1 + MSS, self._limit() - 1)]
            if text:
                self._send(ACK, self.next, text)
                self.next += len(text)
            else:
                self._send(ACK | FIN, self.next)
                self.next += 1
        if self.ack_due:
            self._send(ACK, self.next)

    def passed(self) -> None:
        if self.slow and self.unread:
            self.unread = 0
            self._send(ACK, self.next)
        if self.world.now_ms < self.moved_at + self.backoff_ms:
            return
        self.moved_at = self.world.now_ms
        self.backoff_ms = min(self.backoff_ms * 2, 5_000)
        if self.state == "syn":
            self._send(SYN, 0, options=wire.mss(MSS))
        elif self.una < self.next:
            self.next = self.una
            if self.window == 0:
                self._send(ACK, self.una, self.text[self.una - 1 : self.una])  # a probe
            self.output()

    # --- in

    def segment(self, seq: int, ack: int, flags: int, window: int, text: bytes) -> None:
        at = (seq - self.peer_isn - self.got + (1 << 31)) % (1 << 32) - (1 << 31) + self.got
        if flags & RST:
            if self.state == "syn" or at == self.got:
                self.end("done" if self.closed else "refused", f"RST after {self.una} up, {len(self.received)} down")
            return
        if self.state == "syn":
            if flags & (SYN | ACK) != SYN | ACK or ack != self.isn + 1:
                return
            self.peer_isn, self.got, self.state, self.una = seq, 1, "open", 1
            self.ack_due = True
        elif at > self.got or flags & SYN:
            self.ack_due = True
            return
        else:
            self._take(at, text, bool(flags & FIN))
        self._acked(ack, window)
        self._look()

    def _take(self, at: int, text: bytes, fin: bool) -> None:
        fresh = text[self.got - at :] if self.got > at else text
        if text or fin:
            self.ack_due = True
        if fresh:
            self.received += fresh
            self.unread += len(fresh)
            self.got += len(fresh)
            self._moved()
        if fin and not self.peer_ended and at + len(text) == self.got:
            self.peer_ended = True
            self.got += 1
            self._moved()

    def _acked(self, ack: int, window: int) -> None:
        upto = (ack - self.isn) & 0xFFFFFFFF
        if self.una < upto <= self._fin_seq() + 1:
            self.una = upto
            self.next = max(self.next, upto)
            self._moved()
        self.window = window

    def _moved(self) -> None:
        self.moved_at = self.world.now_ms
        self.backoff_ms = 300

    def _look(self) -> None:
        if self.aborts and self.una > len(self.text) // 2:
            self._send(RST, self.next)
            self.end("done", "aborted")
        if self.peer_ended and self.una == self._fin_seq() + 1:
            if self.ack_due:
                self._send(ACK, self.next)
            assert self.received == self.answer, f"{self.name}: not the right {len(self.received)} bytes came"
            self.end("done")


class Udp(Errand):
    """Four datagrams, each to be echoed; or one to a port that is closed, to be told so."""

    def __init__(self, world: World, port: int, remote: bytes, remote_port: int, *, closed: bool = False) -> None:
        super().__init__(world, port, remote, remote_port)
        self.closed = closed
        self.waiting = {struct.pack("!HI", port, i) * 50 for i in range(1 if closed else 4)}
        self._again()

    def _again(self) -> None:
        for text in sorted(self.waiting):
            segment = wire.udp(self.address, self.remote, self.port, self.remote_port, text)
            self.world.wire_up(wire.ip(segment, wire.UDP, self.address, self.remote))

    def datagram(self, text: bytes) -> None:
        self.waiting.discard(text)
        if not self.waiting:
            self.end("done")

    def passed(self) -> None:
        if self.world.now_ms >= self.moved_at + 1_000:
            self.moved_at = self.world.now_ms
            self._again()

    def output(self) -> None:
        pass


class Served:
    """The host's end of one connection: `U` text until its end, answered by its hash; `D`: all of TEXT[:DOWN]."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.setblocking(False)
        self.taken = bytearray()
        self.to_send: bytes | None = None
        self.ended = False
        self.saw_end = False
        self.broke = False

    def step(self) -> bool:
        """Do what can be done; whether something was."""
        try:
            return self._read() | self._write()
        except OSError as error:
            if isinstance(error, BlockingIOError):
                return False
            self.broke = True
            self.close()
            return True

    def _read(self) -> bool:
        if self.saw_end:
            return False
        try:
            got = self.sock.recv(1 << 16)
        except BlockingIOError:
            return False
        self.taken += got
        self.saw_end = not got
        if self.taken[:1] == b"D" and self.to_send is None:
            self.to_send = TEXT[:DOWN]
        elif self.saw_end and self.to_send is None:
            self.to_send = hashlib.sha256(self.taken[1:]).digest()
        return True

    def _write(self) -> bool:
        if self.to_send is None or self.ended:
            if self.ended and self.saw_end:
                self.close()
            return False
        if self.to_send:
            sent = self.sock.send(self.to_send)
            self.to_send = self.to_send[sent:]
            return True
        self.sock.shutdown(socket.SHUT_WR)
        self.ended = True
        return True

    def close(self) -> None:
        self.sock.close()

    @property
    def closed(self) -> bool:
        return self.sock.fileno() < 0


class World:
    """One stack, its child and its hosts."""

    def __init__(self) -> None:
        self.now_ms = 10_000_000
        self.before = descriptors()
        self.turns = self.frames = 0
        self.events: list[Event] = []
        self.errands: list[Errand] = []
        self._by_tuple: dict[tuple[int, bytes, int, int], Errand] = {}
        self._attached: dict[int, None] = {}
        self.served: list[Served] = []
        self._sockets: list[socket.socket] = []
        self._closing: list[Callable[[], None]] = []
        self._next_port = 40_000
        ours, self._tap = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sockets += [ours, self._tap]
        for end in (ours, self._tap):
            try:
                end.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 8 << 20)
            except PermissionError:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
        self._tap.setblocking(False)
        try:
            self._make_hosts()
            self.stack = Stack(ours.fileno(), ADDRESSES, limits=LIMITS)
        except BaseException:
            self._close_sockets()
            raise
        self._poll = select.poll()
        self._poll.register(self.stack.fd, select.POLLIN)

    # --- hosts

    def _make_hosts(self) -> None:
        self.listeners = {4: self._listen(socket.AF_INET, "127.0.0.1"), 6: self._listen(socket.AF_INET6, "::1")}
        self.echo = self._keep(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self.echo.bind(("127.0.0.1", 0))
        self.echo.setblocking(False)
        self.closed_ports = {}
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            with socket.socket(socket.AF_INET, kind) as s:
                s.bind(("127.0.0.1", 0))
                self.closed_ports[kind] = s.getsockname()[1]

    def _keep(self, s: socket.socket) -> socket.socket:
        self._sockets.append(s)
        return s

    def _listen(self, family: int, address: str) -> socket.socket:
        s = self._keep(socket.socket(family))
        s.bind((address, 0))
        s.listen(64)
        s.setblocking(False)
        return s

    def _hosts_step(self) -> bool:
        moved = False
        for listener in self.listeners.values():
            try:
                self.served.append(Served(listener.accept()[0]))
                moved = True
            except BlockingIOError:
                pass
        try:
            while True:
                text, peer = self.echo.recvfrom(2048)
                self.echo.sendto(text, peer)
                moved = True
        except BlockingIOError:
            pass
        for served in self.served:
            moved = (not served.closed and served.step()) or moved
        return moved

    # --- the child's side

    def wire_up(self, packet: bytes) -> None:
        """A frame for the stack; lost when the wire is full."""
        try:
            self._tap.send(wire.frame(packet))
        except (BlockingIOError, BrokenPipeError):
            pass

    def _begin(
        self, name: str, make: Callable[..., Errand], remote: bytes, remote_port: int, *text: bytes, **how: bool
    ) -> Errand:
        self._next_port += 1
        errand = make(self, self._next_port, remote, remote_port, *text, **how)
        errand.name = name
        protocol = wire.TCP if isinstance(errand, Tcp) else wire.UDP
        self._by_tuple[protocol, remote, errand.port, remote_port] = errand
        self.errands.append(errand)
        return errand

    def upload(self, name: str = "up", family: int = 4, **how: bool) -> Errand:
        port = self.listeners[family].getsockname()[1]
        return self._begin(name, Tcp, LOOPBACK[family], port, b"U" + TEXT[:UP], DIGEST, **how)

    def download(self, name: str = "down", family: int = 4, **how: bool) -> Errand:
        port = self.listeners[family].getsockname()[1]
        return self._begin(name, Tcp, LOOPBACK[family], port, b"D", TEXT[:DOWN], waits=True, **how)

    def attached(self, name: str = "attached") -> Errand:
        errand = self._begin(name, Tcp, wire.REMOTE[4], 443, b"U" + TEXT[:UP], DIGEST)
        self._attached[errand.port] = None
        return errand

    def refused(self) -> Errand:
        return self._begin("refused", Tcp, LOOPBACK[4], self.closed_ports[socket.SOCK_STREAM], b"U", b"", closed=True)

    def datagrams(self, name: str = "udp") -> Errand:
        return self._begin(name, Udp, LOOPBACK[4], self.echo.getsockname()[1])

    def lost_datagram(self) -> Errand:
        return self._begin("udp closed", Udp, LOOPBACK[4], self.closed_ports[socket.SOCK_DGRAM], closed=True)

    def usual_errands(self) -> list[Errand]:
        """Nine that use every call which the stack makes."""
        self.upload()
        self.download()
        self.attached()
        self.upload("up v6", 6)
        self.download("slow down", slow=True)
        self.upload("aborted", aborts=True)
        self.datagrams()
        self.lost_datagram()
        self.refused()
        return list(self.errands)

    # --- time

    def run(self, only: list[Errand] | None = None) -> None:
        """Until the errands are over; one that has no end within PATIENCE_MS is stuck."""
        waited_for = self.errands if only is None else only
        until = self.now_ms + PATIENCE_MS
        while any(not e.how for e in waited_for):
            if self.step():
                continue
            if self._poll.poll(1) and self.step():  # a loaded host may be late; its time is not ours
                continue
            self._pass_time(IDLE_MS)
            if self.now_ms > until:
                for e in waited_for:
                    e.end("stuck")

    def _pass_time(self, ms: int) -> None:
        self.now_ms += ms
        for e in self.errands:
            if not e.how:
                e.passed()

    def step(self) -> bool:
        """Everybody does once what can be done; whether something was."""
        moved = self._stack_step()
        moved = self._drain() or moved
        moved = self._hosts_step() or moved
        for e in self.errands:
            if not e.how:
                e.output()  # type: ignore[attr-defined]
        return moved

    def run_in_real_time(self, until: Callable[[], bool], seconds: float) -> int:
        """Take turns only when the stack's descriptor, or the stack itself, says so. Returns how many it took."""
        turns, give_up = 0, time.monotonic() + seconds
        while not until() and time.monotonic() < give_up:
            turns += 1
            more = self.stack.turn(time.monotonic_ns() // 1000)
            self._drain()
            if self.stack.has_events:
                self._answer(self.stack.events())
            elif not more and not until():
                self._poll.poll(round(seconds * 1000))
        return turns

    def _stack_step(self) -> bool:
        moved = False
        for _ in range(TURNS_MAX):
            self.turns += 1
            more = self.stack.turn(self.now_ms * 1000)
            if self.stack.has_events:
                moved = True
                self._answer(self.stack.events())
            elif not more:
                return moved
        raise AssertionError("the stack does not come to rest")

    def _answer(self, events: list[Event]) -> None:
        self.events += events
        for e in events:
            if isinstance(e, Question):
                try:
                    self._attach(e) if e.child_port in self._attached else self.stack.allow(e.flow)
                except StackError:
                    self.stack.deny(e.flow, Denial.RESET)  # as the switchboard does

    def _attach(self, question: Question) -> None:
        near, far = socket.socketpair()
        try:
            self.stack.attach(question.flow, near.fileno())
        except StackError:
            near.close()
            far.close()
            raise
        near.detach()
        self.served.append(Served(far))

    def _drain(self) -> bool:
        moved = False
        while True:
            try:
                raw = self._tap.recv(1 << 17)
            except BlockingIOError:
                return moved
            moved = True
            self.frames += 1
            self._sort(raw[wire.VNET_LEN + wire.ETHERNET_LEN :])

    def _sort(self, packet: bytes) -> None:
        if packet[0] >> 4 == 4:
            protocol, src, rest = packet[9], packet[12:16], packet[20:]
        else:
            protocol, src, rest = packet[6], packet[8:24], packet[40:]
        if protocol in (wire.ICMP, wire.ICMPV6):
            self._icmp(rest)
            return
        sport, dport = struct.unpack_from("!HH", rest)
        errand = self._by_tuple.get((protocol, src, dport, sport))
        if errand is None or errand.how:
            return
        if isinstance(errand, Udp):
            errand.datagram(rest[8:])
        elif isinstance(errand, Tcp):
            seq, ack, doff, flags, window = struct.unpack_from("!IIBBH", rest, 4)
            errand.segment(seq, ack, flags & 0x17, window, rest[doff >> 4 << 2 :])

    def _icmp(self, message: bytes) -> None:
        quoted = message[8:]
        if quoted[0] >> 4 == 4:
            protocol, dst, rest = quoted[9], quoted[16:20], quoted[20:]
        else:
            protocol, dst, rest = quoted[6], quoted[24:40], quoted[40:]
        sport, dport = struct.unpack_from("!HH", rest)
        errand = self._by_tuple.get((protocol, dst, sport, dport))
        if errand is not None:
            errand.end("done" if getattr(errand, "closed", False) else "refused", f"ICMP {message[0]}/{message[1]}")

    # --- the end

    def finish(self) -> None:
        """Let every timer run out, then hold the stack to its books."""
        for _ in range(700):
            if not self.stack.flow_count():
                break
            self._pass_time(1_000)
            self.step()
        assert not self.stack.flow_count(), f"{self.stack.flow_count()} flows never end"
        assert not self.stack.buffered(), f"{self.stack.buffered()} bytes are held for nobody"
        self.close()
        assert descriptors() == self.before, "descriptors are left open"

    def close(self) -> None:
        """Free everything, whatever state it is in."""
        self.stack.close()
        self._close_sockets()

    def _close_sockets(self) -> None:
        for s in (*self._sockets, *(served.sock for served in self.served)):
            s.close()
