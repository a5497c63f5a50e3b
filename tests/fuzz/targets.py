"""The targets: the C ones of `build.py`, and a file in `parsers/` for each parser in Python.

A Python target is a module with `one(data)`, which raises on a finding and on nothing else, and `seeds()`. A new one
needs its name in PARSERS, and nothing more.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

from . import build

PARSERS = (
    "dns",
    "resolv_conf",
    "neighbours",
    "echo",
    "fragments",
    "raw_fragments",
    "client_hello",
    "http_host",
    "quic",
    "http_reply",
    "socks_reply",
)
C_TARGETS = tuple(build.TARGETS)
ALL = (*C_TARGETS, *PARSERS)
MAX_LEN = {
    "frame": 4000,
    "sequence": 900,
    "dns": 1500,
    "fragments": 200,
    "raw_fragments": 400,
    "http_host": 400,
    "quic": 600,
}


def parser(name: str) -> Callable[[bytes], None]:
    module = importlib.import_module(f"tests.fuzz.parsers.{name}")
    one: Callable[[bytes], None] = module.one
    return one


def seeds(name: str) -> list[bytes]:
    """Inputs that a person wrote: where a corpus begins."""
    module = importlib.import_module("tests.fuzz.seeds" if name in C_TARGETS else f"tests.fuzz.parsers.{name}")
    made: list[bytes] = getattr(module, name)() if name in C_TARGETS else module.seeds()
    return made
