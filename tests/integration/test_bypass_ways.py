"""More ways round the policy: through the order of things, odd packets, names that stand for addresses, and proxies.

As `test_bypass.py`: each is tried from inside, and the wiretap says what arrived.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from childflow.settings import ADDRESSES
from tests.lab.attack import (
    ECHO,
    GATEWAY,
    TCP,
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
)
from tests.lab.engine import engine_of
from tests.lab.enter import SCRATCH
from tests.lab.internet import Internet
from tests.lab.proxies import Proxies, proxies_on
from tests.lab.wiretap import payload
from tests.netstack import wire
from tests.netstack.wire import ACK, CHILD, FIN, PSH, RST, SYN, URG, frame, ipv4, ipv6
from tests.services.hellos import ECH, extension, hello
from tests.services.play import fragment4, fragment6

RESOLVER = 5354  # port of the resolver that lies
OK, OTHER, EVIL, SHARED = (f"203.0.113.{last}" for last in (10, 11, 66, 50))
DENY = ("--default-policy", "deny")
NAMED = (*DENY, "--allow-domain", "allowed.test", "--deny-domain", "denied.allowed.test")
CROWD = 300
FLIPS = ("203.0.113.20", "127.0.0.1", "10.0.0.1", "169.254.169.254", "192.0.0.1")


def address(name: str, one: str, ttl: int = 30) -> dict[str, object]:
    return {"answer": [[name, "AAAA" if ":" in one else "A", one, ttl]]}


ZONE = {
    "allowed.test": [address("allowed.test", OK)],
    "b.allowed.test": [address("b.allowed.test", OTHER)],
    "denied.allowed.test": [address("denied.allowed.test", EVIL)],
    "alias.allowed.test": [
        {"answer": [["alias.allowed.test", "CNAME", "denied.allowed.test"], ["denied.allowed.test", "A", EVIL]]}
    ],
    "flip.allowed.test": [address("flip.allowed.test", one, 0) for one in FLIPS],
    **{f"n{n}.allowed.test": [address(f"n{n}.allowed.test", SHARED)] for n in range(CROWD)},
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
    path = internet_map.folder / "hostile-ways.json"
    path.write_text(json.dumps(ZONE))
    running = internet_map.serve("tests.lab.hostile_dns", str(path), str(RESOLVER))
    yield f"{internet_map.server_ip(4)}:{RESOLVER}"
    running.kill()


# --- the order of things


@pytest.mark.case("D17")
def test_what_leaves_before_a_verdict(internet: Internet, lying: str) -> None:
    """Nothing: not by ending, not by urgency, not by waiting, and what is documented to pass does."""
    evil, good = hello(b"evil.test"), hello(b"allowed.test")
    grease = [extension(ECH, bytes(200))]
    second = b"GET / HTTP/1.1\r\nHost: evil.test\r\nX-Token: " + token("second request") + b"\r\n\r\n"
    attempts = [
        resolve("allowed.test"),
        tcp("half a hello", OK, TLS, evil[:40] + token("half a hello"), close=True).mute("sni_mismatch"),
        tcp("half of its own", OK, TLS, good[:40] + token("half of its own"), close=True).mute("sni_mismatch"),
        tcp("ends in a request", OK, 80, b"GET / HTTP/1.1\r\nHost: evil.test\r\nX: " + token("ends in a request"),
            close=True).mute("sni_mismatch"),
        tcp("ends with it", OK, TLS, evil, token("ends with it"), close=True).mute("sni_mismatch"),
        tcp("urgent", OK, TLS, evil, token("urgent"), urgent=True).mute("sni_mismatch"),
        tcp("urgent in pieces", OK, TLS, *(evil[at : at + 7] for at in range(0, len(evil), 7)),
            token("urgent in pieces"), urgent=True).mute("sni_mismatch"),
        tcp("waits", OK, TLS, evil[:50] + token("waits"), patience=0.3).unseen(),
        tcp("warnings before", OK, TLS, b"\x15\3\1\0\2\1\0" * 3 + evil, token("warnings before")).mute("sni_mismatch"),
        tcp("blanks before", OK, 80, b"\r\n \r\nGET / HTTP/1.1\r\nhost : evil.test\r\n\r\n" + token("blanks before"))
        .mute("sni_mismatch"),
        tcp("proxy header", OK, TLS, b"PROXY TCP4 1.2.3.4 5.6.7.8 9 443\r\n" + evil, token("proxy header"))
        .mute("sni_mismatch"),
        tcp("proxy header 2", OK, TLS, b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0" + evil, token("proxy header 2"))
        .mute("sni_mismatch"),
        tcp("ech of evil", OK, TLS, hello(b"evil.test", after=grease), token("ech of evil")).mute("sni_mismatch"),
        tcp("ech", OK, TLS, hello(b"allowed.test", after=grease), token("ech")).passes(),
        http("first request", OK, "allowed.test").passes(),
        tcp("second request", OK, 80, b"GET / HTTP/1.1\r\nHost: allowed.test\r\n\r\n", second).passes(),
    ]  # fmt: skip
    done = attack(internet, [*NAMED, "--dns", lying], attempts, resolver=RESOLVER)
    done.expected.add((TCP, OK, TLS))
    done.check()


def test_one_port_for_an_allowed_and_a_denied_peer(internet: Internet, lying: str) -> None:
    """One host socket carries all that comes from one port: each peer has a verdict of its own."""
    attempts = [
        resolve("allowed.test"),
        udp("first peer", OK, ECHO, **{"from": 40_123}).passes(),
        udp("second peer", EVIL, ECHO, **{"from": 40_123}).denied("default_deny"),
        udp("its other port", OK, 9999, **{"from": 40_123}).passes(),
        quic("quicgood", OK, "allowed.test", **{"from": 40_124}).passes(),
        quic("quicevil", EVIL, "allowed.test", **{"from": 40_124}).denied("default_deny"),
        tcp("first", OK, ECHO, **{"from": 40_125}).passes(),
        tcp("same port", EVIL, ECHO, **{"from": 40_125}).denied("default_deny"),
        tls("same port again", OK, "evil.test", **{"from": 40_125}).mute("sni_mismatch"),
    ]
    attack(internet, [*NAMED, "--dns", lying], attempts, resolver=RESOLVER).check()


@pytest.mark.case("D11", "D17")
def test_names_by_the_hundred_lead_to_one_address(internet: Internet, lying: str) -> None:
    """The latest count; a query that is none spoils no other on its connection."""
    flood = [named(f"n{n}.allowed.test") for n in range(CROWD)]
    odd = [named("allowed.test"), question("x", count=2), named("evil.test"), named("b.allowed.test")]
    attempts = [
        resolve("n0.allowed.test"), tls("the only", SHARED, "n0.allowed.test").passes(),
        *(dns(f"flood {at}", GATEWAY, *flood[at : at + 30], transport="tcp").asked() for at in range(0, CROWD, 30)),
        tls("the latest", SHARED, f"n{CROWD - 1}.allowed.test").passes(),
        tls("of another", SHARED, "allowed.test").mute("sni_mismatch"),
        tls("pushed out", SHARED, "n0.allowed.test").mute("sni_mismatch"),
        resolve("n0.allowed.test", name="again"), tls("asked again", SHARED, "n0.allowed.test").passes(),
        dns("odd", GATEWAY, *odd, transport="tcp").asked(),
        tls("behind the odd", OTHER, "b.allowed.test").passes(),
    ]  # fmt: skip
    done = attack(internet, [*NAMED, "--dns", lying], attempts, resolver=RESOLVER)
    done.check()
    assert sorted(done.said["odd"]) == [[0, []], [0, [OK]], [0, [OTHER]], [1, []]]


@pytest.mark.case("D14", "D17")
def test_a_denied_name_where_everything_else_is_allowed(internet: Internet, lying: str) -> None:
    """However it is written and whoever is asked; without a name an address is just an address."""
    rules = ("--deny-domain", "evil.test", "--deny-domain", "bücher.test", "--deny-domain-exact", "only.test:443",
             "--dns", lying)  # fmt: skip
    spellings = ("evil.test", "EVIL.test", "a.b.evil.test", "evil.test.", "xn--bcher-kva.test", "only.test")
    denied = {name: "deny_domain_exact" if name == "only.test" else "deny_domain" for name in spellings}
    attempts = [
        *(tls(f"sni {name}", EVIL, name).mute(code) for name, code in denied.items()),
        *(quic(f"{n}q", EVIL, name).denied(code) for n, (name, code) in enumerate(denied.items())),
        *(http(f"host {name}", EVIL, name).mute("deny_domain") for name in spellings if name != "only.test"),
        http("with a port", EVIL, "evil.test:8080").mute("deny_domain"),
        http("as a target", EVIL, "evil.test", target="http://evil.test/").mute("deny_domain"),
        http("in utf-8", EVIL, "bücher.test").mute("sni_mismatch"),
        http("percent", EVIL, "ev%69l.test").mute("sni_mismatch"),
        http("list", EVIL, "a.test, evil.test").mute("sni_mismatch"),
        http("space", EVIL, "a.test evil.test").mute("sni_mismatch"),
        http("backslash", EVIL, "a.test", target="http://evil.test\\@a.test/").mute("sni_mismatch"),
        *(dns(f"{server} {transport} {name}", server, named(name), transport=transport, find=b"hidden")
          .denied("deny_domain")
          for server in (GATEWAY, "203.0.113.53") for transport in ("udp", "tcp")
          for name in ("hidden.evil.test", "hidden.EVIL.Test", "hidden.xn--bcher-kva.test")),
        tls("prefix", EVIL, "notevil.test").passes(), tls("suffix", EVIL, "evil.test.a.test").passes(),
        http("other port of it", EVIL, "only.test").passes(), tls("below only", EVIL, "a.only.test").passes(),
        tls("no name", EVIL).passes(), quic("qother", EVIL, "a.test").passes(),
        dns("elsewhere", "203.0.113.53", named("seen.test"), find=b"seen").passes(at=lying.partition(":")[0]),
    ]  # fmt: skip
    done = attack(internet, rules, attempts, resolver=RESOLVER)
    done.check()


# --- odd packets


def options4(kind: int, *via: str) -> bytes:
    """A source route (RFC 791 3.1) over these addresses."""
    route = b"".join(bytes(map(int, one.split("."))) for one in via)
    return bytes((kind, 3 + len(route), 4)) + route + b"\0"


def test_odd_packets_to_an_address_that_is_denied(internet: Internet, lying: str) -> None:
    """Fragments, source routes, extension headers, redirects, handshakes that are none."""
    src, ok, evil = CHILD[4], *(bytes(map(int, one.split("."))) for one in (OK, EVIL))
    src6, evil6 = CHILD[6], bytes.fromhex("26000113") + bytes(11) + b"\x66"
    text = wire.udp(src, evil, 41_000, ECHO, b"<raw>" * 20)
    text6 = wire.udp(src6, evil6, 41_000, ECHO, b"<raw>" * 20)
    frames = [frame(_to(fragment4(at, text[at : at + 8], at + 8 < len(text), ident=77), evil))
              for at in range(0, len(text), 8)]  # fmt: skip
    frames += [frame(_to6(fragment6(at, text6[at : at + 16], at + 16 < len(text6), ident=78), evil6))
               for at in range(0, len(text6), 16)]  # fmt: skip
    for kind in (131, 137):
        for to, via in ((ok, EVIL), (evil, OK)):
            route = options4(kind, via)
            frames.append(frame(ipv4(wire.udp(src, to, 41_001, ECHO, b"<raw>"), 17, dst=to, options=route)))
    for header in (0, 43, 60):
        behind = bytes((17, 0, 1, 4, 0, 0, 0, 0)) + wire.udp(src6, evil6, 41_002, ECHO, b"<raw>")
        frames.append(frame(ipv6(behind, header, dst=evil6)))
    gateway = ADDRESSES.gateway4
    quoted = ipv4(wire.udp(src, ok, 41_003, ECHO, b""), 17, dst=ok)
    for redirect_to in (evil, gateway):
        frames.append(frame(ipv4(wire.icmp(5, 1, redirect_to + quoted, dst=gateway), 1, dst=gateway)))
        frames.append(frame(ipv4(wire.icmp(5, 1, redirect_to + quoted, dst=ok), 1, dst=ok)))
    for flags in (ACK, FIN | ACK, RST, PSH | ACK, URG | ACK, SYN | FIN, SYN | ACK, SYN | URG | PSH):
        frames.append(frame(ipv4(wire.tcp(src, evil, 41_004, ECHO, 1, 1, flags, text=b"<raw>"), 6, dst=evil)))
    hello_in_syn = wire.tcp(src, ok, 41_005, TLS, 1, 0, SYN, text=hello(b"evil.test") + b"<raw>")
    frames.append(frame(ipv4(hello_in_syn, 6, dst=ok)))
    honest = [frame(ipv4(wire.udp(src, ok, 41_006, ECHO, b"<honest>"), 17, dst=ok))]
    done = raw(internet, [*NAMED, "--dns", lying], [*frames, *honest], [dns("ask", GATEWAY, named("allowed.test"))])
    assert payload(done.packets).count(b"<honest>") == 1
    assert b"<raw>" not in payload(done.packets)
    assert {(UDP, OK, ECHO)} <= done.endpoints() <= {
        (UDP, OK, ECHO), (TCP, OK, TLS), (UDP, internet.server_ip(4), RESOLVER)
    }  # fmt: skip


def _to(packet: bytes, dst: bytes) -> bytes:
    head = packet[:10] + bytes(2) + CHILD[4] + dst
    return head[:10] + wire.plain_checksum(head).to_bytes(2, "big") + head[12:] + packet[20:]


def _to6(packet: bytes, dst: bytes) -> bytes:
    return packet[:8] + CHILD[6] + dst + packet[40:]


# --- names that stand for addresses


@pytest.mark.case("D10", "D17", "D41")
def test_virtual_names(internet: Internet, lying: str) -> None:
    """Each connection is one to the name: what it resolves to is judged, and is what is dialled."""
    first, flip = "198.18.0.1", "198.18.0.2"
    rules = (*NAMED, "--block-private", "--block-metadata", "--dns-mode", "virtual", "--dns", lying)
    reasons = ("martian", "private", "metadata", "martian")
    attempts = [
        resolve("allowed.test"), resolve("flip.allowed.test"),
        tls("by its name", "allowed.test", "allowed.test").passes(at=OK),
        udp("by its name udp", "allowed.test", ECHO).passes(at=OK),
        tls("other sni", first, "b.allowed.test").mute("sni_mismatch", at=OK),
        tls("evil sni", first, "evil.test", cut=1).mute("sni_mismatch", at=OK),
        http("evil host", first, "evil.test").mute("sni_mismatch", at=OK),
        quic("q evil", first, "evil.test").mute("sni_mismatch"), quic("q right", first, "allowed.test").passes(at=OK),
        tcp("the real address", OK, ECHO).denied("default_deny"),
        tcp("nobody's", "198.18.7.7", ECHO).unseen(), tcp("nobody's 6", "fd63:6869:6c64:1::77", ECHO).unseen(),
        udp("nobody's udp", "198.19.255.254", ECHO).unseen(),
        ping("ping", first).denied("martian"), ping("ping 6", "fd63:6869:6c64:1::1").denied("martian"),
        ping("ping nobody", "198.18.7.7").denied("martian"),
        tcp("mapped", f"::ffff:{first}", ECHO).passes(at=OK),
        tcp("nat64", "64:ff9b::198.18.0.1", ECHO).denied("private"),
        *(dns(f"dns {transport}", first, named("secret.allowed.test"), transport=transport, find=b"secret").unseen()
          for transport in ("udp", "tcp")),
        tcp("no dns", first, 53, b"\0\x20" + token("no dns").ljust(32, b"_"), patience=0.3).asked(),
        tcp("flip 0", flip, ECHO).passes(at=FLIPS[0]),
        *(tcp(f"flip {n + 1}", flip, ECHO).denied(code)
          for n, code in enumerate(reasons)),
    ]  # fmt: skip
    done = attack(internet, rules, attempts, resolver=RESOLVER)
    done.check()


# --- offline

PROGRAMS = """
import os, socket, subprocess, sys
dig, ping = ["dig", "+tries=1", "+time=1"], ["ping", "-c1", "-W1"]
for command in (
    ["curl", "-sS", "--max-time", "3", "http://203.0.113.10/"], ["curl", "-sS", "--max-time", "3", "http://a.lab.test/"],
    [*dig, "@192.0.0.1", "a.lab.test"], [*dig, "+tcp", "@8.8.8.8", "a.lab.test"],
    [*ping, "203.0.113.10"], [*ping, "-6", "2600:113::10"], [*ping, "192.0.0.1"],
):
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
for family, host in ((socket.AF_INET, "203.0.113."), (socket.AF_INET6, "2600:113::")):
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        for last in range(1, 100):
            try:
                sock.sendto(b"<spray>", (host + str(last), last * 97))
            except OSError:
                pass
