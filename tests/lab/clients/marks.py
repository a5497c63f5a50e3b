"""marks.py HOST PORT HOP_LIMITS TOSES: datagrams with each hop limit (TOS 0) and each TOS (default hop limit).

A datagram's text is its mark: "hop N" or "tos N". Prints what came back from the echo server, sorted.
"""

from __future__ import annotations

import json
import socket
import sys
import time

OPTIONS = {
    socket.AF_INET: (socket.IPPROTO_IP, socket.IP_TTL, socket.IP_TOS),
    socket.AF_INET6: (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, socket.IPV6_TCLASS),
}


def main() -> None:
    family, kind, _, _, address = socket.getaddrinfo(sys.argv[1], int(sys.argv[2]), type=socket.SOCK_DGRAM)[0]
    level, hops, tos = OPTIONS[family]
    with socket.socket(family, kind) as sock:
        sock.connect(address)
        sock.settimeout(1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)  # all echoes are read at the end
        for name, option, numbers, default in (("hop", hops, sys.argv[3], 64), ("tos", tos, sys.argv[4], 0)):
            for number in map(int, filter(None, numbers.split(","))):
                sock.setsockopt(level, option, number)
                send(sock, f"{name} {number}".encode())
                time.sleep(0.0005)
            sock.setsockopt(level, option, default)
        print(json.dumps(sorted(echoes(sock))))


def send(sock: socket.socket, mark: bytes) -> None:
    """A hop limit that is too small earns an error, which the next send may be the one to tell."""
    try:
        sock.send(mark)
    except OSError:
        sock.send(mark)


def echoes(sock: socket.socket) -> list[str]:
    found = []
    while True:
        try:
            found.append(sock.recv(100).decode())
        except TimeoutError:
            return found
        except OSError:
            continue


main()
