"""Rules: what the settings say about destinations, compiled once into tables.

`compile_rules` is the only way from texts to `Rules`; a bad rule is a UsageError before the command runs.

Invariants: nothing here changes after it was made. Without a rule there is one value, NO_RULES, and the modules that
            read rules are not imported.
Not here:   the syntax (`rule_text.py`), the order in which rules are asked (`verdict.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from childflow.policy.tables import NameTable, Networks

if TYPE_CHECKING:
    from childflow.settings import Settings


class Rules(NamedTuple):
    """All that a verdict asks for.

    `private` are the networks of --block-private, the host's own addresses among them; `metadata` and `metadata_names`
    the addresses and names of --block-metadata; each is empty without its option. `proxied`: a proxy is set;
    `proxy_takes_udp`: it is one that carries datagrams.
    """

    offline: bool = False
    proxied: bool = False
    proxy_only: bool = False
    proxy_takes_udp: bool = False
    metadata: Networks = Networks()
    metadata_names: NameTable = NameTable()
    private: Networks = Networks()
    deny_cidrs: Networks = Networks()
    deny_exact: NameTable = NameTable()
    deny_below: NameTable = NameTable()
    allow_cidrs: Networks = Networks()
    allow_exact: NameTable = NameTable()
    allow_below: NameTable = NameTable()
    default_deny: bool = False
    keep_ech: bool = False
    has_ip_rules: bool = False
    denies_names: bool = False  # a name can be denied whatever led to its address
    allows_names: bool = False

    @property
    def has_domain_rules(self) -> bool:
        """Names matter: queries are judged, and first flights are read."""
        return self.denies_names or self.allows_names


NO_RULES = Rules()


def compile_rules(settings: Settings, host_addresses: Iterable[bytes] = ()) -> Rules:
    """The rules of `settings`; `host_addresses` are the host's own, private ones. UsageError for a bad rule."""
    if not _any_rule(settings):
        return NO_RULES
    from childflow.policy import rule_text, special

    private = special.private_networks(host_addresses) if settings.block_private else Networks()
    metadata, metadata_names = special.metadata() if settings.block_metadata else (Networks(), NameTable())
    deny_cidrs = rule_text.networks("deny-cidr", settings.deny_cidrs)
    allow_cidrs = rule_text.networks("allow-cidr", settings.allow_cidrs)
    deny_exact = rule_text.names("deny-domain-exact", settings.deny_domains_exact)
    deny_below = rule_text.names("deny-domain", settings.deny_domains, settings.deny_domain_files)
    allow_exact = rule_text.names("allow-domain-exact", settings.allow_domains_exact)
    allow_below = rule_text.names("allow-domain", settings.allow_domains, settings.allow_domain_files)
    return Rules(
        offline=settings.offline,
        proxied=settings.proxy is not None,
        proxy_only=settings.proxy_only,
        proxy_takes_udp=(settings.proxy or "").lower().startswith("socks5"),
        metadata=metadata,
        metadata_names=metadata_names,
        private=private,
        deny_cidrs=deny_cidrs,
        deny_exact=deny_exact,
        deny_below=deny_below,
        allow_cidrs=allow_cidrs,
        allow_exact=allow_exact,
        allow_below=allow_below,
        default_deny=settings.default_policy == "deny",
        keep_ech=settings.keep_ech,
        has_ip_rules=bool(metadata or private or deny_cidrs or allow_cidrs),
        denies_names=bool(deny_exact or deny_below),
        allows_names=bool(allow_exact or allow_below),
    )


def _any_rule(settings: Settings) -> bool:
    flags = settings.offline or settings.block_private or settings.block_metadata or settings.proxy_only
    networks = settings.allow_cidrs or settings.deny_cidrs
    allowed = settings.allow_domains or settings.allow_domains_exact or settings.allow_domain_files
    denied = settings.deny_domains or settings.deny_domains_exact or settings.deny_domain_files
    other = settings.default_policy != "allow" or settings.proxy is not None or settings.keep_ech
    return bool(flags or networks or allowed or denied or other)
