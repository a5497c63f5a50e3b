"""path_mtu.py HOST PORT do|want|dont|probe SIZES [PAUSE]: datagrams of these sizes to an echo server,
one after the other, PAUSE seconds apart.

Prints a list of [size, "echo" | errno's name | "silence", the path's MTU as the socket knows it then].
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import time

MODES = {"dont": 0, "want": 1, "do": 2, "probe": 3}  # IP_PMTUDISC_..., the same for IPv6
OPTIONS = {  # level, MTU_DISCOVER, MTU, RECVERR
    socket.AF_INET: (socket.IPPROTO_IP, 10, 14, 11),
    socket.AF_INET6: (socket.IPPROTO_IPV6, 23, 24, 25),
}
PATIENCE = 0.5


def main() -> None:
    family, kind, _, _, address = socket.getaddrinfo(sys.argv[1], int(sys.argv[2]), type=socket.SOCK_DGRAM)[0]
    level, discover, mtu, recverr = OPTIONS[family]
    outcomes, pause = [], float(sys.argv[5]) if len(sys.argv) > 5 else 0
    with socket.socket(family, kind) as sock:
        sock.setsockopt(level, discover, MODES[sys.argv[3]])
        sock.setsockopt(level, recverr, 1)
        sock.settimeout(PATIENCE)
        sock.connect(address)
        for size in map(int, sys.argv[4].split(",")):
            outcome = attempt(sock, os.urandom(size))
            time.sleep(pause)
            forget_errors(sock)
            outcomes.append((size, outcome, sock.getsockopt(level, mtu)))
    print(json.dumps(outcomes))


def attempt(sock: socket.socket, data: bytes) -> str:
    try:
        sock.send(data)
        while (came := sock.recv(65536)) != data:
            assert came in sent, "not what was sent"  # an echo that was too late
        return "echo"
    except TimeoutError:
        return "silence"
    except OSError as problem:
        return errno.errorcode[problem.errno or 0]
    finally:
        sent.add(data)


sent: set[bytes] = set()


def forget_errors(sock: socket.socket) -> None:
    sock.setblocking(False)
    try:
        while True:
            sock.recvmsg(1, 512, socket.MSG_ERRQUEUE)
    except BlockingIOError:
        sock.settimeout(PATIENCE)


main()
