"""Names: which names led to an address, by the DNS answers that the tree got.

A name leads to an address for as long as the answer's TTL says, and a little longer: programs keep what they looked up
beyond it. Connections that stand are not asked about again.

Invariants: what is remembered is bounded, by the oldest going first. An address is known by what it reaches
            (`addresses.reached`). Only names that were asked and let through are learned.
Not here:   reading answers (`services/dns.py`), the clock (an argument).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from childflow.policy.addresses import reached

GRACE_S = 300.0  # resolvers in programs keep names beyond their TTL; five minutes are the most of the common ones
TTL_MAX_S = 86400.0  # a day: what lives longer is asked again
NAMES_OF_ONE = 256  # a name of one address more makes the oldest go, so that no flow costs much to judge


class Names:
    """Names by address; `limit` bounds the pairs of a name and an address, and the aliases of each, all in all."""

    def __init__(self, limit: int = 65536) -> None:
        self._limit = limit
        self._size = 0
        self._until: dict[tuple[bytes, str], float] = {}  # in the order of learning
        self._by_address: dict[bytes, dict[str, tuple[str, ...]]] = {}  # names, each with its chain

    def __len__(self) -> int:
        return len(self._until)

    def learn(self, name: str, chain: Sequence[str], addresses: Iterable[tuple[bytes, int]], now: float) -> None:
        """`name` was asked; by way of `chain` (CNAMEs) it has `addresses`, each with its TTL in seconds.

        `now` in seconds, of a clock that does not go back.
        """
        aliases = tuple(alias for alias in chain if alias != name)
        for address, ttl in addresses:
            end = reached(address)
            pair = (end, name)
            until = now + min(max(ttl, 0), TTL_MAX_S) + GRACE_S
            before = self._until.pop(pair, until)
            self._until[pair] = max(before, until)
            known = self._by_address.setdefault(end, {})
            self._size -= 1 + len(known[name]) if name in known else 0
            known[name] = _merged(known.pop(name, ()), aliases)
            self._size += 1 + len(known[name])
            if len(known) > NAMES_OF_ONE:
                self._forget((end, next(iter(known))))
            while self._size > self._limit:
                self._forget(next(iter(self._until)))

    def of(self, address: bytes, now: float) -> tuple[str, ...]:
        """The names that were asked and led to `address`, the latest last."""
        return tuple(self._living(reached(address), now))

    def aliases_of(self, address: bytes, now: float) -> tuple[str, ...]:
        """The names between those and the address: a deny rule for one of them holds."""
        living = self._living(reached(address), now)
        return tuple(dict.fromkeys(alias for chain in living.values() for alias in chain))

    def _living(self, end: bytes, now: float) -> dict[str, tuple[str, ...]]:
        known = self._by_address.get(end)
        if known is None:
            return {}
        for name in [name for name in known if self._until[end, name] < now]:
            self._forget((end, name))
        return known

    def _forget(self, pair: tuple[bytes, str]) -> None:
        del self._until[pair]
        address, name = pair
        known = self._by_address[address]
        self._size -= 1 + len(known.pop(name))
        if not known:
            del self._by_address[address]


_ALIASES = 64  # of one name and address, the latest; no resolver follows a chain of that length


def _merged(before: tuple[str, ...], new: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*new, *before)))[:_ALIASES]
