"""DNS over TCP: the child's connections to port 53 of whomever, served here and forwarded over TCP.

The stack splices the child's connection onto one end of a socket pair; the other end is a session here. A session
reads length-prefixed queries, forwards several at once and writes the answers as they come (RFC 7766 6.2.1.1). Each
query goes to the resolvers in turn over a connection of its own: fail-over is per query, and DNS over TCP is rare.

Invariants: at most MAX_SESSIONS sessions (and as many that are about to close), PIPELINE queries in each, MAX_UPSTREAM
            connections to resolvers in all.
            Every query that parses is answered, with SERVFAIL after 4.5 s at the latest.
Not here:   what a message must look like (`dns.py`), who the resolvers are (`resolvers.py`).
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from typing import TYPE_CHECKING

from childflow.services import dns, dns_reply
from childflow.services.name_policy import Asked, NamePolicy, Ruling
from childflow.services.resolvers import Resolver, Resolvers

if TYPE_CHECKING:
    from childflow.record.null import NullRecorder

MAX_SESSIONS = 64
PIPELINE = 32
MAX_UPSTREAM = 64
IDLE_S = 30.0  # RFC 7766 6.2.3: of the order of seconds
GIVE_UP_S = 4.5
WRITE_S = 10.0  # a child that does not read its answers for so long is gone


class Session:
    """One connection of the child. `tasks` are the queries that are not answered yet."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def __init__(self, sock: socket.socket, remote: bytes, now: float) -> None:
        """`remote` is the address that the child connected to."""
        self.remote = remote
        self.used_at = now
        self.tasks: set[asyncio.Task[None]] = set()
        self.slots = asyncio.Semaphore(PIPELINE)
        self._sock: socket.socket | None = sock  # until the streams have it
        self._opened = self._over = False

    async def open(self) -> bool:
        """Begin to read and write; False when it can't be, or was ended before it began."""
        if self._sock is None:
            return False
        sock, self._sock = self._sock, None
        try:
            self.reader, self.writer = await asyncio.open_unix_connection(sock=sock)
        except BaseException as error:
            sock.close()  # the child's connection ends with it
            if isinstance(error, OSError):
                return False
            raise
        self._opened = True
        if self._over:
            self.writer.transport.abort()
        return not self._over

    def end(self) -> None:
        """Close at once, whatever is on its way."""
        self._over = True
        if self._opened:
            self.writer.transport.abort()
        elif self._sock is not None:
            self._sock.close()  # the loop has not come to it yet: a burst costs no descriptors
            self._sock = None

    async def next_message(self) -> bytes | None:
        """The next query's bytes; None when the child has sent its last, was idle too long, or sent a zero length."""
        try:
            async with asyncio.timeout(IDLE_S):
                size = int.from_bytes(await self.reader.readexactly(2), "big")
                return await self.reader.readexactly(size) if size else None
        except (asyncio.IncompleteReadError, OSError, TimeoutError):
            return None

    async def write(self, message: bytes) -> None:
        """Send one answer down."""
        try:
            self.writer.write(len(message).to_bytes(2, "big") + message)
            async with asyncio.timeout(WRITE_S):
                await self.writer.drain()
        except (OSError, TimeoutError):
            self.writer.transport.abort()


