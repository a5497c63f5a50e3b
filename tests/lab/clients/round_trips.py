"""round_trips.py HOST ROUNDS: what works, round after round; between rounds it waits for the file $GATE/N.

A line of JSON for each round: {"tcp": outcome, "udp": ..., "same_udp": ..., "dns": ..., "held": ..., "seconds": each}.
Outcomes: "ok", errno's name, "silence", EAI's name. `tcp` and `udp` are new flows, `same_udp` is one socket all along,
`held` one connection, opened first.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

ECHO = 7
PATIENCE = 1.0
HOST, ROUNDS = sys.argv[1], int(sys.argv[2])
FAMILY = socket.AF_INET6 if ":" in HOST else socket.AF_INET


def main() -> None:
    held, same = connected(socket.SOCK_STREAM), connected(socket.SOCK_DGRAM)
    works: dict[str, Callable[[], None]] = {
        "tcp": lambda: fresh(socket.SOCK_STREAM),
        "udp": lambda: fresh(socket.SOCK_DGRAM),
        "same_udp": lambda: echo(same),
        "dns": lambda: socket.getaddrinfo("a.lab.test", 80, socket.AF_INET),
        "held": lambda: echo(held),
    }
    for number in range(ROUNDS):
        if number:
            wait_for(number - 1)
        report: dict[str, object] = {}
        seconds = {}
        for name, work in works.items():
            began = time.monotonic()
            report[name] = outcome(work)
            seconds[name] = round(time.monotonic() - began, 3)
        print(json.dumps({**report, "seconds": seconds}), flush=True)


def wait_for(number: int) -> None:
    while not Path(os.environ["GATE"], str(number)).exists():
        time.sleep(0.02)


def connected(kind: socket.SocketKind) -> socket.socket:
    sock = socket.socket(FAMILY, kind)
    sock.settimeout(PATIENCE)
    sock.connect((HOST, ECHO))
    return sock


def fresh(kind: socket.SocketKind) -> None:
    with connected(kind) as sock:
        echo(sock)


def echo(sock: socket.socket) -> None:
    """One word there and back; what earlier rounds left is passed over."""
    word = os.urandom(8).hex().encode()
    sock.send(word)
    found = b""
    while not found.endswith(word):
        found += sock.recv(100)


def outcome(work: Callable[[], None]) -> str:
    try:
        work()
        return "ok"
    except TimeoutError:
        return "silence"
    except socket.gaierror as problem:
        return next(code for code in dir(socket) if code.startswith("EAI_") and getattr(socket, code) == problem.errno)
    except OSError as problem:
        return errno.errorcode[problem.errno or 0]


main()
