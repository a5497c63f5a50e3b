"""Assertions of our own: the last 64 frames are written out, one line is said, and the process ends.

Each test breaks a stack in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from childflow.engine import crash_path

from .test_limits import D4, S4, syn, wire

BREAK = """
import os, socket, sys
from childflow._netstack import ffi
from childflow.netstack.stack import Stack
from childflow.settings import ADDRESSES
child, tap = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
stack = Stack(tap.fileno(), ADDRESSES, crash_path=sys.argv[1])
for number, raw in enumerate(sys.stdin.buffer.read().split(b"--next--")):
    child.send(raw)
    stack.turn(1_000_000 + number)
    stack.events()
ffi.cast("uint32_t *", stack._st)[0] ^= 1  # the word that tells a stack from what is none
print("broken", flush=True)
stack.turn(3_000_000)
print("went on")
"""


def crash(path: Path | str, frames: list[bytes]) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", BREAK, str(path)], input=b"--next--".join(frames), capture_output=True, check=False
    )


def stray(port: int, text: bytes = b"") -> bytes:
    """A segment that is answered at once, with an RST."""
    segment = wire.tcp(S4, D4, port, 443, 1000, 77, wire.ACK, window=1000, text=text)
    return wire.frame(wire.ip(segment, wire.TCP, S4, D4))


def read(path: Path) -> list[tuple[float, bytes]]:
    from dpkt import pcapng

    with path.open("rb") as file:
        return list(pcapng.Reader(file))


def test_the_last_frames_are_written_and_the_process_ends(tmp_path):
    path = tmp_path / "childflow-crash-1.pcapng"
    frames = [stray(1000 + i) for i in range(40)]
    done = crash(path, frames)
    assert done.returncode == -signal.SIGABRT
    assert done.stdout == b"broken\n"
    (line,) = done.stderr.splitlines()
    assert line.startswith(b"childflow: internal error, please report it: stack.c:")
    assert line.endswith(b"st->magic == MAGIC does not hold; the last frames are in " + os.fsencode(path))
    assert path.stat().st_mode & 0o777 == 0o600
    packets = read(path)
    assert len(packets) == 64  # of 80, up and down in turn
    ups, downs = packets[0::2], packets[1::2]
    assert [frame for _, frame in ups] == [raw[wire.VNET_LEN :] for raw in frames[8:]]
    assert [round(at * 1e6) for at, _ in ups] == [1_000_000 + i for i in range(8, 40)]
    assert all(frame[12:14] == b"\x08\x00" and frame[14 + 20 + 13] == wire.RST for _, frame in downs)


def test_long_frames_are_cut_and_say_how_long_they_were(tmp_path):
    path = tmp_path / "crash.pcapng"
    raw = stray(1000, bytes(1000))
    crash(path, [raw])
    up, down = blocks(path)
    assert up["frame"] == raw[wire.VNET_LEN :][:128]
    assert up["length"] == len(raw) - wire.VNET_LEN
    assert up["comment"] == b"virtio header " + raw[: wire.VNET_LEN].hex().encode()
    assert (up["direction"], down["direction"]) == (1, 2)  # inbound, outbound
    assert down["length"] == len(down["frame"]) == 54


def blocks(path: Path) -> list[dict[str, object]]:
    """The packet blocks with the options that dpkt passes over."""
    whole, at, found = path.read_bytes(), 0, []
    while at < len(whole):
        kind, size = (int.from_bytes(whole[at + i : at + i + 4], sys.byteorder) for i in (0, 4))
        if kind == 6:
            body = whole[at : at + size]
            kept, length = (int.from_bytes(body[i : i + 4], sys.byteorder) for i in (20, 24))
            block: dict[str, object] = {"frame": body[28 : 28 + kept], "length": length}
            option = 28 + (kept + 3) // 4 * 4
            while code := int.from_bytes(body[option : option + 2], sys.byteorder):
                n = int.from_bytes(body[option + 2 : option + 4], sys.byteorder)
                value = body[option + 4 : option + 4 + n]
                name = {1: "comment", 2: "direction"}[code]
                block[name] = value if code == 1 else int.from_bytes(value, sys.byteorder)
                option += 4 + (n + 3) // 4 * 4
            found.append(block)
        at += size
    assert at == len(whole)
    return found


def test_without_a_frame_the_file_says_what_did_not_hold(tmp_path):
    path = tmp_path / "crash.pcapng"
    crash(path, [b"x"])  # shorter than any frame
    assert b"st->magic == MAGIC does not hold" in path.read_bytes()
    ((_, frame),) = read(path)
    assert frame == b""


@pytest.mark.parametrize("kind", ["file", "link", "directory missing", "nowhere"])
def test_nothing_that_is_there_is_written_over(tmp_path, kind):
    path, other = tmp_path / "crash.pcapng", tmp_path / "other"
    other.write_text("mine")
    if kind == "file":
        path.write_text("mine")
    elif kind == "link":
        path.symlink_to(other)
    where = {"directory missing": tmp_path / "no" / "crash", "nowhere": ""}.get(kind, path)
    done = crash(where, [syn(1)])
    assert done.returncode == -signal.SIGABRT
    (line,) = done.stderr.splitlines()
    assert line.endswith(b"st->magic == MAGIC does not hold")
    assert other.read_text() == "mine"
    assert kind != "file" or path.read_text() == "mine"


def test_the_file_is_in_the_callers_temporary_directory():
    name = f"childflow-crash-{os.getpid()}.pcapng"
    assert crash_path({"TMPDIR": "/somewhere"}) == f"/somewhere/{name}"
    assert crash_path({}) == crash_path({"TMPDIR": ""}) == crash_path({"TMPDIR": "/" + "x" * 300}) == f"/tmp/{name}"
