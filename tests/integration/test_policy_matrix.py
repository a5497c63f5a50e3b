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
    control: str
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
BY_FILE = Denied("deny_domain", "deny-domain-file")
MISMATCH = Denied("sni_mismatch", "allow-domain")
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


class Seen(NamedTuple):
    """What the far host has of one row."""

    arrived: set[tuple[str, str, int]]
    spoke: set[tuple[str, str, int]]
    queries: set[str]


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("lists")
    (folder / "bad").write_text("# one name a line, or as in a hosts file\n0.0.0.0 bad.test\nworse.test\n")
    (folder / "good").write_text("good.test\n")
    for path in (folder.parent, folder, *folder.iterdir()):
        path.chmod(0o755)
    return str(folder)


@pytest.mark.case("D14", "D43")
@pytest.mark.parametrize("row", ROWS)
def test_row(internet: Internet, lists: str, row: str) -> None:
    flags, cells = ROWS[row]
    check(internet, [flag.format(lists=lists) for flag in flags], cells)


def check(internet: Internet, flags: Sequence[str], cells: list[Cell], user: str = "ordinary") -> Result:
    """Run the cells, and hold what came of each against what should have."""
    before = len(internet.witness())
    internet.zone(ZONE)
    asked = [[cell.verb, cell.family, cell.to, cell.port, cell.payload.hex()] for cell in cells]
    r = internet.caller(user).childflow(
        *internet.client("probes"), flags=flags, stdin=msgspec.json.encode(asked), timeout=60
    )
    wrong = [(cell, said) for cell, said in zip(cells, r.json(), strict=True) if not as_expected(cell, said)]
    assert not wrong, "\n".join(map(str, wrong)) + f"\n{r.stderr}"
    assert internet.arrived() == arrivals(internet, cells)
    assert internet.spoke() == {end for cell in cells for end in ends(internet, cell, spoke=True)}
    queries = {seen["name"].rstrip(".") for seen in internet.witness()[before:] if "name" in seen}
    assert queries == {name for cell in cells for name in queried(cell)}
    assert violations(r) == Counter(event for cell in cells for event in expected_events(cell)), r.told()
    assert Counter(told(r)) == ({} if "-q" in flags else dict.fromkeys(filter(None, map(line, cells)), 1)), r.stderr
    return r


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


def destination(internet: Internet, cell: Cell) -> End:
    """Protocol, address and port of a cell, as the far host sees them if it passes."""
    protocol = cell.verb.removeprefix("dns-")
    if cell.verb == "icmp":
        protocol = {4: "icmp", 6: "ipv6-icmp"}[cell.family]
    return protocol, internet.server_ip(4) if cell.to in GATEWAY.values() else address(cell), cell.port


def ends(internet: Internet, cell: Cell, spoke: bool = False) -> Iterator[End]:
    """What arrives of a cell; `spoke`: with at least one byte."""
    if queried(cell) and is_name(cell.to):
        yield "udp", internet.server_ip(4), DNS
    passes = cell.denied is None or (cell.denied.when == "speech" and cell.verb == "tcp" and not spoke)
    if passes and not (spoke and cell.verb == "icmp"):
        yield destination(internet, cell)


def arrivals(internet: Internet, cells: list[Cell]) -> set[End]:
    """All that arrives. A cell that is blocked has its destination for itself, or it would prove nothing."""
    found = {end for cell in cells for end in ends(internet, cell)}
    spoke = {end for cell in cells for end in ends(internet, cell, spoke=True)}
    for cell in cells:
        if cell.denied and cell.denied.when in ("connect", "speech") and cell.to not in GATEWAY.values():
            assert destination(internet, cell) not in (spoke if cell.denied.when == "speech" else found), cell
    return found


def queried(cell: Cell) -> list[str]:
    """The name that the far host's DNS is asked for."""
    if cell.query:
        return [cell.query] if cell.denied is None else []
    return [cell.to] if is_name(cell.to) and not (cell.denied and cell.denied.when == "query") else []


# -- for the child --------------------------------------------------------------------------------------------------

PROHIBITED = {4: [3, 13], 6: [1, 1]}  # RFC 1812 5.2.7.1, RFC 4443 3.1
ERRNO = {4: "EHOSTUNREACH", 6: "EACCES"}  # as Linux tells those


def as_expected(cell: Cell, said: dict[str, Any]) -> bool:
    if cell.denied is None:
        return said["error"] is None and (answered(cell, said) if cell.query else echoed(cell, said))
    return said["seconds"] < AT_ONCE_S and (empty_with_reason(cell, said) if cell.query else refused(cell, said))


def echoed(cell: Cell, said: dict[str, Any]) -> bool:
    answer = bytes.fromhex(said["answer"])
    return answer.startswith(b"HTTP/1.1 200 ") if cell.port == HTTP else answer.endswith(cell.payload)


def answered(cell: Cell, said: dict[str, Any]) -> bool:
    answer = dnslib.DNSRecord.parse(bytes.fromhex(said["answer"]))
    found = [str(record.rdata) for record in answer.rr if record.rtype == dnslib.QTYPE.reverse[cell.kind]]
    wanted = address(cell._replace(to=cell.query, family=4 if cell.kind == "A" else 6))
    return answer.header.rcode == 0 and [ip_address(text) for text in found] == [ip_address(wanted)]


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

Event = tuple[str, str, str, str]


def violations(r: Result) -> Counter[Event]:
    """(protocol, remote, reason, control) of each; every line of the log is as the schema has it."""
    for event in r.events:
        msgspec.convert(event, AnyEvent, strict=True)
    listed = r.events_of("policy_violation")
    return Counter((event["protocol"], event["remote"], event["reason_code"], event["control"]) for event in listed)


def expected_events(cell: Cell) -> Iterator[Event]:
    if cell.denied is None:
        return
    why = cell.denied.reason, cell.denied.control
    if cell.denied.when in ("query", "answer"):
        yield "dns", f"{GATEWAY[4]}:{DNS}", *why
    elif cell.query:
        yield "dns", remote(cell), *why
    else:
        protocol = {4: "icmpv4", 6: "icmpv6"}[cell.family] if cell.verb == "icmp" else cell.verb
        yield protocol, remote(cell), *why


def remote(cell: Cell) -> str:
    host = address(cell)
    if cell.verb == "icmp":
        return host
    return f"[{host}]:{cell.port}" if cell.family == 6 else f"{host}:{cell.port}"


def told(r: Result) -> list[str]:
    """What each line says was blocked; there are no other lines."""
    lines = r.stderr.splitlines()
    assert all(text.startswith("childflow: blocked ") for text in lines), r.stderr
    return [text.removeprefix("childflow: blocked ").split(": ")[0] for text in lines]


def line(cell: Cell) -> str | None:
    """What a cell adds to stderr. Cells may share it: it is told once."""
    if cell.denied is None:
        return None
    if cell.query or cell.denied.when in ("query", "answer"):
        return f"dns {cell.query or cell.to}"
    return f"{cell.verb} {remote(cell)}"
