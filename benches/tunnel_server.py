"""tunnel_server.py BYTES: an HTTP server that is its own proxy, so that a proxy's work costs nothing.

    8200   HTTP: any GET is answered with BYTES zeros
    8201   the same after an HTTP CONNECT, whatever that asks for
    8202   the same after a SOCKS5 request

"ready" on the standard output when all listen.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable

DIRECT, CONNECT, SOCKS = 8200, 8201, 8202


def main() -> None:
    size = int(sys.argv[1])
    content = os.memfd_create("zeros")
    os.truncate(content, size)
    os.pwrite(content, bytes(size), 0)  # real pages, as a file's
    for port, open_tunnel in ((DIRECT, direct), (CONNECT, http_connect), (SOCKS, socks5)):
        listener = socket.create_server(("0.0.0.0", port), backlog=64)
        threading.Thread(target=accept, args=(listener, open_tunnel, content, size), daemon=True).start()
    print("ready", flush=True)
    threading.Event().wait()


def accept(listener: socket.socket, open_tunnel: Callable[[socket.socket], None], content: int, size: int) -> None:
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=serve, args=(sock, open_tunnel, content, size), daemon=True).start()


def serve(sock: socket.socket, open_tunnel: Callable[[socket.socket], None], content: int, size: int) -> None:
    with sock:
        try:
            open_tunnel(sock)
            header(sock)
            sock.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
            sent = 0
            while sent < size:
                sent += os.sendfile(sock.fileno(), content, sent, size - sent)
        except ConnectionError:
            pass


def direct(_: socket.socket) -> None:
    """Nothing comes before the request."""


def http_connect(sock: socket.socket) -> None:
    header(sock)
    sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")


def socks5(sock: socket.socket) -> None:
    sock.recv(64)
    sock.sendall(b"\5\0")
    sock.recv(300)
    sock.sendall(b"\5\0\0\1" + bytes(6))


def header(sock: socket.socket) -> None:
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        if not (byte := sock.recv(1)):
            raise ConnectionError
        data += byte


if __name__ == "__main__":
    main()
