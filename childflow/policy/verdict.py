"""Verdicts: may this child reach that address, or that name?

`judge` is pure: a question, the link's addresses and the rules in, a verdict with its reason out. It runs as a list of
steps in the documented order; the first step that returns a verdict decides, and what no step decides is allowed.

    judge          an address, with the names that led to it
    judge_name     a name: a DNS query, or a destination that is resolved later (virtual names, a proxy)
    judge_flight   the name that a flow's first bytes bear, against the verdict that let it out

Invariants: an address is judged by what it reaches: an IPv4 address in IPv6 clothes is the IPv4 address.
            An allow rule is asked last, and can't undo what a step before it denied.
            Nothing here parses rules or imports `ipaddress`: addresses are packed bytes, 4 or 16 of them.
Not here:   sockets, clocks, the stack (`services/switchboard.py` carries a verdict out), the rules (`rules.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

from childflow.netstack.events import Denial
from childflow.policy.addresses import address_in_name, address_text, martian_kind, reached, readings
from childflow.policy.rules import NO_RULES, Rules
from childflow.policy.tables import ICMP4, ICMP6, TCP, UDP, NameMatch
from childflow.settings import ADDRESSES, DNS_PORT, Addresses

__all__ = [
    "ALLOWED", "ICMP4", "ICMP6", "SERVED", "TCP", "UDP", "Action", "Ask", "Verdict", "address_text", "judge",
    "judge_flight", "judge_name", "martian_kind", "reached", "refusal",
]  # fmt: skip

QUIC_PORT = 443


class Action(Enum):
    """What the switchboard does with a flow: let it out, refuse it, or serve it inside childflow (DNS, ping)."""

    ALLOW = "allow"
    DENY = "deny"
    SERVE = "serve"


class Ask(NamedTuple):
    """One question: IP protocol number, packed address (4 or 16 bytes) and port (0 for ICMP) of the far end.

    `names` were asked and led to this address; `aliases` stood between them and it (CNAME): those can be denied, and
    allow nothing.
    """

    protocol: int
    remote: bytes
    port: int
    names: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()


class Verdict(NamedTuple):
    """The answer and why. `reason_code`, `control`, `matched_*` and `sentence` are the flow log's; `rule` allowed it.

    A denial without a `reason_code` is no matter of policy: nothing listens there. `evidence` is what the verdict rests
    on (address, dns, sni, host, quic, virtual). `inspect`: nothing of the flow leaves before `judge_flight` has seen
    its first bytes.
    """

    action: Action
    denial: Denial = Denial.SILENT
    reason_code: str | None = None
    control: str | None = None
    matched_cidr: str | None = None
    matched_domain: str | None = None
    sentence: str = ""
    rule: str | None = None
    evidence: str = "address"
    inspect: bool = False


ALLOWED = Verdict(Action.ALLOW)
SERVED = Verdict(Action.SERVE)


# ---- what holds without any rule ----

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
    where = _where(ask, end, with_port=False)
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


_LINK_STEPS: tuple[Callable[[Ask, bytes, Addresses], Verdict | None], ...] = (_martian, _gateway, _own_link)


def judge(ask: Ask, link: Addresses = ADDRESSES, rules: Rules = NO_RULES) -> Verdict:
    """The verdict on `ask`; `link` tells the gateway's addresses. Never raises."""
    end = reached(ask.remote)
    verdict = _judge_end(ask, end, link, rules)
    others = readings(ask.remote)
    return verdict if not others or verdict.action is Action.DENY else _judge_others(ask, verdict, others, link, rules)


def _judge_others(ask: Ask, verdict: Verdict, others: tuple[bytes, ...], link: Addresses, rules: Rules) -> Verdict:
    """What an address may reach besides the likeliest. A zero tail makes that one so likely that it is enough to
    allow that."""
    is_clear = not any(ask.remote[11:])
    for other in others:
        found = _judge_end(ask, other, link, rules)
        if found.action is Action.DENY and not (is_clear and found.reason_code == "default_deny"):
            return found
    return verdict


