"""The corpora: for each target one text file, `corpus/TARGET.b64`, with one input a line, shortest first.

A second file, `corpus/TARGET.found.b64`, keeps the inputs that once were findings: they are replayed with the others
and no merge drops them.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from pathlib import Path

HOME = Path(__file__).resolve().parent / "corpus"
MAX_INPUT = 20_000  # bytes; a longer input says nothing that a shorter one could not, and makes the repository fat
MAX_TOTAL = 300_000  # bytes of one target


def _file(target: str, found: bool = False) -> Path:
    return HOME / f"{target}.found.b64" if found else HOME / f"{target}.b64"


def _read(path: Path) -> list[bytes]:
    return [base64.b64decode(line) for line in path.read_text().splitlines()] if path.exists() else []


def inputs(target: str) -> list[bytes]:
    """All of a target's inputs, former findings last."""
    return _read(_file(target)) + _read(_file(target, found=True))


def keep(target: str, data: Iterable[bytes], *, found: bool = False) -> int:
    """Make `data` the target's corpus, as far as it fits; returns how many there are."""
    kept: list[bytes] = []
    size = 0
    for one in sorted(set(data), key=lambda one: (len(one), one)):
        if len(one) > MAX_INPUT or size + len(one) > MAX_TOTAL:
            break
        kept.append(one)
        size += len(one)
    _file(target, found).write_text("".join(base64.b64encode(one).decode() + "\n" for one in kept))
    return len(kept)


def add_found(target: str, one: bytes) -> None:
    """Keep a finding for ever."""
    keep(target, [*_read(_file(target, found=True)), one], found=True)


def unpack(target: str, into: Path, more: Iterable[bytes] = ()) -> None:
    """One file for each input, as libFuzzer wants them; `more` inputs beside the corpus."""
    into.mkdir(parents=True, exist_ok=True)
    for one in [*inputs(target), *more]:
        (into / hashlib.sha1(one).hexdigest()).write_bytes(one)


def pack(target: str, folder: Path) -> int:
    """Make what is in `folder` the target's corpus, less what is kept as a finding anyway; returns how many."""
    found = set(_read(_file(target, found=True)))
    return keep(target, [data for path in folder.iterdir() if (data := path.read_bytes()) not in found])
