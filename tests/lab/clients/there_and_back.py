"""there_and_back.py HOST PORT SIZE: SIZE bytes up, then the same bytes down, over one connection without half-close.

Prints {"right": bool}: whether their SHA-256 is the same.
"""

from __future__ import annotations

import hashlib
import json
import socket
import sys

from payload import BLOCK, send_pattern


def main() -> None:
    host, port, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with socket.create_connection((host, port), 60) as sock:
        sock.sendall(f"exchange {size}\n".encode())
        sent = send_pattern(sock, size, b"there")
        hasher = hashlib.sha256()
        while size:
            data = sock.recv(min(size, BLOCK))
            if not data:
                raise EOFError(f"{size} bytes are missing")
            hasher.update(data)
            size -= len(data)
    print(json.dumps({"right": hasher.digest() == sent}))


main()
