"""Lookups of our own: both families, one query for all who ask, TTLs, /etc/hosts, and every way to fail."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import dnslib
import pytest

from childflow.services import dns_udp, lookup
from childflow.services.hosts_file import HostsFile, parse_hosts
from childflow.services.lookup import Lookup, LookupFailed, LookupTimeout, NoSuchName
from tests.services.play import FAR4, FAR6, answer_to, run, until
from tests.services.test_dns_answer import a, cname, rr
from tests.services.test_dns_service import Scene, Upstream, closed_port


def both(message: bytes) -> list[bytes]:
    """A and AAAA of every name, by way of an alias."""
    asked = dnslib.DNSRecord.parse(message)
    name, reply = str(asked.q.qname), asked.reply()
    reply.add_answer(cname(name, "cdn.test"))
    six = rr("cdn.test", "AAAA", dnslib.AAAA("2001:db8::7"), 30)
    reply.add_answer(a("cdn.test", FAR4, 60) if asked.q.qtype == 1 else six)
    return [bytes(reply.pack())]


class Looking(Scene):
    def __init__(self, *upstreams: Upstream | str, hosts: str = "", has_ipv6: bool = True) -> None:
        super().__init__(*upstreams)
        self.now = 1000.0
        self.lookup = Lookup(
            asyncio.get_running_loop(), self.service._udp, self.service._tcp, has_ipv6,
            HostsFile(lambda: self.now, hosts or "/nonexistent"),
        )  # fmt: skip

    def close(self) -> None:
        self.lookup.close()
        super().close()

    def asked(self) -> list[int]:
        """The types that the first resolver was asked for."""
        upstream = self.upstreams[0]
        assert isinstance(upstream, Upstream)
        return [int.from_bytes(message[-4:-2], "big") for message in upstream.seen]


def scene(play: Callable[[], Awaitable[None]]) -> None:
    run(play)


def test_addresses_of_both_families_ipv4_first_and_the_names_between() -> None:
    async def play() -> None:
        s = Looking(Upstream(both))
        assert await s.lookup.addresses("a.test") == [FAR4, FAR6]
        assert (await s.lookup.find("a.test")).aliases == ("cdn.test",)
        assert sorted(s.asked()) == [1, 28]
        assert s.recorder.of("dns_query") == []
        s.close()

    scene(play)


def test_host_without_ipv6_is_not_asked_for_any() -> None:
    async def play() -> None:
        s = Looking(Upstream(both), has_ipv6=False)
        assert await s.lookup.addresses("a.test") == [FAR4]
        assert s.asked() == [1]
        s.close()

    scene(play)


def test_all_who_ask_at_once_share_one_query_and_the_next_ones_its_result() -> None:
    async def play() -> None:
        s = Looking(Upstream(both, delay=0.05))
        found = await asyncio.gather(*(s.lookup.addresses(name) for name in ("a.test", "A.Test", "a.test.")))
        assert found == [[FAR4, FAR6]] * 3
        assert await s.lookup.addresses("a.test") == [FAR4, FAR6]
        assert len(s.asked()) == 2
        s.close()

    scene(play)


def test_result_is_kept_for_the_shortest_ttl_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play() -> None:
        s = Looking(Upstream(lambda m: [answer_to(m, ttl=1)]), has_ipv6=False)
        for _ in range(2):
            await s.lookup.addresses("a.test")
        assert len(s.asked()) == 1
        await asyncio.sleep(1.05)
        await s.lookup.addresses("a.test")
        assert len(s.asked()) == 2
        s.close()
        s = Looking(Upstream(lambda m: [answer_to(m, ttl=0)]), has_ipv6=False)
        for _ in range(2):
            await s.lookup.addresses("a.test")
        assert len(s.asked()) == 2
        s.close()

    scene(play)


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "MAX_KEPT", 3)

    async def play() -> None:
        s = Looking(Upstream(), has_ipv6=False)
        for number in range(6):
            await s.lookup.addresses(f"{number}.test")
        assert list(s.lookup._kept) == ["3.test", "4.test", "5.test"]
        s.close()

    scene(play)


@pytest.mark.case("D41")
def test_name_that_flips_is_what_it_was_when_it_was_asked() -> None:
    flips = [bytes((127, 0, 0, 1)), FAR4]

    async def play() -> None:
        s = Looking(Upstream(lambda m: [answer_to(m, flips.pop(), ttl=0)]), has_ipv6=False)
        assert await s.lookup.addresses("a.test") == [FAR4]
        assert len(s.asked()) == 1
        s.close()

    scene(play)


def test_one_family_is_enough() -> None:
    async def play() -> None:
        s = Looking(Upstream(lambda m: both(m) if m[-3] == 28 else [answer_to(m, None)]))
        assert await s.lookup.addresses("a.test") == [FAR6]
        s.close()

    scene(play)


def test_ipv4_does_not_wait_for_a_silent_aaaa() -> None:
    async def play() -> None:
        s = Looking(Upstream(lambda m: [] if m[-3] == 28 else both(m)))
        start = time.monotonic()
        assert await s.lookup.addresses("a.test") == [FAR4]
        assert time.monotonic() - start < 1.5
        s.close()

    scene(play)


def test_truncated_answer_comes_whole_over_tcp() -> None:
    def cut(message: bytes) -> list[bytes]:
        whole = answer_to(message)
        short = whole[:2] + bytes((whole[2] | 2,)) + whole[3:6] + b"\0\0" + whole[8:-16]
        upstream_calls.append(message)
        return [short if len(upstream_calls) == 1 else whole]

    upstream_calls: list[bytes] = []

    async def play() -> None:
        s = Looking(Upstream(cut), has_ipv6=False)
        assert await s.lookup.addresses("a.test") == [FAR4]
        assert len(upstream_calls) == 2
        s.close()

    scene(play)


FAILURES = {
    "no such name": (lambda m: [answer_to(m, rcode=3)], NoSuchName, "does not exist"),
    "no address": (lambda m: [answer_to(m, None)], NoSuchName, "has no address"),
    "servfail": (lambda m: [answer_to(m, rcode=2)], LookupFailed, "SERVFAIL"),
    "broken": (lambda m: [answer_to(m)[:-1]], LookupFailed, "SERVFAIL"),
}


@pytest.mark.parametrize("how", FAILURES)
def test_failure_says_what_it_is_and_is_not_kept(how: str) -> None:
    behaviour, kind, text = FAILURES[how]

    async def play() -> None:
        upstream = Upstream(behaviour)
        s = Looking(upstream)
        with pytest.raises(kind, match=text):
            await s.lookup.addresses("a.test")
        upstream.behaviour = both
        assert await s.lookup.addresses("a.test") == [FAR4, FAR6]
        s.close()

    scene(play)


@pytest.mark.parametrize("name", ["a..test", "x" * 64 + ".test", ".".join(["x" * 60] * 5), "ä.test", "", "a\\9.test"])
def test_what_is_no_name_is_not_asked(name: str) -> None:
    async def play() -> None:
        s = Looking(Upstream(lambda m: [answer_to(m, rcode=3)]))
        with pytest.raises(NoSuchName):
            await s.lookup.addresses(name)
        assert s.asked() == ([] if name else s.asked())
        s.close()

    scene(play)


def test_dead_resolver_is_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_udp, "GIVE_UP_S", 0.3)

    async def play() -> None:
        for upstream in (Upstream(lambda _: []), closed_port()):
            s = Looking(upstream)
            with pytest.raises(LookupTimeout):
                await s.lookup.addresses("a.test")
            s.close()

    scene(play)


def test_limit_holds_when_the_forwarder_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "LIMIT_S", 0.1)

    async def play() -> None:
        s = Looking(Upstream(lambda _: []))
        with pytest.raises(LookupTimeout):
            await s.lookup.addresses("a.test")
        assert s.lookup._open == {}
        s.close()

    scene(play)


def test_dead_upstream_of_one_name_delays_no_other() -> None:
    async def play() -> None:
        s = Looking(Upstream(lambda m: [] if b"dead" in m else both(m)))
        waiting = [asyncio.ensure_future(s.lookup.addresses(f"dead{n}.test")) for n in range(100)]
        await asyncio.sleep(0.05)
        start = time.monotonic()
        for number in range(20):
            assert await s.lookup.addresses(f"{number}.test") == [FAR4, FAR6]
        assert time.monotonic() - start < 1
        s.close()
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ends)

    scene(play)


def test_too_many_at_once_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "MAX_OPEN", 2)

    async def play() -> None:
        s = Looking(Upstream(both, delay=0.05))
        found = await asyncio.gather(*(s.lookup.addresses(f"{n}.test") for n in range(3)), return_exceptions=True)
        assert [type(one) for one in found] == [list, list, LookupFailed]
        s.close()

    scene(play)


def test_caller_who_goes_away_takes_nothing_from_the_others() -> None:
    async def play() -> None:
        s = Looking(Upstream(both, delay=0.05))
        first = asyncio.ensure_future(s.lookup.addresses("a.test"))
        second = asyncio.ensure_future(s.lookup.addresses("a.test"))
        await until(lambda: len(s.asked()) == 2)
        first.cancel()
        assert await second == [FAR4, FAR6]
        s.close()

    scene(play)


# -- /etc/hosts -----------------------------------------------------------------------------------------------------


def test_hosts_file_is_asked_first_and_read_again_when_it_changes(tmp_path: Path) -> None:
    async def play() -> None:
        path = tmp_path / "hosts"
        path.write_text("2001:db8::7 db.corp DB\n198.51.100.7\tdb.corp # 203.0.113.1\n")
        s = Looking(Upstream(both), hosts=str(path))
        assert await s.lookup.addresses("Db.Corp") == [FAR4, FAR6]
        assert await s.lookup.addresses("db") == [FAR6]
        assert s.asked() == []
        path.write_text("203.0.113.1 db\n")
        assert await s.lookup.addresses("db") == [FAR6]
        s.now += 1
        assert await s.lookup.addresses("db") == [bytes((203, 0, 113, 1))]
        path.unlink()
        s.now += 1
        assert await s.lookup.addresses("db") == [FAR4, FAR6]
        s.close()

    scene(play)


@pytest.mark.parametrize("name", ["localhost", "x.localhost", "localhost."])
def test_localhost_is_loopback_and_nobody_is_asked(name: str) -> None:
    async def play() -> None:
        s = Looking(Upstream(both))
        assert await s.lookup.addresses(name) == [bytes((127, 0, 0, 1)), bytes(15) + b"\1"]
        assert s.asked() == []
        s.close()

    scene(play)


@pytest.mark.parametrize(("text", "address"), [("198.51.100.7", FAR4), ("2001:db8::7", FAR6)])
def test_address_is_itself(text: str, address: bytes) -> None:
    async def play() -> None:
        s = Looking(Upstream(both))
        assert await s.lookup.addresses(text) == [address]
        assert s.asked() == []
        s.close()

    scene(play)


def test_lines_that_say_nothing_are_passed_over() -> None:
    text = "\n#127.0.0.1 a\n127.0.0.1\n127.1 a\n1.2.3.4 b b B.\nfe80::1%eth0 c\nnot an address\n\x00 d\n::1 e # f\n"
    assert parse_hosts(text) == {"b": [bytes((1, 2, 3, 4))], "e": [struct.pack("!QQ", 0, 1)]}
