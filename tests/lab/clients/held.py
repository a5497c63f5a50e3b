"""held.py HOST PORT HOPS: one connection with a hop limit of its own (0: the default), through a moment of trouble.

An echo, then "held"; when $GATE/0 is there it writes again and says "written"; when $GATE/1 is there it waits for that
echo and says "ok" or the error.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path


def step(number: int) -> None:
    while not Path(os.environ["GATE"], str(number)).exists():
        time.sleep(0.02)


def main() -> None:
    host, port, hops = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    six = ":" in host
    with socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_STREAM) as sock:
        if hops:
            level, option = (
                (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS) if six else (socket.IPPROTO_IP, socket.IP_TTL)
            )
            sock.setsockopt(level, option, hops)
        sock.settimeout(10)
        sock.connect((host, port))
        sock.send(b"before")
        assert sock.recv(10) == b"before"
        print("held", flush=True)
        step(0)
        sock.send(b"amid")
        time.sleep(0.5)
        print("written", flush=True)
        step(1)
        try:
            print("ok" if sock.recv(10) == b"amid" else "end", flush=True)
        except OSError as problem:
            print(problem, flush=True)


main()
