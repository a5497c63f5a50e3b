"""errands.py HOST STREAMS SIZE: many things at once, each of which may fail by itself; then a canary of each kind.

Connections that echo SIZE bytes, datagrams and DNS queries (over UDP and TCP) that are sent up to four times, a second
each. Prints {"all": how many, "failed": {errand: why}, "canary": {errand: why}, "seconds": {canary: seconds}}.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable

from payload import receive_exactly

ECHO, DNS = 7, 53
LIMIT = 10.0  # seconds for one errand
QUESTION = b"\1a\3lab\4test\0" + struct.pack("!HH", 1, 1)


def main() -> None:
    host, streams, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    errands: dict[str, Callable[[], None]] = {
        **{f"stream {n}": lambda: stream(host, size) for n in range(streams)},
        **{f"datagram {n}": lambda: datagram(host) for n in range(3)},
        **{f"dns {n}": dns for n in range(2)},
        "dns tcp": dns_tcp,
    }
    failed: dict[str, str] = {}
    threads = [threading.Thread(target=attempt, args=(name, errand, failed)) for name, errand in errands.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wrong: dict[str, str] = {}
    seconds: dict[str, float] = {}
    for name in ("stream 0", "datagram 0", "dns 0", "dns tcp"):
        begin = time.monotonic()
        attempt(name, errands[name], wrong)
        seconds[name] = round(time.monotonic() - begin, 3)
    print(json.dumps({"all": len(errands), "failed": failed, "canary": wrong, "seconds": seconds}))


def attempt(name: str, errand: Callable[[], None], failed: dict[str, str]) -> None:
    try:
        errand()
    except (OSError, EOFError, AssertionError) as error:
        failed[name] = f"{type(error).__name__}: {error}"


def stream(host: str, size: int) -> None:
    data = os.urandom(size)
    with socket.create_connection((host, ECHO), LIMIT) as sock:
        sender = threading.Thread(target=send, args=(sock, data))
        sender.start()
        came = receive_exactly(sock, len(data))
        sender.join()
        assert hashlib.sha256(came).digest() == hashlib.sha256(data).digest(), "other bytes came back"
        assert sock.recv(1) == b"", "the stream does not end"


def send(sock: socket.socket, data: bytes) -> None:
    try:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the reader hears of it


def datagram(host: str) -> None:
    data = os.urandom(500)
    ask_again(host, ECHO, data, lambda answer: answer == data)


def gateway() -> str:
    with open("/etc/resolv.conf") as file:
        return next(line.split()[1] for line in file if line.startswith("nameserver"))


def query() -> bytes:
    return os.urandom(2) + struct.pack("!HHHHH", 0x0100, 1, 0, 0, 0) + QUESTION


def answers(message: bytes, asked: bytes) -> bool:
    return message[:2] == asked[:2] and message[3] & 15 == 0 and message[6:8] != b"\0\0"


def dns() -> None:
    asked = query()
    ask_again(gateway(), DNS, asked, lambda message: answers(message, asked))


def dns_tcp() -> None:
    asked = query()
    with socket.create_connection((gateway(), DNS), LIMIT) as sock:
        sock.sendall(len(asked).to_bytes(2, "big") + asked)
        size = int.from_bytes(receive_exactly(sock, 2), "big")
        assert answers(receive_exactly(sock, size), asked), "no answer"


def ask_again(host: str, port: int, data: bytes, is_right: Callable[[bytes], bool]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((host, port))
        sock.settimeout(1)
        for _ in range(4):
            try:
                sock.send(data)
                if is_right(sock.recv(65535)):
                    return
            except TimeoutError:
                continue
        raise TimeoutError("no answer to four datagrams")


main()