class TcpForwarder:
    """Serves the child's DNS connections."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        resolvers: Resolvers,
        recorder: NullRecorder,
        policy: NamePolicy,
        sessions_max: int | None = None,
    ) -> None:
        self._policy = policy
        self._sessions_max = MAX_SESSIONS if sessions_max is None else sessions_max
        self._loop = loop
        self._resolvers = resolvers
        self._recorder = recorder
        self._sessions: dict[Session, None] = {}  # in the order of opening, which decides between equal times
        self._runs: set[asyncio.Task[None]] = set()
        self._upstream = asyncio.Semaphore(min(MAX_UPSTREAM, self._sessions_max))

    def open(self, remote: bytes) -> socket.socket | None:
        """The stack's end of a new session with `remote`, for `attach`; None when there are too many, none idle."""
        if len(self._sessions) >= self._sessions_max and not self._close_longest_idle():
            return None
        try:
            stack_end, ours = socket.socketpair()
        except OSError:
            return None  # no descriptor left
        stack_end.setblocking(False)
        ours.setblocking(False)
        session = Session(ours, remote, self._loop.time())
        self._sessions[session] = None
        run = self._loop.create_task(self._run(session))
        self._runs.add(run)
        run.add_done_callback(self._runs.discard)
        return stack_end

    def close(self) -> None:
        """End every session at once. The loop may have stopped already: then it runs once more for their sake."""
        tasks = {*self._runs, *(task for session in self._sessions for task in session.tasks)}
        for task in tasks:
            task.cancel()
        if tasks and not self._loop.is_running():
            self._loop.run_until_complete(asyncio.wait(tasks))

    def _close_longest_idle(self) -> bool:
        idle = [session for session in self._sessions if not session.tasks]
        if not idle:
            return False
        oldest = min(idle, key=lambda session: session.used_at)
        del self._sessions[oldest]
        oldest.end()
        return True

    async def _run(self, session: Session) -> None:
        try:
            if not await session.open():
                return
            try:
                await self._serve(session)
            finally:
                session.writer.close()
        finally:
            self._sessions.pop(session, None)
            for task in session.tasks:
                task.cancel()

    async def _serve(self, session: Session) -> None:
        """Take queries until the child sends no more; then answer what is open before closing (half-close)."""
        while (message := await session.next_message()) is not None:
            session.used_at = self._loop.time()
            await session.slots.acquire()
            task = self._loop.create_task(self._one(session, message))
            session.tasks.add(task)
            task.add_done_callback(session.tasks.discard)
        if session.tasks:
            await asyncio.wait(session.tasks)

    async def _one(self, session: Session, message: bytes) -> None:
        try:
            answer = await self._answer(message, session.remote)
            if answer is not None:
                await session.write(answer)
        except Exception as error:
            session.end()  # the child hears that nothing will come, and may ask again
            self._loop.call_exception_handler({"message": "childflow: a DNS query failed", "exception": error})
        finally:
            session.slots.release()

    async def _answer(self, message: bytes, remote: bytes) -> bytes | None:
        query = dns.read_query(message)
        if isinstance(query, dns.Bad):
            if self._recorder.active:
                self._recorder.dns_refused("tcp", query, remote)
            return query.reply
        asked = Asked("tcp", message, query, remote)
        ruling = self._policy.rule(asked)
        if ruling is not None and ruling.reply is not None:
            if self._recorder.active:
                self._recorder.dns_query("tcp", asked.server, query)
                self._recorder.dns_answer("tcp", asked.server, query, ruling.reply, ruling.mode, 0.0)
            return ruling.reply
        return await self._relay(asked, ruling)

    async def _relay(self, asked: Asked, ruling: Ruling | None) -> bytes:
        since = self._loop.time()
        server = None if ruling is None else ruling.server
        order = self._resolvers.in_order() if server is None else (server,)
        if self._recorder.active:
            self._recorder.dns_query("tcp", order[0].text, asked.query)
        answer, by = await self._ask_in_turn(asked.query.question, asked.message, order, since + GIVE_UP_S)
        mode = "relayed" if answer is not None else "synthetic_empty"
        if answer is None:
            answer = dns_reply.empty(asked.message, asked.query.question, dns.SERVFAIL)
        if self._policy.reads_answers:
            answer, changed = self._policy.take(asked, ruling, answer)
            mode = mode if changed == "relayed" else changed
        if self._recorder.active:
            self._recorder.dns_answer("tcp", by.text, asked.query, answer, mode, self._loop.time() - since)
        return answer

    async def ask(self, message: bytes, question: bytes) -> bytes | None:
        """A query of ours to the run's resolvers, in the same way; None when none has answered in time."""
        order = self._resolvers.in_order()
        return (await self._ask_in_turn(question, message, order, self._loop.time() + GIVE_UP_S))[0]

    async def _ask_in_turn(
        self, question: bytes, message: bytes, order: tuple[Resolver, ...], until: float
    ) -> tuple[bytes | None, Resolver]:
        """The first good answer and who gave it; else the last that said it failed; else None. Shares the time left."""
        best: tuple[bytes | None, Resolver] = (None, order[0])
        silent: list[Resolver] = []
        try:
            async with asyncio.timeout_at(until):
                async with self._upstream:
                    for number, server in enumerate(order):
                        silent.append(server)
                        share = (until - self._loop.time()) / (len(order) - number)
                        answer = await self._ask(server, question, message, share)
                        if answer is not None:
                            best = (answer, silent.pop())
                            if dns.rcode(answer) not in dns.FAILURES:
                                break
        except TimeoutError:
            pass
        if self._recorder.active:
            for server in silent:
                self._recorder.resolver_silent(server.text)
        return best

    async def _ask(self, server: Resolver, question: bytes, message: bytes, share_s: float) -> bytes | None:
        """One resolver's answer, with the child's id on it; None when there was none."""
        ident = os.urandom(2)
        sock = None
        try:
            async with asyncio.timeout(share_s):
                sock = socket.socket(server.family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
                await self._connect(sock, server)
                await self._loop.sock_sendall(sock, len(message).to_bytes(2, "big") + ident + message[2:])
                answer = await self._receive(sock)
        except (OSError, EOFError):
            self._resolvers.avoid(server)
            return None
        finally:
            if sock is not None:
                sock.close()
        if answer[:2] != ident or not dns.answers(answer, question):
            return None
        self._resolvers.answered(server)
        return message[:2] + answer[2:]

    async def _connect(self, sock: socket.socket, server: Resolver) -> None:
        """Not `loop.sock_connect`: uvloop starts four threads to look the address up, and aborts where it can't."""
        error = sock.connect_ex(server.sockaddr)
        if error == errno.EINPROGRESS:
            await self._writable(sock.fileno())
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, os.strerror(error))

    async def _writable(self, fd: int) -> None:
        ready: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_writer(fd, _settle, ready)
        try:
            await ready
        finally:
            self._loop.remove_writer(fd)

    async def _receive(self, sock: socket.socket) -> bytes:
        """One length-prefixed message. EOFError when the resolver closes within it."""
        size = int.from_bytes(await self._exactly(sock, 2), "big")
        return await self._exactly(sock, size)

    async def _exactly(self, sock: socket.socket, size: int) -> bytes:
        parts = []
        while size:
            part = await self._loop.sock_recv(sock, size)
            if not part:
                raise EOFError
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def _settle(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
