"""DNS over UDP: the tree's queries, relayed to the host's resolvers with everything but the id as it came.

Each query gets a fresh random id and goes out of one of a few connected sockets per resolver, which are replaced
often, so that an off-path forger has id and source port to guess (RFC 5452). A query asks one resolver after the
other: the next at once when an ICMP error says that nobody listens, or when the answer is a server's failure, else
after the attempt's time. Earlier attempts stay open, so a slow resolver's answer still counts. The child hears of a
failure within 4.5 s, before its own resolver gives up.

Invariants: a query is in `_open` until it was answered; every (lane, id) in its `flights` is in that lane's `waiting`.
            `_open` is bounded; the oldest query makes room and has failed.
            The policy is asked before a query goes out, and before an answer that it reads goes down.
Not here:   what a message must look like (`dns.py`), who the resolvers are (`resolvers.py`), TCP (`dns_tcp.py`).
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from childflow.errors import StackError
from childflow.netstack.events import Datagram
from childflow.services import dns, dns_reply
from childflow.services.name_policy import Asked, NamePolicy, Ruling
from childflow.services.resolvers import Resolver, Resolvers
from childflow.services.watch import Watch

if TYPE_CHECKING:
    from childflow.netstack.stack import Stack
    from childflow.record.null import NullRecorder

MAX_OPEN = 4096
MAX_ELSEWHERE = 64
GIVE_UP_S = 4.5
TICK_S = 0.1
LANES = 4  # sockets per resolver at a time
LANE_QUERIES = 256  # queries before a socket, and with it the source port, is replaced
_RECEIVE_BATCH = 64
_MAX_MESSAGE = 65535
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)


class Lane:
    """One connected socket to one resolver, and the queries that wait there by their id on the wire."""

    __slots__ = ("sent", "server", "sock", "waiting")

    def __init__(self, server: Resolver) -> None:
        """Raises OSError where there is no route or no descriptor left."""
        self.server = server
        self.waiting: dict[int, Pending] = {}
        self.sent = 0
        self.sock = socket.socket(server.family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            self.sock.connect(server.sockaddr)
        except OSError:
            self.sock.close()
            raise


class Pending:
    """One query that is not answered yet: the child's, or ours, whose answer goes to `landed`.

    Times in seconds of the loop's clock.
    """

    __slots__ = (
        "asked", "fallback", "flights", "landed", "left", "message", "next_at", "order", "question", "ruling", "silent",
        "since", "source", "to",
    )  # fmt: skip

    def __init__(self, message: bytes, question: bytes, order: tuple[Resolver, ...], rounds: int, since: float) -> None:
        self.message = message
        self.question = question
        self.to: Datagram | None = None
        self.source: Asked | None = None
        self.ruling: Ruling | None = None
        self.landed: Callable[[bytes, str], None] = _nobody
        self.order = order
        self.left = rounds * len(order)  # attempts that may still be made
        self.asked = 0
        self.since = since
        self.next_at = 0.0
        self.flights: list[tuple[Lane, int]] = []
        self.silent: set[str] = set()  # resolvers that could not be asked, or refused
        self.fallback: bytes | None = None  # a resolver's answer that says it failed


def _nobody(answer: bytes, mode: str) -> None:
    """An answer that nobody waits for."""


class RandomIds:
    """16-bit ids from the kernel's generator, fetched 1,024 at a time."""

    def __init__(self) -> None:
        self._pool: list[int] = []

    def next(self) -> int:
        if not self._pool:
            self._pool = memoryview(os.urandom(2048)).cast("H").tolist()
        return self._pool.pop()


