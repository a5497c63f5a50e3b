"""probes.py < JSON: try destinations one after the other and say what became of each.

Input: a list of [VERB, FAMILY, TO, PORT, PAYLOAD in hex]. TO is an address, or a name that is looked up first, for
addresses of FAMILY only. Verbs:

    tcp       connect, send PAYLOAD, wait for an answer
    udp       one datagram, wait for an answer
    icmp      one echo request, wait for the reply
    dns-udp   PAYLOAD is a query
    dns-tcp   the same, behind its length

Output: a list of {"error": what the socket said, null if all went well, "icmp": [type, code] of the ICMP error that
came, or null, "answer": hex, "seconds"}. Errors are names of errno, "EAI" (no address), "EOF" and "silence" (PATIENCE).
"""

from __future__ import annotations

import errno
import json
import socket
import struct
import sys
import time

PATIENCE = 2.0
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
RECVERR = {4: (socket.IPPROTO_IP, 11), 6: (socket.IPPROTO_IPV6, 25)}  # linux/in.h, linux/in6.h
PING = {4: (socket.IPPROTO_ICMP, 8), 6: (58, 128)}
ERROR = struct.Struct("=IBBB")  # struct sock_extended_err, linux/errqueue.h: errno, origin, type, code
SERVICES = {"tcp": socket.SOCK_STREAM, "dns-tcp": socket.SOCK_STREAM}


def main() -> None:
    print(json.dumps([probe(*entry) for entry in json.load(sys.stdin)]))


def probe(verb: str, family: int, to: str, port: int, payload: str) -> dict[str, object]:
    found: dict[str, object] = {"error": None, "icmp": None, "answer": ""}
    begin = time.monotonic()
    try:
        address = socket.getaddrinfo(to, port, FAMILIES[family], socket.SOCK_DGRAM)[0][4]
        begin = time.monotonic()
        found["answer"] = exchange(verb, family, address, bytes.fromhex(payload), found).hex()
    except socket.gaierror:
        found["error"] = "EAI"
    except TimeoutError:
        found["error"] = "silence"
    except EOFError:
        found["error"] = "EOF"
    except OSError as problem:
        found["error"] = errno.errorcode[problem.errno or 0]
    return {**found, "seconds": time.monotonic() - begin}


def exchange(verb: str, family: int, address: tuple[object, ...], payload: bytes, found: dict[str, object]) -> bytes:
    with socket.socket(FAMILIES[family], SERVICES.get(verb, socket.SOCK_DGRAM), kind(verb, family)) as sock:
        sock.settimeout(PATIENCE)
        if verb not in SERVICES:
            sock.setsockopt(*RECVERR[family], 1)
        try:
            sock.connect(address)
            sock.sendall(message(verb, family, payload))
            return answer(verb, sock)
        finally:
            if verb not in SERVICES:
                found["icmp"] = icmp_error(sock)


def kind(verb: str, family: int) -> int:
    return PING[family][0] if verb == "icmp" else 0


def message(verb: str, family: int, payload: bytes) -> bytes:
    if verb == "dns-tcp":
        return len(payload).to_bytes(2, "big") + payload
    return struct.pack("!BBHHH", PING[family][1], 0, 0, 0, 1) + payload if verb == "icmp" else payload


def answer(verb: str, sock: socket.socket) -> bytes:
    data = sock.recv(65536)
    if verb == "dns-tcp":
        while data and (len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2], "big")):
            data += (more := sock.recv(65536))
            if not more:
                break
        data = data[2:]
    if not data:
        raise EOFError
    return data


def icmp_error(sock: socket.socket) -> list[int] | None:
    """Type and code of the ICMP error that waits, if one does."""
    sock.setblocking(False)  # else Python waits where the kernel would not
    try:
        _, control, _, _ = sock.recvmsg(0, 512, socket.MSG_ERRQUEUE)
    except OSError:
        return None
    for _, _, data in control:
        _, origin, number, code = ERROR.unpack_from(data)
        if origin in (2, 3):
            return [number, code]
    return None


main()
