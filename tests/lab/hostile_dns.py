"""A resolver that lies as told: `python -m tests.lab.hostile_dns ZONE PORT`, started by a test through `Lab.serve`.

ZONE is a file of JSON, {NAME: [ANSWER, ...]}: at the n-th query for NAME (any type) the n-th answer is given, and after
the last one the first again. A name that is not there is NXDOMAIN. ANSWER is {"answer": [RECORD, ...], "authority":
[...], "additional": [...]}, RECORD [OWNER, TYPE, DATA, TTL]; each is given whatever type was asked, but A, AAAA,
TXT and HTTPS records of the answer only to a query for their type or ANY. UDP and TCP, IPv4 and IPv6.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

from dnslib import CNAME, QTYPE, RD, RR, TXT, DNSRecord  # type: ignore[import-untyped]

NXDOMAIN = 3
_MAKE: dict[str, Callable[[str], Any]] = {
    "A": lambda data: RD(socket.inet_pton(socket.AF_INET, data)),
    "AAAA": lambda data: RD(socket.inet_pton(socket.AF_INET6, data)),  # dnslib takes no dotted ones
    "CNAME": CNAME,
    "TXT": TXT,
    "HTTPS": lambda data: RD(bytes.fromhex(data)),
}
TTL_S = 30


class Zone:
    def __init__(self, names: dict[str, list[dict[str, Any]]]) -> None:
        self._names = names
        self._asked: dict[tuple[str, str], int] = {}

    def answer(self, query: bytes) -> bytes:
        asked = DNSRecord.parse(query)
        name, kind = str(asked.q.qname).rstrip(".").lower(), str(QTYPE[asked.q.qtype])
        reply = asked.reply()
        answers = self._names.get(name)
        if answers is None:
            reply.header.rcode = NXDOMAIN
            return bytes(reply.pack())
        number = self._asked[name, kind] = self._asked.get((name, kind), -1) + 1
        said = answers[number % len(answers)]
        for record in said.get("answer", []):
            if record[1] not in ("A", "AAAA", "TXT", "HTTPS") or kind in (record[1], "ANY"):
                reply.add_answer(_record(*record))
        for record in said.get("authority", []):
            reply.add_auth(_record(*record))
        for record in said.get("additional", []):
            reply.add_ar(_record(*record))
        return bytes(reply.pack())


def _record(owner: str, rtype: str, data: str, ttl: int = TTL_S) -> RR:
    return RR(owner, getattr(QTYPE, rtype), rdata=_MAKE[rtype](data), ttl=ttl)


def main() -> None:
    with open(sys.argv[1]) as file:
        zone = Zone(json.load(file))
    port = int(sys.argv[2])
    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    datagrams = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    datagrams.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    datagrams.bind(("::", port))
    threading.Thread(target=_streams, args=(listener, zone), daemon=True).start()
    print("ready", flush=True)
    while True:
        query, client = datagrams.recvfrom(65536)
        datagrams.sendto(zone.answer(query), client)


def _streams(listener: socket.socket, zone: Zone) -> None:
    while True:
        connection = listener.accept()[0]
        with connection, connection.makefile("rb") as stream:
            while len(prefix := stream.read(2)) == 2:
                answer = zone.answer(stream.read(int.from_bytes(prefix, "big")))
                connection.sendall(len(answer).to_bytes(2, "big") + answer)


if __name__ == "__main__":
    main()
