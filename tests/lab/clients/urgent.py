"""urgent.py HOST PORT INLINE COUNT: COUNT urgent bytes between others; the server takes them INLINE (1) or not (0).

Prints {"all": whether the server read every byte in the order of sending, "ordinary": whether it read just the others}.
"""

from __future__ import annotations

import hashlib
import json
import socket
import sys

from payload import receive_exactly


def main() -> None:
    host, port, inline, count = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    every, ordinary = b"", b""
    with socket.create_connection((host, port)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(f"urgent {inline}\n".encode())
        receive_exactly(sock, 1)
        for n in range(count):
            text, urgent = f"word {n} ".encode(), bytes([n % 256])
            sock.sendall(text)
            sock.send(urgent, socket.MSG_OOB)
            every, ordinary = every + text + urgent, ordinary + text
        sock.shutdown(socket.SHUT_WR)
        digest = receive_exactly(sock, 32)
        read = int.from_bytes(receive_exactly(sock, 8), "big")
    print(json.dumps({"all": right(every, digest, read), "ordinary": right(ordinary, digest, read)}))


def right(sent: bytes, digest: bytes, read: int) -> bool:
    return read == len(sent) and digest == hashlib.sha256(sent).digest()


main()
