"""Verdicts: may this child reach that address?

`judge` is pure: a question and the link's addresses in, a verdict with its reason out. It runs as a list of steps in
the documented order; the first step that returns a verdict decides, and what no step decides is allowed. The policy's
own steps (offline, metadata, private, CIDRs, domains, default) belong between `_own_link` and the end.

Invariants: an address is judged by what it reaches: an IPv4 address in IPv6 clothes is the IPv4 address.
            Nothing here parses text or imports `ipaddress`: addresses are packed bytes, 4 or 16 of them.
Not here:   sockets, clocks, the stack (`services/switchboard.py` carries a verdict out).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from socket import AF_INET, AF_INET6, inet_ntop
from typing import NamedTuple

from childflow.netstack.events import Denial
from childflow.settings import ADDRESSES, DNS_PORT, Addresses

ICMP4 = 1
TCP = 6
UDP = 17
ICMP6 = 58


class Action(Enum):
    """What the switchboard does with a flow: let it out, refuse it, or serve it inside childflow (DNS, ping)."""

    ALLOW = "allow"
    DENY = "deny"
    SERVE = "serve"


class Ask(NamedTuple):
    """One question: IP protocol number, packed address (4 or 16 bytes) and port (0 for ICMP) of the far end."""

    protocol: int
    remote: bytes
    port: int


class Verdict(NamedTuple):
    """The answer and why. `reason_code`, `control`, `matched_*` and `sentence` are the flow log's; `rule` allowed it.

    A denial without a `reason_code` is no matter of policy: nothing listens there.
    """

    action: Action
    denial: Denial = Denial.SILENT
    reason_code: str | None = None
    control: str | None = None
    matched_cidr: str | None = None
    matched_domain: str | None = None
    sentence: str = ""
    rule: str | None = None


ALLOWED = Verdict(Action.ALLOW)
SERVED = Verdict(Action.SERVE)

_ZERO12 = bytes(12)
_MAPPED = bytes(10) + b"\xff\xff"
_TRANSLATED = bytes(8) + b"\xff\xff\0\0"
_NAT64 = bytes.fromhex("0064ff9b") + bytes(8)
_NAT64_LOCAL = bytes.fromhex("0064ff9b0001")
_6TO4 = b"\x20\x02"
_LOOPBACK6 = bytes(15) + b"\x01"
_UNSPECIFIED6 = bytes(16)


def reached(address: bytes) -> bytes:
    """The address that a packet to `address` ends at: IPv4 where an IPv6 form only carries one, else unchanged.

    Forms: IPv4-mapped, IPv4-compatible and IPv4-translated (RFC 4291, 2765), 6to4 (RFC 3056), NAT64 (RFC 6052, 8215).
    """
    if len(address) == 4:
        return address
    head = address[:12]
    if head in (_MAPPED, _TRANSLATED, _NAT64):
        return address[12:]
    if head == _ZERO12:
        return address if address in (_UNSPECIFIED6, _LOOPBACK6) else address[12:]
    if address[:2] == _6TO4:
        return address[2:6]
    if address[:6] == _NAT64_LOCAL:
        return _local_nat64(address)
    return address


def _local_nat64(address: bytes) -> bytes:
    """The IPv4 address in RFC 8215's prefix, whose length is the site's choice: a zero tail tells /48 from /96."""
    return address[6:8] + address[9:11] if not any(address[11:]) else address[12:]


def martian_kind(address: bytes) -> str | None:
    """Why `address` (as `reached` gives it) must never leave: a word for the sentence, or None."""
    return _martian4(address) if len(address) == 4 else _martian6(address)


def _martian4(address: bytes) -> str | None:
    first = address[0]
    if first == 127:
        return "loopback"
    if first == 0:
        return "unspecified"
    if 224 <= first <= 239:
        return "multicast"
    return "broadcast" if address == b"\xff\xff\xff\xff" else None


def _martian6(address: bytes) -> str | None:
    first = address[0]
    if first == 0xFF:
        return "multicast"
    if first == 0xFE and address[1] & 0xC0 == 0x80:
        return "link-local"
    if first == 0 and address == _LOOPBACK6:
        return "loopback"
    return "unspecified" if first == 0 and address == _UNSPECIFIED6 else None


def address_text(address: bytes) -> str:
    """`address` (4 or 16 bytes) as people write it."""
    return inet_ntop(AF_INET if len(address) == 4 else AF_INET6, address)


_ARTICLE = {"unspecified": "an"}
# RFC 1122 3.2.2: no error is sent about a datagram to a broadcast or multicast address.
_UNANSWERED = frozenset(("multicast", "broadcast"))


def refusal(protocol: int) -> Denial:
    """How a blocked flow of `protocol` ends for the child: a reset for TCP, else administratively prohibited."""
    return Denial.RESET if protocol == TCP else Denial.PROHIBITED


def _martian(ask: Ask, end: bytes, link: Addresses) -> Verdict | None:
    kind = martian_kind(end)
    if kind is None:
        return None
    where = address_text(ask.remote) + ("" if end == ask.remote else f" (it reaches {address_text(end)})")
    return Verdict(
        Action.DENY,
        Denial.SILENT if kind in _UNANSWERED else refusal(ask.protocol),
        reason_code="martian",
        sentence=f"{where} is {_ARTICLE.get(kind, 'a')} {kind} address; those never leave",
    )


def _gateway(ask: Ask, end: bytes, link: Addresses) -> Verdict | None:
    """The gateway answers DNS and ping, nothing else; in a disguise (IPv4-mapped, ...) it answers nothing at all."""
    if end not in (link.gateway4, link.gateway6):
        return None
    plain = end == ask.remote
    if plain and (ask.protocol in (ICMP4, ICMP6) or ask.port == DNS_PORT):
        return SERVED
    how = {TCP: Denial.RESET, UDP: Denial.PORT}.get(ask.protocol, Denial.PROHIBITED)
    return Verdict(Action.DENY, how, sentence="the gateway answers only DNS and ping")


def _own_link(ask: Ask, end: bytes, link: Addresses) -> Verdict | None:
    """Nobody but the gateway lives on the TAP, and its last address is the broadcast. On a host with 464XLAT (RFC 7335)
    the same IPv4 addresses are the host itself. The child gets what a link without that neighbour would give."""
    child, bits = (link.child4, link.prefix4) if len(end) == 4 else (link.child6, link.prefix6)
    whole, rest = bits >> 3, bits & 7
    if end[:whole] != child[:whole] or (rest and (end[whole] ^ child[whole]) >> (8 - rest)):
        return None
    where = address_text(ask.remote)
    return Verdict(
        Action.DENY,
        Denial.UNREACHABLE_HOST,
        reason_code="martian",
        sentence=f"{where} is on childflow's own link, where only the gateway lives",
    )


_STEPS: tuple[Callable[[Ask, bytes, Addresses], Verdict | None], ...] = (_martian, _gateway, _own_link)


def judge(ask: Ask, link: Addresses = ADDRESSES) -> Verdict:
    """The verdict on `ask`; `link` tells the gateway's addresses. Never raises."""
    end = reached(ask.remote)
    for step in _STEPS:
        verdict = step(ask, end, link)
        if verdict is not None:
            return verdict
    return ALLOWED
