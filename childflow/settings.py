"""Settings: what one run was asked to do, frozen.

The command line (and, later, the profile under it) becomes one `Settings`; nothing after that reads argv.

Invariants: no module that costs start-up time is imported here, since this is read before the fork.
Not here:   parsing (`cli.py`), checks that need the host (`preflight.py`).
"""

from __future__ import annotations

from typing import NamedTuple


class Settings(NamedTuple):
    """One run's effective settings.

    `command` is argv of the command; `mtu` in bytes, None for the host's egress MTU; `keep_fds` are descriptors above 2
    that the command keeps although they are neither pipe nor FIFO; `flow_log` is a path, `-` for standard output,
    `fd:N` for an inherited descriptor, or None; `limits` are those of `limits.py` that were set, by name.
    Rules, files and the proxy are the texts that were given (`policy/rules.py` reads them); `dns_mode` None is the
    default that `virtual_names` tells.
    """

    command: tuple[str, ...]
    backend: str = "rootless-internal"
    mtu: int | None = None
    map_root: bool = False
    keep_fds: tuple[int, ...] = ()
    allow_socket_stdio: bool = False
    strict: bool = False
    verbose: bool = False
    quiet: bool = False
    dns: str | None = None
    flow_log: str | None = None
    summary: bool = False
    summary_format: str = "text"
    limits: tuple[tuple[str, int], ...] = ()
    offline: bool = False
    block_private: bool = False
    block_metadata: bool = False
    default_policy: str = "allow"
    allow_cidrs: tuple[str, ...] = ()
    deny_cidrs: tuple[str, ...] = ()
    allow_domains: tuple[str, ...] = ()
    allow_domains_exact: tuple[str, ...] = ()
    deny_domains: tuple[str, ...] = ()
    deny_domains_exact: tuple[str, ...] = ()
    allow_domain_files: tuple[str, ...] = ()
    deny_domain_files: tuple[str, ...] = ()
    fail_on_leak: bool = False
    proxy: str | None = None
    proxy_user: str | None = None
    proxy_password: str | None = None
    proxy_insecure: bool = False
    proxy_only: bool = False
    dns_mode: str | None = None
    keep_ech: bool = False

    @property
    def virtual_names(self) -> bool:
        """Every name gets an address of its own, and a connection to that is one to the name (`--dns-mode`)."""
        if self.dns_mode is None:
            return self.proxy is not None or self.proxy_only
        return self.dns_mode == "virtual"

    def controls(self) -> list[str]:
        """The rules that are in force, as they would be given on the command line; never the proxy's password."""
        found: list[str] = []
        for name, setting in _CONTROLS:
            value = getattr(self, setting)
            if value is True:
                found.append(name)
            elif isinstance(value, tuple):
                found += [f"{name}={text}" for text in value]
            elif value:
                found.append(f"{name}={value}")
        return [text for text in found if text != "default-policy=allow"]


# In the order in which they are judged, then what they are judged with.
_CONTROLS = (
    ("offline", "offline"),
    ("proxy-only", "proxy_only"),
    ("block-metadata", "block_metadata"),
    ("block-private", "block_private"),
    ("deny-cidr", "deny_cidrs"),
    ("deny-domain-exact", "deny_domains_exact"),
    ("deny-domain", "deny_domains"),
    ("deny-domain-file", "deny_domain_files"),
    ("allow-cidr", "allow_cidrs"),
    ("allow-domain-exact", "allow_domains_exact"),
    ("allow-domain", "allow_domains"),
    ("allow-domain-file", "allow_domain_files"),
    ("default-policy", "default_policy"),
    ("fail-on-leak", "fail_on_leak"),
    ("keep-ech", "keep_ech"),
    ("dns", "dns"),
    ("dns-mode", "dns_mode"),
    ("proxy", "proxy"),
    ("proxy-insecure", "proxy_insecure"),
)


class Addresses(NamedTuple):
    """The two ends of the TAP: packed addresses (4, 16 and 6 bytes) and prefix lengths in bits."""

    child4: bytes
    gateway4: bytes
    prefix4: int
    child6: bytes
    gateway6: bytes
    prefix6: int
    child_mac: bytes
    gateway_mac: bytes


# IPv4 from RFC 7335's 192.0.0.0/29, which no LAN uses; IPv6 a ULA (RFC 4193): getaddrinfo prefers IPv4 then (RFC 6724).
ADDRESSES = Addresses(
    child4=bytes((192, 0, 0, 2)),
    gateway4=bytes((192, 0, 0, 1)),
    prefix4=29,
    child6=bytes.fromhex("fd6368696c6400000000000000000002"),
    gateway6=bytes.fromhex("fd6368696c6400000000000000000001"),
    prefix6=64,
    child_mac=bytes.fromhex("026366000002"),
    gateway_mac=bytes.fromhex("026366000001"),
)

DNS_PORT = 53
