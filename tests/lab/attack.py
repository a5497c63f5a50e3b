"""Attacks on the policy, made from inside a sandbox, and what of them reached the Internet.

    done = attack(internet, ["--default-policy", "deny"], [tcp("direct", "203.0.113.10", 7).denied("default_deny")])
    done.check()

Each attempt carries its own name as a token in its payload. `check` says of every attempt whether the token arrived
where it should, whether any packet at all went where none may, and whether the flow log has the reason. One run of
childflow makes all of a list, in order (`clients/attempts.py`); frames that no socket sends are put in by `raw`.

    passes()        the token has to arrive (`at` another address, where a name or a virtual one stands for it)
    denied(CODE)    not a packet arrives, and a `policy_violation` with this reason tells of it
    mute(CODE)      the connection may arrive, not one byte of its payload
    unseen()        not a packet arrives, and nothing is said of it
    asked()         its answer is the test's own business; packets to the resolver are expected

Not here:   who answers (`serve.py`, `hostile_dns.py`), the oracle itself (`wiretap.py`).
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import Any

from tests.services.hellos import KEY_SHARE, body, extension, hello, message, records
from tests.services.quic_client import V1, crypto, initial

from .engine import sleeping
from .enter import PROJECT
from .headers import ICMP, ICMP6, TCP, UDP
from .hosts import SYSTEM_PATH
from .inject import inject
from .internet import Internet
from .processes import Place, Result, environment, own_directory, start
from .wiretap import Packet, Wiretap, in_network, payload

TLS, HTTP, ECHO = 443, 80, 7
GATEWAY = "192.0.0.1"
Endpoint = tuple[int, str, int]


@dataclass
class Attempt:
    """One thing to try. `token` is looked for in what arrived; `to` is where it may arrive, None: nowhere special."""

    name: str
    order: dict[str, Any]
    token: bytes
    protocol: int
    fate: str = ""
    code: str | None = None
    at: str = ""  # the address where it may arrive, if that is not the one in the order
    logged: tuple[str, int | None] | None = None  # address and port in the flow log

    @property
    def endpoint(self) -> Endpoint:
        host, *port = self.order["to"]
        host = self.at or host
        protocol = {ICMP: ICMP6}.get(self.protocol, self.protocol) if ":" in host else self.protocol
        return protocol, host, port[0] if port else 0

    def passes(self, at: str = "") -> Attempt:
        self.fate, self.at = "passes", at
        return self

    def denied(self, code: str, logged: str | None = None) -> Attempt:
        return self._refused("denied", code, logged)

    def mute(self, code: str, logged: str | None = None, at: str = "") -> Attempt:
        self.at = at
        return self._refused("mute", code, logged)

    def unseen(self) -> Attempt:
        self.fate = "unseen"
        return self

    def asked(self) -> Attempt:
        self.fate = "asked"
        return self

    def _refused(self, fate: str, code: str, logged: str | None) -> Attempt:
        host, *port = self.order["to"]
        self.fate, self.code, self.logged = fate, code, (logged or host, port[0] if port else None)
        return self


def token(name: str) -> bytes:
    return b"<" + name.encode() + b">"


# --- what can be tried


def tcp(name: str, host: str, port: int, *pieces: bytes, **more: Any) -> Attempt:
    """Without `pieces`, the token alone: a protocol that nobody knows."""
    return _attempt(name, "tcp", TCP, [host, port], pieces or (token(name),), more)


def tls(name: str, host: str, *names: str, port: int = TLS, cut: int = 0, filling: int = 0, **more: Any) -> Attempt:
    """A ClientHello for `names`, in segments of `cut` bytes, with `filling` bytes of key shares; then the token."""
    share = [extension(KEY_SHARE, bytes(filling))] if filling else []
    said = hello(*(sni.encode() for sni in names), before=share) if names else without_sni()
    return _attempt(name, "tcp", TCP, [host, port], (*_pieces(said, cut), token(name)), more)


def without_sni() -> bytes:
    return records(message(body([])))


def http(name: str, host: str, *hosts: str, target: str = "/", port: int = HTTP, **more: Any) -> Attempt:
    lines = [f"GET {target} HTTP/1.1", *(f"Host: {value}" for value in hosts), f"X-Token: <{name}>", "", ""]
    return _attempt(name, "tcp", TCP, [host, port], ("\r\n".join(lines).encode(),), more)


def udp(name: str, host: str, port: int, *pieces: bytes, **more: Any) -> Attempt:
    return _attempt(name, "udp", UDP, [host, port], pieces or (token(name),), more)


def quic(name: str, host: str, sni: str | None, version: int = V1, **more: Any) -> Attempt:
    """A QUIC Initial for `sni`. It is encrypted, so its connection id (8 bytes) has to be the token."""
    mark = name.encode().ljust(8, b"_")[:8]
    text = hello(sni.encode())[5:] if sni is not None else without_sni()[5:]
    datagram = initial(crypto(0, text), version=version, destination=mark)
    attempt = _attempt(name, "udp", UDP, [host, TLS], (datagram,), more)
    attempt.token = mark
    return attempt


def ping(name: str, host: str) -> Attempt:
    return _attempt(name, "ping", ICMP, [host], (token(name),), {})


def dns(name: str, server: str, *messages: bytes, transport: str = "udp", find: bytes = b"", **more: Any) -> Attempt:
    """Queries; `find` is what must not be seen of them, if the fate is not `asked`."""
    protocol = UDP if transport == "udp" else TCP
    attempt = _attempt(name, "dns", protocol, [server, 53], messages, {"transport": transport, **more})
    attempt.token = find or name.encode()
    return attempt


def resolve(host: str, family: int = 4, name: str = "") -> Attempt:
    return _attempt(name or f"resolve {host}", "resolve", UDP, [host], (), {"family": family}).asked()


def _attempt(
    name: str, do: str, protocol: int, to: list[Any], pieces: Sequence[bytes], more: dict[str, Any]
) -> Attempt:
    order = {"name": name, "do": do, "to": to, "pieces": [piece.hex() for piece in pieces], **more}
    return Attempt(name, order, token(name), protocol)


def _pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)] if size else [data]


def question(*labels: bytes | str, qtype: int = 1, count: int = 1, extra: bytes = b"", records: int = 0) -> bytes:
    """A query for a name of these labels, which may be wrong in any way; `count` questions are claimed."""
    octets = [label.encode() if isinstance(label, str) else label for label in labels]
    name = b"".join(bytes((len(label) & 0xFF,)) + label for label in octets) + b"\0"
    head = b"\x12\x34\x01\x00" + count.to_bytes(2, "big") + bytes(4) + records.to_bytes(2, "big")
    return head + (name + qtype.to_bytes(2, "big") + b"\0\1") * max(count, 1) + extra


def named(name: str, **more: Any) -> bytes:
    return question(*name.split("."), **more)


# --- trying


@dataclass
class Outcome:
    """`said`: what the command saw, by attempt. `packets`: what arrived at the Internet."""

    attempts: list[Attempt]
    said: dict[str, Any]
    result: Result
    packets: list[Packet]
    expected: set[Endpoint] = field(default_factory=set)  # besides those of the attempts, the run's resolver

    def endpoints(self) -> set[Endpoint]:
        return {(p.protocol, p.address, p.port) for p in self.packets}

    def violations(self) -> set[tuple[str, str, int | None]]:
        told = self.result.events_of("policy_violation")
        return {(v["reason_code"], str(ip_address(v["remote_ip"])), v["remote_port"]) for v in told}

    def check(self) -> None:
        found = [*self._wrong_tokens(), *self._unexpected_packets(), *self._untold(), *self._too_well_answered()]
        assert not found, "\n".join([*found, json.dumps(self.said), self.result.told()])
        assert "internal error" not in self.result.stderr, self.result.told()
        assert "Traceback" not in self.result.stderr, self.result.told()

    def _wrong_tokens(self) -> Iterable[str]:
        seen = payload(self.packets)
        for attempt in self.attempts:
            if attempt.fate != "asked" and (attempt.token in seen) != (attempt.fate == "passes"):
                yield f"{attempt.name}: its payload {'has' if attempt.token in seen else 'has not'} arrived"

    def _unexpected_packets(self) -> Iterable[str]:
        allowed = {_plain(a.endpoint) for a in self.attempts if a.fate in ("passes", "mute")} | self.expected
        for endpoint in sorted(self.endpoints() - allowed):
            yield f"{endpoint}: something arrived"

    def _untold(self) -> Iterable[str]:
        told = self.violations()
        for attempt in self.attempts:
            if attempt.logged is not None:
                address, port = str(ip_address(attempt.logged[0])), attempt.logged[1]
                if (attempt.code, address, port) not in told:
                    others = [reason for reason in told if reason[1] == address]
                    yield f"{attempt.name}: no {attempt.code} for {address}, {port}: {others}"

    def _too_well_answered(self) -> Iterable[str]:
        for attempt in self.attempts:
            said = self.said.get(attempt.name)
            if attempt.order["do"] != "dns" and attempt.fate not in ("asked", "passes") and said == "reply":
                yield f"{attempt.name}: it got a reply"


def _plain(endpoint: Endpoint) -> Endpoint:
    protocol, host, port = endpoint
    try:
        return protocol, str(ip_address(host)), port
    except ValueError:
        return endpoint


def attack(
    internet: Internet, flags: Sequence[str], attempts: Sequence[Attempt], user: str = "ordinary", resolver: int = 53
) -> Outcome:
    """Try them all in one run. `resolver` is the port on the server where the run's resolver listens."""
    orders = json.dumps([attempt.order for attempt in attempts]).encode()
    with Wiretap(internet.server, "to-laptop") as tap:
        r = internet.caller(user).childflow(*internet.client("attempts"), flags=flags, stdin=orders, timeout=60)
        packets = tap.packets(internet.laptop, internet.server_ip(4))
    asked = {(protocol, internet.server_ip(4), resolver) for protocol in (UDP, TCP)}
    return Outcome(list(attempts), r.json(), r, packets, asked)