def _judge_end(ask: Ask, end: bytes, link: Addresses, rules: Rules) -> Verdict:
    for step in _LINK_STEPS:
        verdict = step(ask, end, link)
        if verdict is not None:
            return verdict
    return ALLOWED if rules is NO_RULES else _by_rules(ask, end, rules)


# ---- the rules, in the order in which they are asked ----


def _offline(ask: Ask, end: bytes, rules: Rules) -> Verdict | None:
    return _denied(ask, "offline", "offline", "nothing leaves (--offline)") if rules.offline else None


def _past_proxy(ask: Ask, end: bytes, rules: Rules) -> Verdict | None:
    """What a proxy can't carry is refused while there is one: to let it go direct would go round it."""
    if rules.proxied and (ask.protocol == TCP or (ask.protocol == UDP and rules.proxy_takes_udp)):
        return None
    if not rules.proxied and not rules.proxy_only:
        return None
    control = "proxy-only" if rules.proxy_only else "proxy"
    what = {TCP: "TCP", UDP: "UDP"}.get(ask.protocol, "ICMP")
    return _denied(ask, "proxy_only", control, f"{what} can't go through the proxy (--{control})")


def _metadata(ask: Ask, end: bytes, rules: Rules) -> Verdict | None:
    found = rules.metadata.find(end, 0, 0)
    if found is not None:
        sentence = f"{_where(ask, end)} is a cloud's metadata service (--block-metadata)"
        return _denied(ask, "metadata", "block-metadata", sentence, cidr=found)
    return _first_denial(ask, rules.metadata_names.below, "metadata")


def _private(ask: Ask, end: bytes, rules: Rules) -> Verdict | None:
    found = rules.private.find(end, 0, 0)
    if found is None:
        return None
    sentence = f"{_where(ask, end)} is private, in {found} (--block-private)"
    return _denied(ask, "private", "block-private", sentence, cidr=found.partition(",")[0])


def _deny_cidr(ask: Ask, end: bytes, rules: Rules) -> Verdict | None:
    found = rules.deny_cidrs.find(end, ask.protocol, ask.port)
    if found is None:
        return None
    return _denied(ask, "deny_cidr", "deny-cidr", f"{_where(ask, end)} is denied by --deny-cidr {found}", cidr=found)


def _deny_exact(ask: Ask, end: bytes, rules: Rules) -> Verdict | None:
    return _first_denial(ask, rules.deny_exact.exact, "deny_domain_exact") if rules.deny_exact else None


def _deny_below(ask: Ask, end: bytes, rules: Rules) -> Verdict | None:
    return _first_denial(ask, rules.deny_below.below, "deny_domain") if rules.deny_below else None


def _allow_cidr(ask: Ask, end: bytes, rules: Rules) -> Verdict | None:
    found = rules.allow_cidrs.find(end, ask.protocol, ask.port)
    if found is None:
        return None
    inspect = rules.denies_names and _bears_name(ask)
    return Verdict(Action.ALLOW, matched_cidr=found, rule=f"allow-cidr={found}", inspect=inspect)


def _allow_domain(ask: Ask, end: bytes, rules: Rules) -> Verdict | None:
    for name in ask.names:
        found = _allows(rules, name, ask.port)
        if found is not None:
            rule = f"{found.option}={found.text}"
            inspect = (rules.default_deny or rules.denies_names) and _bears_name(ask)
            return Verdict(Action.ALLOW, matched_domain=found.text, rule=rule, evidence="dns", inspect=inspect)
    return None


def _default(ask: Ask, end: bytes, rules: Rules) -> Verdict | None:
    if not rules.default_deny:
        return ALLOWED._replace(inspect=True) if rules.denies_names and _bears_name(ask) else ALLOWED
    names = f" ({', '.join(ask.names[:3])})" if ask.names else ""
    sentence = f"no rule allows {_where(ask, end)}{names} (--default-policy deny)"
    return _denied(ask, "default_deny", "default-policy", sentence)


_RULE_STEPS: tuple[Callable[[Ask, bytes, Rules], Verdict | None], ...] = (
    _offline, _past_proxy, _metadata, _private, _deny_cidr, _deny_exact, _deny_below, _allow_cidr, _allow_domain,
    _default,
)  # fmt: skip


