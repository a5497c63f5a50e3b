"""slow_reader.py HOST PORT FLOWS SIZE IDLE: FLOWS connections, SIZE bytes down each, none read for IDLE seconds.

Says "idle" when all have been asked for; then reads all of them side by side. Prints {"right": connections whose bytes
and digest came, "seconds": from the first read to the last, "median": to the end of half of them}.
"""

from __future__ import annotations

import hashlib
import json
import resource
import selectors
import socket
import sys
import time

DIGEST = 32


def main() -> None:
    host, port, flows, size, idle = sys.argv[1], *map(int, sys.argv[2:5]), float(sys.argv[5])
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    socks = [socket.create_connection((host, port)) for _ in range(flows)]
    for sock in socks:
        sock.sendall(f"stream {size}\n".encode())
    print("idle", flush=True)
    time.sleep(idle)
    begin = time.monotonic()
    ends = read_all(socks, size)
    times = sorted(end - begin for _, end in ends)
    right = sum(good for good, _ in ends)
    print(json.dumps({"right": right, "seconds": times[-1], "median": times[len(times) // 2]}))


def read_all(socks: list[socket.socket], size: int) -> list[tuple[bool, float]]:
    """Whether each was right, and when it ended."""
    ends, chooser, buffer = [], selectors.DefaultSelector(), bytearray(1 << 18)
    for sock in socks:
        sock.setblocking(False)
        chooser.register(sock, selectors.EVENT_READ, [hashlib.sha256(), 0, b""])
    while chooser.get_map():
        for key, _ in chooser.select():
            length = key.fileobj.recv_into(buffer)
            state, data = key.data, bytes(memoryview(buffer)[:length])
            text = data[: max(0, size - state[1])]
            state[0].update(text)
            state[1] += length
            state[2] += data[len(text) :]
            if not length:
                chooser.unregister(key.fileobj)
                ends.append((state[1] == size + DIGEST and state[0].digest() == state[2], time.monotonic()))
    return ends


main()
