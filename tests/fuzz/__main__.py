"""Runs the fuzzers: `make fuzz [SECONDS=3600] [TARGET=...]`.

    python -m tests.fuzz run [--seconds N] [--target T ...] [--jobs 2]
    python -m tests.fuzz seed [--target T ...]       add the written seeds to the corpora
    python -m tests.fuzz merge [--target T ...]      keep of each corpus only what adds coverage
    python -m tests.fuzz found TARGET FILE           keep an input for ever: it was a finding

Each target runs for its time on its seeds and a copy of its corpus, under build/fuzz; what it found to be new is merged
and written back. The first finding ends the run: the input is kept under build/fuzz/found, its report is shown, the
status is 1. The last line of each target says executions, coverage (edges of the code under test) and findings.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from . import build, corpus, targets

WORK = build.BUILD / "work"
FOUND = build.BUILD / "found"
ENVIRONMENT = {
    "ASAN_OPTIONS": "detect_leaks=1:quarantine_size_mb=16:allocator_may_return_null=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}
INPUT_SECONDS = 5  # an input that takes longer is a finding; they take milliseconds


class Outcome(NamedTuple):
    """What came of one target's run."""

    target: str
    executions: int
    coverage: int
    kept: int
    seconds: float
    finding: Path | None

    def __str__(self) -> str:
        found = f"FINDING {self.finding}" if self.finding else "no finding"
        return (
            f"fuzz {self.target}: {self.executions:,} executions in {self.seconds:,.0f} s, {self.coverage:,} edges, "
            f"{self.kept} inputs kept, {found}"
        )


def command(target: str) -> list[str]:
    """What runs `target` under libFuzzer; its options follow."""
    if target in targets.C_TARGETS:
        return [str(build.build("fuzzer")[target])]
    return [str(_script(target))]


def _script(target: str) -> Path:
    """A program of its own for a Python target: libFuzzer starts itself again to merge, by its name."""
    path = WORK / f"{target}.sh"
    WORK.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'#!/bin/sh\ncd "{build.ROOT}"\nexec "{sys.executable}" -m tests.fuzz.under_atheris {target} "{path}" "$@"\n'
    )
    path.chmod(0o755)
    return path


def fuzz(target: str, seconds: int) -> Outcome:
    inputs, log = WORK / target, WORK / f"{target}.log"
    shutil.rmtree(inputs, ignore_errors=True)
    corpus.unpack(target, inputs, targets.seeds(target))
    FOUND.mkdir(parents=True, exist_ok=True)
    before = set(FOUND.iterdir())
    start = time.monotonic()
    options = [f"-max_total_time={seconds}", _max_len(target), f"-timeout={INPUT_SECONDS}", "-rss_limit_mb=3000",
               "-print_final_stats=1", f"-artifact_prefix={FOUND}/{target}-", str(inputs)]  # fmt: skip
    with log.open("w") as out:
        status = subprocess.run(
            ["nice", "-n", "19", *command(target), *options], cwd=build.ROOT, stdout=out, stderr=subprocess.STDOUT,
            env={**os.environ, **ENVIRONMENT}, check=False,
        ).returncode  # fmt: skip
    taken = time.monotonic() - start
    said = log.read_text(errors="replace")
    finding = next(iter(set(FOUND.iterdir()) - before), log) if status else None
    kept = merge(target, inputs) if finding is None else len(corpus.inputs(target))
    executions, edges = _number(r"number_of_executed_units: (\d+)", said), _number(r"cov: (\d+)", said)
    return Outcome(target, executions, edges, kept, taken, finding)


def _max_len(target: str) -> str:
    return f"-max_len={targets.MAX_LEN.get(target, 1000)}"


def _number(pattern: str, text: str) -> int:
    found = re.findall(pattern, text)
    return int(found[-1]) if found else 0


def merge(target: str, inputs: Path) -> int:
    """Write back the smallest set of `inputs` that covers as much; returns how many those are."""
    smallest = WORK / f"{target}.merged"
    shutil.rmtree(smallest, ignore_errors=True)
    smallest.mkdir(parents=True)
    merged = subprocess.run(
        [*command(target), "-merge=1", _max_len(target), str(smallest), str(inputs)],
        cwd=build.ROOT, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if merged.returncode or not any(smallest.iterdir()):
        raise SystemExit(f"merging {target} failed:\n{merged.stderr[-4000:]}")
    return corpus.pack(target, smallest)


def run(names: Iterable[str], seconds: int, jobs: int) -> int:
    """Fuzz each target, `jobs` at a time, until one finds something."""
    waiting = list(names)
    if any(name in targets.C_TARGETS for name in waiting):
        build.build("fuzzer")
    findings: list[Outcome] = []

    def work() -> None:
        while waiting and not findings:
            outcome = fuzz(waiting.pop(0), seconds)
            print(outcome, flush=True)
            if outcome.finding:
                findings.append(outcome)

    with ThreadPoolExecutor(jobs) as pool:
        for done in [pool.submit(work) for _ in range(jobs)]:
            done.result()
    for outcome in findings:
        print((WORK / f"{outcome.target}.log").read_text(errors="replace")[-6000:])
    return 1 if findings else 0


def seed(names: Iterable[str]) -> None:
    for name in names:
        print(f"{name}: {corpus.keep(name, [*corpus.inputs(name), *targets.seeds(name)])} inputs")


def shrink(names: Iterable[str]) -> None:
    for name in names:
        shutil.rmtree(WORK / name, ignore_errors=True)
        corpus.unpack(name, WORK / name)
        print(f"{name}: {merge(name, WORK / name)} inputs")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("what", choices=("run", "seed", "merge", "found"))
    parser.add_argument("input", nargs="*", help="of found: TARGET FILE")
    parser.add_argument("--seconds", type=int, default=3600)
    parser.add_argument("--target", action="append", choices=targets.ALL)
    parser.add_argument("--jobs", type=int, default=2)
    asked = parser.parse_args()
    names = asked.target or list(targets.ALL)
    if asked.what == "run":
        return run(names, asked.seconds, asked.jobs)
    if asked.what == "found":
        corpus.add_found(asked.input[0], Path(asked.input[1]).read_bytes())
    elif asked.what == "seed":
        seed(names)
    else:
        shrink(names)
    return 0


if __name__ == "__main__":
    sys.exit(main())
