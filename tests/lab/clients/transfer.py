"""transfer.py HOST PORT SIZE: SIZE bytes up and SIZE bytes down at once, over one connection; compares SHA-256.

Prints {"up": bool, "down": bool, "ended": bool}: whether each side received exactly what
the other sent, and then the end of file.
"""

from __future__ import annotations

import hashlib
import json
import socket
import sys
import threading

from payload import BLOCK, receive_exactly, send_pattern


def main() -> None:
    host, port, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with socket.create_connection((host, port)) as sock:
        sock.sendall(f"both-ways {size}\n".encode())
        sent: list[bytes] = []

        def send() -> None:
            sent.append(send_pattern(sock, size, b"up"))
            sock.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        received = digest_of(sock, size)
        sender.join()
        claimed_down, claimed_up = receive_exactly(sock, 32), receive_exactly(sock, 32)
        ended = sock.recv(1) == b""
    print(json.dumps({"up": claimed_up == sent[0], "down": claimed_down == received, "ended": ended}))


def digest_of(sock: socket.socket, size: int) -> bytes:
    hasher, buffer = hashlib.sha256(), bytearray(BLOCK)
    view = memoryview(buffer)
    while size:
        length = sock.recv_into(buffer, min(size, BLOCK))
        if not length:
            raise EOFError(f"{size} bytes are missing")
        hasher.update(view[:length])
        size -= length
    return hasher.digest()


main()
