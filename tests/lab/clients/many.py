"""many.py HOST PORT at-once N | one-by-one N: N echo connections, all open together or one after another.

Prints {"right": connections whose bytes came back, "seconds": time}.
"""

from __future__ import annotations

import json
import socket
import sys
import time

from payload import receive_exactly


def main() -> None:
    host, port, order, number = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    begin = time.monotonic()
    right = {"at-once": at_once, "one-by-one": one_by_one}[order](host, port, number)
    print(json.dumps({"right": right, "seconds": time.monotonic() - begin}))


def at_once(host: str, port: int, number: int) -> int:
    """All connections are open before the first byte is sent, and all are answered before the first is closed."""
    socks = [socket.create_connection((host, port)) for _ in range(number)]
    words = [f"connection {n} ".encode() * 100 for n in range(number)]
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
