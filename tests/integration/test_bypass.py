"""Ways round the policy, each really tried from inside, and what of it reached the Internet: nothing.

`tests/lab/attack.py` says how: a token in each attempt's payload, and a wiretap on the Internet's end of the wire.
Attempts are grouped by the rules that they try to get round; among them are always some that have to pass, which shows
that the others would have been seen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from tests.lab.attack import (
    ECHO,
    GATEWAY,
    TLS,
    UDP,
    Attempt,
    attack,
    dns,
    http,
    listening_at_home,
    named,
    ping,
    question,
    quic,
    raw,
    resolve,
    tcp,
    tls,
    token,
    udp,
)  # fmt: skip
from tests.lab.internet import Internet
from tests.netstack import wire
from tests.netstack.wire import CHILD, SYN, frame
from tests.services.quic_client import V1, V2

RESOLVER = 5353  # port of the resolver that lies
OK, OTHER, EXACT, PORT, EVIL = (f"203.0.113.{last}" for last in (10, 11, 12, 13, 66))
OK6 = "2600:113::10"
DENY = ("--default-policy", "deny")
NAMED = (*DENY, "--allow-domain", "allowed.test", "--deny-domain", "denied.allowed.test")
ECH_CONFIG = "000500080006fe0d00020000"
HINTS = "0001000001000302683200040004cb00711e"  # 1 . alpn=h2 ipv4hint=203.0.113.30


def address(name: str, *addresses: str) -> dict[str, object]:
    return {"answer": [[name, "AAAA" if ":" in one else "A", one] for one in addresses]}


ZONE: dict[str, list[dict[str, object]]] = {
    "allowed.test": [address("allowed.test", OK, OK6)],
    "b.allowed.test": [address("b.allowed.test", OTHER)],
    "exact.test": [address("exact.test", EXACT)],
    "sub.exact.test": [address("sub.exact.test", EVIL)],
    "port.test": [address("port.test", PORT)],
    "evil.test": [address("evil.test", EVIL)],
    "denied.allowed.test": [address("denied.allowed.test", EVIL)],
    "alias.allowed.test": [
        {"answer": [["alias.allowed.test", "CNAME", "x.denied.allowed.test"], ["x.denied.allowed.test", "A", EVIL]]}
    ],
    "poison.attacker.test": [
        {
            "answer": [["poison.attacker.test", "CNAME", "allowed.test"], ["allowed.test", "A", "203.0.113.67"]],
            "authority": [["allowed.test", "A", "203.0.113.68"]],
            "additional": [["allowed.test", "A", "203.0.113.69"]],
        }
    ],
    "web.allowed.test": [
        {
            "answer": [
                ["web.allowed.test", "HTTPS", HINTS + ECH_CONFIG],
                ["web.allowed.test", "TXT", "203.0.113.31"],
                ["elsewhere.test", "A", "203.0.113.32"],
            ]
        }
    ],
    "flip.allowed.test": [
        address("flip.allowed.test", one) for one in ("203.0.113.20", "127.0.0.1", "10.0.0.1", "169.254.169.254")
    ],
    "mixed.allowed.test": [address("mixed.allowed.test", "203.0.113.21", "10.0.0.2")],
    "mapped.allowed.test": [
        address("mapped.allowed.test", "64:ff9b::a9fe:a9fe", "2002:a00:3::1", "::ffff:10.0.0.4", "::7f00:1")
    ],
}


@pytest.fixture(scope="module")
def home(internet_map: Internet) -> Iterator[Callable[[], list[str]]]:
    with listening_at_home(internet_map) as reached:
        yield reached


@pytest.fixture(autouse=True)
def nothing_at_home(home: Callable[[], list[str]]) -> Iterator[None]:
    yield
    assert home() == [], "the host itself was reached"


@pytest.fixture(scope="module")
def lying(internet_map: Internet) -> Iterator[str]:
    """The resolver that lies; what `--dns` is to be. It is started anew for each test that counts its answers."""
    path = internet_map.folder / "hostile.json"
    path.write_text(json.dumps(ZONE))
    running = internet_map.serve("tests.lab.hostile_dns", str(path), str(RESOLVER))
    yield f"{internet_map.server_ip(4)}:{RESOLVER}"
    running.kill()


# --- addresses in disguise

CLOTHES = {  # of 10.0.0.1 and 169.254.169.254
    "compatible": ("::10.0.0.1", "::169.254.169.254"),
    "translated": ("::ffff:0:10.0.0.1", "::ffff:0:169.254.169.254"),
    "6to4": ("2002:a00:1::1", "2002:a9fe:a9fe::1"),
    "nat64": ("64:ff9b::10.0.0.1", "64:ff9b::169.254.169.254"),
    "local nat64": ("64:ff9b:1::10.0.0.1", "64:ff9b:1::169.254.169.254"),
    "local nat64 of 48": ("64:ff9b:1:a00:0:100::", "64:ff9b:1:a9fe:a9:fe00::"),
    "local nat64 of 48 with a tail": ("64:ff9b:1:a00:0:100:808:808", "64:ff9b:1:a9fe:a9:fe00:808:808"),
    "local nat64 of 56": ("64:ff9b:1:a:0:1::", "64:ff9b:1:a9:fe:a9fe::"),
    "local nat64 of 64": ("64:ff9b:1:0:a:0:100:0", "64:ff9b:1:0:a9:fea9:fe00:0"),
}


def each_way(name: str, host: str, code: str, logged: str | None = None) -> list[Attempt]:
    return [
        tcp(f"tcp {name}", host, ECHO).denied(code, logged),
        udp(f"udp {name}", host, ECHO).denied(code, logged),
        ping(f"ping {name}", host).denied(code, logged),
    ]


@pytest.mark.case("D01", "D03", "D05")
def test_addresses_in_disguise(internet: Internet) -> None:
    """A socket's mapped address becomes IPv4 in the sandbox's kernel; the others arrive as they are."""
    attempts = [*each_way("private", "10.0.0.1", "private"), *each_way("metadata", "169.254.169.254", "metadata")]
    for clothes, (private, metadata) in CLOTHES.items():
        attempts += each_way(f"private, {clothes}", private, "private")
        code = "private" if clothes == "local nat64 of 64" else "metadata"  # it may also be 254.0.0.0
        attempts += each_way(f"metadata, {clothes}", metadata, code)
    mapped = tcp("mapped", "::ffff:10.0.0.1", ECHO).denied("private", "10.0.0.1")
    decimal = [("167772161", "10.0.0.1", "private"), ("0xa.1", "10.0.0.1", "private"),
               ("012.0.0.01", "10.0.0.1", "private"), ("2852039166", "169.254.169.254", "metadata")]  # fmt: skip
    attempts += [mapped, *(tcp(host, host, ECHO).denied(code, end) for host, end, code in decimal)]
    for host in ("168.63.129.16", "100.100.100.200", "192.0.0.192", "169.254.170.2", "fd00:ec2::254", "fd20:ce::254"):
        attempts += each_way(host, host, "metadata")
    for host in (internet.laptop.addresses[4], internet.laptop.addresses[6]):
        attempts += each_way(host, host, "private")
    controls = [tcp("tcp out", OK, ECHO), tcp("tcp out 6", OK6, ECHO), udp("udp out", OK, ECHO), ping("ping out", OK)]
    attempts += [control.passes() for control in controls]
    done = attack(internet, ["--block-private", "--block-metadata"], attempts)
    done.check()


@pytest.mark.case("D03")
def test_what_is_the_sandbox_itself_or_the_gateway(internet: Internet) -> None:
    """No rules at all: zero addresses and loopback are the command's own, the rest never leaves."""
    own = [tcp(host, host, ECHO).unseen() for host in ("0.0.0.0", "127.1.2.3", "::", "::1", "::ffff:127.0.0.1", "0")]
    gateway = [tcp(f"gateway {port}", GATEWAY, port).unseen() for port in (22, 80, 443, 3128, 5353, 65535)]
    gateway += [udp(f"gateway udp {port}", GATEWAY, port).unseen() for port in (123, 443, 5353)]
    martians = [
        *(tcp(host, host, ECHO).denied("martian") for host in ("0.1.2.3", "::127.0.0.1")),
        *(udp(host, host, ECHO).denied("martian")
          for host in ("64:ff9b::127.0.0.1", "2002:7f00:1::", "::ffff:0:127.0.0.1")),
        udp("fe80::1%tap0", "fe80::1%tap0", ECHO).unseen(),
        *(udp(f"multicast {host}", host, port).unseen()
          for host, port in (("224.0.0.251", 5353), ("224.0.0.252", 5355), ("ff02::fb%tap0", 5353))),
    ]  # fmt: skip
    done = attack(internet, [], [*own, *gateway, *martians, tcp("out", OK, ECHO).passes()])
    done.check()


