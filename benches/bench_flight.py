"""What it costs to read the name in a first flight, beside one TCP connection over loopback. `make bench-flight`

The hellos are what clients send: 517 bytes, 1.5 KiB and 4 KiB (post-quantum key shares), whole, and the largest in
segments of 100 bytes, each of which is offered to the reader. The import that the first QUIC datagram waits for is a
row of its own.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable

from benches.rounds import interleaved
from childflow.services.first_flight import FirstFlight, read_flight
from childflow.services.quic import read_initials
from tests.services import hellos, quic_client

ROUNDS = 5
TIMES = 2000
CONNECTS = 500
NAME = b"www.example.test"


def main() -> None:
    print(f"first flights, µs each, {ROUNDS} rounds")
    figures = interleaved(ROUNDS, candidates())
    for name, values in figures.items():
        ratio = sorted(value / base for value, base in zip(values, figures["connect"], strict=True))[ROUNDS // 2]
        print(f"  {name:24} median {sorted(values)[ROUNDS // 2]:8.1f} µs, {ratio:.3f} of a loopback connect")
    print(f"  the first QUIC Initial of a run, imports included: {_first_initial():.1f} ms")


def candidates() -> dict[str, Callable[[], float]]:
    small, large, huge = (hello(size) for size in (517, 1536, 4096))
    request = b"GET /index.html HTTP/1.1\r\nHost: www.example.test\r\n" + b"Field: some value\r\n" * 10 + b"\r\n"
    initial = [quic_client.initial(quic_client.crypto(0, _message(300)))]
    two = [quic_client.initial(quic_client.crypto(at, part), n) for n, (at, part) in enumerate(halves(_message(1400)))]
    return {
        "connect": _connect, "hello of 517": _timed(read_flight, small), "hello of 1536": _timed(read_flight, large),
        "hello of 4096": _timed(read_flight, huge), "4096 in pieces of 100": _timed(in_pieces, huge),
        "HTTP request": _timed(read_flight, request), "QUIC, one Initial": _timed(read_initials, initial),
        "QUIC, two Initials": _timed(read_initials, two),
    }  # fmt: skip


def hello(size: int) -> bytes:
    """A hello of `size` bytes whose name comes last."""
    bare = len(hellos.hello(NAME, before=[hellos.extension(hellos.KEY_SHARE, b"")]))
    return hellos.hello(NAME, before=[hellos.extension(hellos.KEY_SHARE, bytes(size - bare))])


def _message(filling: int) -> bytes:
    extensions = [hellos.extension(hellos.KEY_SHARE, bytes(filling)), hellos.server_name(NAME)]
    return hellos.message(hellos.body(extensions))


def halves(text: bytes) -> list[tuple[int, bytes]]:
    middle = len(text) // 2
    return [(0, text[:middle]), (middle, text[middle:])]


def in_pieces(data: bytes) -> None:
    reader = FirstFlight()
    for cut in range(100, len(data) + 100, 100):
        reader.feed(data[:cut])


def _timed(work: Callable[..., object], argument: object) -> Callable[[], float]:
    def measure() -> float:
        start = time.perf_counter()
        for _ in range(TIMES):
            work(argument)
        return (time.perf_counter() - start) / TIMES * 1e6

    return measure


def _connect() -> float:
    """Connect, accept and close, without a byte."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        start = time.perf_counter()
        for _ in range(CONNECTS):
            client = socket.create_connection(server.getsockname())
            server.accept()[0].close()
            client.close()
        return (time.perf_counter() - start) / CONNECTS * 1e6


def _first_initial() -> float:
    """Milliseconds, in a fresh interpreter that has imported the reader, as a run's engine has."""
    packet = quic_client.initial(quic_client.crypto(0, _message(300))).hex()
    script = (
        "import asyncio, time; from childflow.services import quic\n"
        f"packet = bytes.fromhex('{packet}'); start = time.perf_counter()\n"
        "assert quic.read_initials([packet]).name; print((time.perf_counter() - start) * 1000)"
    )
    runs = [subprocess.run([sys.executable, "-c", script], capture_output=True, check=True) for _ in range(5)]
    return min(float(run.stdout) for run in runs)


if __name__ == "__main__":
    main()