socket.create_server(("127.0.0.1", 0)).close()
"""


@pytest.mark.case("D14", "D42")
@pytest.mark.parametrize("flags", [["--offline"], []], ids=["offline", "control"])
def test_offline_makes_no_call_to_the_network(internet: Internet, flags: list[str]) -> None:
    """The engine's own system calls, while programs of every kind try: none has an address of the Internet in it."""
    trace = Path(SCRATCH, f"{flags}.strace")
    caller = internet.caller("ordinary")
    with engine_of(internet, caller, flags, canary=False, settle=False) as engine, strace_of(engine.pid, trace):
        engine.inside.direct("python3", "-c", PROGRAMS).ok()
    calls = trace.read_text()
    assert bool(re.search("(connect|send[a-z]*)\\(.*AF_INET", calls)) is not bool(flags), calls[:2000]
    if flags:
        assert "AF_INET" not in calls, calls[:2000]
        assert internet.arrived() == set()
        assert {event["reason_code"] for event in engine.result.events_of("policy_violation")} == {"offline"}


@contextmanager
def strace_of(pid: int, trace: Path) -> Iterator[None]:
    """The network calls of that process and its threads, written to `trace`."""
    argv = ["strace", "-f", "-p", str(pid), "-o", str(trace), "-e", "trace=%network"]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, env={**os.environ, "LC_ALL": "C"}) as strace:
        assert strace.stderr is not None
        assert b"attached" in strace.stderr.readline()
        yield
        strace.terminate()
        strace.wait()