# --- frames that no socket sends


def tcp_syn(dst: bytes, port: int = ECHO, text: bytes = b"", source: bytes = b"") -> bytes:
    src = source or CHILD[4 if len(dst) == 4 else 6]
    return frame(wire.ip(wire.tcp(src, dst, 40_000, port, 1, 0, SYN, text=text), wire.TCP, src, dst))


def datagram(dst: bytes, text: bytes, source: bytes = b"", port: int = ECHO) -> bytes:
    src = source or CHILD[4 if len(dst) == 4 else 6]
    return frame(wire.ip(wire.udp(src, dst, 40_001, port, text), wire.UDP, src, dst))


def echo_request(dst: bytes, text: bytes, source: bytes = b"", kind: int = 0, code: int = 0) -> bytes:
    src = source or CHILD[4 if len(dst) == 4 else 6]
    protocol, request = (wire.ICMP, 8) if len(dst) == 4 else (wire.ICMPV6, 128)
    message = wire.icmp(kind or request, code, b"\0\1\0\1" + text, src=src, dst=dst)
    return frame(wire.ip(message, protocol, src, dst))


FAR4, FAR6 = bytes((203, 0, 113, 10)), bytes.fromhex("26000113") + bytes(11) + b"\x10"


@pytest.mark.case("D01")
def test_raw_frames_to_what_no_rule_lets_out(internet: Internet) -> None:
    """Mapped addresses on the wire, other protocols than three, ICMP that is no echo, text in a SYN."""
    mapped = [bytes(10) + b"\xff\xff" + bytes(v4) for v4 in ((10, 0, 0, 1), (169, 254, 169, 254), (127, 0, 0, 1))]
    frames = [make(dst, b"<raw>") for dst in mapped for make in (datagram, echo_request)] + list(map(tcp_syn, mapped))
    for dst in (FAR4, FAR6):
        src = CHILD[4 if len(dst) == 4 else 6]
        frames += [frame(wire.ip(b"<raw>" * 8, protocol, src, dst)) for protocol in (4, 41, 47, 50, 132, 136, 253)]
    frames += [echo_request(FAR4, b"<raw>", kind=kind) for kind in (3, 5, 9, 11, 12, 13, 17, 30)]
    frames += [echo_request(FAR6, b"<raw>", kind=kind) for kind in (1, 2, 3, 129, 137, 138, 139)]
    martians = bytes((192, 0, 0, 3)), CHILD[6][:-1] + b"\3", bytes((192, 0, 0, 7)), bytes((127, 0, 0, 1)), bytes(4)
    frames += [make(dst, b"<raw>") for dst in martians for make in (datagram, echo_request)] + list(
        map(tcp_syn, martians)
    )
    frames += [tcp_syn(bytes((10, 0, 0, 1)), text=b"<raw>"), tcp_syn(bytes((169, 254, 169, 254)), text=b"<raw>")]
    done = raw(internet, ["--block-private", "--block-metadata"], [*frames, datagram(FAR4, b"<honest>")])
    assert [packet.text for packet in done.packets] == [b"<honest>"]


