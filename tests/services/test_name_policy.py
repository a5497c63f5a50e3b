"""What the policy does to DNS: blocked queries, other servers, what answers teach, virtual names."""

from __future__ import annotations

import asyncio
import ipaddress
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import dnslib
import pytest

from childflow.policy.names import Names
from childflow.policy.rules import compile_rules
from childflow.policy.virtual import VirtualNames
from childflow.services import dns_udp
from childflow.services.resolvers import parse_resolver
from childflow.settings import Settings
from tests.services.play import FAR4, FAR6, GATEWAY4, GATEWAY6, answer_to, datagram, name_policy, query, run, until
from tests.services.test_dns_answer import ECH, a, cname, datas, record, rr, svcb
from tests.services.test_dns_service import Scene, Upstream, closed_port

EDNS = b"\0" + struct.pack("!HHIH", 41, 1232, 0x8000, 0)
DEFAULT_DENY = {"default_policy": "deny", "allow_domains": ("allowed.test",)}


class Ruled(Scene):
    """A service under rules. `more`: NamePolicy's own options."""

    def __init__(self, *upstreams: Upstream | str, options: dict[str, Any] | None = None, **rules: Any) -> None:
        self.names = Names()
        self.made = compile_rules(Settings(command=("true",), **rules))
        self.options = options or {}
        super().__init__(*upstreams)

    def make_policy(self) -> Any:
        return name_policy(self.recorder, self.made, names=self.names, **self.options)

    async def parsed(self, message: bytes, to: bytes = GATEWAY4) -> dnslib.DNSRecord:
        """The answer to `message`, which `to` was asked over UDP."""
        before = len(self.stack.replies)
        self.service.query(datagram(message, to=to))
        await until(lambda: len(self.stack.replies) > before)
        asked, answer = self.stack.replies[before]
        assert asked.payload is message
        assert answer[:2] == message[:2]
        return dnslib.DNSRecord.parse(answer)

    async def over_tcp(self, message: bytes, to: bytes = GATEWAY4) -> dnslib.DNSRecord:
        """The same over TCP."""
        end = self.service.open_connection(to)
        assert end is not None
        reader, writer = await asyncio.open_unix_connection(sock=end)
        writer.write(len(message).to_bytes(2, "big") + message)
        answer = await asyncio.wait_for(reader.readexactly(int.from_bytes(await reader.readexactly(2), "big")), 8)
        writer.close()
        return dnslib.DNSRecord.parse(answer)

    def known(self, address: bytes) -> tuple[str, ...]:
        return self.names.of(address, asyncio.get_running_loop().time())

    def blocked(self) -> list[tuple[str, bytes, str, str | None, str | None]]:
        return [
            (protocol, remote, verdict.reason_code, verdict.control, verdict.matched_domain)
            for protocol, remote, _, verdict in self.recorder.of("dns_blocked")
        ]


def scene(play: Callable[[], Awaitable[None]]) -> None:
    run(play)


def says(*records: dnslib.RR) -> Callable[[bytes], list[bytes]]:
    """A resolver that answers everything with `records`."""

    def answer(message: bytes) -> list[bytes]:
        reply = dnslib.DNSRecord.parse(message).reply()
        reply.add_answer(*records)
        return [bytes(reply.pack())]

    return answer


def shape(answer: dnslib.DNSRecord) -> tuple[int, int]:
    """Response code, number of records."""
    return int(answer.header.rcode), len(answer.rr)


def texts(answer: dnslib.DNSRecord) -> list[str]:
    return [str(one.rdata) for one in answer.rr]


def ede(answer: dnslib.DNSRecord) -> tuple[int, str] | None:
    """Info code and text of the Extended DNS Error."""
    for extra in answer.ar:
        for option in extra.rdata if extra.rtype == 41 else ():
            if option.code == 15:
                return int.from_bytes(option.data[:2], "big"), option.data[2:].decode()
    return None


