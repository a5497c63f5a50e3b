"""Every control against every protocol in both families: what it lets through, and what it blocks.

A row is one run of childflow with the row's options and a command that tries its cells one after the other. What passed
was answered, and arrived. What was blocked:

    at the far host     nothing arrived; where the name on the wire decides, no byte behind a header did
    for the child       at once: TCP reset, ICMP administratively prohibited, an empty answer with an Extended DNS Error
    in the flow log     one `policy_violation` with the control and its reason
    on stderr           one line

Not here: attacks on the policy, every special address (`tests/policy`), what proxies carry (`test_proxies.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from typing import Any, NamedTuple

import dnslib
import msgspec
import pytest

from childflow.record.events import AnyEvent
from tests.lab.hosts import FAMILIES
from tests.lab.internet import Internet
from tests.lab.processes import Result
from tests.lab.proxies import Proxies, proxies_on
from tests.lab.serve import DNS, ECHO, HTTP, TLS
from tests.services import hellos, quic_client

AT_ONCE_S = 0.9  # a SYN that nobody answers is sent again after 1 s
GATEWAY = {4: "192.0.0.1", 6: "fd63:6869:6c64::1"}
OPEN = {4: "93.184.216.34", 6: "2606:2800:220:1::34"}  # an address that no rule names
SHUT = {4: "185.199.108.7", 6: "2a00:1450:4001::7"}  # in the networks that the rules name
SHUT_NET = {4: "185.199.0.0/16", 6: "2a00:1450::/32"}
OTHER = {4: "198.35.26.96", 6: "2620:0:862::96"}  # two more that no rule names
THIRD = {4: "151.101.1.3", 6: "2a04:4e42::3"}
PRIVATE = {4: "10.1.2.3", 6: "fd12:3456::3"}
METADATA = {4: "169.254.169.254", 6: "fd00:ec2::254"}
ZONE = {
    "good.test": {"A": OPEN[4], "AAAA": OPEN[6]},
    "sub.good.test": {"A": OPEN[4], "AAAA": OPEN[6]},
    "third.good.test": {"A": THIRD[4], "AAAA": THIRD[6]},
    "www.good.test": {"CNAME": "good.test"},
    "bad.test": {"A": SHUT[4], "AAAA": SHUT[6]},
    "sub.bad.test": {"A": SHUT[4], "AAAA": SHUT[6]},
    "to-bad.test": {"CNAME": "bad.test"},
    "other.test": {"A": OTHER[4], "AAAA": OTHER[6]},
    "inside.test": {"A": PRIVATE[4], "AAAA": PRIVATE[6]},
    "twin.test": {"A": OPEN[4], "AAAA": OPEN[6]},
    "metadata.google.internal": {"A": METADATA[4], "AAAA": METADATA[6]},
}
TALK = b"\0anybody there?"  # the first byte of no TLS, HTTP or QUIC


class Denied(NamedTuple):
    """How a cell is blocked: `reason` and `control` are the flow log's. `when`:

    connect     the flow itself, or the ping, or the query that the cell is
    query       the look-up of the name that the cell goes to
    answer      the same, by what the answer says: the query has arrived
    speech      the flow, by the name in its first bytes; a TCP connection without a byte may have arrived
    """

    reason: str
    control: str | None
    when: str = "connect"

    def at(self, when: str) -> Denied:
        return self._replace(when=when)


class Cell(NamedTuple):
    """One try. `to`: an address, or a name that is looked up. `denied` None: it passes. `query` and `kind` are what a
    DNS cell asks for."""

    verb: str
    family: int
    to: str
    port: int
    payload: bytes = TALK
    denied: Denied | None = None
    query: str = ""
    kind: str = ""


def through(cell: Cell, to: dict[int, str], denied: Denied | None) -> list[Cell]:
    return [cell._replace(family=family, to=to[family], denied=denied) for family in FAMILIES]


def tcp(to: dict[int, str], denied: Denied | None = None, port: int = ECHO, payload: bytes = TALK) -> list[Cell]:
    return through(Cell("tcp", 0, "", port, payload), to, denied)


def udp(to: dict[int, str], denied: Denied | None = None, port: int = ECHO, payload: bytes = TALK) -> list[Cell]:
    return through(Cell("udp", 0, "", port, payload), to, denied)


def ping(to: dict[int, str], denied: Denied | None = None) -> list[Cell]:
    return through(Cell("icmp", 0, "", 0), to, denied)


def dns(name: str, denied: Denied | None = None, server: dict[int, str] = GATEWAY, over: str = "udp tcp") -> list[Cell]:
    """A and AAAA of `name`, each asked by both protocols and over both families."""
    made = []
    for protocol in over.split():
        for family in FAMILIES:
            for kind in ("A", "AAAA"):
                asked = dnslib.DNSRecord.question(name, kind)
                asked.add_ar(dnslib.EDNS0(udp_len=1232))
                made.append(Cell(f"dns-{protocol}", family, server[family], DNS, asked.pack(), denied, name, kind))
    return made


def every(to: dict[int, str], denied: Denied | None = None, name: str = "other.test") -> list[Cell]:
    """TCP, UDP and ping, and DNS to a server there."""
    return [*tcp(to, denied), *udp(to, denied), *ping(to, denied), *dns(name, denied, to)]


def named(name: str) -> dict[int, str]:
    return dict.fromkeys(FAMILIES, name)


def by_name(name: str, denied: Denied | None = None) -> list[Cell]:
    """The same to a name, and the query for it. Where that is blocked there is no address to go to."""
    there, to = denied and denied.at("query"), named(name)
    return [*tcp(to, there), *udp(to, there), *ping(to, there), *dns(name, denied)]


def tls(name: str) -> bytes:
    return hellos.hello(name.encode())


def http(name: str) -> bytes:
    return f"GET /hello HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode()


def quic(name: str) -> bytes:
    hello = hellos.message(hellos.body([hellos.server_name(name.encode())]))
    return quic_client.initial(quic_client.crypto(0, hello))


def borne(name: str, to: dict[int, str], denied: Denied | None = None) -> list[Cell]:
    """`name` in a ClientHello, a Host field and a QUIC Initial that go to that address."""
    denied = denied and denied.at("speech")
    return [
        *tcp(to, denied, TLS, tls(name)),
        *tcp(to, denied, HTTP, http(name)),
        *udp(to, denied, TLS, quic(name)),
    ]


OFFLINE = Denied("offline", "offline")
BY_METADATA = Denied("metadata", "block-metadata")
BY_PRIVATE = Denied("private", "block-private")
BY_NAME = Denied("deny_domain", "deny-domain")
BY_EXACT = Denied("deny_domain_exact", "deny-domain-exact")
UNREADABLE = Denied("quic_unreadable", None, "speech")
BY_FILE = Denied("deny_domain", "deny-domain-file")
MISMATCH = Denied("sni_mismatch", "allow-domain")
BY_PROXY = Denied("proxy_only", "proxy-only")
NO_PING = Denied("martian", None)  # to an address that stands for a name
NOT_BY_DEFAULT = Denied("default_deny", "default-policy")
DENY = ("--default-policy", "deny")


def nets(option: str, shape: str = "{}", six: str | None = None) -> list[str]:
    """`option` for the networks of SHUT, with what `shape` adds."""
    return [option, shape.format(SHUT_NET[4]), option, (six or shape).format(SHUT_NET[6])]


BY_NET = Denied("deny_cidr", "deny-cidr")
SHUT_NAME = "shut.lab.test"
ROWS: dict[str, tuple[Sequence[str], list[Cell]]] = {
    "no rule": ((), [*every(OPEN), *every(SHUT), *by_name("bad.test"), *borne("bad.test", OPEN)]),
    "offline": (
        ["--offline"],
        [
            *every(OPEN, OFFLINE, "x.lab.test"),
            *by_name("good.test", OFFLINE),
        ],
    ),
    "block-metadata": (
        ["--block-metadata"],
        [
            *every(METADATA, BY_METADATA, SHUT_NAME),
            *by_name("metadata.google.internal", BY_METADATA),
            *every(OPEN),
            *every(PRIVATE),
            *borne("metadata.google.internal", OPEN),
        ],
    ),
    "block-private": (
        ["--block-private"],
        [
            *every(PRIVATE, BY_PRIVATE, SHUT_NAME),
            *tcp(named("inside.test"), BY_PRIVATE),
            *every(OPEN),
            *by_name("good.test"),
        ],
    ),
    "deny-cidr": (nets("--deny-cidr"), [*every(SHUT, BY_NET, SHUT_NAME), *every(OPEN), *by_name("good.test")]),
    "deny-cidr port": (
        nets("--deny-cidr", "{}:7", "[{}]:7"),
        [
            *tcp(SHUT, BY_NET),
            *udp(SHUT, BY_NET),
            *tcp(SHUT, None, TLS),
            *udp(SHUT, None, TLS),
            *ping(SHUT),
            *dns("other.test", None, SHUT),
            *every(OPEN),
        ],
    ),
    "deny-cidr tcp": (
        nets("--deny-cidr", "tcp:{}"),
        [*tcp(SHUT, BY_NET), *udp(SHUT), *ping(SHUT), *dns(SHUT_NAME, BY_NET, SHUT, "tcp"), *every(OPEN)],
    ),
    "deny-cidr udp": (
        nets("--deny-cidr", "udp:{}"),
        [*tcp(SHUT), *udp(SHUT, BY_NET), *ping(SHUT), *dns(SHUT_NAME, BY_NET, SHUT, "udp"), *every(OPEN)],
    ),
    "deny-cidr icmp": (nets("--deny-cidr", "icmp:{}"), [*tcp(SHUT), *udp(SHUT), *ping(SHUT, BY_NET), *every(OPEN)]),
    "deny-cidr udp port": (
        nets("--deny-cidr", "udp:{}:53", "udp:[{}]:53"),
        [*tcp(SHUT), *udp(SHUT), *dns(SHUT_NAME, BY_NET, SHUT, "udp"), *dns("other.test", None, SHUT, "tcp")],
    ),
    "deny-domain": (
        ["--deny-domain", "bad.test"],
        [
            *by_name("bad.test", BY_NAME),
            *by_name("sub.bad.test", BY_NAME),
            *dns("other.test", None, OPEN),
            *by_name("good.test"),
            *every(SHUT),
            *borne("sub.bad.test", OTHER, BY_NAME),
            *borne("good.test", OPEN),
            *tcp(named("to-bad.test"), BY_NAME.at("answer")),
            *udp(THIRD, UNREADABLE, TLS),
            *tcp(THIRD, None, TLS),
        ],
    ),
    "deny-domain port": (
        ["--deny-domain", "bad.test:7"],
        [
            *dns("bad.test"),
            *tcp(named("sub.bad.test"), BY_NAME),
            *udp(named("bad.test"), BY_NAME),
            *ping(named("bad.test")),
            *tcp(named("bad.test"), None, TLS),
            *borne("bad.test", SHUT),
        ],
    ),
    "deny-domain-exact": (
        ["--deny-domain-exact", "bad.test"],
        [
            *by_name("bad.test", BY_EXACT),
            *by_name("sub.bad.test"),
            *borne("bad.test", OTHER, BY_EXACT),
            *borne("sub.bad.test", OPEN),
        ],
    ),
    "deny-domain-file": (
        ["--deny-domain-file", "{lists}/bad"],
        [
            *by_name("bad.test", BY_FILE),
            *borne("sub.bad.test", SHUT, BY_FILE),
            *by_name("good.test"),
        ],
    ),
    "default-policy deny": (
        DENY,
        [*every(OPEN, NOT_BY_DEFAULT, SHUT_NAME), *by_name("good.test", NOT_BY_DEFAULT)],
    ),
    "allow-cidr": (
        [*DENY, *nets("--allow-cidr")],
        [
            *every(SHUT),
            *every(OPEN, NOT_BY_DEFAULT, SHUT_NAME),
            *by_name("good.test", NOT_BY_DEFAULT),
            *borne("bad.test", SHUT),
        ],
    ),
    "allow-cidr of the resolver": (
        [*DENY, "--allow-cidr", "198.51.100.1", "--dns", "198.51.100.1"],
        [
            *dns("good.test"),
            *tcp(named("good.test"), NOT_BY_DEFAULT),
            *udp(named("good.test"), NOT_BY_DEFAULT),
            *ping(named("good.test"), NOT_BY_DEFAULT),
        ],
    ),
    "deny-cidr of the host's resolver": (
        ["--deny-cidr", "198.51.100.0/24"],
        [
            *by_name("good.test"),
            *dns(SHUT_NAME, BY_NET, {4: "198.51.100.9", 6: "64:ff9b::c633:6409"}),
            *tcp({4: "198.51.100.1", 6: "64:ff9b::c633:6401"}, BY_NET),
        ],
    ),
    "allow-cidr port": (
        [*DENY, *nets("--allow-cidr", "{}:7", "[{}]:7")],
        [
            *tcp(SHUT),
            *udp(SHUT),
            *tcp(SHUT, NOT_BY_DEFAULT, TLS),
            *udp(SHUT, NOT_BY_DEFAULT, TLS),
            *ping(SHUT, NOT_BY_DEFAULT),
            *dns(SHUT_NAME, NOT_BY_DEFAULT, SHUT),
        ],
    ),
    "allow-cidr tcp": (
        [*DENY, *nets("--allow-cidr", "tcp:{}")],
        [
            *tcp(SHUT),
            *udp(SHUT, NOT_BY_DEFAULT),
            *ping(SHUT, NOT_BY_DEFAULT),
            *dns("other.test", None, SHUT, "tcp"),
            *dns(SHUT_NAME, NOT_BY_DEFAULT, SHUT, "udp"),
        ],
    ),
    "allow-cidr udp": (
        [*DENY, *nets("--allow-cidr", "udp:{}")],
        [
            *tcp(SHUT, NOT_BY_DEFAULT),
            *udp(SHUT),
            *ping(SHUT, NOT_BY_DEFAULT),
            *dns("other.test", None, SHUT, "udp"),
            *dns(SHUT_NAME, NOT_BY_DEFAULT, SHUT, "tcp"),
        ],
    ),
    "allow-cidr icmp": (
        [*DENY, *nets("--allow-cidr", "icmp:{}")],
        [*tcp(SHUT, NOT_BY_DEFAULT), *udp(SHUT, NOT_BY_DEFAULT), *ping(SHUT), *dns(SHUT_NAME, NOT_BY_DEFAULT, SHUT)],
    ),
    "allow-domain": (
        [*DENY, "--allow-domain", "good.test"],
        [
            *tcp(THIRD, NOT_BY_DEFAULT),
            *by_name("good.test"),
            *by_name("www.good.test"),
            *by_name("bad.test", NOT_BY_DEFAULT),
            *every(OTHER, NOT_BY_DEFAULT, SHUT_NAME),
            *borne("www.good.test", OPEN),
            *borne("bad.test", named("third.good.test"), MISMATCH),
            *borne("good.test", named("third.good.test"), MISMATCH),
        ],
    ),
    "allow-domain port": (
        [*DENY, "--allow-domain", "good.test:7"],
        [
            *tcp(named("good.test")),
            *udp(named("good.test")),
            *ping(named("good.test"), NOT_BY_DEFAULT),
            *tcp(OPEN, NOT_BY_DEFAULT, TLS, tls("good.test")),
            *udp(OPEN, NOT_BY_DEFAULT, TLS, quic("good.test")),
        ],
    ),
    "allow-domain-exact": (
        [*DENY, "--allow-domain-exact", "good.test", "--allow-domain-exact", "third.good.test"],
        [
            *by_name("good.test"),
            *by_name("sub.good.test", NOT_BY_DEFAULT),
            *borne("good.test", OPEN),
            *borne("sub.good.test", named("third.good.test"), MISMATCH._replace(control="allow-domain-exact")),
        ],
    ),
    "allow-domain-file": (
        [*DENY, "--allow-domain-file", "{lists}/good"],
        [
            *by_name("sub.good.test"),
            *by_name("other.test", NOT_BY_DEFAULT),
            *borne("bad.test", named("third.good.test"), MISMATCH._replace(control="allow-domain-file")),
        ],
    ),
}


VIRTUAL: dict[str, tuple[Sequence[str], list[Cell]]] = {
    "allow-domain": (
        [*DENY, "--allow-domain", "good.test"],
        [
            *tcp(named("good.test")),
            *udp(named("good.test")),
            *ping(named("good.test"), NO_PING),
            *dns("good.test"),
            *dns("third.good.test", None, THIRD),
            *by_name("bad.test", NOT_BY_DEFAULT),
            *every(OTHER, NOT_BY_DEFAULT, SHUT_NAME),
            *borne("good.test", named("good.test")),
            *borne("good.test", named("third.good.test"), MISMATCH),
        ],
    ),
    "deny-domain": (
        ["--deny-domain", "bad.test"],
        [
            *by_name("sub.bad.test", BY_NAME),
            *tcp(named("good.test")),
            *udp(named("good.test")),
            *ping(named("good.test"), NO_PING),
            *tcp(named("to-bad.test"), BY_NAME),
            *borne("bad.test", named("third.good.test"), BY_NAME),
        ],
    ),
    "block-private": (
        ["--block-private"],
        [*tcp(named("inside.test"), BY_PRIVATE), *udp(named("inside.test"), BY_PRIVATE), *udp(named("good.test"))],
    ),
    "offline": (["--offline"], by_name("good.test", OFFLINE)),
}
PROXIED: dict[str, tuple[Sequence[str], list[Cell]]] = {  # as through SOCKS5, which carries UDP
    "nothing else": (
        [],
        [
            *tcp(OPEN),
            *tcp(named("good.test")),
            *udp(OTHER),
            *udp(named("good.test")),
            *ping(OTHER, BY_PROXY),
            *ping(named("good.test"), NO_PING),
            *dns("good.test"),
            *dns("good.test", None, OTHER),
        ],
    ),
    "rules": (
        [*DENY, "--allow-domain", "good.test", *nets("--allow-cidr")],
        [
            *tcp(named("good.test")),
            *tcp(SHUT),
            *udp(SHUT),
            *ping(SHUT, BY_PROXY),
            *tcp(OTHER, NOT_BY_DEFAULT),
            *by_name("bad.test", NOT_BY_DEFAULT),
            *borne("good.test", named("good.test")),
            *borne("bad.test", named("third.good.test"), MISMATCH),
        ],
    ),
    "offline": (["--offline"], [*every(OPEN, OFFLINE, SHUT_NAME), *by_name("good.test", OFFLINE)]),
}
PRECEDENCE: dict[str, tuple[Sequence[str], list[Cell]]] = {
    "a deny rule beats a narrower allow rule": (
        [*DENY, *nets("--deny-cidr"), "--allow-cidr", SHUT[4], "--allow-cidr", SHUT[6]],
        every(SHUT, BY_NET, SHUT_NAME),
    ),
    "no allow rule opens what is private": (
        [
            *DENY,
            "--block-private",
            "--allow-cidr",
            "10.0.0.0/8",
            "--allow-cidr",
            "fc00::/7",
            "--allow-domain",
            "inside.test",
        ],
        [*tcp(named("inside.test"), BY_PRIVATE), *udp(PRIVATE, BY_PRIVATE), *ping(PRIVATE, BY_PRIVATE)],
    ),
    "metadata comes before private, and before its allowed name": (
        ["--block-private", "--block-metadata", "--allow-domain", "metadata.google.internal", *DENY],
        [
            *tcp(METADATA, BY_METADATA),
            *udp(METADATA, BY_METADATA),
            *ping(METADATA, BY_METADATA),
            *by_name("metadata.google.internal", BY_METADATA),
        ],
    ),
    "private comes before deny-cidr": (
        ["--block-private", "--deny-cidr", "10.0.0.0/8", "--deny-cidr", "fc00::/7"],
        [*tcp(PRIVATE, BY_PRIVATE), *udp(PRIVATE, BY_PRIVATE), *ping(PRIVATE, BY_PRIVATE)],
    ),
    "deny-cidr comes before deny-domain": (
        ["--deny-domain", "bad.test:7", *nets("--deny-cidr")],
        [*tcp(named("bad.test"), BY_NET), *udp(named("bad.test"), BY_NET), *ping(named("bad.test"), BY_NET)],
    ),
    "deny-domain-exact comes before deny-domain": (
        ["--deny-domain", "bad.test", "--deny-domain-exact", "bad.test"],
        [*by_name("bad.test", BY_EXACT), *by_name("sub.bad.test", BY_NAME)],
    ),
    "a denied name beats an allowed one": (
        [*DENY, "--allow-domain", "good.test", "--deny-domain-exact", "sub.good.test", "--allow-cidr", OTHER[4]],
        [
            *by_name("sub.good.test", BY_EXACT),
            *borne("sub.good.test", named("third.good.test"), BY_EXACT),
            *borne("sub.good.test", OTHER, BY_EXACT)[::2][:2],
            *by_name("good.test"),
        ],
    ),
    "one denied name of an address is enough": (
        [*DENY, "--allow-domain", "good.test", "--allow-domain", "twin.test", "--deny-domain", "twin.test:7"],
        [
            *tcp(named("twin.test"), BY_NAME),
            *tcp(named("good.test"), BY_NAME),
            *udp(named("good.test"), BY_NAME),
            *ping(named("good.test")),
            *tcp(named("third.good.test")),
        ],
    ),
    "offline comes first": (
        ["--offline", "--block-metadata", "--block-private", *nets("--deny-cidr"), "--allow-domain", "good.test"],
        [*every(METADATA, OFFLINE, SHUT_NAME), *every(SHUT, OFFLINE, SHUT_NAME), *by_name("good.test", OFFLINE)],
    ),
}


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("lists")
    (folder / "bad").write_text("# one name a line, or as in a hosts file\n0.0.0.0 bad.test\nworse.test\n")
    (folder / "good").write_text("good.test\n")
    for path in (folder.parent, folder, *folder.iterdir()):
        path.chmod(0o755)
    return str(folder)


@pytest.fixture(scope="module")
def proxies(internet_map: Internet) -> Iterator[Proxies]:
    with proxies_on(internet_map.server, ["tinyproxy", "dante"]) as started:
        yield started


@pytest.mark.case("D05", "D14", "D43")
@pytest.mark.parametrize("row", ROWS)
def test_row(internet: Internet, lists: str, row: str) -> None:
    flags, cells = ROWS[row]
    check(internet, [flag.format(lists=lists) for flag in flags], cells)


@pytest.mark.parametrize("row", ["offline", "allow-domain"])
def test_row_as_root_and_in_silence(internet: Internet, row: str) -> None:
    """Root is no more than anybody else; `-q` leaves stderr to the command."""
    flags, cells = ROWS[row]
    check(internet, [*flags, "-q"], cells, user="root")


@pytest.mark.parametrize("row", VIRTUAL)
def test_virtual_names(internet: Internet, row: str) -> None:
    flags, cells = VIRTUAL[row]
    check(internet, [*flags, "--dns-mode", "virtual"], cells, virtual=True)


@pytest.mark.case("D18")
@pytest.mark.parametrize("proxy", ["tinyproxy", "dante"])
@pytest.mark.parametrize("row", PROXIED)
def test_only_through_a_proxy(internet: Internet, proxies: Proxies, row: str, proxy: str) -> None:
    """What the far host has comes from the proxy, and the laptop has spoken to nobody else."""
    flags, cells = PROXIED[row]
    if proxy == "tinyproxy":
        cells = [cell._replace(denied=BY_PROXY) if only_by_socks(cell) else cell for cell in cells]
    flags = [*flags, "--proxy-only", *proxies.flags(proxy)]
    check(internet, flags, cells, virtual=True, proxy=proxies.address)


def only_by_socks(cell: Cell) -> bool:
    return cell.verb == "udp" and (cell.denied is None or cell.denied.when == "speech")


@pytest.mark.case("D07")
@pytest.mark.parametrize("row", PRECEDENCE)
def test_precedence(internet: Internet, row: str) -> None:
    check(internet, *PRECEDENCE[row])


def test_flow_log_says_what_a_verdict_rests_on(internet: Internet) -> None:
    cells = [*tcp(OTHER), *tcp(named("third.good.test")), *borne("good.test", named("good.test"))]
    flags = [*DENY, "--allow-domain", "good.test", "--allow-cidr", OTHER[4], "--allow-cidr", OTHER[6]]
    r = check(internet, flags, cells)
    found = {(end["remote_ip"], end["evidence"], end["server_name"]) for end in r.events_of("flow_end")}
    assert found == {
        *((host, "address", None) for host in OTHER.values()),
        *((host, "dns", None) for host in THIRD.values()),
        *((host, kind, "good.test") for host in OPEN.values() for kind in ("sni", "host", "quic")),
    }
    rules = {(event["remote_ip"], event["rule"]) for event in r.events_of("connect_attempt")}
    assert rules == {
        *((host, f"allow-cidr={host}") for host in OTHER.values()),
        *((host, "allow-domain=good.test") for host in (*OPEN.values(), *THIRD.values())),
    }


def test_summary_has_the_controls_and_what_can_not_be_checked(internet: Internet, proxies: Proxies) -> None:
    """Names that a proxy looks up can lead where a rule about addresses would say no."""
    flags = [
        *proxies.flags("tinyproxy"),
        "--block-private",
        "--deny-cidr",
        "192.0.2.0/24",
        "--allow-domain",
        "lab.test",
    ]
    r = internet.caller("ordinary").childflow(
        *internet.client("probes"), flags=[*flags, "--summary-format", "json", "--fail-on-leak", "-q"],
        stdin=msgspec.json.encode([["tcp", 4, "10.1.2.3", ECHO, ""]]), log=False,
    )  # fmt: skip
    told = msgspec.json.decode(r.stderr[r.stderr.index("{") :])
    assert (r.status, told["exit_code"], internet.arrived()) == (1, 1, set())
    assert told["sandbox_controls"] == [
        "block-private", "deny-cidr=192.0.2.0/24", "allow-domain=lab.test", "fail-on-leak",
        f"proxy={proxies.uri('tinyproxy')}",
    ]  # fmt: skip
    assert told["flow_log"]["policy_controls"] == {"block-private": 1}
    (note,) = told["notes"]
    assert note.endswith("can't be checked against --block-private, --deny-cidr 192.0.2.0/24")
    text = internet.caller("ordinary").childflow("true", flags=[*flags, "--summary"], log=False).ok().stderr
    assert f"  note: {note}\n" in text
    assert "  controls: block-private, deny-cidr=192.0.2.0/24, allow-domain=lab.test, proxy=" in text


def check(
    internet: Internet,
    flags: Sequence[str],
    cells: list[Cell],
    user: str = "ordinary",
    virtual: bool = False,
    proxy: str | None = None,
) -> Result:
    """Run the cells, and hold what came of each against what should have. `virtual`: names have virtual addresses;
    `proxy`: the address of the only way out."""
    before = len(internet.witness())
    internet.zone(ZONE)
    asked = [[cell.verb, cell.family, cell.to, cell.port, cell.payload.hex()] for cell in cells]
    r = internet.caller(user).childflow(
        *internet.client("probes"), flags=flags, stdin=msgspec.json.encode(asked), timeout=60
    )
    seen = internet.witness()[before:]
    shown = shown_addresses(r) if virtual else {}
    wrong = [(cell, said) for cell, said in zip(cells, r.json(), strict=True) if not as_expected(cell, said, shown)]
    assert not wrong, "\n".join(map(str, wrong)) + f"\n{r.stderr}"
    if proxy is None:
        assert internet.arrived() == arrivals(internet, cells, virtual)
        assert internet.spoke() == {end for cell in cells for end in ends(internet, cell, virtual, spoke=True)}
    else:
        check_proxy(internet, cells, proxy, seen)
    queries = {entry["name"].rstrip(".") for entry in seen if "name" in entry and from_laptop(internet, entry)}
    assert queries == ({name for cell in cells for name in queried(cell, virtual)} if proxy is None else set())
    check_events(violations(r), Counter(event for cell in cells for event in expected_events(cell, shown)))
    lines = {text for cell in cells for text in expected_lines(cell, shown)} if "-q" not in flags else set()
    assert sorted(told(r)) == sorted(lines), r.stderr
    return r


def shown_addresses(r: Result) -> Shown:
    """The address that the child was given for a name, by name and family; it is a virtual one."""
    found = {}
    for event in r.events_of("dns_answer"):
        for text in event["answer_ips"]:
            assert event["mode"] == "virtual", event
            found[event["qname"], ip_address(text).version] = text
    return found


# -- at the far host ------------------------------------------------------------------------------------------------

End = tuple[str, str, int]


def is_name(to: str) -> bool:
    return to.endswith((".test", ".internal"))


def address(cell: Cell) -> str:
    """The address that a cell goes to, in the end."""
    if not is_name(cell.to):
        return cell.to
    entry = ZONE[cell.to]
    return (ZONE[entry["CNAME"]] if "CNAME" in entry else entry)["A" if cell.family == 4 else "AAAA"]


TWIN = {entry["AAAA"]: entry["A"] for entry in ZONE.values() if "A" in entry}
FAR = set(TWIN.values())


def from_laptop(internet: Internet, entry: dict[str, Any]) -> bool:
    return ip_address(entry["from"][0].removeprefix("::ffff:")) in map(ip_address, internet.laptop.addresses.values())


def check_proxy(internet: Internet, cells: list[Cell], proxy: str, seen: list[dict[str, Any]]) -> None:
    """Nothing but the proxy was written to, and it wrote to no destination but those of cells that pass."""
    verbs = {cell.verb for cell in cells if goes_out(cell)}
    ways = verbs | {"tcp"} if verbs else set()  # UDP has a TCP connection beside it
    assert {(protocol, host) for protocol, host, _ in internet.arrived()} == {(way, proxy) for way in ways}
    assert not any(from_laptop(internet, entry) for entry in seen)
    passed = [cell for cell in cells if cell.denied is None and not cell.query]
    spoke = {end for end in internet.spoke_within() if end[1] in (*TWIN, *FAR) and end[2] in (ECHO, HTTP, TLS)}
    assert {(cell.verb, cell.to, cell.port) for cell in passed if not is_name(cell.to)} <= spoke
    assert set(map(either, spoke)) == {either((cell.verb, address(cell), cell.port)) for cell in passed}


def either(end: End) -> End:
    """A proxy chooses the family of a name's address."""
    return end[0], TWIN.get(end[1], end[1]), end[2]