@pytest.mark.case("D01", "D03")
def test_spoofed_sources(internet: Internet) -> None:
    """At most one is told a second."""
    sources4 = [bytes(v4) for v4 in ((198, 51, 100, 2), (10, 0, 0, 9), (127, 0, 0, 1), (192, 0, 0, 1), (192, 0, 0, 3))]
    sources6 = [bytes.fromhex("20010db8006400000000000000000002"), bytes(15) + b"\1", bytes(16)]
    frames = []
    for sources, dst in ((sources4, FAR4), (sources6, FAR6)):
        for source in sources:
            frames += [tcp_syn(dst, source=source), datagram(dst, b"<raw>", source)]
            frames += [echo_request(dst, b"<raw>", source), datagram(dst, b"<raw>", source, 53)]
    done = raw(internet, [], [*frames, datagram(FAR4, b"<honest>")])
    assert done.endpoints() == {(UDP, OK, ECHO)}
    assert [packet.text for packet in done.packets] == [b"<honest>"]
    assert {code for code, _, _ in done.violations()} == {"spoofed_source"}


# --- names


def other_resolvers(find: str, code: str) -> list[Attempt]:
    """The same question to others than the gateway."""
    message = named(f"{find}.evil.test")
    return [
        dns(f"{find} {server} {transport}", server, message, transport=transport, find=find.encode()).denied(code)
        for server in ("8.8.8.8", "2001:4860:4860::8888", GATEWAY)
        for transport in ("udp", "tcp")
    ]


