"""datagrams.py HOST PORT count N | sizes A,B,... | lossy SIZE: UDP echo over one socket.

count N: N numbered datagrams, a small window of them under way at a time; every one must come back.
sizes:   one datagram of each size, its content compared.

lossy:   ROUNDS datagrams of SIZE, a small one after each; {"sent": ROUNDS, "small": how many came back, "large": of
         these, "broken": came back otherwise, "twice": came back again}.

Prints {"sent": n, "right": n, "missing": first few that did not come back}.
"""

from __future__ import annotations

import json
import os
import socket
import sys

WINDOW = 32
PATIENCE = 5.0
ROUNDS = 40


def main() -> None:
    host, port, order, argument = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as sock:
        sock.connect(address)
        sock.settimeout(PATIENCE)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        if order == "lossy":
            print(json.dumps(lossy(sock, int(argument))))
            return
        missing, sent = count(sock, int(argument)) if order == "count" else sizes(sock, argument)
    print(json.dumps({"sent": sent, "right": sent - len(missing), "missing": missing[:5]}))


def count(sock: socket.socket, number: int) -> tuple[list[int], int]:
    missing: list[int] = []
    for first in range(0, number, WINDOW):
        expected = set(range(first, min(first + WINDOW, number)))
        for n in sorted(expected):
            sock.send(f"datagram {n}".encode())
        try:
            while expected:
                expected.discard(int(sock.recv(65536).split()[1]))
        except TimeoutError:
            missing += sorted(expected)
    return missing, number


def lossy(sock: socket.socket, size: int) -> dict[str, int]:
    found = {"sent": ROUNDS, "small": 0, "large": 0, "broken": 0, "twice": 0}
    sock.settimeout(0.5)
    sent: set[bytes] = set()
    seen: set[bytes] = set()
    for number in range(ROUNDS):
        large, small = os.urandom(size), f"small {number}".encode()
        sent.add(large)
        for data in (large, small):
            sock.send(data)
        try:
            while (came := sock.recv(65536)) != small:  # which may overtake a large one
                found["twice"] += came in seen
                found["large" if came in sent else "broken"] += came not in seen
                seen.add(came)
            found["small"] += 1
        except TimeoutError:
            continue
    return found


def sizes(sock: socket.socket, listed: str) -> tuple[list[int], int]:
    missing: list[int] = []
    wanted = [int(size) for size in listed.split(",")]
    for size in wanted:
        data = os.urandom(size)
        sock.send(data)
        try:
            if sock.recv(65536) != data:
                missing.append(size)
        except TimeoutError:
            missing.append(size)
    return missing, len(wanted)


main()