def destination(internet: Internet, cell: Cell, virtual: bool = False) -> End:
    """Protocol, address and port of a cell, as the far host sees them if it passes. The first address of a virtual name
    is an IPv4 one, whichever family the child chose."""
    if virtual and is_name(cell.to):
        cell = cell._replace(family=4)
    protocol = cell.verb.removeprefix("dns-")
    if cell.verb == "icmp":
        protocol = {4: "icmp", 6: "ipv6-icmp"}[cell.family]
    return protocol, internet.server_ip(4) if cell.to in GATEWAY.values() else address(cell), cell.port


def goes_out(cell: Cell) -> bool:
    """As far as a first packet; a virtual name's address is a real one's then."""
    return not cell.query and (cell.denied is None or (cell.denied.when == "speech" and cell.verb == "tcp"))


def ends(internet: Internet, cell: Cell, virtual: bool, spoke: bool = False) -> Iterator[End]:
    """What arrives of a cell; `spoke`: with at least one byte."""
    if queried(cell, virtual) and is_name(cell.to):
        yield "udp", internet.server_ip(4), DNS
    passes = cell.denied is None and not virtual if cell.query else goes_out(cell)
    if passes and not (spoke and (cell.denied or cell.verb == "icmp")):
        yield destination(internet, cell, virtual)