@pytest.mark.case("D14", "D15")
def test_dns_is_no_way_out(internet: Internet, lying: str) -> None:
    """Under default deny: questions of any kind about other names, by any transport, to anybody."""
    attempts = other_resolvers("secret", "default_deny")
    kinds = [dns(f"type {kind}", GATEWAY, named("hidden.evil.test", qtype=kind), find=b"hidden").denied("default_deny")
             for kind in (1, 2, 5, 6, 10, 12, 15, 16, 28, 33, 65, 255, 65280)]  # fmt: skip
    odd = {
        "no question": question("hidden", "allowed", "test", count=0),
        "two questions": question("hidden", "allowed", "test", count=2),
        "label of 64": question(b"hidden" + bytes(58), "allowed", "test"),
        "pointer": b"\x12\x34\x01\0\0\1" + bytes(6) + b"\x06hidden\xc0\x0c\0\1\0\1",
        "bytes behind": named("hidden.allowed.test", extra=b"hidden"),
        "update": b"\x12\x34\x28\0" + named("hidden.allowed.test")[4:],
        "answer": b"\x12\x34\x81\x80" + named("hidden.allowed.test")[4:],
    }
    told = {"update"}  # is answered NOTIMP, and no violation
    for name, message in odd.items():
        for server in (GATEWAY, "8.8.8.8"):
            for transport in ("udp", "tcp"):
                one = dns(f"{name} {server} {transport}", server, message, transport=transport, find=b"hidden")
                attempts.append(one.unseen() if name in told else one.denied("dns_malformed"))
    disguised = {
        "not utf-8": (b"hidden\xff\xfe", "evil", "test"),
        "dot in a label": (b"hidden.allowed.test",),
        "dots in a label": (b"hidden", b"x.allowed", "test"),
        "nul": (b"hidden", b"allowed\0", "test"),
        "case": ("HIDDEN", "EVIL", "TEST"),
        "suffix without a dot": ("hidden", "notallowed", "test"),
        "prefix": ("hidden", "allowed", "test", "evil", "test"),
        "root": (),
    }
    for name, labels in disguised.items():
        attempts.append(dns(name, GATEWAY, question(*labels), find=b"hidden").denied("default_deny"))
    other = [
        tcp("DoT", "1.1.1.1", 853).denied("default_deny"),
        udp("DoQ", "1.1.1.1", 853).denied("default_deny"),
        tls("DoH", "1.1.1.1", "dns.google").denied("default_deny"),
        udp("NBNS", "203.0.113.1", 137).denied("default_deny"),
        udp("mDNS", "224.0.0.251", 5353, named("hidden.local")).unseen(),
        udp("LLMNR", "224.0.0.252", 5355, named("hidden")).unseen(),
        resolve("evil.test"), resolve("evil.test.", 6), resolve("_dns.resolver.arpa"),
        tcp("port 53", "203.0.113.1", 53, token("port 53").rjust(400), patience=0.3).unseen(),
        ping("ping", OK).denied("default_deny"), ping("ping 6", OK6).denied("default_deny"),
    ]  # fmt: skip
    seen = dns("allowed", GATEWAY, question("visible", "ALLOWED", "test"), find=b"visible").asked()
    done = attack(internet, [*NAMED, "--dns", lying], [*attempts, *kinds, *other, seen], resolver=RESOLVER)
    done.check()
    assert done.said["allowed"] == [[3, []]]
    assert all(done.said[f"{name} {GATEWAY} udp"] == [[1, []]] for name in odd if name != "update"), "FORMERR"