# --- proxies


@pytest.fixture(scope="module")
def proxies(internet_map: Internet) -> Iterator[Proxies]:
    with proxies_on(internet_map.server, ["tinyproxy"]) as started:
        yield started


@pytest.mark.case("D14", "D18", "D19")
def test_only_through_the_proxy(internet: Internet, proxies: Proxies) -> None:
    """An allowed network opens nothing that a proxy can't carry; names that a proxy might misread aren't told to it."""
    rules = [*proxies.flags("tinyproxy"), "--proxy-only", *DENY, "--allow-cidr", "203.0.113.0/24", "--allow-domain",
             "lab.test"]  # fmt: skip
    attempts: list[Attempt] = [
        *(udp(f"udp {port}", OK, port).denied("proxy_only") for port in (123, 443, 3478, 9999)),
        quic("quic", OK, "a.lab.test").denied("proxy_only"), ping("ping", OK).denied("proxy_only"),
        *(dns(f"dns {transport}", "203.0.113.53", named("secret.lab.test"), transport=transport, find=b"secret")
          .unseen() for transport in ("udp", "tcp")),
        tcp("metadata by cidr", "169.254.169.254", ECHO).denied("default_deny"),
        tcp("its own address", proxies.address, 3128).denied("default_deny"),
        tcp("by address", OK, ECHO).passes(at=proxies.address),
        resolve("a.lab.test"), tls("by name", "a.lab.test", "a.lab.test").passes(at=proxies.address),
        tls("evil sni", "198.18.0.2", "evil.test").mute("sni_mismatch", at=proxies.address),
        *(dns(f"name {n}", GATEWAY, question(label, "lab", "test"), find=b"___").asked()
          for n, label in enumerate(("127.0.0.1:22/", "localhost:22/", "a\r\nHost: evil.test\r\n", "a b"))),
        *(tcp(f"misread {n}", f"198.18.0.{n}", ECHO).unseen() for n in (3, 4, 5, 6)),
        dns("number", GATEWAY, question("2130706433"), find=b"2130706433").denied("default_deny"),
    ]  # fmt: skip
    done = attack(internet, rules, attempts)
    done.expected = {(TCP, proxies.address, 3128)}
    for attempt in attempts:
        if attempt.at:
            attempt.order["to"][1] = 3128
    done.check()
    said = payload(done.packets)
    assert b"CONNECT 203.0.113.10:7 HTTP/1.1\r\n" in said
    assert b"CONNECT a.lab.test:443 HTTP/1.1\r\n" in said
    assert said.count(b"CONNECT ") == 3
