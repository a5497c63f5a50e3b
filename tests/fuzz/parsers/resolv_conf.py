"""resolv.conf, as the host's file (any bytes) and as `--dns` (any text); and the file that is made of it for the child.

Only `UsageError` may come of `--dns`, nothing of the file.
"""

from __future__ import annotations

import socket

from childflow.errors import UsageError
from childflow.sandbox.resolver import resolv_conf
from childflow.services.resolvers import Resolver, parse_resolv_conf, parse_resolver


def one(data: bytes) -> None:
    text = data.decode("utf-8", errors="replace")
    plan = parse_resolv_conf(text)
    assert 1 <= len(plan.servers) <= 8
    assert 1.0 <= plan.attempt_s <= 2.0
    assert 1 <= plan.rounds <= 4
    for server in plan.servers:
        _check(server)
    made = resolv_conf(data, "192.0.0.1").splitlines()
    assert [line for line in made if line.split()[:1] == [b"nameserver"]] == [b"nameserver 192.0.0.1"]
    for line in text.splitlines()[:4]:
        try:
            _check(parse_resolver(line))
        except UsageError:
            pass


def _check(server: Resolver) -> None:
    socket.inet_pton(server.family, server.sockaddr[0])
    assert 0 < server.sockaddr[1] < 65536
    assert server.text


def seeds() -> list[bytes]:
    return [
        b"nameserver 203.0.113.1\nnameserver 2001:db8::1\nsearch example.org\noptions timeout:1 attempts:9 rotate\n",
        b"nameserver fe80::1%lo\nnameserver fe80::1%99999\nnameserver\nnameserver 1.2.3\n#nameserver 1.2.3.4\n;x y\n",
        b"203.0.113.1:5353\n[2001:db8::1]:53\n[::1]\n[::1\n", b"1.2.3.4:0\n1.2.3.4:99999\n:53\nhost\n",
        b"\0nameserver 1.2.3.4\noptions timeout:\xff timeout:-1 attempts:0\n", b"domain a\nsortlist 1.2.3.4/24\n",
    ]  # fmt: skip