class UdpForwarder:
    """Relays the datagrams that the child sends to the gateway's port 53."""

    def __init__(
        self,
        stack: Stack,
        loop: asyncio.AbstractEventLoop,
        watch: Watch,
        resolvers: Resolvers,
        recorder: NullRecorder,
        policy: NamePolicy,
        open_max: int | None = None,
    ) -> None:
        self._policy = policy
        self._open_max = MAX_OPEN if open_max is None else open_max
        self._stack = stack
        self._loop = loop
        self._clock: Callable[[], float] = loop.time
        self._watch = watch
        self._resolvers = resolvers
        self._recorder = recorder
        self._ids = RandomIds()
        self._open: dict[Pending, None] = {}
        self._elsewhere: dict[Pending, None] = {}  # those of them that go to a server of the child's choice
        self._lanes: dict[Resolver, list[Lane]] = {}
        self._retired: set[Lane] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._buffer = bytearray(_MAX_MESSAGE)
        self._view = memoryview(self._buffer)
        self.crowded_out = 0  # queries that had to make room

    def close(self) -> None:
        """Forget every query and close every socket."""
        if self._timer is not None:
            self._timer.cancel()
        if self._recorder.active:
            self._tell_overdue()
        self._open.clear()
        for lane in [*(lane for lanes in self._lanes.values() for lane in lanes), *self._retired]:
            self._close_lane(lane)
        self._lanes.clear()
        self._retired.clear()

    def _tell_overdue(self) -> None:
        """The run ends with queries open: resolvers that had an attempt's time for one were silent."""
        now = self._clock()
        for pending in self._open:
            if pending.asked > 1 or now >= pending.next_at:
                self._tell_silent(pending, None)

    def query(self, to: Datagram) -> None:
        """Relay the query in `to`, or answer it here: when it is none, or when the policy says so."""
        query = dns.read_query(to.payload)
        if isinstance(query, dns.Bad):
            self._refuse(to, query)
            return
        asked = Asked("udp", to.payload, query, to.remote)
        ruling = self._policy.rule(asked)
        if ruling is not None and ruling.reply is not None:
            self._answer_here(to, asked, ruling)
            return
        server = None if ruling is None else ruling.server
        pending = self._open_pending(to.payload, query.question, server)
        pending.to, pending.source, pending.ruling = to, asked, ruling
        if self._recorder.active:
            self._recorder.dns_query("udp", pending.order[0].text, query)
        self._ask_next(pending)

    def ask(self, message: bytes, question: bytes, landed: Callable[[bytes, str], None]) -> None:
        """A query of ours, of which nothing is recorded.

        `landed` gets the answer and "relayed", or, in time, SERVFAIL and another word where no resolver has answered;
        nothing when the service closes.
        """
        pending = self._open_pending(message, question, None)
        pending.landed = landed
        self._ask_next(pending)

    def _open_pending(self, message: bytes, question: bytes, server: Resolver | None) -> Pending:
        if len(self._open) >= self._open_max:
            self._make_room()
        plan = self._resolvers.plan()
        order = self._resolvers.in_order() if server is None else (server,)
        pending = Pending(message, question, order, plan.rounds, self._clock())
        self._open[pending] = None
        if server is not None:
            self._count_elsewhere(pending)
        if self._timer is None:  # before anything can go wrong: an open query is looked at until it ends
            self._timer = self._loop.call_later(TICK_S, self._tick)
        return pending

    def _count_elsewhere(self, pending: Pending) -> None:
        """Each server that the child chooses takes a socket: of those, few queries are open at a time."""
        if len(self._elsewhere) >= MAX_ELSEWHERE:
            self.crowded_out += 1
            self._fail(next(iter(self._elsewhere)))
        self._elsewhere[pending] = None

    def _answer_here(self, to: Datagram, asked: Asked, ruling: Ruling) -> None:
        assert ruling.reply is not None
        self._reply(to, ruling.reply)
        if self._recorder.active:
            self._recorder.dns_query("udp", asked.server, asked.query)
            self._recorder.dns_answer("udp", asked.server, asked.query, ruling.reply, ruling.mode, 0.0)

    # Asking.

    def _ask_next(self, pending: Pending) -> None:
        """Send to the next resolver that takes it; none left and nothing on its way: the query has failed."""
        order = pending.order
        while pending.left > 0:
            server = order[pending.asked % len(order)]
            pending.asked += 1
            pending.left -= 1
            if self._send(pending, server):
                return
        if not pending.flights:
            self._fail(pending)

    def _send(self, pending: Pending, server: Resolver) -> bool:
        try:
            lane = self._lane(server)
            ident = self._ids.next()
            while ident in lane.waiting:
                ident = self._ids.next()
            self._send_on(lane, ident.to_bytes(2, "big") + pending.message[2:])
        except BlockingIOError:
            pass  # a full socket buffer is a lost datagram: the next attempt is the remedy
        except OSError:
            self._resolvers.avoid(server)
            pending.silent.add(server.text)
            return False
        lane.sent += 1
        lane.waiting[ident] = pending
        pending.flights.append((lane, ident))
        pending.next_at = self._clock() + self._resolvers.plan().attempt_s
        return True

    def _send_on(self, lane: Lane, message: bytes) -> None:
        """Send; the first try may fetch the error that an earlier datagram earned, so there is a second."""
        try:
            lane.sock.send(message)
        except BlockingIOError:
            raise
        except OSError:
            self._refused(lane)
            lane.sock.send(message)

    def _lane(self, server: Resolver) -> Lane:
        lanes = self._lanes.get(server)
        if lanes is None:
            self._retire_unlisted()
            lanes = self._lanes[server] = []
        if len(lanes) == LANES and lanes[0].sent < LANE_QUERIES:
            lanes.append(lanes.pop(0))
            return lanes[-1]
        try:
            lane = Lane(server)
        except OSError as error:
            if error.errno not in _NO_DESCRIPTOR or not lanes:
                raise
            lanes.append(lanes.pop(0))  # a source port that stays longer is better than no answer
            return lanes[-1]
        if len(lanes) == LANES:
            self._retire(lanes.pop(0))
        self._watch.add(lane.sock.fileno(), lambda: self._receive(lane))
        lanes.append(lane)
        return lane

    # Answers.

    def _receive(self, lane: Lane) -> None:
        """Take what has come on `lane`: answers, or the error that an ICMP message left there."""
        receive, waiting = lane.sock.recv_into, lane.waiting
        for _ in range(_RECEIVE_BATCH):
            try:
                size = receive(self._buffer)
            except BlockingIOError:
                return
            except OSError:
                self._refused(lane)
                return
            pending = waiting.get(self._buffer[0] << 8 | self._buffer[1]) if size >= dns.HEADER_BYTES else None
            if pending is not None:
                self._answer(lane, pending, bytes(self._view[:size]))
            if not waiting:  # also: the lane may have been closed with its last query
                return

    def _answer(self, lane: Lane, pending: Pending, message: bytes) -> None:
        if not dns.answers(message, pending.question):
            return
        self._resolvers.answered(lane.server)
        answer = pending.message[:2] + message[2:]
        if dns.rcode(message) in dns.FAILURES and pending.asked < len(pending.order):
            pending.fallback = answer
            self._land(pending, lane, message[0] << 8 | message[1])
            self._ask_next(pending)
            return
        self._finish(pending, answer, lane.server.text, "relayed")

    def _refused(self, lane: Lane) -> None:
        """Nobody listens at the lane's resolver: what waits there asks the next one at once."""
        self._resolvers.avoid(lane.server)
        for ident, pending in list(lane.waiting.items()):
            if lane.waiting.get(ident) is not pending:
                continue  # an error on a second socket, met on the way, has ended it
            pending.silent.add(lane.server.text)
            was_last = pending.flights[-1] == (lane, ident)
            self._land(pending, lane, ident)
            if was_last or not pending.flights:
                self._ask_next(pending)

    def _land(self, pending: Pending, lane: Lane, ident: int) -> None:
        """One attempt is over without an answer."""
        pending.flights.remove((lane, ident))
        del lane.waiting[ident]
        self._close_if_done(lane)

    def _finish(self, pending: Pending, answer: bytes, server: str, mode: str) -> None:
        if self._recorder.active:
            self._tell_silent(pending, server if mode == "relayed" else None)
        self._forget(pending)
        if pending.to is None or pending.source is None:
            pending.landed(answer, mode)
            return
        if self._policy.reads_answers:
            answer, changed = self._policy.take(pending.source, pending.ruling, answer)
            mode = mode if changed == "relayed" else changed
        self._reply(pending.to, answer)
        if self._recorder.active:
            query, seconds = pending.source.query, self._clock() - pending.since
            self._recorder.dns_answer("udp", server, query, answer, mode, seconds)

    def _tell_silent(self, pending: Pending, answered: str | None) -> None:
        """Tell the recorder of every resolver that was asked and, unlike `answered`, has not answered."""
        asked = pending.silent.union(lane.server.text for lane, _ in pending.flights)
        asked.discard(answered or "")
        for server in asked:
            self._recorder.resolver_silent(server)

    def _fail(self, pending: Pending) -> None:
        server = pending.order[0].text
        if pending.fallback is not None:
            self._finish(pending, pending.fallback, server, "relayed")
            return
        answer = dns_reply.empty(pending.message, pending.question, dns.SERVFAIL)
        self._finish(pending, answer, server, "synthetic_empty")

    def _forget(self, pending: Pending) -> None:
        del self._open[pending]
        self._elsewhere.pop(pending, None)
        for lane, ident in pending.flights:
            del lane.waiting[ident]
            self._close_if_done(lane)
        pending.flights.clear()

    def _make_room(self) -> None:
        self.crowded_out += 1
        self._fail(next(iter(self._open)))

    def _refuse(self, to: Datagram, bad: dns.Bad) -> None:
        if bad.reply is not None:
            self._reply(to, bad.reply)
        if self._recorder.active:
            self._recorder.dns_refused("udp", bad, to.remote)

    def _reply(self, to: Datagram, answer: bytes) -> None:
        try:
            self._stack.reply_datagram(to, answer)
        except StackError:
            pass  # the TAP is full or gone: a lost datagram

    # Time.

    def _tick(self) -> None:
        """Look at every open query; there are at most MAX_OPEN, so this costs a thousandth of a core."""
        try:
            self._look_at_all(self._clock())
        finally:
            self._timer = self._loop.call_later(TICK_S, self._tick) if self._open else None

    def _look_at_all(self, now: float) -> None:
        for pending in list(self._open):
            if pending not in self._open:
                continue
            if now >= pending.since + GIVE_UP_S:
                self._fail(pending)
            elif now >= pending.next_at and pending.left > 0:
                self._too_slow(pending)

    def _too_slow(self, pending: Pending) -> None:
        if pending.flights:
            lane = pending.flights[-1][0]
            self._resolvers.avoid(lane.server)
            if lane not in self._retired:  # once for all queries that wait there, or each would open a socket
                self._retire_all(lane.server)  # the host may have moved: a connected socket keeps its source address
        if pending.fallback is not None and pending.asked >= len(pending.order):
            self._fail(pending)
            return
        self._ask_next(pending)

    # Sockets.

    def _retire_all(self, server: Resolver) -> None:
        for lane in self._lanes.pop(server, ()):
            self._retire(lane)

    def _retire_unlisted(self) -> None:
        listed = self._resolvers.plan().servers
        for server in [server for server in self._lanes if server not in listed]:
            self._retire_all(server)

    def _retire(self, lane: Lane) -> None:
        """Send nothing on `lane` any more; it closes with its last query."""
        self._retired.add(lane)
        self._close_if_done(lane)

    def _close_if_done(self, lane: Lane) -> None:
        if not lane.waiting and lane in self._retired:
            self._retired.discard(lane)
            self._close_lane(lane)

    def _close_lane(self, lane: Lane) -> None:
        self._watch.remove(lane.sock.fileno())
        lane.sock.close()
