"""What the policy says about DNS: asked once before a query goes anywhere, and once about the answer that came.

    rule    nothing (relay it), an answer of our own (blocked, virtual), or another server than the run's to ask
    take    what the child gets of an answer: as it came, without ECH keys, empty, or a virtual address in its place

A query to another server than the gateway goes to `--dns` if that is set, else to that server if the rules let UDP or
TCP port 53 of it through. What such a server says is passed on and teaches nothing: the child chose it, and could have
it say that an allowed name has any address that it likes.

Virtual names. A and AAAA of an allowed name are answered without asking anybody, except without a proxy for names that
only a search list makes (`db.corp.example` for `db`) and for names of one label: there a resolver is asked whether the
name is there, or every name would be found under the first search domain. Under a proxy nobody can be asked; the child
has no search list then (`sandbox/resolver.py`).

Invariants: without a rule, virtual names or a lack of IPv6, `rule` and `take` return before they look at a name.
            Names are learned from the run's own resolvers only, for the asked name along its own chain.
            What can't be read is not passed on while rules about names are in force.
Not here:   the judgement (`policy/verdict.py`), messages (`dns_answer.py`, `dns_reply.py`), who asks (`dns_udp.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from socket import inet_pton
from typing import TYPE_CHECKING, NamedTuple

from childflow.policy.policy import NOBODY
from childflow.policy.verdict import TCP, UDP, Action, Ask, Verdict, address_text, judge, judge_name, reached, refusal
from childflow.policy.virtual import is_virtual
from childflow.services import dns, dns_answer, dns_reply
from childflow.services.resolvers import Resolver, parse_resolver
from childflow.settings import DNS_PORT, Addresses

if TYPE_CHECKING:
    from childflow.policy.names import Names
    from childflow.policy.rules import Rules
    from childflow.policy.virtual import VirtualNames
    from childflow.record.null import NullRecorder

MAX_ALLOWED = 4096
_ADDRESS_TYPES = {dns.TYPE_A: 4, dns.TYPE_AAAA: 6}
_BINDINGS = frozenset((dns_answer.TYPE_SVCB, dns_answer.TYPE_HTTPS))
_WITH_BINDINGS = _BINDINGS | {255}  # ANY
_PROTOCOLS = {"udp": UDP, "tcp": TCP}
_NAME_DENIED = frozenset(("deny_domain", "deny_domain_exact", "metadata"))


class Asked(NamedTuple):
    """A query and how it came: `protocol` udp or tcp, `message` its bytes, `remote` whom the child asked."""

    protocol: str
    message: bytes
    query: dns.Query
    remote: bytes

    @property
    def server(self) -> str:
        """The server that the child chose, as the flow log writes it."""
        return endpoint_text(self.remote)


class Ruling(NamedTuple):
    """What becomes of a query that is not simply relayed.

    `reply`: the child gets this at once, and nobody is asked. Else `server` is asked, None for the run's resolvers;
    `exists_only`: an answer with addresses gets a virtual one in their place.
    """

    reply: bytes | None = None
    mode: str = "synthetic_empty"
    server: Resolver | None = None
    exists_only: bool = False


class Taken(NamedTuple):
    """What the child gets of an answer, and how the flow log calls it."""

    answer: bytes
    mode: str = "relayed"


class NamePolicy:
    """Judges the queries of one run, and the answers to them."""

    def __init__(
        self,
        rules: Rules,
        names: Names,
        recorder: NullRecorder,
        link: Addresses,
        clock: Callable[[], float],
        *,
        server: Resolver | None = None,
        virtual: VirtualNames | None = None,
        has_ipv6: bool = True,
        search: Callable[[], tuple[str, ...]] = tuple,
    ) -> None:
        """`server`: `--dns`; `search`: the host's search domains; `has_ipv6`: the host has a way out for IPv6."""
        self._rules = rules
        self._names = names
        self._recorder = recorder
        self._link = link
        self._clock = clock
        self._server = server
        self._virtual = virtual
        self.has_ipv6 = has_ipv6
        self._search = search
        self._gateways = frozenset((link.gateway4, link.gateway6))
        self._by_name = rules.has_domain_rules or bool(rules.metadata_names)
        self._plain = not (self._by_name or rules.default_deny or rules.offline or virtual is not None)
        self.reads_answers = self._by_name or virtual is not None or not has_ipv6
        self._allowed: set[str] = set()  # names that the gateway was asked for, and that the rules let through
        self._told_full = False

    # Before anything is sent.

    def rule(self, asked: Asked) -> Ruling | None:
        """What to do about a query. None: relay it as it is."""
        at_gateway = asked.remote in self._gateways
        if at_gateway and self._plain:
            return None
        name = dns.name_text(asked.query.question)
        if not at_gateway or name not in self._allowed:
            resolver = self._resolver(asked.remote, at_gateway)
            verdict = judge_name(name, None, self._rules, resolver=resolver, protocol=_PROTOCOLS[asked.protocol])
            if verdict.action is not Action.ALLOW:
                return self._blocked(asked, verdict)
            if at_gateway:
                self._remember(name)
        if self._virtual is not None:
            ruling = self._virtually(asked, name)
            if ruling is not None:
                return ruling
        return None if at_gateway or self._server is not None else self._elsewhere(asked)

    def _remember(self, name: str) -> None:
        """Rules don't change in a run: what they allow once they allow again, and programs ask again."""
        if len(self._allowed) >= MAX_ALLOWED:
            self._allowed.clear()
        self._allowed.add(name)

    def _resolver(self, remote: bytes, at_gateway: bool) -> bytes | None:
        """Whom an allow-cidr would have to cover: `--dns`, or the server that the child chose."""
        if self._server is not None:
            return inet_pton(self._server.family, self._server.sockaddr[0])
        return None if at_gateway else remote

    def _elsewhere(self, asked: Asked) -> Ruling:
        now, ask = self._clock(), Ask(_PROTOCOLS[asked.protocol], asked.remote, DNS_PORT)
        if self._rules.has_domain_rules:
            ask = ask._replace(names=self._names.of(ask.remote, now), aliases=self._names.aliases_of(ask.remote, now))
        verdict = judge(ask, self._link, self._rules)
        if self._virtual is not None and is_virtual(asked.remote):
            verdict = NOBODY
        elif verdict.action is Action.ALLOW and self._rules.proxied:
            verdict = _past_proxy(asked, self._rules)
        if verdict.action is not Action.ALLOW:
            return self._blocked(asked, verdict)
        return Ruling(server=parse_resolver(address_text(reached(asked.remote))))

    def _blocked(self, asked: Asked, verdict: Verdict) -> Ruling:
        self._recorder.dns_blocked(asked.protocol, asked.remote, asked.query, verdict)
        return Ruling(dns_reply.blocked(asked.message, asked.query.question, verdict.sentence))

    # Virtual names.

    def _virtually(self, asked: Asked, name: str) -> Ruling | None:
        query, message = asked.query, asked.message
        if query.qtype in _ADDRESS_TYPES:
            if not self._rules.proxied and self._needs_proof(name):
                return Ruling(exists_only=True)
            return Ruling(*self._virtual_answer(asked, name))
        if query.qtype in _BINDINGS:
            return Ruling(dns_reply.empty(message, query.question))
        owner = self._pointed(name) if query.qtype == dns_reply.TYPE_PTR else None
        if owner is not None:
            return Ruling(dns_reply.pointer(message, query.question, owner), "virtual")
        return Ruling(dns_reply.empty(message, query.question)) if self._rules.proxied else None

    def _needs_proof(self, name: str) -> bool:
        return "." not in name or any(name.endswith(f".{domain}") for domain in self._search())

    def _virtual_answer(self, asked: Asked, name: str) -> Taken:
        assert self._virtual is not None
        family = _ADDRESS_TYPES[asked.query.qtype]
        if family == 6 and not self.has_ipv6:
            return _empty(asked, dns.NOERROR)
        address = self._virtual.address_of(name, family)
        if address is None:
            self._tell_full()
            return _empty(asked, dns.SERVFAIL)
        return Taken(dns_reply.addresses(asked.message, asked.query.question, [address]), "virtual")

    def _tell_full(self) -> None:
        if not self._told_full:
            self._told_full = True
            self._recorder.warn("no address is left for another name (--dns-mode virtual); new names get SERVFAIL")

    def _pointed(self, name: str) -> str | None:
        """The virtual name whose address `name` (`….in-addr.arpa`, `….ip6.arpa`) points at."""
        assert self._virtual is not None
        address = _arpa_address(name)
        return self._virtual.name_of(address) if address is not None else None

    # What came back.

    def take(self, asked: Asked, ruling: Ruling | None, answer: bytes) -> Taken:
        """What the child gets of `answer`, which may be a failure; `ruling` is what `rule` said of the query."""
        proof = ruling is not None and ruling.exists_only
        if self._by_name or proof:
            chain = dns_answer.read_chain(answer, asked.query.question)
            if chain is None:
                return _empty(asked, dns.SERVFAIL)
            denied = self._denied_alias(asked, chain)
            if denied is not None:
                return denied
            if proof:
                return self._proven(asked, chain, answer)
            if chain.addresses and (ruling is None or ruling.server is None):
                name = dns.name_text(asked.query.question)
                self._names.learn(name, chain.names, chain.addresses, self._clock())
        if asked.query.qtype == dns.TYPE_AAAA and not self.has_ipv6:
            return _empty(asked, dns.rcode(answer))
        if asked.query.qtype in _WITH_BINDINGS and self._rules.has_domain_rules and not self._rules.keep_ech:
            return _without_ech(asked, answer)
        return Taken(answer)

    def _denied_alias(self, asked: Asked, chain: dns_answer.Chain) -> Taken | None:
        """The blocked answer, where a name on the way is denied. Only the asked name has to be allowed."""
        for alias in chain.names:
            verdict = judge_name(alias, None, self._rules)
            if verdict.reason_code in _NAME_DENIED:
                name = dns.name_text(asked.query.question)
                blocked = self._blocked(asked, verdict._replace(sentence=f"{name} leads to {verdict.sentence}"))
                assert blocked.reply is not None
                return Taken(blocked.reply, blocked.mode)
        return None

    def _proven(self, asked: Asked, chain: dns_answer.Chain, answer: bytes) -> Taken:
        """The virtual address of a name that is there; of one that has no address, what the resolver said."""
        if not chain.addresses:
            return _empty(asked, dns.rcode(answer))
        return self._virtual_answer(asked, dns.name_text(asked.query.question))


