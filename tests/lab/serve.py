"""The server host's programs, all in one process: `python -m tests.lab.serve FOLDER [MORE]`, started by the lab.

    7 tcp, udp   echo: what comes goes back, until end of file; a datagram at a time, "wrong-port" from another port
    25 tcp       a banner at once, then echo
    53 tcp, udp  DNS for lab.test, see `_ZONE`, and for the names in FOLDER/zone.json (`Lab.zone`, read at each query);
                 late.lab.test after 4 s, wrong-port.lab.test from another port
    80 tcp       HTTP: the files of FOLDER/www; /git/ through git's own http-backend, repositories in FOLDER/git
    443 tcp, udp echo, for flights of TLS and QUIC
    1007 tcp     echo a millisecond later, as from a server that is not on this machine
    7000 tcp     the actor: the first line of a connection says what the server shall do with it, see `_ACTS`

All of them on IPv4 and IPv6, and on ports higher by MORE if given. "ready" on the standard output when every socket
listens. Each accepted connection and each DNS query is a line of JSON in FOLDER/witness.jsonl: what really arrived,
where.

Not here:   the lab's own names for these ports (`lab.py`), firewalls and unreachable hosts (`hosts.py`).
"""

from __future__ import annotations

import http.server
import json
import os
import socket
import socketserver
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from dnslib import AAAA, CNAME, QTYPE, RD, RR, TXT, A, DNSRecord  # type: ignore[import-untyped]

from .clients.payload import BLOCK, receive_all, receive_exactly, send_pattern

ECHO, BANNER, DNS, HTTP, TLS, FAR_ECHO, ACTOR = 7, 25, 53, 80, 443, 1007, 7000
DIGEST_SIZE = 32
LATE_S = 4.0
_witness_lock = threading.Lock()


def main() -> None:
    folder, more = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0
    witness = open(f"{folder}/witness.jsonl", "a", buffering=1)  # noqa: SIM115  (open until the process ends)
    zone = _Zone(Path(folder, "zone.json"))
    services = [
        _tcp(ECHO + more, _echo, witness),
        _tcp(BANNER + more, _banner, witness),
        _tcp(TLS + more, _echo, witness),
        _tcp(FAR_ECHO + more, _far_echo, witness),
        _tcp(ACTOR + more, _act, witness),
        _tcp(DNS + more, partial(_dns_stream, zone), witness),
        _udp(ECHO + more, lambda data, _: data, lambda data: data[:10].decode("latin-1")),
        _udp(TLS + more, lambda data, _: data),
        _udp(DNS + more, partial(_dns_datagram, zone, witness), _odd_name),
        _http(HTTP + more, folder, witness),
    ]
    for service in services:
        threading.Thread(target=service, daemon=True).start()
    print("ready", flush=True)
    threading.Event().wait()


def _saw(witness: Any, service: str, connection: socket.socket, **more: object) -> None:
    ends = {"to": connection.getsockname()[:2], "from": connection.getpeername()[:2]}
    line = json.dumps({"service": service, **ends, **more})
    with _witness_lock:
        witness.write(line + "\n")


# -- TCP ------------------------------------------------------------------------------------------------------------


def _tcp(port: int, serve: Callable[[socket.socket, Any], None], witness: Any) -> Callable[[], None]:
    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)

    def one(connection: socket.socket) -> None:
        with connection:
            try:
                _saw(witness, f"tcp/{port}", connection)
                serve(connection, witness)
            except (ConnectionError, TimeoutError, EOFError):
                pass  # the client went away, as some tests do on purpose

    def accept() -> None:
        while True:
            threading.Thread(target=one, args=(listener.accept()[0],), daemon=True).start()

    return accept


def _echo(connection: socket.socket, _: Any) -> None:
    while data := connection.recv(BLOCK):
        connection.sendall(data)


def _banner(connection: socket.socket, _: Any) -> None:
    connection.sendall(b"220 lab.test ready\r\n")
    _echo(connection, _)


def _far_echo(connection: socket.socket, _: Any) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while data := connection.recv(BLOCK):
        time.sleep(0.001)
        connection.sendall(data)