# -- Blocked --------------------------------------------------------------------------------------------------------

BLOCKS: dict[str, tuple[dict[str, Any], str, str | None]] = {
    "offline": ({"offline": True}, "offline", None),
    "default deny with names": (DEFAULT_DENY, "default_deny", None),
    "default deny without names": ({"default_policy": "deny"}, "default_deny", None),
    "default deny with another network": (
        {"default_policy": "deny", "allow_cidrs": ("203.0.113.0/24",)}, "default_deny", None,
    ),
    "deny-domain": ({"deny_domains": ("evil.test",)}, "deny_domain", "evil.test"),
    "deny-domain-exact": ({"deny_domains_exact": ("secret.evil.test",)}, "deny_domain_exact", "secret.evil.test"),
}  # fmt: skip


@pytest.mark.case("D14")
@pytest.mark.parametrize("qtype", [1, 28, 16, 65, 12, 255, 65280])
@pytest.mark.parametrize("how", BLOCKS)
def test_blocked_name_is_answered_empty_and_goes_nowhere(how: str, qtype: int) -> None:
    rules, reason, matched = BLOCKS[how]

    async def play() -> None:
        upstream = Upstream()
        s = Ruled(upstream, **rules)
        message = query("secret.evil.test", qtype, extra=EDNS)
        for answer in (await s.parsed(message), await s.over_tcp(message), await s.parsed(message, FAR4)):
            assert shape(answer) == (0, 0)
            code, why = ede(answer) or (0, "")
            assert (code, "secret.evil.test" in why) == (15, True)
        plain = await s.parsed(query("secret.evil.test", qtype))
        assert (shape(plain), plain.ar) == ((0, 0), [])
        await asyncio.sleep(0.02)
        assert upstream.seen == []
        blocked = s.blocked()
        assert [(one[0], one[1]) for one in blocked] == [
            ("udp", GATEWAY4), ("tcp", GATEWAY4), ("udp", FAR4), ("udp", GATEWAY4),
        ]  # fmt: skip
        assert {(one[2], one[4]) for one in blocked} == {(reason, matched)}
        assert {one[4] for one in s.recorder.of("dns_answer")} == {"synthetic_empty"}
        s.close()

    scene(play)


@pytest.mark.case("D14")
def test_allowed_name_is_asked_and_what_is_below_it() -> None:
    async def play() -> None:
        upstream = Upstream()
        s = Ruled(upstream, **DEFAULT_DENY)
        for name in ("allowed.test", "WWW.Allowed.Test"):
            assert await s.ask(query(name)) == answer_to(query(name))
        assert (await s.parsed(query("notallowed.test"))).rr == []
        assert len(upstream.seen) == 2
        s.close()

    scene(play)


def test_default_deny_allows_names_of_a_resolver_that_a_network_rule_covers() -> None:
    async def play() -> None:
        upstream = Upstream()
        own = parse_resolver(upstream.text)
        for networks, count in ((("127.0.0.1/32",), 1), (("203.0.113.0/24",), 0)):
            s = Ruled(upstream, options={"server": own}, default_policy="deny", allow_cidrs=networks)
            assert len((await s.parsed(query("any.test"))).rr) == count
            s.service.close()
            s.watch.close()
        upstream.close()

    scene(play)


def test_extended_error_is_cut_to_size() -> None:
    async def play() -> None:
        name = ".".join(["x" * 63] * 3 + ["y" * 50])
        s = Ruled(closed_port(), offline=True)
        answer = await s.parsed(query(name, extra=EDNS))
        code, why = ede(answer) or (0, "")
        assert (code, 0 < len(why) <= 200, len(s.stack.replies[0][1]) <= 512) == (15, True, True)
        s.close()

    scene(play)


