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

    def controls(self) -> list[str]:
        """The rules that are in force, as they would be given on the command line."""
        return [f"dns={self.dns}"] if self.dns is not None else []


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
