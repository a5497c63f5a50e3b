"""A registry mirror for the sample project: filled once by npm itself, served inside the lab.

    fill    `npm ci` in a copy of the project with a cache of its own, then every document and archive of that cache is
            laid out as a file under build/npm-mirror. npm does the fetching, its configuration counts.
    serve   an HTTP/1.1 server of those files for the lab's server host: `python -m tests.lab.npm_mirror serve PORT`

Documents name their archives by absolute addresses, which fill replaces by the lab's (BASE); they are kept
compressed, since a registry sends them so.

Invariants: build/npm-mirror/KEY appears whole or not at all; KEY is a hash of the lock file and of BASE.
Not here:   comparing installations (`trees.py`).
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import http.server
import json
import shutil
import socket
import socketserver
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from .enter import PROJECT

PORT = 4873
BASE = f"http://198.51.100.1:{PORT}"
SAMPLE = Path(PROJECT, "examples", "npm-project")
_MIRRORS = Path(PROJECT, "build", "npm-mirror")
_TIME_LIMIT = 600


def folder() -> Path:
    """Where the mirror of the sample project's present lock file is, or will be."""
    lock = SAMPLE.joinpath("package-lock.json").read_bytes()
    return _MIRRORS / hashlib.sha256(lock + BASE.encode()).hexdigest()[:16]


# -- fill -----------------------------------------------------------------------------------------------------------


def fill() -> None:
    if folder().is_dir():
        return
    _MIRRORS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_MIRRORS) as work:
        project = Path(work, "project")
        copy_sample(project)
        argv = ["npm", "ci", "--ignore-scripts", "--cache", f"{work}/cache"]
        subprocess.run(argv, cwd=project, check=True, timeout=_TIME_LIMIT, stdout=subprocess.DEVNULL)
        new = Path(work, "new")
        new.mkdir()
        for url, content in _cached(Path(work, "cache", "_cacache")):
            _lay_out(new, url, content)
        new.rename(folder())


def copy_sample(target: Path) -> None:
    """The project as it is checked out, without what an installation left in it."""
    shutil.copytree(SAMPLE, target, ignore=shutil.ignore_patterns("node_modules"), dirs_exist_ok=True)


def _cached(cache: Path) -> Iterator[tuple[str, bytes]]:
    """(address, body) of everything in an npm cache: an index of JSON lines, bodies named by their hash."""
    for bucket in cache.glob("index-v5/*/*/*"):
        for line in bucket.read_text().splitlines():
            entry = json.loads(line.split("\t", 1)[1]) if "\t" in line else {}
            if "url" in (entry.get("metadata") or {}):
                algorithm, _, digest = entry["integrity"].partition("-")
                name = base64.b64decode(digest).hex()
                yield (
                    entry["metadata"]["url"],
                    cache.joinpath("content-v2", algorithm, name[:2], name[2:4], name[4:]).read_bytes(),
                )


def _lay_out(target: Path, url: str, content: bytes) -> None:
    parts = urlsplit(url)
    if content.startswith(b"{"):
        content = gzip.compress(_with_archives_here(content), 6, mtime=0)
    target.joinpath(_file_name(parts.path)).write_bytes(content)


def _with_archives_here(document: bytes) -> bytes:
    package = json.loads(document)
    for version in package["versions"].values():
        version["dist"]["tarball"] = BASE + urlsplit(version["dist"]["tarball"]).path
    return json.dumps(package, separators=(",", ":")).encode()


def _file_name(path: str) -> str:
    """One flat name for an address's path; `/@scope%2fname` and `/@scope/name` are the same."""
    return quote(path.replace("%2f", "/").replace("%2F", "/").lstrip("/"), safe="@")


# -- serve ----------------------------------------------------------------------------------------------------------


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one segment for head and body, not two
    files: dict[str, bytes]

    def do_GET(self) -> None:
        content = self.files.get(_file_name(self.path))
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        if not self.path.endswith(".tgz"):
            self.send_header("Content-Type", "application/vnd.npm.install-v1+json")
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 1024


def serve(port: int) -> None:
    """Serve for ever; "ready" on the standard output when it does."""
    _Handler.files = {path.name: path.read_bytes() for path in folder().iterdir()}
    with _Server(("::", port), _Handler) as server:
        print("ready", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    if sys.argv[1] == "fill":
        fill()
    else:
        serve(int(sys.argv[2]))
