"""proxy_dies.py HOST PORT: an echo kept going while its way goes down, then a new connection, and later another.

Prints "connected", "lost ERRNO" when the first breaks (a mere end does not count: it goes on sending), "then ERRNO" for
a new one, and, after $GATE/0 is there, "again echo".
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path


def main() -> None:
    where = (sys.argv[1], int(sys.argv[2]))
    with socket.create_connection(where, 10) as sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
        print("connected", flush=True)
        print("lost", outcome(lambda: keep_going(sock)), flush=True)
    print("then", outcome(lambda: socket.create_connection(where, 10).close()), flush=True)
    while not Path(os.environ["GATE"], "0").exists():
        time.sleep(0.02)
    with socket.create_connection(where, 10) as sock:
        sock.sendall(b"echo")
        print("again", sock.recv(10).decode(), flush=True)


def keep_going(sock: socket.socket) -> None:
    while True:
        sock.sendall(b"x")
        sock.recv(1)
        time.sleep(0.001)


def outcome(step: Callable[[], object]) -> str:
    try:
        return f"nothing {step()!r}"
    except OSError as problem:
        return errno.errorcode.get(problem.errno or 0, repr(problem))


main()
