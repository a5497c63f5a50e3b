"""Which branches of the C stack the tests take: `make coverage`, or `python -m tests.fuzz.coverage [--missing]`.

The stack is built twice with gcc's --coverage and without optimization: as the extension, for the scripted
conversations of tests/netstack, and into the fuzzers' programs, for their corpora. A branch counts as taken if either
takes it. For each file the line says branches taken, branches and the share; for the parsers (PARSERS) less than TARGET
per cent is an error and the lines with a branch that was never taken are named; with --missing, those of every file.

A line with MUST() is left out: its second branch is our own mistake, and there should be none to take it.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tests.netstack import asan

from . import build, corpus, targets

PARSERS = ("wire.c", "wire.h", "input.c", "slow.c", "ring.c")
TARGET = 95.0  # per cent
OURS = "MUST("


class Branch(NamedTuple):
    """One way out of a condition."""

    file: str
    function: str
    line: int
    number: int


Taken = dict[Branch, bool]


def extension(scratch: Path) -> Path:
    """The extension, counted; its counters are written beside its objects when the interpreter ends."""
    package = scratch / "childflow"
    package.mkdir()
    shutil.copytree(build.STACK, package / "_netstack_ext", ignore=shutil.ignore_patterns("*.o"))
    script = package / "_netstack_ext" / "build.py"
    script.write_text(script.read_text().replace('"-O2"', '"-O0"'))
    flags = {"CFLAGS": "--coverage", "LDFLAGS": "--coverage"}
    subprocess.run([sys.executable, script], cwd=scratch, env={**os.environ, **flags}, check=True, capture_output=True)
    (built,) = package.glob("_netstack.*.so")
    return built


def run_conversations(scratch: Path) -> None:
    (scratch / "counted_netstack.py").write_text(asan.PLUGIN.format(path=str(extension(scratch))))
    environment = {**os.environ, "PYTHONPATH": f"{scratch}:{build.ROOT}"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "counted_netstack", "tests/netstack"]
    subprocess.run(command, cwd=build.ROOT, env=environment, check=True)


def run_corpora() -> None:
    for old in (build.BUILD / "coverage").glob("*.gcda"):
        old.unlink()
    for target, program in build.build("coverage").items():
        stream = b"".join(struct.pack("=I", len(one)) + one for one in [*corpus.inputs(target), *targets.seeds(target)])
        subprocess.run([program], input=stream, check=True)


def count(objects: Iterable[Path]) -> Taken:
    """Every branch of the stack's sources that gcov knows of, and whether it was taken."""
    taken: Taken = {}
    for data in objects:
        said = subprocess.run(
            ["gcov", "--json-format", "--stdout", "--branch-probabilities", data], capture_output=True, check=True
        )
        for file in json.loads(said.stdout)["files"]:
            name = Path(file["file"]).name
            for line in file["lines"] if (build.STACK / name).exists() else ():
                for number, branch in enumerate(line["branches"]):
                    key = Branch(name, line.get("function_name", ""), line["line_number"], number)
                    taken[key] = taken.get(key, False) or branch["count"] > 0
    return taken


def without_ours(taken: Taken) -> Taken:
    ours = {
        (path.name, number)
        for path in build.STACK.glob("*.[ch]")
        for number, text in enumerate(path.read_text().splitlines(), 1)
        if OURS in text
    }
    return {branch: was for branch, was in taken.items() if (branch.file, branch.line) not in ours}


def report(taken: Taken, missing: bool) -> bool:
    """Print a line for each file; whether the parsers reach the target."""
    for file in sorted({branch.file for branch in taken}):
        _report_file(file, taken, missing or file in PARSERS)
    total, done = _share(taken, PARSERS)
    share = 100 * done / total
    print(f"parsers ({', '.join(PARSERS)}): {done} of {total} branches taken, {share:.1f} %")
    return share >= TARGET


def _share(taken: Taken, files: tuple[str, ...]) -> tuple[int, int]:
    of = [was for branch, was in taken.items() if branch.file in files]
    return len(of), sum(of)


def _report_file(file: str, taken: Taken, missing: bool) -> None:
    total, done = _share(taken, (file,))
    print(f"{file:16} {done:4} of {total:4} branches taken, {100 * done / total:5.1f} %")
    text = (build.STACK / file).read_text().splitlines()
    for line in sorted(
        {branch.line for branch, was in taken.items() if branch.file == file and not was} if missing else ()
    ):
        ways = [was for branch, was in taken.items() if (branch.file, branch.line) == (file, line)]
        print(f"    {line:4} ({ways.count(False)} of {len(ways)} never)  {text[line - 1].strip()}")


def main() -> int:
    run_corpora()
    with tempfile.TemporaryDirectory(prefix="childflow-coverage-") as name:
        scratch = Path(name)
        run_conversations(scratch)
        objects = [*(build.BUILD / "coverage").glob("*.gcda"), *scratch.rglob("*.gcda")]
        taken = without_ours(count(objects))
    return 0 if report(taken, "--missing" in sys.argv) else 1


if __name__ == "__main__":
    sys.exit(main())
