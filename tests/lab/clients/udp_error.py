"""udp_error.py HOST PORT: send a datagram on a connected socket; prints {"error": errno's name, or null after 3 s}."""

from __future__ import annotations

import errno
import json
import socket
import sys


def main() -> None:
    family, kind, _, _, address = socket.getaddrinfo(sys.argv[1], int(sys.argv[2]), type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as sock:
        sock.settimeout(3)
        error = None
        try:
            sock.connect(address)
            sock.send(b"anyone there?")
            sock.recv(100)
        except TimeoutError:
            pass
        except OSError as problem:
            error = errno.errorcode[problem.errno or 0]
    print(json.dumps({"error": error}))


main()
