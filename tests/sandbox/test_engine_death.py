"""The engine dies in the midst of a hundred flows: the command dies with it, and nothing uses the host's network."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.lab import namespaces as ns
from tests.lab.lab import Caller, Lab
from tests.sandbox.conftest import SYSTEM_PYTHON, Seat, eventually, processes_of

FLOWS = 100


@pytest.mark.case("E01")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT], ids=lambda number: number.name)
def test_engine_dies_during_a_hundred_flows(lab: Lab, caller: Caller, mark: str, number: signal.Signals) -> None:
    mounts = Path("/proc/self/mountinfo").read_text()
    command = lab.client("flows", lab.server_ip(4), FLOWS, mark)
    running = caller.start("sh", "-c", 'setsid "$@" & wait', "sh", *command, log=False, cwd=caller.folder("flows"))
    with running:
        running.says("up")
        flows = [pid for pid in processes_of(mark) if b"flows.py" in words(pid)[1]]
        network = os.readlink(f"/proc/{flows[-1]}/ns/net")
        assert network != os.readlink(f"/proc/{running.pid}/ns/net")
        assert not [link for pid in processes_of(mark) if pid != running.pid for link in links(pid) if "tun" in link]
        (holder,) = [pid for pid in children(running.pid) if words(pid)[1] == b"hold"]
        os.kill(running.pid, number)
        result = running.wait(5)
    assert result.status == 128 + number
    eventually(lambda: not processes_of(mark), 5)
    eventually(lambda: words(holder)[1] != b"hold", 5)
    eventually(lambda: not in_network(network), 5)
    seen = len(lab.witness())
    time.sleep(0.3)
    assert len(lab.witness()) == seen, "something still talks to the server"
    assert Path("/proc/self/mountinfo").read_text() == mounts
    errors = caller.home / "flows" / "errors"
    assert not errors.exists() or set(errors.read_text().split()) <= {"ENETUNREACH"}


SURVIVOR = """
import errno, os, socket, sys, time
os.setsid()
print("up", flush=True)
end = time.monotonic() + 3
while time.monotonic() < end:
    s = socket.socket()
    s.settimeout(0.3)
    try:
        s.connect((sys.argv[2], 7))
        word = "connected"
    except TimeoutError:
        word = "timeout"
    except OSError as error:
        word = errno.errorcode[error.errno]
    s.close()
    with open(sys.argv[1], "a") as file:
        print(word, *sorted(os.listdir("/sys/class/net")), file=file)
    time.sleep(0.05)
"""


def covered_proc() -> None:
    """A host that lets nobody have a PID namespace: there, processes can outlive the engine."""
    ns.unshare(ns.CLONE_NEWNS)
    ns.mount("tmpfs", "/proc/irq", "tmpfs")


@pytest.mark.case("E01")
def test_process_that_outlives_the_engine_has_no_network(lab: Lab, seat: Seat, mark: str) -> None:
    def on_the_laptop() -> None:
        lab.laptop.place.enter()
        covered_proc()

    told = seat.home / f"{mark}.txt"
    line = f'{SYSTEM_PYTHON} -c "$0" {told} {lab.server_ip(4)} & wait'
    process = seat.start(seat.argv("sh", "-c", line, SURVIVOR), before=on_the_laptop)
    assert process.stdout
    assert process.stdout.readline() == "up\n"
    (survivor,) = [pid for pid in processes_of(mark) if words(pid)[0] == SYSTEM_PYTHON.encode()]
    assert not [link for link in links(survivor) if "tun" in link]
    eventually(lambda: "connected" in told.read_text())
    process.kill()
    assert process.wait() == -signal.SIGKILL
    time.sleep(1)  # the TAP's holder has let go, and an attempt under way has ended
    reached, before = len(lab.witness()), len(told.read_text().splitlines())
    eventually(lambda: not processes_of(mark), 6)
    assert len(lab.witness()) == reached, "something still talks to the server"
    assert set(told.read_text().splitlines()[before:]) <= {"ENETUNREACH lo"}  # empty where init could end it
    process.communicate()
    told.unlink()


def words(pid: int) -> list[bytes]:
    try:
        return [*Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"), b""]
    except OSError:
        return [b"", b""]


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def links(pid: int) -> list[str]:
    """What the descriptors of a process are."""
    folder = Path(f"/proc/{pid}/fd")
    try:
        return [os.readlink(entry) for entry in folder.iterdir()]
    except OSError:
        return []


def in_network(network: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.readlink(entry / "ns/net") == network:
                found.append(int(entry.name))
        except OSError:
            continue
    return found