def arrivals(internet: Internet, cells: list[Cell], virtual: bool) -> set[End]:
    """All that arrives. A cell that is blocked has its destination for itself, or it would prove nothing."""
    found = {end for cell in cells for end in ends(internet, cell, virtual)}
    spoke = {end for cell in cells for end in ends(internet, cell, virtual, spoke=True)}
    for cell in cells:
        if cell.denied and cell.denied.when in ("connect", "speech") and cell.to not in GATEWAY.values():
            assert destination(internet, cell, virtual) not in (spoke if cell.denied.when == "speech" else found), cell
    return found


def queried(cell: Cell, virtual: bool) -> list[str]:
    """The name that the far host's DNS is asked for: a virtual one when a flow to it begins."""
    if cell.query:
        return [cell.query] if cell.denied is None and not virtual else []
    if virtual and (cell.verb == "icmp" or (cell.verb == "udp" and cell.denied and cell.denied.when == "speech")):
        return []
    return [cell.to] if is_name(cell.to) and not (cell.denied and cell.denied.when == "query") else []


# -- for the child --------------------------------------------------------------------------------------------------

PROHIBITED = {4: [3, 13], 6: [1, 1]}  # RFC 1812 5.2.7.1, RFC 4443 3.1
ERRNO = {4: "EHOSTUNREACH", 6: "EACCES"}  # as Linux tells those