MALFORMED = {
    "no question": struct.pack("!HHHHHH", 1, 0x0100, 0, 0, 0, 0),
    "two questions": struct.pack("!HHHHHH", 1, 0x0100, 2, 0, 0, 0) + query("allowed.test")[12:] * 2,
    "label of 64": struct.pack("!HHHHHH", 1, 0x0100, 1, 0, 0, 0) + b"\x40" + b"a" * 64 + b"\0\0\1\0\1",
    "cut": query("allowed.test")[:-1],
}


@pytest.mark.case("D14")
@pytest.mark.parametrize("to", [GATEWAY4, FAR4, FAR6])
@pytest.mark.parametrize("what", MALFORMED)
def test_what_does_not_parse_is_formerr_and_goes_nowhere(what: str, to: bytes) -> None:
    async def play() -> None:
        upstream = Upstream()
        s = Ruled(upstream, **DEFAULT_DENY)
        assert shape(await s.parsed(MALFORMED[what], to)) == (1, 0)
        assert shape(await s.over_tcp(MALFORMED[what], to)) == (1, 0)
        await asyncio.sleep(0.02)
        assert upstream.seen == []
        assert [(one[0], one[2]) for one in s.recorder.of("dns_refused")] == [("udp", to), ("tcp", to)]
        s.close()

    scene(play)


def test_name_of_odd_bytes_is_ruled_as_it_is_written() -> None:
    async def play() -> None:
        upstream = Upstream()
        s = Ruled(upstream, deny_domains=("evil.test",))
        odd = query()[:12] + b"\3\xff.\x00\4evil\4test\0\0\1\0\1"
        assert (await s.ask(odd))[3:8] == b"\x80\0\1\0\0"
        assert [one[2] for one in s.blocked()] == ["deny_domain"]
        assert upstream.seen == []
        s.close()

    scene(play)


# -- Other servers --------------------------------------------------------------------------------------------------


class Elsewhere(Ruled):
    """Servers at other addresses are played by `upstreams[0]` on loopback, whatever address the child chose."""

    def make_policy(self) -> Any:
        policy = super().make_policy()
        inner = policy._elsewhere

        def moved(asked: Any) -> Any:
            ruling = inner(asked)
            if ruling.server is None:
                return ruling
            self.chosen.append(ruling.server.text)
            upstream = self.upstreams[0]
            return ruling._replace(server=parse_resolver(upstream if isinstance(upstream, str) else upstream.text))

        self.chosen: list[str] = []
        policy._elsewhere = moved
        return policy


@pytest.mark.case("D15")
@pytest.mark.parametrize(("remote", "text"), [(FAR4, "198.51.100.7:53"), (FAR6, "[2001:db8::7]:53")])
def test_other_server_is_asked_where_the_rules_let_it(remote: bytes, text: str) -> None:
    async def play() -> None:
        s = Elsewhere(Upstream())
        assert shape(await s.parsed(query(), remote)) == (0, 1)
        assert shape(await s.over_tcp(query(), remote)) == (0, 1)
        assert s.chosen == [text, text]
        assert s.stack.replies[0][0].remote == remote
        s.close()

    scene(play)


@pytest.mark.case("D15")
def test_other_server_that_the_rules_close_is_not_asked() -> None:
    async def play() -> None:
        upstream = Upstream()
        s = Elsewhere(upstream, deny_cidrs=("198.51.100.0/24",))
        for answer in (await s.parsed(query(extra=EDNS), FAR4), await s.over_tcp(query(extra=EDNS), FAR4)):
            assert shape(answer) == (0, 0)
            assert (ede(answer) or (0, ""))[0] == 15
        assert (s.chosen, upstream.seen) == ([], [])
        assert [one[2] for one in s.blocked()] == ["deny_cidr", "deny_cidr"]
        s.close()

    scene(play)


