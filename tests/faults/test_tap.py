"""The TAP goes down, comes up, and is taken away, by somebody outside: the engine neither spins nor dies."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path

import pytest

from childflow.settings import ADDRESSES
from tests.lab.lab import Caller, Lab

GATEWAY = socket.inet_ntoa(ADDRESSES.gateway4)
ECHOES = """
import socket, sys, time
sock = socket.create_connection((sys.argv[1], 7))
number = 0
while True:
    number += 1
    word = b"%d" % number
    try:
        sock.sendall(word)
        assert sock.recv(100) == word
    except OSError as error:
        print("lost", error.errno, flush=True)
        break
    print(f"echo {number}.", flush=True)
    time.sleep(0.02)
try:
    socket.create_connection((sys.argv[1], 7), 3)
except OSError as error:
    print("again", error, flush=True)
time.sleep(100)
"""


def in_network_of(pid: int, *ip: str) -> None:
    subprocess.run(["nsenter", f"--net=/proc/{pid}/ns/net", "ip", *ip], check=True)


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def command_of(pid: int) -> int:
    """The command itself: init's only child."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for child in map(int, children):
        words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
        if words[0] == b"childflow-init" and words[1] != b"hold":
            return int(Path(f"/proc/{child}/task/{child}/children").read_text().split()[0])
    raise AssertionError("no init")


def echoes(output: str) -> int:
    return output.count("echo ")


@pytest.mark.case("B31", "E01")
def test_tap_goes_down_and_up_and_away(lab: Lab, caller: Caller) -> None:
    python = lab.client("connect")[0]
    with caller.start(python, "-c", ECHOES, lab.server_ip(4), log=False) as running:
        running.says("echo 5.")
        command = command_of(running.pid)
        in_network_of(command, "link", "set", "tap0", "down")
        before, at = cpu_ticks(running.pid), echoes(running.so_far()[0])
        time.sleep(0.5)
        assert cpu_ticks(running.pid) - before <= 10, "the engine spins while the link is down"
        in_network_of(command, "link", "set", "tap0", "up")
        in_network_of(command, "route", "add", "default", "via", GATEWAY)  # went with the link
        running.says(f"echo {at + 5}.", 10)  # the kernel's own retransmissions found the way again

        in_network_of(command, "link", "del", "tap0")
        time.sleep(0.2)
        before = cpu_ticks(running.pid)
        time.sleep(0.5)
        assert cpu_ticks(running.pid) - before <= 10, "the engine spins on a TAP that is gone"
        running.signal(15)
        result = running.wait(15)
    assert result.status == 128 + 15
    (said,) = result.stderr.splitlines()
    assert "taken away" in said
