"""ssh's own configuration, made readable to ssh again.

Where only the caller's id exists, root's files appear as owned by nobody, and ssh refuses every file that its
configuration includes unless root or the caller owns it. So those files are laid over as copies that the caller owns.

Not here: the caller's ~/.ssh, which needs nothing.
"""

from __future__ import annotations

import os

from childflow.sandbox import mounts

SYSTEM_CONFIG = "/etc/ssh/ssh_config"
_DEPTH_MAX = 16  # ssh's own limit


def lay_over_includes() -> None:
    """Lay a copy over each file that the system's ssh_config includes, directly or not."""
    copies: dict[str, bytes] = {}
    _collect(SYSTEM_CONFIG, copies, 0)
    if not copies:
        return
    with mounts.staging() as lay_over:
        for path, content in copies.items():
            lay_over(path, content)


def _collect(config: str, copies: dict[str, bytes], depth: int) -> None:
    if depth > _DEPTH_MAX:
        return
    for path in _included(_read(config) or b""):
        target = os.path.realpath(path)
        content = _read(target)
        if content is not None and target not in copies:
            copies[target] = content
            _collect(target, copies, depth + 1)


def _included(config: bytes) -> list[str]:
    """The files that `Include` lines name; relative names are relative to /etc/ssh, as ssh has it."""
    patterns: list[str] = []
    for line in config.splitlines():
        words = os.fsdecode(line).replace("=", " ", 1).replace('"', " ").split()
        if words and words[0].lower() == "include":
            patterns += [os.path.join(os.path.dirname(SYSTEM_CONFIG), word) for word in words[1:]]
    return [path for pattern in patterns for path in _expand(pattern)]


def _expand(pattern: str) -> list[str]:
    if not any(mark in pattern for mark in "*?["):
        return [pattern]
    import glob  # some milliseconds, on few hosts

    return sorted(glob.glob(pattern))


def _read(path: str) -> bytes | None:
    """A regular file's content; None for what the caller may not read (ssh could not either) or is no file."""
    try:
        with open(path, "rb") as file:
            return file.read() if os.path.isfile(path) else None
    except OSError:
        return None
