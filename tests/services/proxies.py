"""Proxies that follow a script: a thread for each connection, plain or in TLS, on loopback."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Script = Callable[[socket.socket], None]

OK = b"HTTP/1.1 200 Connection established\r\n\r\n"


@contextmanager
def scripted(script: Script, context: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> Iterator[int]:
    """A server that runs `script` with each connection (after the handshake, with `context`); yields its port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, 0), family=family, backlog=1024)
    threading.Thread(target=_accept, args=(listener, script, context), daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def _accept(listener: socket.socket, script: Script, context: ssl.SSLContext | None) -> None:
    while True:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_one, args=(sock, script, context), daemon=True).start()


def _one(sock: socket.socket, script: Script, context: ssl.SSLContext | None) -> None:
    sock.settimeout(20)
    try:
        if context is not None:
            sock = context.wrap_socket(sock, server_side=True, suppress_ragged_eofs=False)
        with sock:
            script(sock)
    except OSError:
        pass  # the client went away, as it may


def header(sock: socket.socket) -> bytes:
    """Take an HTTP request's header."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        if not (byte := sock.recv(1)):
            raise ConnectionError
        data += byte
    return data


def answering(*pieces: bytes, pause: float = 0.0) -> Script:
    """Take a request, send the pieces, echo what comes until the end."""

    def script(sock: socket.socket) -> None:
        header(sock)
        for piece in pieces:
            sock.sendall(piece)
            time.sleep(pause)
        echo(sock)

    return script


def echo(sock: socket.socket) -> None:
    while data := sock.recv(65536):
        sock.sendall(data)


def silent(sock: socket.socket) -> None:
    """Read and say nothing."""
    while sock.recv(65536):
        pass


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
