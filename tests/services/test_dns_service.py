"""The DNS service against scripted resolvers on loopback: relaying, fail-over, bounds, TCP."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable

import dnslib
import pytest

from childflow.services import dns_tcp, dns_udp
from childflow.services.dns_service import DnsService
from childflow.services.name_policy import NamePolicy
from childflow.services.resolvers import Resolvers
from childflow.services.watch import Watch
from tests.services.play import GATEWAY4, FakeRecorder, FakeStack, answer_to, datagram, name_policy, query, run, until

Behaviour = Callable[[bytes], list[bytes]]


def well(message: bytes) -> list[bytes]:
    return [answer_to(message)]


def silent(message: bytes) -> list[bytes]:
    return []


def failing(message: bytes) -> list[bytes]:
    return [answer_to(message, rcode=2)]


def both_on_one_port() -> tuple[socket.socket, socket.socket]:
    """A UDP socket, and a TCP one that listens. A port that is free in UDP may still be some TCP connection's."""
    for _ in range(100):
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind(("127.0.0.1", 0))
        try:
            return udp, socket.create_server(udp.getsockname(), backlog=200)
        except OSError:
            udp.close()
    raise AssertionError("no port is free in UDP and TCP")


class Upstream:
    """A resolver on loopback, over UDP and TCP on one port, that does as `behaviour` says after `delay` seconds."""

    def __init__(self, behaviour: Behaviour = well, delay: float = 0.0) -> None:
        self.behaviour = behaviour
        self.delay = delay
        self.seen: list[bytes] = []
        self.senders: list[tuple[str, int]] = []
        self.udp, self.tcp = both_on_one_port()
        self.udp.setblocking(False)
        self.text = f"127.0.0.1:{self.udp.getsockname()[1]}"
        loop = asyncio.get_running_loop()
        loop.add_reader(self.udp.fileno(), self._receive)
        self._server = loop.create_task(asyncio.start_server(self._connection, sock=self.tcp))

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.udp.fileno())
        self._server.cancel()
        self.udp.close()
        self.tcp.close()

    def _receive(self) -> None:
        while True:
            try:
                message, sender = self.udp.recvfrom(65535)
            except BlockingIOError:
                return
            self.seen.append(message)
            self.senders.append(sender)
            for answer in self.behaviour(message):
                asyncio.get_running_loop().call_later(self.delay, self._send, answer, sender)

    def _send(self, answer: bytes, to: tuple[str, int]) -> None:
        if self.udp.fileno() >= 0:
            self.udp.sendto(answer, to)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            message = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
            self.seen.append(message)
            await asyncio.sleep(self.delay)
            for answer in self.behaviour(message):
                writer.write(len(answer).to_bytes(2, "big") + answer)
            await writer.drain()
        finally:
            writer.close()


class Scene:
    """A service with its stack, recorder and resolvers."""

    def __init__(self, *upstreams: Upstream | str) -> None:
        loop = asyncio.get_running_loop()
        self.stack, self.recorder = FakeStack(), FakeRecorder()
        self.watch = Watch(loop)
        self.upstreams = upstreams
        self.resolvers = Resolvers("127.0.0.1", loop.time)
        texts = [u if isinstance(u, str) else u.text for u in upstreams]
        servers = tuple(Resolvers(text, loop.time).plan().servers[0] for text in texts)
        plan = self.resolvers.plan()._replace(servers=servers)
        self.resolvers._plan = plan
        self.policy = self.make_policy()
        self.service = DnsService(self.stack, loop, self.watch, self.resolvers, self.recorder, self.policy)  # type: ignore[arg-type]

    def make_policy(self) -> NamePolicy:
        return name_policy(self.recorder)

    def close(self) -> None:
        self.service.close()
        self.watch.close()
        for upstream in self.upstreams:
            if isinstance(upstream, Upstream):
                upstream.close()

    async def ask(self, message: bytes, seconds: float = 6.0) -> bytes:
        before = len(self.stack.replies)
        self.service.query(datagram(message))
        await until(lambda: len(self.stack.replies) > before, seconds)
        return self.stack.replies[before][1]


