"""tcp_trace.py HOST PORT: connect with hop limits 1, 2, ... until it works; prints who ended each attempt and how.

A list of [address that said it, ICMP type, ICMP code], and at the end "connected" or errno's name.
"""

from __future__ import annotations

import errno
import json
import socket
import struct
import sys

OPTIONS = {
    socket.AF_INET: (socket.IPPROTO_IP, socket.IP_TTL, 11, slice(4, 8)),
    socket.AF_INET6: (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 25, slice(8, 24)),
}
ERROR = struct.Struct("=IBBBxII")  # struct sock_extended_err
MOST_HOPS = 8


def main() -> None:
    family, kind, _, _, address = socket.getaddrinfo(sys.argv[1], int(sys.argv[2]), type=socket.SOCK_STREAM)[0]
    found: list[object] = []
    for limit in range(1, MOST_HOPS):
        found.append(hop(family, kind, address, limit))
        if isinstance(found[-1], str):
            break
    print(json.dumps(found))


def hop(family: socket.AddressFamily, kind: socket.SocketKind, address: object, limit: int) -> object:
    level, hops, recverr, place = OPTIONS[family]
    with socket.socket(family, kind) as sock:
        sock.settimeout(3)
        sock.setsockopt(level, hops, limit)
        sock.setsockopt(level, recverr, 1)
        try:
            sock.connect(address)
            return "connected"
        except OSError as problem:
            told = problem
        sock.setblocking(False)
        try:
            _, control, _, _ = sock.recvmsg(1, 512, socket.MSG_ERRQUEUE)
        except OSError:
            return errno.errorcode.get(told.errno or 0, "TimeoutError")
        data = next(data for _, number, data in control if number == recverr)
        _, _, icmp_type, icmp_code, _, _ = ERROR.unpack_from(data)
        return socket.inet_ntop(family, data[ERROR.size :][place]), icmp_type, icmp_code


main()
