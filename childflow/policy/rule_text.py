"""The syntax of rules: networks, names, and files of names, as users write them.

    NETWORK   [tcp:|udp:|icmp:] ADDRESS[/BITS] [:PORT], with an IPv6 network in brackets where a port follows
    NAME      NAME[:PORT], in Unicode or as A-labels
    file      one NAME a line, or lines of a hosts file; `#` begins a comment

Invariants: what is accepted means what it says: a rule that could be read in two ways, or would not match what it seems
            to, is refused in one line that says what to write.
Not here:   what the rules are for (`rules.py`, `verdict.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from socket import AF_INET, AF_INET6, inet_pton

from childflow.errors import UsageError
from childflow.policy.addresses import address_text, reached
from childflow.policy.tables import ICMP4, TCP, UDP, NameTable, Network, Networks, Options, last_of

_PROTOCOLS = {"tcp": TCP, "udp": UDP, "icmp": ICMP4}
_NETWORK_HINT = "give NETWORK/BITS or an address, as 10.0.0.0/8, tcp:10.0.0.0/8:5432 or [2001:db8::/32]:22"
_NAME_HINT = "give NAME or NAME:PORT, as example.com:443"

# ---- networks ----


def networks(option: str, texts: Iterable[str]) -> Networks:
    """The table of the rules in `texts`, which `--option` gave. UsageError."""
    return Networks([network(option, text) for text in texts])


def network(option: str, text: str) -> Network:
    """One rule. UsageError."""
    protocol, rest = _split_protocol(text.strip())
    place, port_text = _split_port(rest)
    address_text_, slash, bits = place.partition("/")
    first = _packed(address_text_)
    if first is None:
        raise UsageError(f"--{option} can't be {text!r}; {_NETWORK_HINT}")
    length = len(first) * 8
    prefix = _number(bits, 0, length) if slash else length
    if prefix is None:
        raise UsageError(f"--{option} {text!r}: the part after / must be a number from 0 to {length}")
    port = _port(option, text, port_text)
    if port and protocol == ICMP4:
        raise UsageError(f"--{option} {text!r}: ICMP has no ports; leave :{port} out")
    _refuse_host_bits(option, text, first, prefix)
    _refuse_embedded(option, text, first, prefix)
    return Network(first, prefix, protocol, port, text.strip())


def _split_protocol(text: str) -> tuple[int, str]:
    word, colon, rest = text.partition(":")
    protocol = _PROTOCOLS.get(word.lower()) if colon else None
    return (0, text) if protocol is None else (protocol, rest)


def _split_port(text: str) -> tuple[str, str | None]:
    """The network and the text of its port (None: no port)."""
    if text.startswith("["):
        place, closed, tail = text[1:].partition("]")
        if closed and ":" in place and (not tail or tail.startswith(":")):
            return place, tail[1:] if tail else None
        return "", None  # no address
    if text.count(":") == 1:
        place, _, port = text.partition(":")
        return place, port
    return text, None


def _packed(text: str) -> bytes | None:
    try:
        return inet_pton(AF_INET6 if ":" in text else AF_INET, text)
    except (OSError, ValueError):
        return None


def _number(text: str, low: int, high: int) -> int | None:
    if not (text.isascii() and text.isdigit() and len(text) < 6):
        return None
    return int(text) if low <= int(text) <= high else None


def _port(option: str, rule: str, text: str | None) -> int:
    if text is None:
        return 0
    port = _number(text, 1, 65535)
    if port is None:
        raise UsageError(f"--{option} {rule!r}: the port must be a number from 1 to 65535")
    return port


def _refuse_host_bits(option: str, text: str, first: bytes, prefix: int) -> None:
    host_bits = len(first) * 8 - prefix
    number = int.from_bytes(first, "big")
    masked = (number >> host_bits << host_bits).to_bytes(len(first), "big")
    if masked != first:
        said, meant = f"{address_text(first)}/{prefix}", f"{address_text(masked)}/{prefix}"
        raise UsageError(f"--{option} {text!r}: {said} is no network; write {meant}, or the address alone")


# IPv6 networks whose addresses carry an IPv4 address and are judged as that one (`reached`); where in it that stands.
_EMBEDDED = (
    ("::ffff:0:0/96", "IPv4-mapped", 96),
    ("::ffff:0:0:0/96", "IPv4-translated", 96),
    ("64:ff9b::/96", "NAT64", 96),
    ("::/96", "IPv4-compatible", 96),
    ("2002::/16", "6to4", 16),
    ("64:ff9b:1::/48", "NAT64", 0),
)


def _refuse_embedded(option: str, text: str, first: bytes, prefix: int) -> None:
    """Such a rule would never match."""
    if len(first) == 4 or (prefix == 128 and reached(first) == first):
        return
    for embedding, kind, at in _EMBEDDED:
        base, _, bits = embedding.partition("/")
        packed = inet_pton(AF_INET6, base)
        if prefix < int(bits) or not packed <= first <= last_of(packed, int(bits)):
            continue
        if prefix <= int(bits) or len(reached(first)) != 4:
            hint = "write rules for the IPv4 networks that are meant"
        elif not at or prefix > at + 32:
            hint = f"write {address_text(reached(first))}"
        else:
            hint = f"write {address_text(reached(first))}/{prefix - at}"
        raise UsageError(f"--{option} {text!r}: {kind} addresses are judged as the IPv4 ones that they reach; {hint}")


# ---- names ----


def names(option: str, texts: Iterable[str], files: Sequence[str] = ()) -> NameTable:
    """The table of the names in `texts`, and of those in `files`, which `--option-file` gave. UsageError."""
    table: dict[str, Options] = {}
    for path in files:
        _add_file(table, f"{option}-file", path)
    for text in texts:
        name, port = name_and_port(text, f"--{option} {text!r}")
        table[name] = {**table.get(name, {}), port: option}
    return NameTable(table)


_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_PLAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_LAST_LABEL_NUMERIC = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")


def name_and_port(text: str, where: str) -> tuple[str, int]:
    """The name as A-labels without a trailing dot, and its port (0: any). UsageError that begins with `where`."""
    name, colon, port_text = text.strip().partition(":")
    port = _number(port_text, 1, 65535) if colon else 0
    if port is None:
        what = "is an address; use the options for CIDRs" if _packed(text.strip().strip("[]")) else _NAME_HINT
        raise UsageError(f"{where}: {what}")
    return _canonical(name, where), port


def _canonical(name: str, where: str) -> str:
    plain = (name if name.isascii() else _a_labels(name, where)).lower().removesuffix(".")
    if _PLAIN.fullmatch(plain) and len(plain) <= 253 and not _LAST_LABEL_NUMERIC.fullmatch(plain):
        return plain
    raise UsageError(f"{where}: {_name_fault(plain)}")


def _name_fault(name: str) -> str:
    if name.startswith(("*.", ".")):
        return (
            f"names below are covered anyway; write {name.lstrip('*.') or 'NAME'} (exact options cover one name only)"
        )
    if _LAST_LABEL_NUMERIC.fullmatch(name):
        return "is an address; use the options for CIDRs"
    if len(name) > 253 or any(len(label) > 63 for label in name.split(".")):
        return "a name has at most 253 characters, and 63 between dots"
    return f"is no name; {_NAME_HINT}"


# IDNA 2003 (the standard library's) and 2008 (RFC 5891) disagree about these: sharp s, final sigma, the joiners.
_TWO_WAYS = frozenset("\u00df\u03c2\u200c\u200d\u1e9e")


def _a_labels(name: str, where: str) -> str:
    if not _TWO_WAYS.isdisjoint(name):
        raise UsageError(f"{where}: this name is encoded in two ways; write the one that is meant, as xn--...")
    try:
        return name.encode("idna").decode("ascii")
    except UnicodeError:
        raise UsageError(f"{where}: this name can't be encoded; write it as xn--...") from None


# ---- files ----


def _add_file(table: dict[str, Options], option: str, path: str) -> None:
    any_port = {0: option}  # one for all of them
    for name, port in _read(option, path):
        known = table.get(name)
        if port == 0 and known is None:
            table[name] = any_port
        else:
            table[name] = {**(known or {}), port: option}


def _read(option: str, path: str) -> Iterator[tuple[str, int]]:
    lines = _lines(option, path)
    # Most lines of most files are a plain name: those are taken with one match each.
    plain, numeric = _PLAIN.fullmatch, _LAST_LABEL_NUMERIC.fullmatch
    for number, line in enumerate(lines, 1):
        if plain(line) and len(line) <= 253 and not numeric(line):
            yield line, 0
        else:
            yield from _line(line, f"{path}, line {number}")


def _lines(option: str, path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read().split("\n")
    except OSError as error:
        raise UsageError(f"--{option} {path!r} can't be read ({error.strerror}); give a file of names") from None
    except ValueError:  # not UTF-8, or a zero byte in the path
        raise UsageError(f"--{option} {path!r} is no text in UTF-8; give a file of names") from None


def _line(line: str, where: str) -> Iterator[tuple[str, int]]:
    words = line.partition("#")[0].split()
    if len(words) == 1:
        yield name_and_port(words[0], f"{where}: {words[0]!r}")
    elif words:
        yield from _hosts_line(words, where)


def _hosts_line(words: list[str], where: str) -> Iterator[tuple[str, int]]:
    """A line of a hosts file. Lists have lines as `0.0.0.0 0.0.0.0`: an address instead of a name is skipped."""
    if _packed(words[0].partition("%")[0]) is None:
        raise UsageError(f"{where}: give one name, or ADDRESS NAME... as in a hosts file")
    for word in words[1:]:
        if _packed(word) is None:
            yield _canonical(word, f"{where}: {word!r}"), 0