def _act(connection: socket.socket, _: Any) -> None:
    line = b""
    while not line.endswith(b"\n"):
        if not (byte := connection.recv(1)):
            return
        line += byte
    verb, *arguments = line.decode().split()
    _ACTS[verb](connection, *arguments)


def _both_ways(connection: socket.socket, size: str) -> None:
    """Send `size` bytes while receiving to the end of file; then the digests of what was sent and what was received."""
    sent: list[bytes] = []
    sender = threading.Thread(target=lambda: sent.append(send_pattern(connection, int(size), b"down")))
    sender.start()
    received = receive_all(connection)
    sender.join()
    connection.sendall(sent[0] + received.digest)


def _answer_late(connection: socket.socket, size: str, delay: str) -> None:
    """Read to the end of file, say how many bytes that were, wait `delay` seconds, send `size` bytes and close."""
    received = receive_all(connection)
    connection.sendall(received.count.to_bytes(8, "big"))
    time.sleep(float(delay))
    send_pattern(connection, int(size), b"late")


_digests: dict[str, tuple[int, bytes]] = {}


def _finish_first(connection: socket.socket, token: str) -> None:
    """Send end of file at once, go on reading; `digest TOKEN` on another connection then tells what came."""
    connection.sendall(b"bye")
    connection.shutdown(socket.SHUT_WR)
    received = receive_all(connection)
    _digests[token] = (received.count, received.digest)


def _digest(connection: socket.socket, token: str) -> None:
    for _ in range(1000):
        if token in _digests:
            count, digest = _digests[token]
            connection.sendall(count.to_bytes(8, "big") + digest)
            return
        time.sleep(0.01)


