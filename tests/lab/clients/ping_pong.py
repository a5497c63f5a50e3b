"""ping_pong.py HOST PORT SIZE COUNT: SIZE bytes there and back COUNT times, written in one go and without delay.

To the actor (port 7000) each message goes in two writes, and Nagle's rule is left on: the second one waits for the
acknowledgement of the first, which the server's kernel holds back.

Prints {"p50": seconds, "p99": seconds, "worst": seconds}.
"""

from __future__ import annotations

import json
import socket
import sys
import time

from payload import receive_exactly

ACTOR = 7000


def main() -> None:
    host, port, size, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    with socket.create_connection((host, port)) as sock:
        times = (in_two_writes if port == ACTOR else in_one_write)(sock, size, count)
    times.sort()
    print(json.dumps({"p50": times[count // 2], "p99": times[count * 99 // 100], "worst": times[-1]}))


def in_one_write(sock: socket.socket, size: int, count: int) -> list[float]:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return [answered(sock, [bytes(size)]) for _ in range(count)]


def in_two_writes(sock: socket.socket, size: int, count: int) -> list[float]:
    sock.sendall(f"exchange {size}\n".encode())
    return [answered(sock, [bytes(size // 2)] * 2) for _ in range(count)]


def answered(sock: socket.socket, writes: list[bytes]) -> float:
    begin = time.perf_counter()
    for data in writes:
        sock.sendall(data)
    receive_exactly(sock, sum(map(len, writes)))
    return time.perf_counter() - begin


main()
