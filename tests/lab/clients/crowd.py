"""crowd.py HOST PORT idle N GO | churn N PARALLEL | hold N STOP: many connections at once, on one thread.

idle    opens N echo connections, says "open"; when the file GO appears each sends one byte and waits for it.
        Prints {"right": how many got it, "seconds": time from the first byte sent to the last received}.
churn   N HTTP exchanges, PARALLEL of them under way at any time; says "done K" after each tenth of them.
        Prints {"right": whole answers, "errors": by name, "seconds": time}.
hold    tries N echo connections, says "open"; holds those that stand until the file STOP appears, then tries each.
        Prints {"errors": by name, "right": how many echoed}.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import select
import socket
import sys
import time
from collections import Counter

REQUEST = b"GET / HTTP/1.1\r\nHost: crowd\r\n\r\n"
AT_ONCE = 200  # connects under way


def begin(host: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    sock.setblocking(False)
    sock.connect_ex((host, port))
    return sock


def open_all(host: str, port: int, number: int) -> tuple[list[socket.socket], Counter[str]]:
    poll, waiting, found, errors = select.epoll(), {}, [], Counter[str]()
    left = number
    while left or waiting:
        while left and len(waiting) < AT_ONCE:
            sock = begin(host, port)
            waiting[sock.fileno()] = sock
            poll.register(sock, select.EPOLLOUT)
            left -= 1
        for fd, _ in poll.poll():
            sock = waiting.pop(fd)
            poll.unregister(fd)
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                errors[errno.errorcode[error]] += 1
                sock.close()
            else:
                found.append(sock)
    return found, errors


def wait_for(path: str) -> None:
    while not os.path.exists(path):
        time.sleep(0.02)


def each_one_byte(socks: list[socket.socket]) -> tuple[int, float]:
    poll, begun = select.epoll(), time.monotonic()
    by_fd = {sock.fileno(): sock for sock in socks}
    for sock in socks:
        sock.send(b"?")
        poll.register(sock, select.EPOLLIN | select.EPOLLONESHOT)
    right, came = 0, 0
    while came < len(socks):
        events = poll.poll(10)
        if not events:
            break
        for fd, _ in events:
            came += 1
            try:
                right += by_fd[fd].recv(10) == b"?"
            except ConnectionError:
                pass
    return right, time.monotonic() - begun


def idle(host: str, port: int, number: int, go: str) -> dict[str, object]:
    socks, errors = open_all(host, port, number)
    print("open", flush=True)
    wait_for(go)
    right, seconds = each_one_byte(socks)
    return {"right": right, "errors": errors, "seconds": seconds}


def hold(host: str, port: int, number: int, stop: str) -> dict[str, object]:
    socks, errors = open_all(host, port, number)
    print("open", flush=True)
    wait_for(stop)
    right, _ = each_one_byte(socks)
    return {"open": len(socks), "right": right, "errors": errors}


def churn(host: str, port: int, number: int, parallel: int) -> dict[str, object]:
    poll, busy, begun = select.epoll(), {}, time.monotonic()
    right, errors, left, done = 0, Counter[str](), number, 0
    while left or busy:
        while left and len(busy) < parallel:
            sock = begin(host, port)
            busy[sock.fileno()] = (sock, [])
            poll.register(sock, select.EPOLLOUT)
            left -= 1
        for fd, events in poll.poll():
            sock, parts = busy[fd]
            try:
                if events & select.EPOLLOUT and not parts:
                    sock.send(REQUEST)
                    poll.modify(fd, select.EPOLLIN)
                    continue
                data = sock.recv(65536)
                if data:
                    parts.append(data)
                    continue
                right += b"".join(parts).endswith(b"short and sweet\n")
            except OSError as error:
                errors[errno.errorcode.get(error.errno or 0, "?")] += 1
            poll.unregister(fd)
            del busy[fd]
            sock.close()
            done += 1
            if done % (number // 10) == 0:
                print("done", done, flush=True)
    return {"right": right, "errors": errors, "seconds": time.monotonic() - begun}


def main() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    host, port, verb, number, last = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5]
    if verb == "churn":
        result = churn(host, port, number, int(last))
    else:
        result = {"idle": idle, "hold": hold}[verb](host, port, number, last)
    print(json.dumps(result))


main()