Shown = dict[tuple[str, int], str]


def as_expected(cell: Cell, said: dict[str, Any], shown: Shown) -> bool:
    if cell.denied is None:
        return said["error"] is None and (answered(cell, said, shown) if cell.query else echoed(cell, said))
    return said["seconds"] < AT_ONCE_S and (empty_with_reason(cell, said) if cell.query else refused(cell, said))


def echoed(cell: Cell, said: dict[str, Any]) -> bool:
    answer = bytes.fromhex(said["answer"])
    return answer.startswith(b"HTTP/1.1 200 ") if cell.port == HTTP else answer.endswith(cell.payload)


def answered(cell: Cell, said: dict[str, Any], shown: Shown) -> bool:
    answer = dnslib.DNSRecord.parse(bytes.fromhex(said["answer"]))
    found = [str(record.rdata) for record in answer.rr if record.rtype == dnslib.QTYPE.reverse[cell.kind]]
    wanted = as_shown(cell._replace(to=cell.query, family=4 if cell.kind == "A" else 6), shown)
    return answer.header.rcode == 0 and [ip_address(text) for text in found] == [ip_address(wanted)]


def as_shown(cell: Cell, shown: Shown) -> str:
    """The address that the child goes to."""
    return shown.get((cell.to, cell.family)) or address(cell)