@pytest.mark.case("D15")
@pytest.mark.parametrize(
    "rules",
    [DEFAULT_DENY, {"proxy": "http://198.51.100.1:1", "allow_domains": ("allowed.test",)}, {"block_private": True}],
    ids=["default deny", "proxy", "private"],
)
def test_allowed_name_does_not_open_another_server(rules: dict[str, Any]) -> None:
    async def play() -> None:
        upstream = Upstream()
        s = Elsewhere(upstream, **rules)
        for ask in (s.parsed, s.over_tcp):
            assert shape(await ask(query("allowed.test"), bytes((10, 0, 0, 1)))) == (0, 0)
        assert (s.chosen, upstream.seen) == ([], [])
        s.close()

    scene(play)


@pytest.mark.case("D15")
def test_dns_option_takes_the_place_of_every_other_server() -> None:
    async def play() -> None:
        upstream = Upstream()
        server = parse_resolver(upstream.text)
        s = Elsewhere(upstream, options={"server": server}, deny_cidrs=("0.0.0.0/0",))
        assert shape(await s.parsed(query(), FAR4)) == (0, 1)
        assert shape(await s.over_tcp(query(), FAR6)) == (0, 1)
        assert (s.chosen, len(upstream.seen)) == ([], 2)
        s.close()

    scene(play)


@pytest.mark.parametrize("remote", [bytes((127, 0, 0, 1)), bytes(10) + b"\xff\xff\x7f\0\0\1", bytes((192, 0, 0, 3))])
def test_martian_is_not_asked(remote: bytes) -> None:
    async def play() -> None:
        s = Elsewhere(Upstream())
        assert shape(await s.parsed(query(), remote)) == (0, 0)
        assert (s.chosen, [one[2] for one in s.blocked()]) == ([], ["martian"])
        s.close()

    scene(play)


def test_a_denied_name_on_the_way_to_a_server_denies_it() -> None:
    async def play() -> None:
        s = Elsewhere(Upstream(), deny_domains=("denied.test:53",))
        s.names.learn("dns.test", ("denied.test",), [(FAR4, 60)], asyncio.get_running_loop().time())
        assert shape(await s.parsed(query(), FAR4)) == (0, 0)
        assert (s.chosen, [one[2] for one in s.blocked()]) == ([], ["deny_domain"])
        s.close()

    scene(play)


@pytest.mark.case("D08")
def test_what_another_server_says_is_passed_on_and_teaches_nothing() -> None:
    async def play() -> None:
        s = Elsewhere(Upstream(), **DEFAULT_DENY, allow_cidrs=("198.51.100.53/32",))
        assert shape(await s.parsed(query("allowed.test"), bytes((198, 51, 100, 53)))) == (0, 1)
        assert s.chosen == ["198.51.100.53:53"]
        assert s.known(FAR4) == ()
        assert shape(await s.parsed(query("allowed.test"))) == (0, 1)
        assert s.known(FAR4) == ("allowed.test",)
        s.close()

    scene(play)


def test_silent_servers_of_the_childs_choice_take_few_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_udp, "MAX_ELSEWHERE", 8)

    async def play() -> None:
        s = Ruled(Upstream())
        for last in range(1, 101):
            s.service.query(datagram(query(ident=last), to=bytes((127, 0, 1, last))))
        s.close()

    async def many() -> None:
        s = Elsewhere(Upstream(lambda _: []), closed_port())
        for number in range(100):
            s.service.query(datagram(query(ident=number), to=FAR4))
        assert len(s.stack.replies) == 92
        assert {answer[3] & 15 for _, answer in s.stack.replies} == {2}
        s.close()

    scene(play)
    scene(many)


# -- Answers --------------------------------------------------------------------------------------------------------


@pytest.mark.case("D08")
def test_addresses_are_learned_for_the_asked_name_alone() -> None:
    async def play() -> None:
        evil = bytes((6, 6, 6, 6))
        s = Ruled(Upstream(says(cname("x.evil.test", "allowed.test"), a("allowed.test", evil))), **DEFAULT_DENY)
        await s.parsed(query("x.evil.test"))
        assert s.known(evil) == ()
        s.close()
        s = Ruled(
            Upstream(says(cname("x.evil.test", "allowed.test"), a("allowed.test", evil))),
            allow_domains=("allowed.test",),
        )
        await s.parsed(query("x.evil.test"))
        assert s.known(evil) == ("x.evil.test",)
        s.close()

    scene(play)


