"""`python -m childflow`: the same as the `childflow` command."""

from childflow.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
