"""connect.py HOST PORT,PORT,... [SYN_COUNT]: TCP connects to all these ports at the same time.

SYN_COUNT limits the SYNs sent again (TCP_SYNCNT; 2 make about 7 s), so that a black hole ends within a test's time.
Prints {PORT: {"error": errno's name or null, "seconds": how long it took}}.
"""

from __future__ import annotations

import errno
import json
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor


def main() -> None:
    host, listed, *count = sys.argv[1:]
    ports = listed.split(",")
    with ThreadPoolExecutor(len(ports)) as pool:
        outcomes = pool.map(lambda port: connect(host, int(port), int(count[0]) if count else 0), ports)
        print(json.dumps(dict(zip(ports, outcomes, strict=True))))


def connect(host: str, port: int, syn_count: int) -> dict[str, object]:
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind) as sock:
        if syn_count:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, syn_count)
        begin = time.monotonic()
        number = sock.connect_ex(address)
        seconds = time.monotonic() - begin
    return {"error": errno.errorcode[number] if number else None, "seconds": seconds}


main()
