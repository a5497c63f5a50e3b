"""Ask a DNS server so many questions a second; say what came back and how late.

    dns_load.py SERVER PORT RATE SECONDS [DEAD]

Prints {"sent", "answered", "lost", "wrong", "failed", "seconds", "p50_ms", "p99_ms", "max_ms"}. A question is sent when
it is due, whether earlier ones were answered or not; answers are waited for for 5 s. Every DEAD-th question is about a
name that begins with `dead`: those must fail, and don't count otherwise.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import sys
import time

WAIT_S = 5.0
NAMES = 1000
TICK_S = 0.001


def question(kind: bytes, number: int) -> bytes:
    label = kind + b"%d" % number
    return bytes((len(label),)) + label + b"\4load\3lab\4test\0" + struct.pack("!HH", 28 if number % 4 == 3 else 1, 1)


def main() -> None:
    server, port, rate, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    every = int(sys.argv[5]) if len(sys.argv) > 5 else 0
    kinds = [b"dead" if every and number % every == 0 else b"n" for number in range(NAMES)]
    questions = [question(kind, number) for number, kind in enumerate(kinds)]
    sock = socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    sock.connect((server, port))
    sock.setblocking(False)
    print(json.dumps(load(sock, questions, rate, int(rate * seconds))))


def load(sock: socket.socket, questions: list[bytes], rate: int, total: int) -> dict[str, object]:
    sent_at: dict[int, tuple[float, bool]] = {}
    late: list[float] = []
    sent = wrong = failed = 0
    start = time.monotonic()
    end = start + total / rate + WAIT_S
    while (now := time.monotonic()) < end and (sent < total or sent_at):
        due = min(int((now - start) * rate) + 1, total)
        while sent < due:
            ident = sent & 0xFFFF
            asked = questions[sent % len(questions)]
            sent_at[ident] = time.monotonic(), asked[1:5] == b"dead"
            sock.send(struct.pack("!HHHHHH", ident, 0x0100, 1, 0, 0, 0) + asked)
            sent += 1
        select.select([sock], [], [], TICK_S)
        while (answer := receive(sock)) is not None:
            ident = answer[0] << 8 | answer[1]
            began, dead = sent_at.pop(ident, (0.0, False))
            if dead and answer[3] & 15 == 2:
                failed += 1
            elif not began or answer[3] & 15 or not answer[7]:
                wrong += 1
            else:
                late.append(time.monotonic() - began)
    late.sort()
    took = time.monotonic() - start
    counts = {"sent": sent, "answered": len(late), "lost": len(sent_at), "wrong": wrong, "failed": failed}
    return {**counts, "seconds": took, **percentiles(late)}


def receive(sock: socket.socket) -> bytes | None:
    try:
        return sock.recv(4096)
    except BlockingIOError:
        return None


def percentiles(late: list[float]) -> dict[str, float]:
    if not late:
        return {"p50_ms": 0.0, "p99_ms": 0.0, "max_ms": 0.0}
    pick = {"p50_ms": late[len(late) // 2], "p99_ms": late[len(late) * 99 // 100], "max_ms": late[-1]}
    return {name: value * 1000 for name, value in pick.items()}


if __name__ == "__main__":
    main()
