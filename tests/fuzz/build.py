"""Builds the C targets: the stack's own sources, unchanged, on the world of `harness/` instead of a kernel.

Three ways: `fuzzer` (clang, libFuzzer, ASan, UBSan), `replay` (the ordinary compiler, ASan, UBSan, a main of our own)
and `coverage` (the same without sanitizers, counted by gcov). What was built is kept under build/fuzz and built again
when a source has changed.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
STACK = ROOT / "childflow" / "_netstack_ext"
HARNESS = Path(__file__).resolve().parent / "harness"
BUILD = ROOT / "build" / "fuzz"

SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
COMMON = ["-std=gnu11", "-D_GNU_SOURCE", "-UNDEBUG", "-g", "-Wall", "-Wextra", f"-I{STACK}", f"-I{HARNESS}"]
SHARED = ("world", "child", "books", "story")
TARGETS = {"frame": ("frame", "bytes"), "sequence": ("sequence", "mutate")}  # each name's own sources


class Way(NamedTuple):
    """How to compile: compiler, flags for all, flags for the stack alone, flags for the link, further sources."""

    compiler: str
    flags: list[str]
    stack: list[str]
    link: list[str]
    sources: tuple[str, ...] = ()


def ways() -> dict[str, Way]:
    gcc = os.environ.get("CC", "gcc")
    return {
        "fuzzer": Way("clang", [*SANITIZE, "-O2"], ["-fsanitize=fuzzer-no-link"], [*SANITIZE, "-fsanitize=fuzzer"]),
        "replay": Way(gcc, [*SANITIZE, "-O1"], [], SANITIZE, ("replay",)),
        "coverage": Way(gcc, ["-O0"], ["--coverage"], ["--coverage"], ("replay",)),
    }


def sources() -> list[Path]:
    return sorted(STACK.glob("*.c"))


def fingerprint(way: Way) -> str:
    digest = hashlib.sha256(repr(way).encode())
    for path in sorted([*STACK.glob("*.[ch]"), *HARNESS.glob("*.[ch]"), Path(__file__)]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def build(name: str) -> dict[str, Path]:
    """Every target's program, built the way `name`. CalledProcessError, with the compiler's words on the terminal."""
    way = ways()[name]
    into = BUILD / name
    programs = {target: into / target for target in TARGETS}
    stamp, now = into / "fingerprint", fingerprint(way)
    if stamp.exists() and stamp.read_text() == now and all(p.exists() for p in programs.values()):
        return programs
    into.mkdir(parents=True, exist_ok=True)
    for old in into.iterdir():
        old.unlink()
    stack = [_compile(way, path, into, [*way.stack, "-include", str(HARNESS / "calls.h")]) for path in sources()]
    shared = [_compile(way, HARNESS / f"{part}.c", into) for part in (*SHARED, *way.sources)]
    for target, parts in TARGETS.items():
        own = [_compile(way, HARNESS / f"{part}.c", into) for part in parts]
        subprocess.run([way.compiler, *way.link, *own, *shared, *stack, "-o", programs[target]], check=True)
    stamp.write_text(now)
    return programs


def _compile(way: Way, source: Path, into: Path, extra: list[str] | None = None) -> Path:
    prefix = "" if source.parent == STACK else "harness_"
    to = into / f"{prefix}{source.stem}.o"
    subprocess.run([way.compiler, *COMMON, *way.flags, *(extra or []), "-c", source, "-o", to], check=True)
    return to
