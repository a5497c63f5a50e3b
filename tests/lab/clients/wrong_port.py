"""wrong_port.py HOST PORT: have an echo server answer once from another port and once plainly, on one socket of ours.

Prints [[text, port it came from], ...]: what came within a second.
"""

from __future__ import annotations

import json
import socket
import sys


def main() -> None:
    host, port = sys.argv[1], int(sys.argv[2])
    came = []
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(1)
        for text in (b"wrong-port", b"plain"):
            sock.sendto(text, (host, port))
        try:
            while True:
                text, sender = sock.recvfrom(100)
                came.append([text.decode(), sender[1]])
        except TimeoutError:
            pass
    print(json.dumps(came))


main()