def _by_rules(ask: Ask, end: bytes, rules: Rules) -> Verdict:
    for step in _RULE_STEPS:
        verdict = step(ask, end, rules)
        if verdict is not None:
            return verdict
    return ALLOWED


def _denied(
    ask: Ask, reason_code: str, control: str, sentence: str, cidr: str | None = None, domain: str | None = None
) -> Verdict:
    return Verdict(
        Action.DENY,
        refusal(ask.protocol),
        reason_code=reason_code,
        control=control,
        matched_cidr=cidr,
        matched_domain=domain,
        sentence=sentence,
    )


def _first_denial(ask: Ask, find: Callable[[str, int], NameMatch | None], reason_code: str) -> Verdict | None:
    """The denial of the first name that led to the address, or stood on the way, and that `find` finds a rule for."""
    for name in (*ask.names, *ask.aliases):
        found = find(name, ask.port)
        if found is not None:
            return _denied_name(ask.protocol, name, found, reason_code)
    return None


def _denied_name(protocol: int, name: str, found: NameMatch, reason_code: str) -> Verdict:
    value = "" if found.option in _WITHOUT_VALUE else f" ({found.text})" if found.option in _FILES else f" {found.text}"
    return Verdict(
        Action.DENY,
        refusal(protocol),
        reason_code=reason_code,
        control=found.option,
        matched_domain=found.text,
        sentence=f"{name} is denied by --{found.option}{value}",
    )


_WITHOUT_VALUE = frozenset(("block-metadata",))
_FILES = frozenset(("deny-domain-file",))


def _allows(rules: Rules, name: str, port: int) -> NameMatch | None:
    return rules.allow_exact.exact(name, port) or rules.allow_below.below(name, port)


def _bears_name(ask: Ask) -> bool:
    """The first bytes of such a flow may bear a name: TLS, HTTP, QUIC."""
    return ask.protocol == TCP or (ask.protocol == UDP and ask.port == QUIC_PORT)


def _where(ask: Ask, end: bytes, with_port: bool = True) -> str:
    text = address_text(ask.remote)
    if with_port and ask.port:
        text = f"[{text}]:{ask.port}" if ":" in text else f"{text}:{ask.port}"
    return text if end == ask.remote else f"{text} (it reaches {address_text(end)})"


# ---- names ----


def judge_name(
    name: str, port: int | None, rules: Rules, *, resolver: bytes | None = None, protocol: int = UDP
) -> Verdict:
    """The verdict on a name: as a DNS query (`port` None: allowed if some port of it is), or as a destination.

    `resolver` is who would be asked: under default deny without allowed names, a network rule that covers it allows the
    query. A destination that is an address in text is judged as one. Never raises.
    """
    name = _plain(name)
    ask = Ask(protocol, b"", port or 0, (name,))
    if rules.offline:
        return _denied(ask, "offline", "offline", f"nothing leaves, {name} is not looked up (--offline)")
    if port is None:
        return _query(ask, name, rules, resolver)
    address = address_in_name(name)
    if address is not None:
        ask = ask._replace(remote=address, names=())
        end = reached(address)
        return _martian(ask, end, ADDRESSES) or _by_rules(ask, end, rules)
    return _own_name(ask, name, rules) or _destination(ask, name, rules)


def _plain(name: str) -> str:
    return (name.lower() if name.isascii() else name).removesuffix(".") or "."


_LOCAL = "localhost"  # and what is below it (RFC 6761, 6.3)


def _own_name(ask: Ask, name: str, rules: Rules) -> Verdict | None:
    if _LOCAL not in (name, name.rpartition(".")[2]):
        return None
    sentence = f"{name} is a loopback name; those never leave"
    return Verdict(Action.DENY, refusal(ask.protocol), reason_code="martian", sentence=sentence)