def closed_port() -> str:
    """An address where nobody listens."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{sock.getsockname()[1]}"


def rcode_of(answer: bytes) -> int:
    return int(dnslib.DNSRecord.parse(answer).header.rcode)


def test_query_is_relayed_with_another_id_and_the_answer_with_its_own() -> None:
    async def scene() -> None:
        s = Scene(Upstream())
        message = query("a.test", ident=0x0102, extra=b"\0\0\x29\x10\0\0\0\x80\0\0\0")
        assert await s.ask(message) == answer_to(message)
        upstream = s.upstreams[0]
        assert isinstance(upstream, Upstream)
        assert upstream.seen[0][2:] == message[2:]
        ((protocol, server, asked, answer, mode, seconds),) = s.recorder.of("dns_answer")
        assert (protocol, server, asked.ident, answer, mode) == (
            "udp",
            upstream.text,
            0x0102,
            answer_to(message),
            "relayed",
        )
        assert 0 <= seconds < 1
        s.close()

    run(scene)


def test_ids_and_ports_vary() -> None:
    async def scene() -> None:
        upstream = Upstream()
        s = Scene(upstream)
        for number in range(600):
            s.service.query(datagram(query("a.test", ident=number), 1024 + number))
            if number % 50 == 49:
                await until(lambda: len(s.stack.replies) == number + 1)  # noqa: B023
        assert [to.child_port - 1024 for to, _ in s.stack.replies] == [
            int.from_bytes(a[:2], "big") for _, a in s.stack.replies
        ]
        ids = {message[:2] for message in upstream.seen}
        assert len(ids) > 500
        assert len({port for _, port in upstream.senders}) >= dns_udp.LANES
        s.close()

    run(scene)


def test_source_ports_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_udp, "LANE_QUERIES", 4)

    async def scene() -> None:
        upstream = Upstream()
        s = Scene(upstream)
        for _ in range(dns_udp.LANES):
            await s.ask(query())
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(60):
            await s.ask(query())
        assert len({port for _, port in upstream.senders}) >= 12
        assert len(os.listdir("/proc/self/fd")) == before
        s.close()

    run(scene)


@pytest.mark.case("C26")
@pytest.mark.parametrize("message", [b"GET / HTTP/1.0\r\n\r\n", query()[:-1], answer_to(query())])
def test_what_is_no_query_is_never_passed_on(message: bytes) -> None:
    async def scene() -> None:
        upstream = Upstream()
        s = Scene(upstream)
        assert (await s.ask(message))[3] & 15 in (1, 4)
        await asyncio.sleep(0.05)
        assert upstream.seen == []
        assert len(s.recorder.of("dns_refused")) == 1
        s.close()

    run(scene)


async def timed(s: Scene, message: bytes) -> tuple[int, float]:
    start = time.monotonic()
    answer = await s.ask(message)
    return rcode_of(answer), time.monotonic() - start


@pytest.mark.case("E10")
def test_refused_resolver_costs_nothing() -> None:
    async def scene() -> None:
        s = Scene(closed_port(), Upstream())
        code, seconds = await timed(s, query())
        assert (code, seconds < 0.5) == (0, True)
        assert s.recorder.of("resolver_silent") == [(s.upstreams[0],)]
        s.close()

    run(scene)


@pytest.mark.case("E10")
def test_all_refused_is_servfail_at_once() -> None:
    async def scene() -> None:
        s = Scene(closed_port(), closed_port())
        code, seconds = await timed(s, query())
        assert (code, seconds < 0.5) == (2, True)
        assert s.recorder.of("dns_answer")[0][4] == "synthetic_empty"
        s.close()

    run(scene)


@pytest.mark.case("E10")
def test_dead_first_resolver_costs_a_second_once() -> None:
    async def scene() -> None:
        dead, alive = Upstream(silent), Upstream()
        s = Scene(dead, alive)
        code, seconds = await timed(s, query())
        assert (code, 0.8 < seconds < 1.6) == (0, True)
        assert s.recorder.of("resolver_silent") == [(dead.text,)]
        code, seconds = await timed(s, query("b.test"))
        assert (code, seconds < 0.5, len(dead.seen)) == (0, True, 1)
        s.close()

    run(scene)


@pytest.mark.case("E10")
def test_dead_resolvers_are_servfail_in_time_and_asked_again() -> None:
    async def scene() -> None:
        dead = Upstream(silent)
        s = Scene(dead)
        code, seconds = await timed(s, query())
        assert (code, 4.0 < seconds < 4.9) == (2, True)
        assert s.recorder.of("resolver_silent") == [(dead.text,)]
        dead.behaviour = well
        code, seconds = await timed(s, query())
        assert (code, seconds < 0.5) == (0, True)
        s.close()

    run(scene)


@pytest.mark.case("E10")
def test_resolver_that_takes_four_seconds_still_answers() -> None:
    async def scene() -> None:
        s = Scene(Upstream(delay=4.0))
        code, seconds = await timed(s, query())
        assert (code, seconds < 4.5) == (0, True)
        await asyncio.sleep(1.2)  # the second attempt's answer is not the child's any more
        assert len(s.stack.replies) == 1
        s.close()

    run(scene)


def test_run_that_ends_before_a_dead_resolver_is_given_up_tells_of_it() -> None:
    async def scene() -> None:
        dead = Upstream(silent)
        s = Scene(dead)
        s.service.query(datagram(query()))
        await until(lambda: len(dead.seen) == 2)
        s.close()
        assert s.recorder.of("resolver_silent") == [(dead.text,)]

    run(scene)


def test_failing_resolver_gives_way_to_the_next() -> None:
    async def scene() -> None:
        s = Scene(Upstream(failing), Upstream())
        assert (await timed(s, query()))[0] == 0
        s.close()

    run(scene)


def test_failure_of_all_is_relayed_as_it_came() -> None:
    async def scene() -> None:
        s = Scene(Upstream(failing), Upstream(failing))
        code, seconds = await timed(s, query())
        assert (code, seconds < 0.5) == (2, True)
        assert s.recorder.of("dns_answer")[0][4] == "relayed"
        s.close()

    run(scene)


def test_failure_counts_when_the_next_is_dead() -> None:
    async def scene() -> None:
        s = Scene(Upstream(failing), Upstream(silent))
        code, seconds = await timed(s, query())
        assert (code, seconds < 1.6) == (2, True)
        s.close()

    run(scene)


def test_answers_that_do_not_match_are_dropped() -> None:
    def forged(message: bytes) -> list[bytes]:
        other_id = bytes((message[0] ^ 1, message[1])) + message[2:]
        other_name = message[:2] + query("evil.test")[2:]
        return [
            answer_to(other_id, b"evil"),
            answer_to(other_name, b"evil"),
            message,
            b"",
            b"\0" * 11,
            answer_to(message),
        ]

    async def scene() -> None:
        s = Scene(Upstream(forged))
        assert await s.ask(query()) == answer_to(query())
        await asyncio.sleep(0.05)
        assert len(s.stack.replies) == 1
        s.close()

    run(scene)


@pytest.mark.case("E10")
def test_answer_from_another_port_is_not_taken() -> None:
    async def scene() -> None:
        upstream = Upstream(silent)
        s = Scene(upstream)
        s.service.query(datagram(query()))
        await until(lambda: upstream.seen)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as forger:
            forger.sendto(answer_to(upstream.seen[0], b"evil"), upstream.senders[0])
        await asyncio.sleep(0.1)
        assert s.stack.replies == []
        s.close()

    run(scene)


@pytest.mark.case("C23")
def test_truncated_and_large_answers_are_relayed_as_they_came() -> None:
    def truncated(message: bytes) -> list[bytes]:
        answer = answer_to(message)
        return [answer[:2] + bytes((answer[2] | 2,)) + answer[3:]]

    def large(message: bytes) -> list[bytes]:
        return [answer_to(message) + bytes(8000)]

    async def scene() -> None:
        upstream = Upstream(truncated)
        s = Scene(upstream)
        assert (await s.ask(query()))[2] & 2
        upstream.behaviour = large
        assert len(await s.ask(query())) == len(answer_to(query())) + 8000
        s.close()

    run(scene)


@pytest.mark.case("E10")
def test_open_queries_are_bounded_and_the_oldest_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_udp, "MAX_OPEN", 100)

    async def scene() -> None:
        upstream = Upstream(silent)
        s = Scene(upstream)
        for number in range(1000):
            s.service.query(datagram(query(ident=number), number))
        forwarder = s.service._udp
        assert (len(forwarder._open), forwarder.crowded_out) == (100, 900)
        assert sum(len(lane.waiting) for lanes in forwarder._lanes.values() for lane in lanes) == 100
        await until(lambda: len(s.stack.replies) == 1000)
        assert [to.child_port for to, _ in s.stack.replies[:900]] == list(range(900))
        assert {rcode_of(reply) for _, reply in s.stack.replies} == {2}
        assert forwarder._open == {}
        s.close()

    run(scene)


@pytest.mark.case("E10")
def test_slow_resolver_and_many_queries_cost_few_sockets() -> None:
    async def scene() -> None:
        s = Scene(Upstream(silent), Upstream(silent))
        before, most = len(os.listdir("/proc/self/fd")), 0
        for number in range(1000):
            s.service.query(datagram(query(ident=number), number))
        while len(s.stack.replies) < 1000:
            most = max(most, len(os.listdir("/proc/self/fd")) - before)
            await asyncio.sleep(0.05)
        assert most < 50
        assert s.service._udp._retired == set()
        s.close()

    run(scene)


def test_resolver_dies_with_many_queries_on_their_way() -> None:
    async def scene() -> None:
        first, second = Upstream(silent), Upstream()
        s = Scene(first, second)
        for number in range(200):
            s.service.query(datagram(query(ident=number), number))
        await until(lambda: len(first.seen) == 200)
        first.close()
        s.service.query(datagram(query(), 9999))
        await until(lambda: len(s.stack.replies) == 201, 3)
        assert all(rcode_of(answer) == 0 for _, answer in s.stack.replies)
        second.close()
        s.service.close()

    run(scene)


# TCP.


async def dial(s: Scene) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    end = s.service.open_connection(GATEWAY4)
    assert end is not None
    return await asyncio.open_unix_connection(sock=end)


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(2, "big") + message


async def message_from(reader: asyncio.StreamReader) -> bytes:
    return await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))


@pytest.mark.case("C24")
def test_tcp_query_with_its_length_split_anywhere() -> None:
    async def scene() -> None:
        s = Scene(Upstream())
        wire = framed(query("a.test", ident=5))
        for cut in (1, 2, 3, 14, len(wire) - 1):
            reader, writer = await dial(s)
            writer.write(wire[:cut])
            await asyncio.sleep(0.01)
            writer.write(wire[cut:])
            assert await message_from(reader) == answer_to(query("a.test", ident=5))
            writer.close()
        s.close()

    run(scene)


@pytest.mark.case("C24")
def test_tcp_pipelined_queries_then_half_close() -> None:
    async def scene() -> None:
        s = Scene(Upstream(delay=0.05))
        reader, writer = await dial(s)
        writer.write(b"".join(framed(query(f"n{i}.test", ident=i)) for i in range(40)))
        writer.write_eof()
        answers = [await message_from(reader) for _ in range(40)]
        assert sorted(int.from_bytes(answer[:2], "big") for answer in answers) == list(range(40))
        assert await reader.read() == b""
        s.close()

    run(scene)


@pytest.mark.case("C24")
def test_tcp_zero_length_closes() -> None:
    async def scene() -> None:
        s = Scene(Upstream())
        reader, writer = await dial(s)
        writer.write(b"\0\0" + framed(query()))
        assert await reader.read() == b""
        s.close()

    run(scene)


@pytest.mark.case("C24", "C26")
def test_tcp_what_is_no_query_is_formerr_and_the_next_is_answered() -> None:
    async def scene() -> None:
        upstream = Upstream()
        s = Scene(upstream)
        reader, writer = await dial(s)
        writer.write(framed(b"\x07\x07" + b"\xff" * 65533))
        assert (await message_from(reader))[:2] == b"\x07\x07"
        writer.write(framed(query()))
        assert await message_from(reader) == answer_to(query())
        assert len(upstream.seen) == 1
        s.close()

    run(scene)


@pytest.mark.case("C24")
def test_tcp_answers_come_in_the_order_of_the_resolvers_answers() -> None:
    """RFC 7766 6.2.1.1: a slow answer holds up no other."""

    async def scene() -> None:
        upstream = Upstream()
        s = Scene(upstream)
        reader, writer = await dial(s)
        upstream.delay = 0.5
        writer.write(framed(query("slow.test", ident=1)))
        await until(lambda: upstream.seen)
        upstream.delay = 0.0
        writer.write(framed(query("quick.test", ident=2)) + framed(query("quick.test", ident=3)))
        answers = [await message_from(reader) for _ in range(3)]
        idents = [int.from_bytes(answer[:2], "big") for answer in answers]
        assert sorted(idents[:2]) == [2, 3]
        assert idents[2] == 1
        s.close()

    run(scene)


@pytest.mark.case("C24")
def test_tcp_query_of_64_kib_is_passed_on_whole() -> None:
    async def scene() -> None:
        upstream = Upstream()
        s = Scene(upstream)
        reader, writer = await dial(s)
        room = 65535 - len(query()) - 11
        message = query(extra=b"\0\0\x29\x10\0\0\0\0\0" + room.to_bytes(2, "big") + bytes(room))
        assert len(message) == 65535
        writer.write(framed(message))
        assert rcode_of(await message_from(reader)) == 0
        assert upstream.seen[0][2:] == message[2:]
        s.close()

    run(scene)


@pytest.mark.case("E10")
def test_resolver_that_comes_back_is_asked_at_once() -> None:
    """Nothing is remembered of a failure but who to ask last."""

    async def scene() -> None:
        upstream = Upstream(silent)
        s = Scene(upstream)
        assert rcode_of(await s.ask(query())) == 2
        upstream.behaviour = well
        start = time.monotonic()
        assert rcode_of(await s.ask(query())) == 0
        assert time.monotonic() - start < 0.5
        s.close()

    run(scene)


@pytest.mark.case("E10")
def test_ten_thousand_outstanding_queries_are_bounded_and_all_answered() -> None:
    async def scene() -> None:
        s = Scene(Upstream(silent))
        before = len(os.listdir("/proc/self/fd"))
        for number in range(10_000):
            s.service.query(datagram(query(ident=number), number))
        assert len(s.service._udp._open) == dns_udp.MAX_OPEN
        await until(lambda: len(s.stack.replies) == 10_000)
        assert {rcode_of(reply) for _, reply in s.stack.replies[::97]} == {2}
        assert sorted(to.child_port for to, _ in s.stack.replies) == list(range(10_000))
        assert len(os.listdir("/proc/self/fd")) <= before + 50
        s.close()

    run(scene)


@pytest.mark.case("C24")
def test_tcp_answer_of_64_kib() -> None:
    def large(message: bytes) -> list[bytes]:
        return [answer_to(message) + bytes(65535 - len(answer_to(message)))]

    async def scene() -> None:
        s = Scene(Upstream(large))
        reader, writer = await dial(s)
        writer.write(framed(query()))
        assert len(await message_from(reader)) == 65535
        s.close()

    run(scene)


@pytest.mark.case("E10")
@pytest.mark.parametrize(("first", "at_most"), [("refused", 0.5), ("silent", 3.0), ("failing", 0.5)])
def test_tcp_fail_over(first: str, at_most: float) -> None:
    async def scene() -> None:
        behaviours = {"silent": silent, "failing": failing}
        s = Scene(closed_port() if first == "refused" else Upstream(behaviours[first]), Upstream())
        reader, writer = await dial(s)
        start = time.monotonic()
        writer.write(framed(query()))
        assert rcode_of(await message_from(reader)) == 0
        assert time.monotonic() - start < at_most
        dead, alive = (u if isinstance(u, str) else u.text for u in s.upstreams)
        assert s.recorder.of("resolver_silent") == ([] if first == "failing" else [(dead,)])
        assert s.recorder.of("dns_answer")[0][1] == alive
        s.close()

    run(scene)


@pytest.mark.case("E10")
def test_tcp_dead_resolver_is_servfail_in_time() -> None:
    async def scene() -> None:
        s = Scene(Upstream(silent, delay=30))
        reader, writer = await dial(s)
        start = time.monotonic()
        writer.write(framed(query()))
        assert rcode_of(await message_from(reader)) == 2
        assert time.monotonic() - start < 4.9
        assert s.recorder.of("resolver_silent") == [(u.text,) for u in s.upstreams if isinstance(u, Upstream)]
        s.close()

    run(scene)


def test_tcp_two_dead_resolvers_are_both_told_of() -> None:
    """Not the first alone, and none that was never asked."""

    async def scene() -> None:
        s = Scene(Upstream(silent, delay=30), Upstream(silent, delay=30))
        reader, writer = await dial(s)
        writer.write(framed(query()))
        assert rcode_of(await message_from(reader)) == 2
        assert s.recorder.of("resolver_silent") == [(u.text,) for u in s.upstreams if isinstance(u, Upstream)]
        s.close()

    run(scene)


@pytest.mark.case("C24")
def test_tcp_sessions_are_bounded_and_the_idle_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_tcp, "MAX_SESSIONS", 4)

    async def scene() -> None:
        s = Scene(Upstream(delay=0.5))
        first = await dial(s)
        others = [await dial(s) for _ in range(3)]
        await asyncio.sleep(0.05)
        last = await dial(s)
        assert await first[0].read() == b""
        for _, writer in [*others, last]:
            writer.write(framed(query()))
        await asyncio.sleep(0.05)
        assert s.service.open_connection(GATEWAY4) is None
        for reader, _ in [*others, last]:
            assert rcode_of(await message_from(reader)) == 0
        s.close()

    run(scene)


@pytest.mark.case("C24")
def test_tcp_burst_of_connections_in_one_step_is_served_and_costs_no_descriptors() -> None:
    """The engine may take many connections before the loop runs our tasks: the last ones are served all the same."""

    async def scene() -> None:
        s = Scene(Upstream())
        before = len(os.listdir("/proc/self/fd"))
        ends = [s.service.open_connection(GATEWAY4) for _ in range(1000)]
        assert all(end is not None for end in ends)
        assert len(os.listdir("/proc/self/fd")) == before + len(ends) + dns_tcp.MAX_SESSIONS
        reader, writer = await asyncio.open_unix_connection(sock=ends[-1])
        writer.write(framed(query()))
        assert rcode_of(await message_from(reader)) == 0
        assert ends[0] is not None
        assert ends[0].recv(1) == b""
        for end in ends[:-1]:
            assert end is not None
            end.close()
        s.close()

    run(scene)


@pytest.mark.case("C24")
def test_tcp_idle_session_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_tcp, "IDLE_S", 0.1)

    async def scene() -> None:
        s = Scene(Upstream())
        reader, _ = await dial(s)
        assert await reader.read() == b""
        s.close()

    run(scene)


def test_closing_with_the_loop_stopped_leaves_no_task(recwarn: pytest.WarningsRecorder) -> None:
    import uvloop

    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    faults: list[object] = []
    loop.set_exception_handler(lambda _, context: faults.append(context))

    async def begin() -> Scene:
        s = Scene(Upstream(silent, delay=30))
        _, writer = await dial(s)
        writer.write(framed(query()))
        await asyncio.sleep(0.05)
        return s

    s = loop.run_until_complete(begin())
    s.service.close()
    assert not any(run for run in s.service._tcp._runs if not run.done())
    assert faults == []
    s.watch.close()
    asyncio.set_event_loop(None)
