"""A server for crowds, on one thread: `python -m tests.lab.crowd`, started by `lab.serve("tests.lab.crowd")`.

    7001 tcp   echo
    8080 tcp   HTTP: one request, one answer of ANSWER bytes, then the server closes

On IPv4 and IPv6. For thousands of connections at once, where `serve.py` has a thread for each.
"""

from __future__ import annotations

import resource
import select
import socket

CROWD_ECHO, CROWD_HTTP = 7001, 8080
BODY = b"short and sweet\n" * 8
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(BODY) + BODY


def main() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    poll, listeners = select.epoll(), {}
    for port in (CROWD_ECHO, CROWD_HTTP):
        listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
        listener.setblocking(False)
        listeners[listener.fileno()] = (listener, port)
        poll.register(listener, select.EPOLLIN)
    print("ready", flush=True)
    guests: dict[int, tuple[socket.socket, int]] = {}
    while True:
        for fd, _events in poll.poll():
            if fd in listeners:
                for guest in _arrivals(listeners[fd][0]):
                    guests[guest.fileno()] = (guest, listeners[fd][1])
                    poll.register(guest, select.EPOLLIN)
            elif not _served(*guests[fd]):
                poll.unregister(fd)
                guests.pop(fd)[0].close()


def _arrivals(listener: socket.socket) -> list[socket.socket]:
    found = []
    for _ in range(64):
        try:
            guest, _ = listener.accept()
        except BlockingIOError:
            break
        guest.setblocking(False)
        found.append(guest)
    return found


def _served(guest: socket.socket, port: int) -> bool:
    """False when the connection is over. What is sent is small enough for any socket buffer."""
    try:
        data = guest.recv(65536)
        if port == CROWD_ECHO:
            return bool(data) and guest.send(data) == len(data)
        if data:
            guest.send(ANSWER)
    except ConnectionError:
        pass
    return False


if __name__ == "__main__":
    main()
