"""Floods into a running sandbox: frames of a kind at a rate, for some seconds.

    count = flood(running, "syn", lab.server_ip(4), 7001, seconds=3, rate=50_000)     # rate 0: as fast as it goes

As a program (`flood.py PID KIND ADDRESS PORT SECONDS RATE`) it enters the sandbox as `inject.py` does and prints how
many frames were sent. Kinds, all IPv4 and from the sandbox's own address:

    syn           SYNs from ever other source ports; what is answered, the sandbox's kernel resets
    udp-ports     datagrams from ever other source ports, to one port
    udp-peers     datagrams from one port, to ever other addresses of ADDRESS's /16

Not here:   frames that no honest kernel sends (`inject.py`).
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator

if __package__:
    from tests.netstack import wire

    from .enter import PROJECT
    from .inject import DEVICE, PACKET_VNET_HDR, SOL_PACKET, _enter, command_of
    from .processes import Running

PORTS = range(1024, 62_000)  # not all: the canary's and the control's are above
UDP_PORT = 1023


def flood(running: Running, kind: str, address: str, port: int, seconds: float, rate: int = 0) -> int:
    """Send frames from inside the sandbox of `running` for `seconds`; returns how many."""
    words = [str(command_of(running.pid)), kind, address, str(port), str(seconds), str(rate)]
    argv = [sys.executable, "-m", "tests.lab.flood", *words]
    done = subprocess.run(argv, capture_output=True, check=False, timeout=60 + seconds, cwd=PROJECT)
    assert done.returncode == 0, done.stderr.decode()
    return int(done.stdout)


def frames(kind: str, address: str, port: int) -> Iterator[bytes]:
    remote, src = socket.inet_aton(address), wire.CHILD[4]
    if kind == "udp-peers":
        for number in range(60_000):
            to = remote[:2] + number.to_bytes(2, "big")
            yield wire.frame(wire.ip(wire.udp(src, to, UDP_PORT, port, b"x"), wire.UDP, src, to))
        return
    for own in PORTS:
        if kind == "syn":
            segment = wire.tcp(src, remote, own, port, own, 0, wire.SYN, window=65535, options=wire.mss(1460))
            yield wire.frame(wire.ip(segment, wire.TCP, src, remote))
        else:
            yield wire.frame(wire.ip(wire.udp(src, remote, own, port, b"x"), wire.UDP, src, remote))


def main() -> None:
    pid, kind, address, port, seconds, rate = sys.argv[1:]
    made = list(frames(kind, address, int(port)))
    _enter(int(pid))
    count = 0
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        sock.bind((DEVICE, 0))
        begin = time.monotonic()
        until = begin + float(seconds)
        while time.monotonic() < until:
            while int(rate) and count > (time.monotonic() - begin) * int(rate):
                time.sleep(0.001)
            for raw in made[count % len(made) :][:100]:
                try:
                    sock.send(raw)
                except OSError:  # the device's queue is full
                    time.sleep(0.001)
                count += 1
    print(count)


if __name__ == "__main__":
    main()