def _destination(ask: Ask, name: str, rules: Rules) -> Verdict:
    """By the same steps; those about addresses have nothing to say here. Without a proxy the name is resolved here, and
    its addresses are judged then: one that may lead into an allowed network is let through until then."""
    for step in (_past_proxy, _deny_metadata_name, _deny_exact, _deny_below, _allow_domain):
        verdict = step(ask, b"", rules)
        if verdict is not None:
            return verdict._replace(evidence="virtual")
    if not rules.default_deny or (rules.allow_cidrs and not rules.proxied):
        return ALLOWED._replace(evidence="virtual", inspect=rules.denies_names and _bears_name(ask))
    return _denied(ask, "default_deny", "default-policy", f"no rule allows {name}:{ask.port} (--default-policy deny)")


def _deny_metadata_name(ask: Ask, end: bytes, rules: Rules) -> Verdict | None:
    return _first_denial(ask, rules.metadata_names.below, "metadata")


def _query(ask: Ask, name: str, rules: Rules, resolver: bytes | None) -> Verdict:
    """A rule for all ports denies the query; what is left of the allowed ports after the denied ones allows it."""
    for step in (_deny_metadata_name, _deny_exact, _deny_below):
        verdict = step(ask, b"", rules)
        if verdict is not None:
            return verdict
    if not rules.default_deny:
        return ALLOWED
    for port in sorted(rules.allow_exact.ports_exact(name) | rules.allow_below.ports_below(name)):
        if _deny_exact(ask._replace(port=port), b"", rules) or _deny_below(ask._replace(port=port), b"", rules):
            continue
        found = _allows(rules, name, port)
        assert found is not None
        return Verdict(Action.ALLOW, matched_domain=found.text, rule=f"{found.option}={found.text}", evidence="dns")
    if resolver is not None and not rules.allows_names:
        verdict = _allow_cidr(Ask(ask.protocol, resolver, DNS_PORT), reached(resolver), rules)
        if verdict is not None:
            return verdict._replace(inspect=False)
    return _denied(ask, "default_deny", "default-policy", f"no rule allows {name} (--default-policy deny)")


# ---- the first flight ----

_NO_NAME = frozenset(("none", "sni", "host", "quic"))  # sources that may come without a name


def judge_flight(ask: Ask, before: Verdict, name: str | None, source: str, rules: Rules) -> Verdict:
    """The verdict on a flow that `before` let out, now that its first bytes were read.

    `name` is what they bear, in `source` (sni, host, quic, or none). Without a name the flow passes on what is known
    already. Any other `source` means that they should have borne a name which could not be read. Never raises.
    """
    if before.action is not Action.ALLOW:
        return before
    if source not in _NO_NAME:
        return _unreadable(ask)
    if name is None or source == "none":
        return before._replace(inspect=False)
    name = _plain(name)
    borne = ask._replace(names=(name,), aliases=())
    for step in (_deny_metadata_name, _deny_exact, _deny_below):
        verdict = step(borne, b"", rules)
        if verdict is not None:
            return verdict._replace(evidence=source)
    if before.matched_domain is None or not rules.default_deny:  # any name that is not denied is as good
        return before._replace(evidence=source, inspect=False)
    found = _allows(rules, name, ask.port)
    if found is None or name not in ask.names:
        return _mismatch(ask, before, name, source)
    rule = f"{found.option}={found.text}"
    return before._replace(matched_domain=found.text, rule=rule, evidence=source, inspect=False)


_BEARERS = {"sni": "TLS client hello", "host": "HTTP request", "quic": "QUIC Initial"}


def _mismatch(ask: Ask, before: Verdict, name: str, source: str) -> Verdict:
    led = ", ".join(ask.names[:3])
    why = "no rule allows it" if name in ask.names else f"the address was reached by {led}"
    return Verdict(
        Action.DENY,
        refusal(ask.protocol),
        reason_code="sni_mismatch",
        control=(before.rule or "").partition("=")[0] or None,
        matched_domain=before.matched_domain,
        sentence=f"the {_BEARERS[source]} asks for {name}, but {why}",
        evidence=source,
    )


def _unreadable(ask: Ask) -> Verdict:
    if ask.protocol == UDP:
        reason_code, what = "quic_unreadable", "the name in this QUIC Initial can't be read; clients fall back to TCP"
    else:
        reason_code, what = "sni_mismatch", "the name in the first bytes of this connection can't be read"
    return Verdict(Action.DENY, refusal(ask.protocol), reason_code=reason_code, sentence=what)
