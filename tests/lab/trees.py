"""What an installation left on the disk, in a form that can be compared: path, kind, mode, content's hash."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path


def fingerprint(root: Path) -> dict[str, str]:
    """One entry for each file, link and directory below `root`; owners and times are left out."""
    entries: dict[str, str] = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder, name)
            entries[str(path.relative_to(root))] = _entry(path)
    return entries


def _entry(path: Path) -> str:
    status = path.lstat()
    mode = f"{status.st_mode:o}"
    if stat.S_ISLNK(status.st_mode):
        return f"{mode} -> {path.readlink()}"
    if stat.S_ISREG(status.st_mode):
        return f"{mode} {hashlib.sha256(path.read_bytes()).hexdigest()}"
    return mode


def differences(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Up to 20 paths that the two don't have in common, with both entries; empty for equal trees."""
    paths = sorted(path for path in one.keys() | other.keys() if one.get(path) != other.get(path))
    return [f"{path}: {one.get(path)} | {other.get(path)}" for path in paths[:20]]
