"""many.py HOST PORT at-once N [SIZE] | one-by-one N: N echo connections, all open together or one after another.

Each sends bytes that no other sends, SIZE of them (2000 or so, or 10 or so one by one).

Prints {"right": connections whose bytes came back, "seconds": time}.
"""

from __future__ import annotations

import json
import resource
import socket
import sys
import time

from payload import receive_exactly


def main() -> None:
    host, port, order, *numbers = sys.argv[1], int(sys.argv[2]), sys.argv[3], *map(int, sys.argv[4:])
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    begin = time.monotonic()
    right = {"at-once": at_once, "one-by-one": one_by_one}[order](host, port, *numbers)
    print(json.dumps({"right": right, "seconds": time.monotonic() - begin}))


def at_once(host: str, port: int, number: int, size: int = 2000) -> int:
    """All connections are open before the first byte is sent, and all are answered before the first is closed."""
    socks = [socket.create_connection((host, port)) for _ in range(number)]
    words = [(f"connection {n} ".encode() * size)[:size] for n in range(number)]
    for sock, word in zip(socks, words, strict=True):
        sock.sendall(word)
    right = sum(receive_exactly(sock, len(word)) == word for sock, word in zip(socks, words, strict=True))
    for sock in socks:
        sock.close()
    return right


def one_by_one(host: str, port: int, number: int) -> int:
    right = 0
    for n in range(number):
        with socket.create_connection((host, port)) as sock:
            word = f"connection {n}".encode()
            sock.sendall(word)
            right += receive_exactly(sock, len(word)) == word
    return right


main()