@contextmanager
def listening_at_home(internet: Internet) -> Iterator[Callable[[], list[str]]]:
    """The lab's servers on the laptop itself, loopback included, which no wiretap sees; yields what reached them."""
    folder = own_directory(f"laptop-{internet.laptop.place.net}", "root")
    (folder / "witness.jsonl").unlink(missing_ok=True)
    argv = [sys.executable, "-m", "tests.lab.serve", str(folder)]
    with start(argv, internet.laptop.place, "root", cwd=PROJECT, env=environment("root", SYSTEM_PATH)) as running:
        running.says("ready")
        with in_network(internet.laptop, lambda: socket.create_connection(("127.0.0.1", ECHO), 5)) as sock:
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
        ours = (folder / "witness.jsonl").read_text()
        assert ours, "it would not be seen"
        yield lambda: (folder / "witness.jsonl").read_text().removeprefix(ours).splitlines()


def raw(
    internet: Internet,
    flags: Sequence[str],
    frames: Sequence[bytes],
    before: Sequence[Attempt] = (),
    pause_s: float = 0.005,
) -> Outcome:
    """Put `frames` into a sandbox whose command sleeps, after the attempts `before`, and see what arrives."""
    caller = internet.caller("ordinary")
    with Wiretap(internet.server, "to-laptop") as tap, sleeping(caller, flags) as (running, net):
        if before:
            inside = replace(caller, place=Place(net, caller.place.mounts))
            inside.direct(*internet.client("attempts"), stdin=json.dumps([one.order for one in before]).encode()).ok()
        sent = inject(running, frames, pause_s)
        running.signal(15)
        r = running.wait(20)
        packets = tap.packets(internet.laptop, internet.server_ip(4))
    assert not any(sent.errors), f"the sandbox's kernel refused some: {sent.errors}"
    return Outcome(list(before), {}, r, packets)
