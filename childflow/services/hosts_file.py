"""The host's /etc/hosts: names that no resolver is asked about.

Read at the first question, and again when it has changed on disk (at most one stat a second).

Invariants: what does not parse is passed over, as libc does; a file that is gone says nothing.
Not here:   whether an address from it may be reached (`policy/verdict.py`: loopback never leaves).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from socket import AF_INET, AF_INET6, inet_pton

HOSTS = "/etc/hosts"
LOOK_AGAIN_S = 1.0
_MAX_FILE_BYTES = 16 << 20  # block lists of a few hundred thousand lines are a use of this file


class HostsFile:
    """The names in a hosts file. `clock` gives seconds and never goes back."""

    def __init__(self, clock: Callable[[], float], path: str = HOSTS) -> None:
        self._clock = clock
        self._path = path
        self._seen: tuple[int, ...] | None = None
        self._look_at = 0.0
        self._names: dict[str, list[bytes]] = {}

    def addresses(self, name: str) -> list[bytes]:
        """The packed addresses of `name` (lower case), IPv4 first; none if the file does not say."""
        now = self._clock()
        if now >= self._look_at:
            self._look_at = now + LOOK_AGAIN_S
            self._look_again()
        return self._names.get(name, [])

    def _look_again(self) -> None:
        try:
            stat = os.stat(self._path)
            seen = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
            if seen == self._seen:
                return
            with open(self._path, encoding="utf-8", errors="replace") as file:
                text = file.read(_MAX_FILE_BYTES)
        except OSError:
            self._names, self._seen = {}, None
            return
        self._names, self._seen = parse_hosts(text), seen


def parse_hosts(text: str) -> dict[str, list[bytes]]:
    """The addresses of each name of hosts(5) `text`, IPv4 first."""
    found: dict[str, list[bytes]] = {}
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        address = packed(words[0]) if len(words) > 1 else None
        if address is None:
            continue
        for word in words[1:]:
            known = found.setdefault(word.lower().removesuffix("."), [])
            if address not in known:
                known.append(address)
    for known in found.values():
        known.sort(key=len)
    return found


def packed(text: str) -> bytes | None:
    """The packed address that `text` is, or None. Only the usual notations: no `127.1`, no scope."""
    try:
        return inet_pton(AF_INET6 if ":" in text else AF_INET, text)
    except (OSError, ValueError):
        return None