@pytest.mark.case("D10")
def test_every_address_of_an_allowed_name_is_learned_and_passed_on() -> None:
    """A name may lead where it likes: what is private is for the address rules, at each connect."""
    private, public = bytes((10, 0, 0, 1)), bytes((203, 0, 113, 1))

    async def play() -> None:
        s = Ruled(Upstream(says(a("allowed.test", private, 0), a("allowed.test", public))), **DEFAULT_DENY)
        assert texts(await s.parsed(query("allowed.test"))) == ["10.0.0.1", "203.0.113.1"]
        assert (s.known(private), s.known(public)) == (("allowed.test",), ("allowed.test",))
        s.close()

    scene(play)


@pytest.mark.parametrize("over", ["udp", "tcp"])
def test_denied_name_on_the_way_blocks_the_answer(over: str) -> None:
    async def play() -> None:
        chain = [cname("ok.test", "cdn.test"), cname("cdn.test", "x.evil.test"), a("x.evil.test")]
        s = Ruled(Upstream(says(*chain)), deny_domains=("evil.test",))
        ask = s.parsed if over == "udp" else s.over_tcp
        answer = await ask(query("ok.test", extra=EDNS))
        assert shape(answer) == (0, 0)
        assert "ok.test leads to x.evil.test" in (ede(answer) or (0, ""))[1]
        assert s.blocked() == [(over, GATEWAY4, "deny_domain", "deny-domain", "evil.test")]
        assert s.recorder.of("dns_answer")[0][4] == "synthetic_empty"
        assert s.known(bytes((203, 0, 113, 5))) == ()
        s.close()

    scene(play)


def test_name_that_nothing_allows_may_stand_on_the_way() -> None:
    async def play() -> None:
        s = Ruled(Upstream(says(cname("allowed.test", "cdn.test"), a("cdn.test", FAR4))), **DEFAULT_DENY)
        assert shape(await s.parsed(query("allowed.test"))) == (0, 2)
        assert s.known(FAR4) == ("allowed.test",)
        s.close()

    scene(play)


def test_answer_that_does_not_parse_is_servfail() -> None:
    async def play() -> None:
        s = Ruled(Upstream(lambda m: [answer_to(m)[:-2]]), **DEFAULT_DENY)
        assert shape(await s.parsed(query("allowed.test"))) == (2, 0)
        s.close()
        s = Ruled(Upstream(lambda m: [answer_to(m)[:-2]]))
        assert await s.ask(query("allowed.test")) == answer_to(query("allowed.test"))[:-2]
        s.close()

    scene(play)


@pytest.mark.case("D16")
def test_ech_goes_under_domain_rules_unless_it_is_to_stay() -> None:
    async def play() -> None:
        record_ = record(svcb((1, b"\2h2"), ECH, (6, FAR6)), "allowed.test")
        message = query("allowed.test", 65)
        for rules, kept in (
            (DEFAULT_DENY, False),
            ({"deny_domains": ("evil.test",)}, False),
            ({**DEFAULT_DENY, "keep_ech": True}, True),
            ({}, True),
        ):
            s = Ruled(Upstream(says(record_)), **rules)
            await s.parsed(message)
            answer = s.stack.replies[0][1]
            assert (datas(answer) == [svcb((1, b"\2h2"), *([ECH] if kept else []), (6, FAR6))], s.known(FAR6)) == (
                True,
                (),
            )
            s.close()

    scene(play)


@pytest.mark.case("D16")
def test_hints_and_texts_allow_nothing() -> None:
    async def play() -> None:
        hints = record(svcb((4, FAR4), (6, FAR6)), "allowed.test")
        text = rr("allowed.test", "TXT", dnslib.TXT("198.51.100.7"))
        s = Ruled(Upstream(says(hints, text)), **DEFAULT_DENY)
        for qtype in (64, 65, 255, 16):
            await s.parsed(query("allowed.test", qtype))
        assert (s.known(FAR4), s.known(FAR6)) == ((), ())
        s.close()

    scene(play)


