"""canary.py HOST PORT STOP: one byte there and back, again and again, until the file STOP appears.

Says "ready" after the first; prints {"count": round trips, "slowest": seconds of the slowest one} at the end.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time

EVERY_S = 0.002


def main() -> None:
    host, port, stop = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    count, slowest = 0, 0.0
    with socket.create_connection((host, port)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while not os.path.exists(stop):
            begin = time.monotonic()
            sock.sendall(b"?")
            assert sock.recv(1) == b"?", "the canary is dead"
            slowest = max(slowest, time.monotonic() - begin)
            count += 1
            if count == 1:
                print("ready", flush=True)
                slowest = 0.0
            time.sleep(EVERY_S)
    print(json.dumps({"count": count, "slowest": slowest}))


if __name__ == "__main__":
    main()
