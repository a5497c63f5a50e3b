"""banner.py HOST PORT COUNT: connect COUNT times and wait for the server's first line without sending a byte.

Prints {"line": the line, "seconds": [from the call of connect to the line, ...]}.
"""

from __future__ import annotations

import json
import socket
import sys
import time


def main() -> None:
    host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    seconds, line = [], b""
    for _ in range(count):
        begin = time.monotonic()
        with socket.create_connection((host, port)) as sock:
            line = sock.makefile("rb").readline()
        seconds.append(time.monotonic() - begin)
    print(json.dumps({"line": line.decode(), "seconds": seconds}))


main()