def test_shortened_answer_that_is_still_too_long_is_truncated_over_udp() -> None:
    async def play() -> None:
        records = [record(svcb((1, b"\2h2" * 20), ECH, target=bytes((1, 97 + n, 0))), "allowed.test") for n in range(8)]
        s = Ruled(Upstream(says(*records)), **DEFAULT_DENY)
        answer = await s.parsed(query("allowed.test", 65))
        assert (shape(answer), answer.header.tc) == ((0, 0), 1)
        whole = await s.over_tcp(query("allowed.test", 65))
        assert (shape(whole), whole.header.tc) == ((0, 8), 0)
        roomy = await s.parsed(query("allowed.test", 65, extra=EDNS))
        assert (shape(roomy), roomy.header.tc) == ((0, 8), 0)
        s.close()

    scene(play)


@pytest.mark.case("C22")
def test_aaaa_is_empty_on_a_host_without_ipv6_and_keeps_its_rcode() -> None:
    async def play() -> None:
        six = rr("a.test", "AAAA", dnslib.AAAA("2001:db8::1"))
        s = Ruled(Upstream(says(six)), options={"has_ipv6": False})
        assert shape(await s.parsed(query("a.test", 28))) == (0, 0)
        s.close()
        s = Ruled(Upstream(lambda m: [answer_to(m, rcode=3)]), options={"has_ipv6": False})
        assert shape(await s.parsed(query("a.test", 28))) == (3, 0)
        assert await s.ask(query("a.test")) == answer_to(query("a.test"), rcode=3)
        s.close()

    scene(play)


# -- Virtual names --------------------------------------------------------------------------------------------------

V4, V6 = "198.18.0.1", "fd63:6869:6c64:1::1"
PROXY = {"proxy": "http://198.51.100.1:3128", "proxy_only": True}


def virtual(**more: Any) -> dict[str, Any]:
    return {"virtual": VirtualNames(), **more}


@pytest.mark.parametrize("rules", [{}, PROXY], ids=["direct", "proxy"])
def test_virtual_name_has_addresses_of_both_families_and_nobody_is_asked(rules: dict[str, Any]) -> None:
    async def play() -> None:
        upstream = Upstream()
        s = Ruled(upstream, options=virtual(), **rules)
        assert texts(await s.parsed(query("Www.Example.test"))) == [V4]
        assert texts(await s.parsed(query("www.example.test", 28))) == [V6]
        assert texts(await s.over_tcp(query("www.example.test"), FAR4)) == [V4]
        assert texts(await s.parsed(query("other.example.test"))) == ["198.18.0.2"]
        assert shape(await s.parsed(query("www.example.test", 65))) == (0, 0)
        assert upstream.seen == []
        assert [one[4] for one in s.recorder.of("dns_answer")] == ["virtual"] * 4 + ["synthetic_empty"]
        s.close()

    scene(play)


def test_virtual_address_has_a_name() -> None:
    async def play() -> None:
        s = Ruled(closed_port(), options=virtual(), **PROXY)
        await s.parsed(query("www.example.test"))
        for address in ("198.18.0.1", V6):
            pointer = ipaddress.ip_address(address).reverse_pointer
            assert texts(await s.parsed(query(pointer, 12))) == ["www.example.test."]
        assert shape(await s.parsed(query("7.100.51.198.in-addr.arpa", 12))) == (0, 0)
        assert shape(await s.parsed(query("x.in-addr.arpa", 12))) == (0, 0)
        s.close()

    scene(play)


