"""flows.py HOST N: N echo connections that never rest, and a new connection again and again, until somebody ends this.

Prints "up" when all of them have echoed. A connection attempt that fails is noted in the file `errors`, by its errno's
name.
"""

from __future__ import annotations

import errno
import select
import socket
import sys
import time

ECHO = 7


def main() -> None:
    host, number = sys.argv[1], int(sys.argv[2])
    socks = [socket.create_connection((host, ECHO)) for _ in range(number)]
    poll = select.poll()
    by_fd = {sock.fileno(): sock for sock in socks}
    for sock in socks:
        poll.register(sock, select.POLLIN)
        sock.sendall(b"round and round")
    echoed: set[int] = set()
    next_try = 0.0
    while True:
        for fd, _ in poll.poll(50):
            pass_on(by_fd[fd], poll)
            if fd not in echoed:
                echoed.add(fd)
                if len(echoed) == number:
                    print("up", flush=True)
        if time.monotonic() > next_try:
            next_try = time.monotonic() + 0.05
            try_another(host)


def pass_on(sock: socket.socket, poll: select.poll) -> None:
    try:
        sock.sendall(sock.recv(65536))
    except OSError:
        poll.unregister(sock)


def try_another(host: str) -> None:
    try:
        socket.create_connection((host, ECHO), 1).close()
    except OSError as error:
        with open("errors", "a") as file:
            file.write(f"{errno.errorcode.get(error.errno or 0, error)}\n")


main()
