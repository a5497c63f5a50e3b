"""Runs these tests on a C stack built with AddressSanitizer and UndefinedBehaviorSanitizer.

    python tests/netstack/asan.py [pytest arguments]

The sources are copied to a temporary directory and built there, so the ordinary build is left alone. A plugin makes
`childflow._netstack` mean the sanitized one; libasan is loaded first, as it must be, into the interpreter itself. The
first finding ends the run with the sanitizer's report and a status of its own.

Leaks are not looked for by the sanitizer, which would report the interpreter's; `Play.close` holds the stack to its
books.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SANITIZE = "-fsanitize=address,undefined"
CFLAGS = f"{SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer"
PLUGIN = """
import importlib.util, sys
import childflow
spec = importlib.util.spec_from_file_location("childflow._netstack", {path!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
sys.modules["childflow._netstack"] = childflow._netstack = module
"""


def build(into: Path) -> Path:
    """Copy and compile; returns the sanitized extension."""
    package = into / "childflow"
    package.mkdir()
    shutil.copytree(
        ROOT / "childflow" / "_netstack_ext", package / "_netstack_ext", ignore=shutil.ignore_patterns("*.o")
    )
    flags = {"CFLAGS": CFLAGS, "LDFLAGS": SANITIZE}
    subprocess.run(
        [sys.executable, package / "_netstack_ext" / "build.py"], cwd=into, env={**os.environ, **flags}, check=True
    )
    (built,) = package.glob("_netstack.*.so")
    return built


def library(name: str) -> str:
    """Where the compiler keeps a run-time library of its own."""
    found = subprocess.run(
        [os.environ.get("CC", "gcc"), f"-print-file-name={name}"], capture_output=True, text=True, check=True
    )
    path = found.stdout.strip()
    if not os.path.isabs(path):
        raise SystemExit(f"asan.py: the compiler has no {name}; install its sanitizer libraries (libasan)")
    return path


def run(extension: Path, plugins: Path, arguments: list[str]) -> int:
    (plugins / "sanitized_netstack.py").write_text(PLUGIN.format(path=str(extension)))
    environment = {
        **os.environ,
        "LD_PRELOAD": f"{library('libasan.so')} {library('libubsan.so')}",
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0:exitcode=99:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:exitcode=99",
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": f"{plugins}:{ROOT}",
    }
    command = [sys.executable, "-m", "pytest", "-p", "sanitized_netstack", *(arguments or ["-q", "tests/netstack"])]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="childflow-asan-") as scratch:
        return run(build(Path(scratch)), Path(scratch), sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
