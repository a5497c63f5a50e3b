"""ports.py HOST OTHER tcp|udp|in-turn NUMBER: more flows to one far port than the host has ports.

in-turn: TCP connections one after the other, each closed by us first, so that its port waits.

Prints {"open": how many of NUMBER, "errors": names of errors, "slowest": seconds, "other": whether OTHER can be reached
meanwhile, "again": whether HOST can be, after all were let go}.
"""

from __future__ import annotations

import errno
import json
import socket
import struct
import sys
import time

ECHO = 7
HOW = sys.argv[3]
KIND = socket.SOCK_DGRAM if HOW == "udp" else socket.SOCK_STREAM
held: list[socket.socket] = []
problems: set[str] = set()
slowest = 0.0


def works(host: str, hold: bool = False) -> bool:
    global slowest
    began = time.monotonic()
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, KIND)
    sock.settimeout(3)
    try:
        sock.connect((host, ECHO))
        sock.send(b"here")
        return sock.recv(10) == b"here"
    except OSError as problem:
        problems.add(errno.errorcode.get(problem.errno or 0, "silence"))
        return False
    finally:
        slowest = max(slowest, time.monotonic() - began)
        if hold:
            held.append(sock)
        else:
            sock.close()


def main() -> None:
    opened = sum(works(sys.argv[1], hold=HOW != "in-turn") for _ in range(int(sys.argv[4])))
    report: dict[str, object] = {"open": opened, "errors": sorted(problems), "slowest": slowest}
    if KIND == socket.SOCK_STREAM:
        report["other"] = works(sys.argv[2])
    for sock in held:
        if KIND == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
    if HOW == "tcp":
        time.sleep(0.3)
        report["again"] = works(sys.argv[1])
    print(json.dumps(report))


main()
