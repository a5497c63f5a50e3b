"""udp_error.py HOST PORT: send a datagram on a connected socket and wait a second, plainly and with IP_RECVERR.

Prints {"plain": errno's name or null, "all": the same with IP_RECVERR, which tells soft errors too}.
"""

from __future__ import annotations

import errno
import json
import socket
import sys

IP_RECVERR, IPV6_RECVERR = 11, 25
RECVERR = {socket.AF_INET: (socket.IPPROTO_IP, IP_RECVERR), socket.AF_INET6: (socket.IPPROTO_IPV6, IPV6_RECVERR)}


def main() -> None:
    print(json.dumps({"plain": outcome(False), "all": outcome(True)}))


def outcome(every_error: bool) -> str | None:
    family, kind, _, _, address = socket.getaddrinfo(sys.argv[1], int(sys.argv[2]), type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as sock:
        sock.settimeout(1)
        if every_error:
            sock.setsockopt(*RECVERR[family], 1)
        try:
            sock.connect(address)
            sock.send(b"anyone there?")
            sock.recv(100)
        except TimeoutError:
            return None
        except OSError as problem:
            return errno.errorcode[problem.errno or 0]
    return "an answer"


main()
