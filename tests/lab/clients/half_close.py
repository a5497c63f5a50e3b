"""half_close.py HOST PORT child-first|server-first|reset-by-server|break-off|reset-by-child: how connections end.

child-first       send 1 MiB, end the sending; the server says at once what it read, and after two seconds sends 1 MiB
server-first      the server ends its sending at once; send 10 MiB; the server's digest, asked for later, must match
reset-by-server   the server resets after 5 bytes: the read fails with ECONNRESET, it is no end of file
break-off         the server sends 1 MiB and resets while it is being read: the same, after right bytes
reset-by-child    reset here; the server must see a reset, no end of file

Prints {"right": bool, ...details}.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import time

from payload import receive_all, receive_exactly, send_pattern

MIB = 1 << 20


def main() -> None:
    host, port, order = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    orders = {
        "child-first": child_first,
        "server-first": server_first,
        "reset-by-server": reset_by_server,
        "break-off": break_off,
        "reset-by-child": reset_by_child,
    }
    print(json.dumps(orders[order]((host, port))))


def child_first(server: tuple[str, int]) -> dict[str, object]:
    with socket.create_connection(server) as sock:
        sock.sendall(f"answer-late {MIB} 2\n".encode())
        send_pattern(sock, MIB, b"up")
        sock.shutdown(socket.SHUT_WR)
        begin = time.monotonic()
        counted = int.from_bytes(receive_exactly(sock, 8), "big")
        seconds = time.monotonic() - begin
        late = receive_all(sock)
    right = (counted, late.count) == (MIB, MIB) and seconds < 1
    return {"right": right, "up": counted, "down": late.count, "seconds": seconds}


def server_first(server: tuple[str, int]) -> dict[str, object]:
    token = os.urandom(8).hex()
    with socket.create_connection(server) as sock:
        sock.sendall(f"finish-first {token}\n".encode())
        farewell = receive_all(sock).count
        digest = send_pattern(sock, 10 * MIB, b"up")
        sock.shutdown(socket.SHUT_WR)
    count, seen = outcome(server, token)
    return {"right": (farewell, count, seen) == (3, 10 * MIB, digest), "up": count}


def reset_by_server(server: tuple[str, int]) -> dict[str, object]:
    with socket.create_connection(server) as sock:
        sock.sendall(b"reset 5\n")
        five = receive_exactly(sock, 5)
        sock.sendall(b"!")
        try:
            end = f"{sock.recv(1)!r}"
        except ConnectionResetError:
            end = "ECONNRESET"
    return {"right": (five, end) == (b"xxxxx", "ECONNRESET"), "end": end}


def break_off(server: tuple[str, int]) -> dict[str, object]:
    with socket.create_connection(server) as sock:
        sock.sendall(f"break-off {MIB}\n".encode())
        count, wrong, end = 0, 0, ""
        while not end:
            try:
                data = sock.recv(4096)
                count, wrong = count + len(data), wrong + len(data.replace(b"x", b""))
                end = "" if data else "end of file"
            except ConnectionResetError:
                end = "ECONNRESET"
    return {"right": end == "ECONNRESET" and count <= MIB and not wrong, "end": end, "down": count}


def reset_by_child(server: tuple[str, int]) -> dict[str, object]:
    token = os.urandom(8).hex()
    sock = socket.create_connection(server)
    sock.sendall(f"wait-for-reset {token}\n".encode())
    receive_exactly(sock, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
    count, _ = outcome(server, token)
    return {"right": count == 1, "seen": "reset" if count else "end of file"}


def outcome(server: tuple[str, int], token: str) -> tuple[int, bytes]:
    """What the server noted under `token`: a count and a SHA-256."""
    with socket.create_connection(server) as sock:
        sock.sendall(f"digest {token}\n".encode())
        return int.from_bytes(receive_exactly(sock, 8), "big"), receive_exactly(sock, 32)


main()