def _reset(connection: socket.socket, size: str) -> None:
    """Send `size` bytes, wait for one byte, then reset the connection."""
    connection.sendall(b"x" * int(size))
    connection.recv(1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _stream(connection: socket.socket, size: str) -> None:
    """Send `size` bytes, then their digest, and close."""
    connection.sendall(send_pattern(connection, int(size), b"stream"))


def _break_off(connection: socket.socket, size: str) -> None:
    """Send `size` bytes of 'x' and reset the connection at once, whether they have been received or not."""
    connection.sendall(b"x" * int(size))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _urgent(connection: socket.socket, inline: str) -> None:
    """Read to the end of file, urgent bytes `inline` (1) or apart (0); then the digest and the count of it."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, int(inline))
    connection.sendall(b"!")
    received = receive_all(connection)
    connection.sendall(received.digest + received.count.to_bytes(8, "big"))


def _answer_once(connection: socket.socket, size: str) -> None:
    """Send the next `size` bytes back and close first."""
    connection.sendall(receive_exactly(connection, int(size)))


def _exchange(connection: socket.socket, size: str) -> None:
    """Answer each `size` bytes with the same, when they are complete."""
    while True:
        connection.sendall(receive_exactly(connection, int(size)))


def _hold(connection: socket.socket) -> None:
    """Read nothing and say nothing until the client is gone."""
    connection.sendall(b"held")
    while connection.recv(1, socket.MSG_PEEK):
        time.sleep(0.05)


def _wait_for_reset(connection: socket.socket, token: str) -> None:
    """Read until the connection ends; `digest TOKEN` then says 0 for end of file, 1 for a reset."""
    connection.sendall(b"x")
    try:
        receive_all(connection)
        _digests[token] = (0, bytes(DIGEST_SIZE))
    except ConnectionResetError:
        _digests[token] = (1, bytes(DIGEST_SIZE))


_ACTS: dict[str, Callable[..., None]] = {
    "both-ways": _both_ways,
    "answer-late": _answer_late,
    "finish-first": _finish_first,
    "digest": _digest,
    "reset": _reset,
    "exchange": _exchange,
    "hold": _hold,
    "stream": _stream,
    "break-off": _break_off,
    "urgent": _urgent,
    "answer-once": _answer_once,
    "wait-for-reset": _wait_for_reset,
}


# -- UDP ------------------------------------------------------------------------------------------------------------


def _udp(
    port: int, answer: Callable[[bytes, Any], bytes], odd: Callable[[bytes], str] = lambda _: ""
) -> Callable[[], None]:
    """Answers come from the address that was asked, which matters when every address is this host's. `odd` names a
    datagram's special treatment: "late", "wrong-port" or none."""
    sock, other = _udp_socket(port), _udp_socket(0)

    def serve() -> None:
        while True:
            data, control, _, client = sock.recvmsg(65536, 128)
            how = odd(data)
            send = partial((other if how == "wrong-port" else sock).sendmsg, [answer(data, client)], control, 0, client)
            if how == "late":
                threading.Timer(LATE_S, send).start()
            else:
                send()

    return serve


def _udp_socket(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    sock.bind(("::", port))
    return sock


# -- DNS ------------------------------------------------------------------------------------------------------------

_LONG_TEXT = [
    f"{number:04} " + "this answer fits into no datagram of 512 or of 1232 bytes " * 3 for number in range(24)
]
_SVCB = bytes.fromhex("0001 00 0001 0006 02 6832 02 6833 0004 0004 c6336401")  # 1 . alpn=h2,h3 ipv4hint=198.51.100.1
_ZONE: dict[tuple[str, str], list[Any]] = {
    ("a.lab.test", "A"): [A("198.51.100.1")],
    ("many.lab.test", "A"): [A(f"198.51.100.{last}") for last in range(10, 20)],
    ("aaaa.lab.test", "AAAA"): [AAAA("2001:db8:64::1")],
    ("both.lab.test", "A"): [A("198.51.100.1")],
    ("both.lab.test", "AAAA"): [AAAA("2001:db8:64::1")],
    ("both-far.lab.test", "A"): [A("198.51.100.1")],
    ("both-far.lab.test", "AAAA"): [AAAA("2001:db8:20::1")],
    ("txt.lab.test", "TXT"): [TXT(["hello from", "the lab"])],
    ("big.lab.test", "TXT"): [TXT(text) for text in _LONG_TEXT],
    ("wide.lab.test", "TXT"): [TXT(text) for text in _LONG_TEXT[:16]],  # 3 KB: whole for a client that takes 4,096
    ("strange.lab.test", "TYPE65280"): [RD(bytes(range(256)))],
    ("web.lab.test", "HTTPS"): [RD(_SVCB)],
    ("web.lab.test", "SVCB"): [RD(_SVCB)],
    ("signed.lab.test", "A"): [A("198.51.100.1")],
    ("signed.lab.test", "RRSIG"): [RD(bytes.fromhex("000108030000003c") + b"\0" * 10 + b"\3lab\4test\0" + b"s" * 64)],
    ("late.lab.test", "A"): [A("198.51.100.4")],
    ("wrong-port.lab.test", "A"): [A("198.51.100.6")],
}
_NAMES = {name for name, _ in _ZONE}
NXDOMAIN = 3


_MAKE = {"A": A, "AAAA": AAAA, "TXT": TXT}


class _Zone:
    """What a test says about names. {NAME: {"CNAME": NAME or, of each type, DATA or a list of them, "ttl": 60}}"""

    def __init__(self, path: Path) -> None:
        self._path = path

    def answers(self, asked: DNSRecord) -> list[RR] | None:
        """As a resolver gives them, with the chain of aliases; None for a name that is not there."""
        names = json.loads(self._path.read_text()) if self._path.exists() else {}
        name, kind = str(asked.q.qname).rstrip(".").lower(), str(QTYPE[asked.q.qtype])
        if name not in names:
            return None
        found: list[RR] = []
        while (entry := names.get(name)) and "CNAME" in entry and len(found) < 16:
            found.append(RR(name, QTYPE.CNAME, rdata=CNAME(entry["CNAME"]), ttl=entry.get("ttl", 60)))
            name = entry["CNAME"].rstrip(".").lower()
        listed = (entry or {}).get(kind, [])
        for data in [listed] if isinstance(listed, str) else listed:
            found.append(RR(name, asked.q.qtype, rdata=_MAKE[kind](data), ttl=entry.get("ttl", 60)))
        return found


def _resolve(zone: _Zone, query: bytes, room: int) -> bytes:
    """The answer to `query`, or an empty one with TC set when it takes more than `room` bytes."""
    asked = DNSRecord.parse(query)
    name, kind = str(asked.q.qname).rstrip(".").lower(), QTYPE[asked.q.qtype]
    reply = asked.reply()
    for data in _ZONE.get((name, str(kind)), []):
        reply.add_answer(RR(asked.q.qname, asked.q.qtype, rdata=data, ttl=60))
    if name == "signed.lab.test":
        reply.header.ad = 1
    scripted = zone.answers(asked)
    for record in scripted or ():
        reply.add_answer(record)
    if name not in _NAMES and scripted is None:
        reply.header.rcode = NXDOMAIN
    packed = bytes(reply.pack())
    if len(packed) > room:
        reply.rr = []
        reply.header.tc = 1
        packed = bytes(reply.pack())
    return packed


def _saw_query(witness: Any, protocol: str, asked: DNSRecord, client: Any) -> None:
    line = json.dumps({"service": f"{protocol}/53", "from": client[:2], "name": str(asked.q.qname)})
    with _witness_lock:
        witness.write(line + "\n")


def _dns_datagram(zone: _Zone, witness: Any, query: bytes, client: Any) -> bytes:
    asked = DNSRecord.parse(query)
    _saw_query(witness, "udp", asked, client)
    sizes = [extra.edns_len for extra in asked.ar if extra.rtype == QTYPE.OPT]
    return _resolve(zone, query, max(512, *sizes) if sizes else 512)


def _odd_name(query: bytes) -> str:
    return str(DNSRecord.parse(query).q.qname).removesuffix(".lab.test.").lower()


def _dns_stream(zone: _Zone, connection: socket.socket, witness: Any) -> None:
    with connection.makefile("rb") as stream:
        while len(prefix := stream.read(2)) == 2:
            query = stream.read(int.from_bytes(prefix, "big"))
            _saw_query(witness, "tcp", DNSRecord.parse(query), connection.getpeername())
            if _odd_name(query) == "late":
                time.sleep(LATE_S)
            answer = _resolve(zone, query, 65535)
            connection.sendall(len(answer).to_bytes(2, "big") + answer)


# -- HTTP -----------------------------------------------------------------------------------------------------------


class _Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    address_family = socket.AF_INET6
    daemon_threads = True
    request_queue_size = 1024

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        socketserver.TCPServer.server_bind(self)  # HTTPServer's own would ask DNS for this host's name


def _http(port: int, folder: str, witness: Any) -> Callable[[], None]:
    class Handler(http.server.SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=f"{folder}/www")

        def do_GET(self) -> None:
            _saw(witness, "http", self.connection, path=self.path)
            if self.path.startswith("/git/"):
                self._git()
            else:
                super().do_GET()

        def do_POST(self) -> None:
            self._git()

        def _git(self) -> None:
            path, _, query = self.path.partition("?")
            variables = {
                "GIT_PROJECT_ROOT": f"{folder}/git",
                "GIT_HTTP_EXPORT_ALL": "1",
                "PATH_INFO": path.removeprefix("/git"),
                "QUERY_STRING": query,
                "REQUEST_METHOD": self.command,
                "CONTENT_TYPE": self.headers.get("content-type", ""),
                "GIT_PROTOCOL": self.headers.get("git-protocol", ""),
                "REMOTE_ADDR": self.client_address[0],
                "HTTP_CONTENT_ENCODING": self.headers.get("content-encoding", ""),
                # The repository belongs to whoever made it, which is no danger here.
                "GIT_CONFIG_COUNT": "1",
                "GIT_CONFIG_KEY_0": "safe.directory",
                "GIT_CONFIG_VALUE_0": "*",
            }
            done = subprocess.run(
                ["git", "http-backend"],
                input=self._body(),
                env={**os.environ, **variables},
                stdout=subprocess.PIPE,
                check=False,
            )
            head, _, body = done.stdout.partition(b"\r\n\r\n")
            fields = dict(line.split(": ", 1) for line in head.decode().splitlines())
            self.send_response(int(fields.pop("Status", "200").split()[0]))
            for name, value in {**fields, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def _body(self) -> bytes:
            if self.headers.get("transfer-encoding", "") != "chunked":
                return self.rfile.read(int(self.headers.get("content-length", "0")))
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def log_message(self, *_: Any) -> None:
            """Quiet: the witness has it."""

    return _Server(("::", port), Handler).serve_forever


if __name__ == "__main__":
    main()
