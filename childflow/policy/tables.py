"""Look-up tables of rules: networks and names, each found in a time that does not grow with their number.

Networks lie either within one another or apart, so together they cut the address space into intervals, and of each
interval it is known beforehand which networks it lies in: a look-up is one bisection. Names are looked up suffix by
suffix in a dict.

Invariants: a table is never changed after it was built. 0 stands for "any protocol" and "any port"; both kinds of ICMP
            are ICMP4 here, and their port is 0, which no rule with a port matches.
Not here:   the rules' syntax (`rule_text.py`), their order (`verdict.py`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from typing import NamedTuple

ICMP4 = 1
TCP = 6
UDP = 17
ICMP6 = 58


class Network(NamedTuple):
    """One rule: the first address of a network, its prefix length in bits, protocol and port (0: any), and its text."""

    first: bytes
    prefix: int
    protocol: int
    port: int
    text: str


class _Node:
    """A network: the texts of its rules by (protocol, port), and the smallest network around it."""

    __slots__ = ("around", "last", "texts")

    def __init__(self, texts: dict[tuple[int, int], str], last: bytes, around: _Node | None) -> None:
        self.texts = texts
        self.last = last
        self.around = around


_Intervals = tuple[list[bytes], list[_Node | None]]  # first addresses, ascending; the smallest network at each


class Networks:
    """A set of network rules."""

    def __init__(self, rules: Iterable[Network] = ()) -> None:
        by_length: dict[int, dict[tuple[bytes, int], dict[tuple[int, int], str]]] = {4: {}, 16: {}}
        for rule in rules:
            texts = by_length[len(rule.first)].setdefault((rule.first, rule.prefix), {})
            texts.setdefault((rule.protocol, rule.port), rule.text)
        self._intervals = {length: _cut(networks, length) for length, networks in by_length.items()}
        self._empty = not any(by_length.values())

    def __bool__(self) -> bool:
        return not self._empty

    def find(self, address: bytes, protocol: int, port: int) -> str | None:
        """The text of a rule that covers this, of the smallest such network; None where there is none."""
        if self._empty:
            return None
        firsts, nodes = self._intervals[len(address)]
        node = nodes[bisect_right(firsts, address) - 1]
        if node is None:
            return None
        if protocol == ICMP6:
            protocol = ICMP4
        keys = ((protocol, port), (protocol, 0), (0, port), (0, 0))
        while node is not None:
            for key in keys:
                text = node.texts.get(key)
                if text is not None:
                    return text
            node = node.around
        return None


def _cut(networks: Mapping[tuple[bytes, int], dict[tuple[int, int], str]], length: int) -> _Intervals:
    """The intervals of addresses of `length` bytes."""
    firsts: list[bytes] = [bytes(length)]
    nodes: list[_Node | None] = [None]

    def begin(first: bytes | None, node: _Node | None) -> None:
        if first is None:
            return  # behind the last address of all
        if firsts[-1] == first:
            nodes[-1] = node
        else:
            firsts.append(first)
            nodes.append(node)

    inside: _Node | None = None
    for first, prefix in sorted(networks):
        while inside is not None and inside.last < first:
            begin(_after(inside.last), inside.around)
            inside = inside.around
        inside = _Node(networks[first, prefix], last_of(first, prefix), inside)
        begin(first, inside)
    while inside is not None:
        begin(_after(inside.last), inside.around)
        inside = inside.around
    return firsts, nodes


def last_of(first: bytes, prefix: int) -> bytes:
    """The last address of the network that begins with `first`."""
    bits = len(first) * 8
    return (int.from_bytes(first, "big") | ((1 << (bits - prefix)) - 1)).to_bytes(len(first), "big")


def _after(last: bytes) -> bytes | None:
    number = int.from_bytes(last, "big") + 1
    return number.to_bytes(len(last), "big") if number >> (8 * len(last)) == 0 else None


class NameMatch(NamedTuple):
    """The rule that covers a name: the option that it came by (`deny-domain-file`), and its text (`NAME[:PORT]`)."""

    option: str
    text: str


Options = dict[int, str]  # by port (0: any), the option that the rule came by


class NameTable:
    """A set of name rules. What one covers, the caller says: `exact` that name alone, `below` also all below it."""

    def __init__(self, names: Mapping[str, Options] | None = None) -> None:
        self._names = names or {}

    def __bool__(self) -> bool:
        return bool(self._names)

    def exact(self, name: str, port: int) -> NameMatch | None:
        """The rule for just this name, and this port or any."""
        options = self._names.get(name)
        return _match(name, options, port) if options is not None else None

    def below(self, name: str, port: int) -> NameMatch | None:
        """The rule for the longest suffix of `name` that has one for this port or any."""
        if not self._names:
            return None
        for suffix in suffixes(name):
            options = self._names.get(suffix)
            if options is not None and (found := _match(suffix, options, port)) is not None:
                return found
        return None

    def ports_exact(self, name: str) -> set[int]:
        """The ports (0: any) of all rules for just this name."""
        return set(self._names.get(name, ()))

    def ports_below(self, name: str) -> set[int]:
        """The ports (0: any) of all rules for a suffix of this name."""
        return {port for suffix in suffixes(name) for port in self._names.get(suffix, ())} if self._names else set()


def _match(name: str, options: Options, port: int) -> NameMatch | None:
    if port in options:
        return NameMatch(options[port], f"{name}:{port}" if port else name)
    return NameMatch(options[0], name) if 0 in options else None


def suffixes(name: str) -> Iterable[str]:
    """`name`, then the names above it: `a.b.c`, `b.c`, `c`."""
    yield name
    at = name.find(".")
    while at >= 0:
        yield name[at + 1 :]
        at = name.find(".", at + 1)
