"""Policy: everything that a verdict depends on, in one place: the rules, and what names were seen to lead where.

Not here: the rules' syntax (`rules.py`), the judgement (`verdict.py`), who asks (`services/admission.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from childflow.netstack.events import Denial
from childflow.policy.names import Names
from childflow.policy.rules import NO_RULES, Rules, compile_rules
from childflow.policy.verdict import Action, Ask, Verdict, judge
from childflow.policy.virtual import is_virtual
from childflow.settings import ADDRESSES, Addresses, Settings

if TYPE_CHECKING:
    from childflow.policy.virtual import VirtualNames

NOBODY = Verdict(
    Action.DENY,
    Denial.UNREACHABLE_HOST,
    reason_code="martian",
    sentence="the address stands for a name, and only TCP and UDP can be carried there (--dns-mode virtual)",
)


class Policy(NamedTuple):
    """`link`: the addresses of the TAP's two ends; `clock` gives seconds; `virtual` is None without virtual names."""

    rules: Rules
    link: Addresses
    names: Names
    virtual: VirtualNames | None
    clock: Callable[[], float]

    def ask(self, protocol: int, remote: bytes, port: int) -> Ask:
        """The question about `remote`, with the names that led there where a rule may ask for them."""
        if not self.rules.has_domain_rules:
            return Ask(protocol, remote, port)
        now = self.clock()
        return Ask(protocol, remote, port, self.names.of(remote, now), self.names.aliases_of(remote, now))

    def judge(self, protocol: int, remote: bytes, port: int) -> Verdict:
        """The verdict on `remote` (packed) itself, not on a name that it stands for; `port` 0 where there is none."""
        if self.virtual is not None and is_virtual(remote):
            return NOBODY
        return judge(self.ask(protocol, remote, port), self.link, self.rules)


def without_rules(link: Addresses = ADDRESSES, clock: Callable[[], float] = monotonic) -> Policy:
    """The policy that lets out whatever can leave at all."""
    return Policy(NO_RULES, link, Names(), None, clock)


def policy_of(settings: Settings, clock: Callable[[], float], host_addresses: Iterable[bytes] = ()) -> Policy:
    """The policy that `settings` ask for; `host_addresses` are the host's own. UsageError for a bad rule."""
    rules = compile_rules(settings, host_addresses)
    return Policy(rules, ADDRESSES, Names(), _virtual() if settings.virtual_names else None, clock)


def _virtual() -> VirtualNames:
    from childflow.policy.virtual import VirtualNames

    return VirtualNames()
