"""churn.py HOST PORT COUNT: COUNT connections one after another, ended by the server's FIN and by a reset in turn.

Prints {"right": connections whose own bytes came back and that then ended, "tuples": different local ports,
"errors": {errno's name: how many connects failed so}, "seconds": time}.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
import sys
import time
from collections import Counter

from payload import receive_exactly

WORD = 16


def main() -> None:
    host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    begin, right, ports, errors = time.monotonic(), 0, set(), Counter()
    for n in range(count):
        try:
            with socket.create_connection((host, port)) as sock:
                ports.add(sock.getsockname()[1])
                right += visit(sock, reset=n % 2 == 1)
        except OSError as error:
            errors[errno.errorcode[error.errno or 0]] += 1
    print(json.dumps({"right": right, "tuples": len(ports), "errors": errors, "seconds": time.monotonic() - begin}))


def visit(sock: socket.socket, reset: bool) -> bool:
    word = os.urandom(WORD)
    sock.sendall(f"answer-once {WORD}\n".encode() + word)
    answered = receive_exactly(sock, WORD) == word
    if reset:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return answered
    return answered and sock.recv(1) == b""


main()
