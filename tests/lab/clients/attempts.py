"""attempts.py: what a hostile command tries, one thing after the other.

Standard input is a JSON list of attempts, each with a "name" and what to "do":

    tcp      connect to [HOST, PORT], send each of the "pieces" (hex) by itself, and wait for a byte
    udp      send each of the "pieces" to [HOST, PORT] over one connected socket, and wait for a datagram
    ping     an echo request with the first piece as its data to [HOST]
    dns      the pieces, each a message, to [HOST, PORT] over "udp" or "tcp"
    resolve  getaddrinfo of HOST

"from" (udp, tcp) is the port to send from. Prints {NAME: outcome}: "reply", "silence", "end", the name of the errno;
for dns a list of [rcode, [addresses of the answer]] (with "whole" of the message in hex) or "silence"; for resolve the
addresses.
"""

from __future__ import annotations

import errno
import json
import socket
import sys
import time
from typing import Any

PATIENCE = 3.0
SILENCE = 0.4  # of datagrams: what is refused is so at once


def main() -> None:
    said = {}
    for attempt in json.load(sys.stdin):
        try:
            said[attempt["name"]] = _DO[attempt["do"]](attempt)
        except OSError as error:
            said[attempt["name"]] = errno.errorcode.get(error.errno or 0, type(error).__name__)
        time.sleep(attempt.get("then", 0))
    print(json.dumps(said))


def pieces(attempt: dict[str, Any]) -> list[bytes]:
    return [bytes.fromhex(piece) for piece in attempt["pieces"]]


def opened(attempt: dict[str, Any], kind: int) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(*attempt["to"], type=kind)[0]
    sock = socket.socket(family, kind)
    sock.settimeout(PATIENCE)
    if "from" in attempt:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("::" if family == socket.AF_INET6 else "", attempt["from"]))
    sock.connect(address)
    return sock


def tcp(attempt: dict[str, Any]) -> str:
    with opened(attempt, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces(attempt):
            sock.send(piece, socket.MSG_OOB if attempt.get("urgent") else 0)
        if attempt.get("close"):
            sock.shutdown(socket.SHUT_WR)
        sock.settimeout(attempt.get("patience", PATIENCE))
        try:
            return "reply" if sock.recv(65536) else "end"
        except TimeoutError:
            return "silence"


def udp(attempt: dict[str, Any]) -> str:
    with opened(attempt, socket.SOCK_DGRAM) as sock:
        sock.settimeout(attempt.get("patience", SILENCE))
        for piece in pieces(attempt):
            sock.send(piece)
        try:
            return "reply" if sock.recv(65536) else "end"
        except TimeoutError:
            return "silence"


def ping(attempt: dict[str, Any]) -> str:
    host = attempt["to"][0]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    protocol, kind = (socket.IPPROTO_ICMPV6, 128) if family == socket.AF_INET6 else (socket.IPPROTO_ICMP, 8)
    with socket.socket(family, socket.SOCK_DGRAM, protocol) as sock:
        sock.settimeout(SILENCE)
        sock.connect((host, 0))
        sock.send(bytes((kind, 0, 0, 0, 0, 0, 0, 1)) + pieces(attempt)[0])
        try:
            return "reply" if sock.recv(65536) else "end"
        except TimeoutError:
            return "silence"


def dns(attempt: dict[str, Any]) -> list[Any]:
    is_stream = attempt["transport"] == "tcp"
    with opened(attempt, socket.SOCK_STREAM if is_stream else socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE if is_stream else 2.0)
        found: list[Any] = []
        read = bytes.hex if attempt.get("whole") else read_answer
        if is_stream:
            sock.sendall(b"".join(len(message).to_bytes(2, "big") + message for message in pieces(attempt)))
            with sock.makefile("rb") as stream:
                for _ in pieces(attempt):
                    found.append(read(stream.read(int.from_bytes(stream.read(2), "big"))))
            return found
        for message in pieces(attempt):
            sock.send(message)
            try:
                found.append(read(sock.recv(65536)))
            except TimeoutError:
                found.append("silence")
        return found


def read_answer(message: bytes) -> Any:
    """[rcode, addresses in the answer section]"""
    if len(message) < 12:
        return "end"
    questions, answers = message[4] << 8 | message[5], message[6] << 8 | message[7]
    at, addresses = 12, []
    for _ in range(questions):
        at = skip_name(message, at) + 4
    for _ in range(answers):
        at = skip_name(message, at)
        rtype, length = message[at] << 8 | message[at + 1], message[at + 8] << 8 | message[at + 9]
        data = message[at + 10 : at + 10 + length]
        if rtype in (1, 28):
            addresses.append(socket.inet_ntop(socket.AF_INET if rtype == 1 else socket.AF_INET6, data))
        at += 10 + length
    return [message[3] & 15, addresses]


def skip_name(message: bytes, at: int) -> int:
    while message[at]:
        if message[at] >= 0xC0:
            return at + 2
        at += 1 + message[at]
    return at + 1


def resolve(attempt: dict[str, Any]) -> Any:
    family = {4: socket.AF_INET, 6: socket.AF_INET6, 0: socket.AF_UNSPEC}[attempt.get("family", 4)]
    try:
        found = socket.getaddrinfo(attempt["to"][0], 80, family, socket.SOCK_STREAM)
        return sorted({str(entry[4][0]) for entry in found})
    except socket.gaierror as error:
        return next(code for code in dir(socket) if code.startswith("EAI_") and getattr(socket, code) == error.errno)


_DO = {"tcp": tcp, "udp": udp, "ping": ping, "dns": dns, "resolve": resolve}
main()
