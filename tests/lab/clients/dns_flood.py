"""dns_flood.py SERVER NUMBER ECHO_HOST: NUMBER queries as fast as they go, from 100 sockets; then what came back.

Prints {"answers": how many in 6 s, "rcodes": the different ones, "slowest": seconds of a TCP echo to ECHO_HOST then}.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import sys
import time

SOCKETS, PATIENCE = 100, 6.0


def main() -> None:
    server, number, echo_host = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    canary = socket.create_connection((echo_host, 7), 5)
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(SOCKETS)]
    for sock in sockets:
        sock.connect((server, 53))
        sock.setblocking(False)
    slowest = 0.0
    for n in range(number):
        question = b"\3%03d\3lab\4test\0" % (n % 1000) + struct.pack("!HH", 1, 1)
        try:
            sockets[n % SOCKETS].send(struct.pack("!HHHHHH", n & 0xFFFF, 0x0100, 1, 0, 0, 0) + question)
        except BlockingIOError:
            pass
        if n % 500 == 0:
            slowest = max(slowest, echo(canary))
    answers, rcodes = collect(sockets)
    print(json.dumps({"answers": answers, "rcodes": sorted(rcodes), "slowest": max(slowest, echo(canary))}))


def echo(canary: socket.socket) -> float:
    began = time.monotonic()
    canary.send(b"x")
    canary.recv(1)
    return time.monotonic() - began


def collect(sockets: list[socket.socket]) -> tuple[int, set[int]]:
    answers, rcodes, end = 0, set(), time.monotonic() + PATIENCE
    while (left := end - time.monotonic()) > 0:
        for sock in select.select(sockets, [], [], left)[0]:
            try:
                rcodes.add(sock.recv(4096)[3] & 15)
                answers += 1
            except BlockingIOError:
                pass
    return answers, rcodes


main()
