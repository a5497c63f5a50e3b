"""Short words for the tests of the policy: packed addresses, and rules as a command line gives them."""

from __future__ import annotations

from functools import cache
from ipaddress import ip_address

from childflow.cli import settings_from, split
from childflow.policy.rules import Rules, compile_rules


def packed(text: str) -> bytes:
    return ip_address(text).packed


@cache
def rules(*options: str, host: tuple[str, ...] = ()) -> Rules:
    """The rules of a command line with these options; `host` are the host's addresses."""
    return compile_rules(settings_from(*split([*options, "--", "true"])), map(packed, host))
