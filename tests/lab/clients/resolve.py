"""resolve.py NAME [4|6]: getaddrinfo; prints {"addresses": sorted list, "error": EAI name or null, "seconds": time}."""

from __future__ import annotations

import json
import socket
import sys
import time

FAMILIES = {"4": socket.AF_INET, "6": socket.AF_INET6}


def main() -> None:
    name, *family = sys.argv[1:]
    begin = time.monotonic()
    addresses: list[str] = []
    error = None
    try:
        found = socket.getaddrinfo(name, 80, FAMILIES[family[0]] if family else socket.AF_UNSPEC, socket.SOCK_STREAM)
        addresses = sorted({str(entry[4][0]) for entry in found})
    except socket.gaierror as problem:
        error = next(code for code in dir(socket) if code.startswith("EAI_") and getattr(socket, code) == problem.errno)
    print(json.dumps({"addresses": addresses, "error": error, "seconds": time.monotonic() - begin}))


main()