def refused(cell: Cell, said: dict[str, Any]) -> bool:
    assert cell.denied
    if cell.denied.when in ("query", "answer"):
        return bool(said["error"] == "EAI")
    if cell.verb == "tcp":
        return bool(said["error"] == ("ECONNRESET" if cell.denied.when == "speech" else "ECONNREFUSED"))
    return (said["error"], said["icmp"]) == (ERRNO[cell.family], PROHIBITED[cell.family])


def empty_with_reason(cell: Cell, said: dict[str, Any]) -> bool:
    """NOERROR, no record, and Blocked (15) or Filtered (17) with a text that names the option."""
    assert cell.denied
    answer = dnslib.DNSRecord.parse(bytes.fromhex(said["answer"]))
    (why,) = [option.data for record in answer.ar for option in record.rdata if option.code == 15]
    reason = int.from_bytes(why[:2], "big") in (15, 17) and f"--{cell.denied.control}" in why[2:].decode()
    return answer.header.rcode == 0 and not answer.rr and reason


# -- in the flow log and on stderr ----------------------------------------------------------------------------------

Event = tuple[str, str, str, str | None]


def check_events(found: Counter[Event], wanted: Counter[Event]) -> None:
    """The same, as often; a look-up may ask twice (under a proxy, where the search list is ".")."""
    assert set(found) == set(wanted)
    assert all(found[event] == wanted[event] or event[0] == "dns" for event in found)


