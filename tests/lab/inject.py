"""Frames into a running sandbox, past every rule of its kernel but the driver's own: what a hostile command with
CAP_NET_RAW could send.

    sent = inject(running, frames)            # from a test: `running` is a childflow under way
    sent.errors[i]                            # 0, or the errno with which the kernel refused frame i
    sent.own_reports                          # multicast listener reports that the sandbox's kernel has sent by itself

A frame is a virtio header of 10 bytes and an Ethernet frame. As a program (`inject.py PID DEVICE PAUSE`, frames on
standard input, each behind its length) it enters the user and network namespaces of PID, where it has every
capability, and sends through a packet socket with PACKET_VNET_HDR.

Invariants: childflow and its command are not touched, let alone told to keep a capability.
Not here:   which frames there are (`tests/netstack/test_hostile_frames.py`).
"""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

if __package__:
    from . import namespaces as ns
    from .enter import PROJECT
    from .processes import Running

SOL_PACKET, PACKET_VNET_HDR = 263, 15
DEVICE = "tap0"
PAUSE_S = 0.0005  # the device's queue takes 500 frames, and what is too much it loses without a word


@dataclass(frozen=True)
class Sent:
    errors: list[int]
    own_reports: int


def inject(running: Running, frames: Sequence[bytes], pause_s: float = PAUSE_S) -> Sent:
    """Send `frames` from inside the sandbox of `running`, whose command must have been started. Without a pause between
    them the device's queue loses some."""
    given = b"".join(struct.pack("=I", len(frame)) + frame for frame in frames)
    argv = [sys.executable, "-m", "tests.lab.inject", str(command_of(running.pid)), DEVICE, str(pause_s)]
    done = subprocess.run(argv, input=given, capture_output=True, check=False, timeout=60, cwd=PROJECT)
    assert done.returncode == 0, done.stderr.decode()
    return Sent(**json.loads(done.stdout))


def command_of(childflow: int) -> int:
    """The pid of a process inside: the last of the line childflow, init, command."""
    line = [pid for pid in descendants(childflow) if _network(pid) != _network(childflow)]
    assert line, f"process {childflow} has no sandbox"
    return line[-1]


def descendants(pid: int) -> list[int]:
    """Depth first, parents before children."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            children = [int(word) for word in file.read().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [found for child in children for found in (child, *descendants(child))]


def _network(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except (FileNotFoundError, PermissionError):
        return os.readlink("/proc/self/ns/net")


def _enter(pid: int) -> None:
    places = [(os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY), flag) for kind, flag in
              (("user", ns.CLONE_NEWUSER), ("net", ns.CLONE_NEWNET))]  # fmt: skip
    for place, flag in places:
        ns.setns(place, flag)
        os.close(place)


def _frames(given: bytes) -> list[bytes]:
    frames, at = [], 0
    while at < len(given):
        (length,) = struct.unpack_from("=I", given, at)
        frames.append(given[at + 4 : at + 4 + length])
        at += 4 + length
    return frames


def _send(sock: socket.socket, frame: bytes) -> int:
    try:
        sock.send(frame)
    except OSError as error:
        return error.errno or -1
    return 0


def _own_reports() -> int:
    """What the kernel has counted in this network namespace."""
    with open("/proc/thread-self/net/snmp6") as file:
        counters = dict(line.split() for line in file)
    return int(counters["Icmp6OutMLDv2Reports"])


def main() -> None:
    pid, device, pause_s = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    frames = _frames(sys.stdin.buffer.read())
    _enter(pid)
    errors = []
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        sock.bind((device, 0))
        for frame in frames:
            errors.append(_send(sock, frame))
            if pause_s:
                time.sleep(pause_s)
    print(json.dumps({"errors": errors, "own_reports": _own_reports()}))


if __name__ == "__main__":
    main()
