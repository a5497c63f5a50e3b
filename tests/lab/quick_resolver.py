"""A resolver that answers every question with one address, fast: `python -m tests.lab.quick_resolver PORT`.

It takes names that begin with `dead` in silence. "ready" on the standard output when it listens on PORT, IPv4.
"""

from __future__ import annotations

import socket
import struct
import sys

_A = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 60, 4) + bytes((198, 51, 100, 1))
_AAAA = b"\xc0\x0c" + struct.pack("!HHIH", 28, 1, 60, 16) + bytes.fromhex("20010db8006400000000000000000001")
_HEAD = struct.pack("!HHHHH", 0x8180, 1, 1, 0, 0)


def main() -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    sock.bind(("", int(sys.argv[1])))
    print("ready", flush=True)
    while True:
        query, client = sock.recvfrom(4096)
        if query[13:17] == b"dead":
            continue
        end = query.index(b"\0", 12) + 5
        sock.sendto(query[:2] + _HEAD + query[12:end] + (_AAAA if query[end - 3] == 28 else _A), client)


if __name__ == "__main__":
    main()
