"""shortage.py HOST PORT NUMBER STOP: more flows than childflow has descriptors for, in one process after the other.

This process holds one echo connection and asks DNS all the while. Processes of PER_PROCESS sockets each then open, at
the same time, NUMBER TCP connections, UDP exchanges and pings (an id each). Prints
{"tcp": {"ok": N, errno name: N}, "udp": ..., "icmp": ..., "kept": the old connection still echoes,
"names": DNS answers, "slowest": seconds of the slowest DNS answer, "after": connections of 10 that work when all
others are closed}.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import struct
import sys
import time
from collections import Counter

PER_PROCESS = 40
PATIENCE_S = 1.0
FULL_S = 1.0  # all that stand are held for so long


def outcome(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, type(error).__name__)


def tcp(host: str, port: int) -> socket.socket:
    sock = socket.create_connection((host, port), PATIENCE_S)
    sock.sendall(b"?")
    return answered(sock)


def udp(host: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(PATIENCE_S)
    sock.connect((host, port))
    sock.send(b"?")
    return answered(sock)


def icmp(host: str, _: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
    sock.settimeout(PATIENCE_S)
    sock.connect((host, 0))
    sock.send(struct.pack("!BBHHH", 8, 0, 0, 0, 1) + b"?")
    return answered(sock)


def answered(sock: socket.socket) -> socket.socket:
    if not sock.recv(100).endswith(b"?"):
        raise EOFError
    return sock


def some(kind: str, host: str, port: int, number: int, told: int, go_on: int) -> None:
    """In a child: open `number`, tell how that went, hold what stands until `go_on` ends."""
    counts, held = Counter[str](), []
    for _ in range(number):
        try:
            held.append({"tcp": tcp, "udp": udp, "icmp": icmp}[kind](host, port))
            counts["ok"] += 1
        except (OSError, EOFError) as error:
            counts[outcome(error) if isinstance(error, OSError) else "EOF"] += 1
    os.write(told, json.dumps(counts).encode() + b"\n")
    os.read(go_on, 1)


def wave(kind: str, host: str, port: int, number: int, meanwhile: object) -> Counter[str]:
    """`number` flows in all, at once; `meanwhile` is called until every process has told."""
    told, tell = os.pipe()
    go_on, hold = os.pipe()
    pids = []
    for _ in range(number // PER_PROCESS):
        pid = os.fork()
        if pid == 0:
            os.close(hold)
            some(kind, host, port, PER_PROCESS, tell, go_on)
            os._exit(0)
        pids.append(pid)
    lines = b""
    while lines.count(b"\n") < len(pids):
        if select.select([told], [], [], 0.05)[0]:
            lines += os.read(told, 65536)
        meanwhile()  # type: ignore[operator]
    print(f"full of {kind}", flush=True)
    time.sleep(FULL_S)
    for fd in (hold, go_on, told, tell):
        os.close(fd)
    for pid in pids:
        os.waitpid(pid, 0)
    counts = Counter[str]()
    for line in lines.splitlines():
        counts.update(json.loads(line))
    return counts


def main() -> None:
    host, port, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    kept = socket.create_connection((host, port), PATIENCE_S)
    names, slowest = 0, 0.0

    def ask() -> None:
        nonlocal names, slowest
        begin = time.monotonic()
        names += socket.gethostbyname("a.lab.test") == "198.51.100.1"
        slowest = max(slowest, time.monotonic() - begin)

    told: dict[str, object] = {kind: wave(kind, host, port, number, ask) for kind in ("tcp", "udp", "icmp")}
    kept.sendall(b"?")
    told["kept"] = answered(kept) is kept
    after = [tcp(host, port) for _ in range(10)]
    print(json.dumps({**told, "names": names, "slowest": slowest, "after": len(after)}))


main()