@pytest.mark.case("D11", "D17", "D43")
def test_only_by_an_allowed_name(internet: Internet, lying: str) -> None:
    """Addresses without a name, with another name, with another name on the wire."""
    rules = (*NAMED, "--allow-domain-exact", "exact.test", "--allow-domain", "port.test:443", "--dns", lying)
    before = [
        tcp("before its lookup", OK, ECHO).denied("default_deny"), tcp("direct", EVIL, ECHO).denied("default_deny"),
        udp("direct udp", EVIL, ECHO).denied("default_deny"), ping("direct ping", EVIL).denied("default_deny"),
        tls("direct tls", EVIL, "allowed.test").denied("default_deny"),
        quic("direct q", EVIL, "allowed.test").denied("default_deny"),
    ]  # fmt: skip
    looked_up = ("allowed.test", "b.allowed.test", "alias.allowed.test", "exact.test", "sub.exact.test", "port.test",
                 "denied.allowed.test", "ALLOWED.test.")  # fmt: skip
    lookups = [resolve(name) for name in looked_up]
    after = [
        tls("its sni", OK, "allowed.test").passes(), http("its host", OK, "allowed.test").passes(),
        tls("its sni 6", OK, "allowed.test.").passes(), http("case and port", OK, "ALLOWED.Test.:80").passes(),
        tls("in single bytes", OK, "allowed.test", cut=1).passes(),
        tls("in two", OK, "allowed.test", cut=60).passes(),
        tls("4 KiB", OK, "allowed.test", filling=4000).passes(),
        tls("40 KiB", OK, "allowed.test", filling=40_000).passes(),
        tls("no sni", OK).passes(), tcp("unknown protocol", OK, ECHO).passes(), udp("any udp", OK, ECHO).passes(),
        tcp("server first", OK, 25).passes(), ping("its ping", OK).passes(),
        tls("on another port", OK, "allowed.test", port=ECHO).passes(),
        tls("exact", EXACT, "exact.test").passes(), tls("with a port", PORT, "port.test").passes(),
        tls("other's sni", OTHER, "allowed.test").mute("sni_mismatch"),
        tls("evil sni", OK, "evil.test").mute("sni_mismatch"),
        tls("evil sni in single bytes", OK, "evil.test", cut=1).mute("sni_mismatch"),
        tls("evil sni of 4 KiB", OK, "evil.test", filling=4000).mute("sni_mismatch"),
        tls("evil sni of 4 KiB in pieces", OK, "evil.test", filling=4000, cut=100).mute("sni_mismatch"),
        tls("two names", OK, "allowed.test", "evil.test").mute("sni_mismatch"),
        tls("below exact", EXACT, "sub.exact.test").mute("sni_mismatch"),
        tls("denied below", OK, "x.denied.allowed.test").mute("deny_domain"),
        tls("nul in sni", OK, "allowed.test\0.evil.test").mute("sni_mismatch"),
        tls("address in sni", OK, OK).mute("sni_mismatch"),
        tls("zone in sni", OK, "fe80::1%eth0").mute("sni_mismatch"),
        tls("two dots", OK, "allowed.test..").mute("sni_mismatch"),
        tls("u-label", OK, "allowed．test").mute("sni_mismatch"),
        http("other's host", OTHER, "allowed.test").mute("sni_mismatch"),
        http("evil host", OK, "evil.test").mute("sni_mismatch"),
        http("two hosts", OK, "allowed.test", "evil.test").mute("sni_mismatch"),
        http("absolute target", OK, "allowed.test", target="http://evil.test/").mute("sni_mismatch"),
        http("user information", OK, "allowed.test@evil.test").mute("sni_mismatch"),
        http("folded", OK, "\r\n evil.test").mute("sni_mismatch"),
        tcp("upgrade without tls", OK, 80, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + token("h2c")).mute("sni_mismatch"),
        tcp("port 22", PORT, 22).denied("default_deny"), tcp("other port", PORT, ECHO).denied("default_deny"),
        udp("other port udp", PORT, ECHO).denied("default_deny"), ping("no port", PORT).denied("default_deny"),
        tls("behind an alias to a denied name", EVIL, "alias.allowed.test").denied("default_deny"),
        *(tcp(f"still direct {port}", EVIL, port).denied("default_deny") for port in (22, 443, 9999)),
    ]  # fmt: skip
    done = attack(internet, rules, [*before, *lookups, *after], resolver=RESOLVER)
    done.check()
    assert done.said["resolve alias.allowed.test"] == done.said["resolve sub.exact.test"] == "EAI_NODATA"
    evidence = {e["remote_addr"]: e["evidence"] for e in done.result.events_of("connect_attempt")}
    assert evidence[f"{OK}:25"] == "dns"


