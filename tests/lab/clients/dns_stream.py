"""dns_stream.py SERVER MODE: DNS over TCP as a hostile or merely unusual client speaks it. Prints what came of it.

split       the query byte by byte, then cut in the middle:             [rcode, rcode]
order       a late name first, then two quick ones, in one write:       the names in the order of their answers
close       a query, then end of file:                                  [rcode, what follows: "end" or "more"]
zero        a message of no bytes:                                      "end" or "more"
large       a query of 65,535 bytes:                                    rcode
junk        65,535 bytes that are no query, then a query:               [rcode, rcode]
idle N      N connections that say nothing, then a query on one more:   {"rcode": r, "open": how many still are}
datagrams   bytes that are no query, over UDP:                          [rcode or null, ...]
elsewhere   a query to ports 54 and 5353, UDP and TCP:                  [errno's name or "answer", ...]
"""

from __future__ import annotations

import errno
import json
import socket
import sys
import time

from dnslib import EDNS0, DNSRecord, EDNSOption  # type: ignore[import-untyped]

PATIENCE = 8.0


def query(name: str, **more: object) -> bytes:
    return bytes(DNSRecord.question(name, **more).pack())


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(2, "big") + message


def dial() -> socket.socket:
    sock = socket.create_connection((sys.argv[1], 53), PATIENCE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def exactly(sock: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size and (part := sock.recv(size - len(found))):
        found += part
    return found


def message(sock: socket.socket) -> bytes:
    return exactly(sock, int.from_bytes(exactly(sock, 2), "big"))


def rcode(answer: bytes) -> int:
    return answer[3] & 15


def split() -> object:
    found = []
    for pieces in (1, 9):
        with dial() as sock:
            whole = framed(query("a.lab.test"))
            for at in range(0, len(whole), pieces):
                sock.sendall(whole[at : at + pieces])
                time.sleep(0.002)
            found.append(rcode(message(sock)))
    return found


def order() -> object:
    with dial() as sock:
        sock.sendall(b"".join(framed(query(name)) for name in ("late.lab.test", "a.lab.test", "many.lab.test")))
        return [str(DNSRecord.parse(message(sock)).q.qname) for _ in range(3)]


def close() -> object:
    with dial() as sock:
        sock.sendall(framed(query("a.lab.test")))
        sock.shutdown(socket.SHUT_WR)
        return [rcode(message(sock)), "more" if sock.recv(1) else "end"]


def zero() -> object:
    with dial() as sock:
        sock.sendall(b"\0\0")
        return "more" if sock.recv(1) else "end"


def large() -> object:
    asked = DNSRecord.question("a.lab.test")
    asked.add_ar(EDNS0(opts=[EDNSOption(12, bytes(65535 - len(asked.pack()) - 15))]))
    with dial() as sock:
        whole = bytes(asked.pack())
        assert len(whole) == 65535, len(whole)
        sock.sendall(framed(whole))
        return rcode(message(sock))


def junk() -> object:
    with dial() as sock:
        sock.sendall(framed(b"GET / HTTP/1.1\r\n" + b"\xff" * 65519))
        first = rcode(message(sock))
        sock.sendall(framed(query("a.lab.test")))
        return [first, rcode(message(sock))]


def idle() -> object:
    held = [dial() for _ in range(int(sys.argv[3]))]
    with dial() as sock:
        sock.sendall(framed(query("a.lab.test")))
        answer = rcode(message(sock))
    for sock in held:
        sock.setblocking(False)
    return {"rcode": answer, "open": sum(is_open(sock) for sock in held)}


def is_open(sock: socket.socket) -> bool:
    try:
        return bool(sock.recv(1))
    except BlockingIOError:
        return True
    except OSError:
        return False


def datagrams() -> object:
    found: list[int | None] = []
    for data in (
        b"",
        b"\7",
        b"GET / HTTP/1.1\r\nHost: secret\r\n\r\n",
        b"\xff" * 1400,
        query("a.lab.test")[:-3],
        bytes(12),
    ):
        with socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((sys.argv[1], 53))
            sock.settimeout(0.5)
            sock.send(data)
            try:
                found.append(rcode(sock.recv(4096)))
            except TimeoutError:
                found.append(None)
    return found


def elsewhere() -> object:
    found = []
    for port in (54, 5353):
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            with socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, kind) as sock:
                sock.settimeout(1)
                try:
                    sock.connect((sys.argv[1], port))
                    sock.send(query("a.lab.test"))
                    sock.recv(4096)
                    found.append("answer")
                except OSError as problem:
                    found.append(errno.errorcode.get(problem.errno or 0, "silence"))
    return found


MODES = (split, order, close, zero, large, junk, idle, datagrams, elsewhere)
print(json.dumps(next(mode for mode in MODES if mode.__name__ == sys.argv[2])()))