def test_other_types_are_asked_directly_and_empty_under_a_proxy() -> None:
    async def play() -> None:
        for rules, seen in (({}, 1), (PROXY, 0)):
            upstream = Upstream(says(rr("a.test", "TXT", dnslib.TXT("hello"))))
            s = Ruled(upstream, options=virtual(), **rules)
            assert shape(await s.parsed(query("a.test", 16))) == (0, seen)
            assert len(upstream.seen) == seen
            s.close()

    scene(play)


def test_denied_name_gets_no_virtual_address() -> None:
    async def play() -> None:
        names = VirtualNames()
        s = Ruled(closed_port(), options={"virtual": names}, **PROXY, **DEFAULT_DENY)
        assert shape(await s.parsed(query("evil.test"))) == (0, 0)
        assert texts(await s.parsed(query("allowed.test"))) == [V4]
        assert (len(names), [one[2] for one in s.blocked()]) == (1, ["default_deny"])
        s.close()

    scene(play)


def test_no_virtual_ipv6_without_a_route() -> None:
    async def play() -> None:
        s = Ruled(closed_port(), options=virtual(has_ipv6=False), **PROXY)
        assert texts(await s.parsed(query("a.test"))) == [V4]
        assert shape(await s.parsed(query("a.test", 28))) == (0, 0)
        s.close()

    scene(play)


def test_when_no_virtual_address_is_left_it_is_said_once() -> None:
    async def play() -> None:
        s = Ruled(closed_port(), options={"virtual": VirtualNames(limit=1)}, **PROXY)
        assert texts(await s.parsed(query("a.test"))) == [V4]
        assert shape(await s.parsed(query("b.test"))) == (2, 0)
        assert shape(await s.parsed(query("c.test"))) == (2, 0)
        assert texts(await s.parsed(query("a.test"))) == [V4]
        assert len(s.recorder.of("warn")) == 1
        s.close()

    scene(play)


def test_name_that_only_a_search_list_makes_must_be_there() -> None:
    def resolver(message: bytes) -> list[bytes]:
        there = b"\2db\4corp" in message
        return [answer_to(message) if there else answer_to(message, rcode=3)]

    async def play() -> None:
        upstream = Upstream(resolver)
        s = Ruled(upstream, options=virtual(search=lambda: ("corp.example",)))
        assert shape(await s.parsed(query("github.com.corp.example"))) == (3, 0)
        assert texts(await s.parsed(query("db.corp.example"))) == [V4]
        assert shape(await s.parsed(query("alone"))) == (3, 0)
        assert len(upstream.seen) == 3
        assert texts(await s.parsed(query("github.com"))) == ["198.18.0.2"]
        assert len(upstream.seen) == 3
        assert [one[4] for one in s.recorder.of("dns_answer")] == [
            "synthetic_empty", "virtual", "synthetic_empty", "virtual",
        ]  # fmt: skip
        s.close()

    scene(play)


def test_under_a_proxy_every_allowed_name_has_an_address() -> None:
    async def play() -> None:
        s = Ruled(closed_port(), options=virtual(search=lambda: ("corp.example",)), **PROXY)
        assert texts(await s.parsed(query("db"))) == [V4]
        assert texts(await s.parsed(query("db.corp.example"))) == ["198.18.0.2"]
        s.close()

    scene(play)


def test_plain_run_reads_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without rules a query is relayed as it was before there were any."""
    from childflow.services import name_policy as module

    def never(*arguments: object) -> None:
        raise AssertionError("asked")

    monkeypatch.setattr(module, "judge_name", never)
    monkeypatch.setattr(module.dns, "name_text", never)

    async def play() -> None:
        s = Ruled(Upstream())
        assert await s.ask(query()) == answer_to(query())
        assert not s.policy.reads_answers
        s.close()

    scene(play)


def test_gateways_of_both_families_are_the_gateway() -> None:
    async def play() -> None:
        s = Elsewhere(Upstream())
        for gateway in (GATEWAY4, GATEWAY6):
            assert shape(await s.parsed(query(), gateway)) == (0, 1)
        assert s.chosen == []
        s.close()

    scene(play)