def violations(r: Result) -> Counter[Event]:
    """(protocol, remote, reason, control) of each; every line of the log is as the schema has it."""
    for event in r.events:
        msgspec.convert(event, AnyEvent, strict=True)
    listed = r.events_of("policy_violation")
    return Counter((event["protocol"], event["remote"], event["reason_code"], event["control"]) for event in listed)


def expected_events(cell: Cell, shown: Shown) -> Iterator[Event]:
    if cell.denied is None:
        return
    why = cell.denied.reason, cell.denied.control
    if cell.denied.when in ("query", "answer"):
        yield "dns", f"{GATEWAY[4]}:{DNS}", *why
    elif cell.query:
        yield "dns", remote(cell, shown), *why
    else:
        protocol = {4: "icmpv4", 6: "icmpv6"}[cell.family] if cell.verb == "icmp" else cell.verb
        yield protocol, remote(cell, shown), *why


def remote(cell: Cell, shown: Shown) -> str:
    host = as_shown(cell, shown)
    if cell.verb == "icmp":
        return host
    return f"[{host}]:{cell.port}" if cell.family == 6 else f"{host}:{cell.port}"


def told(r: Result) -> list[str]:
    """What each line says was blocked; there are no other lines."""
    lines = r.stderr.splitlines()
    assert all(text.startswith("childflow: blocked ") for text in lines), r.stderr
    return [text.removeprefix("childflow: blocked ").split(": ")[0] for text in lines]


def expected_lines(cell: Cell, shown: Shown) -> Iterator[str]:
    """What a cell adds to stderr. Cells may share it: it is told once."""
    if cell.denied is None:
        return
    if cell.query or cell.denied.when in ("query", "answer"):
        yield f"dns {cell.query or cell.to}"
    else:
        yield f"{cell.verb} {remote(cell, shown)}"
