"""One Python target under atheris: `python -m tests.fuzz.under_atheris TARGET PROGRAM [libFuzzer's options]`.

PROGRAM is what libFuzzer starts when it wants this again (`__main__.py` writes one)."""

from __future__ import annotations

import sys

import atheris


def main() -> None:
    name, sys.argv[0] = sys.argv.pop(1), sys.argv.pop(1)
    with atheris.instrument_imports(include=["childflow.services", "childflow.sandbox.resolver"]):
        from tests.fuzz import targets

        one = targets.parser(name)
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
