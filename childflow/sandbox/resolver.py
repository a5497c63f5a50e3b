"""The files by which the command's programs find names: /etc/resolv.conf with the gateway as its server.

Resolvers of the host replace the file that /etc/resolv.conf points to by renaming a new one over it, at each change of
network, and a file that we had bound there would fall off, with the host's server under it. So a target under /run is
replaced together with its directory; only a plain file in /etc (or one outside /run) is bound over as a file.

Invariants: on return, what the command reads as /etc/resolv.conf is ours; anything else is an OSError.
"""

from __future__ import annotations

import os

from childflow.sandbox import mounts

RESOLV_CONF = "/etc/resolv.conf"
_KEPT = (b"search", b"domain", b"options", b"sortlist")
_KEPT_UNSEARCHED = (b"options", b"sortlist")


def resolv_conf(host_file: bytes, gateway: str, search: bool = True) -> bytes:
    """The command's resolv.conf: our server, and the host's words on how names are searched.

    `search` False: names are taken as they stand. Under a proxy nobody can tell whether a name exists, and every name
    would be found under the first search domain.
    """
    words = _KEPT if search else _KEPT_UNSEARCHED
    kept = [line.strip() for line in host_file.splitlines() if line.split()[:1] and line.split()[0] in words]
    if not search:
        kept.append(b"search .")  # without a line libc takes the host name's domain
    lines = [b"# childflow: queries go to its gateway", b"nameserver " + gateway.encode("ascii"), *kept]
    return b"\n".join(lines) + b"\n"


def install(gateway: str, search: bool = True) -> None:
    """Lay our resolv.conf over the host's, whatever shape that has."""
    content = resolv_conf(_read(RESOLV_CONF), gateway, search)
    target = os.path.realpath(RESOLV_CONF)
    existing = _nearest_directory(os.path.dirname(target))
    if existing.startswith("/run/"):
        mounts.cover_directory(existing, {os.path.relpath(target, existing): content})
    elif os.path.isfile(target) and existing != "/run":
        with mounts.staging() as lay_over:
            lay_over(target, content)
    else:
        mounts.rebuild_directory(existing, {os.path.relpath(target, existing): content})
    if _read(RESOLV_CONF) != content:
        raise OSError(0, "the host's resolv.conf is still seen", RESOLV_CONF)


def _nearest_directory(path: str) -> str:
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(65536)
    except OSError:
        return b""