@pytest.mark.case("D17", "D18")
@pytest.mark.parametrize("version", [V1, V2], ids=["v1", "v2"])
def test_quic_by_an_allowed_name(internet: Internet, lying: str, version: int) -> None:
    attempts = [
        resolve("allowed.test"), resolve("b.allowed.test"),
        quic("right", OK, "allowed.test", version).passes(), quic("nosni", OK, None, version).passes(),
        quic("other", OTHER, "allowed.test", version).mute("sni_mismatch"),
        quic("evil", OK, "evil.test", version).mute("sni_mismatch"),
        quic("denied", OK, "denied.allowed.test", version).mute("deny_domain"),
        udp("not quic", OK, TLS).mute("quic_unreadable"),
        udp("other version", OK, TLS, b"\xc0\xfa\xce\xb0\x0c\x08" + token("other version")).mute("quic_unreadable"),
        udp("short header", OK, TLS, b"\x40" + token("short header")).mute("quic_unreadable"),
        quic("direct", EVIL, "allowed.test", version).denied("default_deny"),
    ]  # fmt: skip
    done = attack(internet, [*NAMED, "--dns", lying], attempts, resolver=RESOLVER)
    done.check()
    assert (UDP, OTHER, TLS) not in done.endpoints()
    texts = [packet.text for packet in done.packets if packet[:3] == (UDP, OK, TLS)]
    assert len(texts) == 2, "besides the two that pass, no datagram"


@pytest.mark.case("D08", "D16")
def test_answers_teach_no_more_than_was_asked(internet: Internet, lying: str) -> None:
    """An attacker's zone says where an allowed name is; hints, texts and other people's records."""
    rules = (*NAMED, "--allow-domain", "attacker.test", "--dns", lying)
    questions = [named("web.allowed.test", qtype=kind) for kind in (65, 16, 255, 64)]
    attempts = [
        resolve("poison.attacker.test"), resolve("allowed.test"), resolve("b.allowed.test"),
        dns("hints", GATEWAY, *questions, whole=True).asked(),
        tls("own name", "203.0.113.67", "poison.attacker.test").passes(),
        tls("victim's name", "203.0.113.67", "allowed.test").mute("sni_mismatch"),
        *(tls(f"other {last}", f"203.0.113.{last}", "allowed.test").denied("default_deny") for last in (68, 69)),
        *(tcp(f"hint {last}", f"203.0.113.{last}", ECHO).denied("default_deny") for last in (30, 31, 32)),
        tls("right", OK, "allowed.test").passes(),
    ]  # fmt: skip
    done = attack(internet, rules, attempts, resolver=RESOLVER)
    done.check()
    told = "".join(done.said["hints"])
    assert HINTS in told
    assert ECH_CONFIG not in told


# --- rebinding


@pytest.mark.case("D05", "D10", "D41")
def test_an_allowed_name_that_moves_to_where_nobody_may_go(internet: Internet, lying: str) -> None:
    """At each lookup another address; what is judged is what is dialled."""
    flags = [*NAMED, "--block-private", "--block-metadata", "--dns", lying]
    ask = [resolve("flip.allowed.test", name=f"lookup {n}") for n in range(4)]
    attempts = [
        ask[0], tcp("first", "203.0.113.20", ECHO).passes(),
        ask[1], tcp("loopback", "127.0.0.1", ECHO).unseen(), tcp("still first", "203.0.113.20", ECHO).passes(),
        ask[2], *each_way("private", "10.0.0.1", "private"),
        ask[3], *each_way("metadata", "169.254.169.254", "metadata"),
        resolve("mixed.allowed.test"), tcp("public", "203.0.113.21", ECHO).passes(),
        *each_way("private of the two", "10.0.0.2", "private"),
        resolve("mapped.allowed.test", 6), tcp("nat64", "64:ff9b::a9fe:a9fe", ECHO).denied("metadata"),
        tcp("6to4", "2002:a00:3::1", ECHO).denied("private"),
        tcp("mapped", "::ffff:10.0.0.4", ECHO).denied("private", "10.0.0.4"),
        udp("compatible", "::7f00:1", ECHO).denied("martian"),
    ]  # fmt: skip
    done = attack(internet, flags, attempts, resolver=RESOLVER)
    done.check()
    assert done.said["resolve mapped.allowed.test"], "what the resolver said is not hidden"
    queries = [packet for packet in done.packets if packet.port == RESOLVER and b"flip" in packet.text]
    assert len(queries) == 4, "childflow asks no second time"