def endpoint_text(address: bytes) -> str:
    """Port 53 of `address`, as the flow log writes it."""
    text = address_text(address)
    return f"[{text}]:{DNS_PORT}" if len(address) == 16 else f"{text}:{DNS_PORT}"


def _past_proxy(asked: Asked, rules: Rules) -> Verdict:
    """A proxy may carry TCP to that server; it is we who would ask, and that would go round the proxy."""
    control = "proxy-only" if rules.proxy_only else "proxy"
    sentence = f"DNS of {address_text(asked.remote)} can't be asked through the proxy (--{control})"
    return Verdict(
        Action.DENY,
        refusal(_PROTOCOLS[asked.protocol]),
        reason_code="proxy_only",
        control=control,
        sentence=sentence,
    )


def _empty(asked: Asked, code: int) -> Taken:
    return Taken(dns_reply.empty(asked.message, asked.query.question, code), "synthetic_empty")


def _without_ech(asked: Asked, answer: bytes) -> Taken:
    stripped = dns_answer.without_ech(answer, asked.query.question)
    if stripped is None:
        return _empty(asked, dns.SERVFAIL)
    if stripped is not answer and asked.protocol == "udp":
        stripped = dns_reply.fitted(stripped, asked.message, asked.query.question)
    return Taken(stripped)


def _arpa_address(name: str) -> bytes | None:
    """The address that a name of the reverse tree stands for (RFC 1035 3.5, RFC 3596 2.5)."""
    labels = name.split(".")
    try:
        if name.endswith(".in-addr.arpa") and len(labels) == 6:
            return bytes(int(label) for label in labels[3::-1])
        if name.endswith(".ip6.arpa") and len(labels) == 34:
            return bytes.fromhex("".join(labels[31::-1]))
    except ValueError:
        pass
    return None
