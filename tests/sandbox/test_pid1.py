"""Pid 1 of the command's namespace is closed to the command, in all four ways in."""

from __future__ import annotations

import pytest

from tests.sandbox.conftest import Seat

PTRACE = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
PTRACE_ATTACH = 16
print(libc.ptrace(PTRACE_ATTACH, 1, None, None), os.strerror(ctypes.get_errno()))
"""

PROCESS_VM_READV = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
class IoVec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
room = ctypes.create_string_buffer(64)
local, remote = IoVec(ctypes.addressof(room), 64), IoVec(0x400000, 64)
print(libc.process_vm_readv(1, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0), os.strerror(ctypes.get_errno()))
"""


@pytest.mark.parametrize("name", ["environ", "mem", "maps", "fd/0", "root", "cwd", "exe", "auxv"])
def test_files_of_pid_1(seat: Seat, name: str) -> None:
    shown = seat.python(f"open('/proc/1/{name}', 'rb').read(1)")
    # A root command may look into the folder fd/ (it has DAC_OVERRIDE), where there is no 0 to open.
    refusal = "FileNotFoundError" if (seat.user, name) == ("root", "fd/0") else "PermissionError"
    assert refusal in shown.stderr, shown


@pytest.mark.parametrize("code", [PTRACE, PROCESS_VM_READV], ids=["ptrace", "process_vm_readv"])
def test_calls_on_pid_1(seat: Seat, code: str) -> None:
    assert seat.python(code).stdout.strip() == "-1 Operation not permitted"


def test_pid_1_holds_nothing(seat: Seat, mark: str) -> None:
    """Seen from the host, by root: no capability but KILL for a root caller, no stdio, no secret, not dumpable."""
    process = seat.start(
        seat.argv("sh", "-c", f": {mark}; read x"), stdin=-1, env={"CHILDFLOW_PROXY_PASSWORD": "sesame"}
    )
    try:
        init = _init_of(process.pid)
        status = _status(init)
        assert int(status["CapEff"], 16) == (0 if seat.user == "ordinary" else 1 << 5)
        assert int(status["CapBnd"], 16) == (0 if seat.user == "ordinary" else 0xFB)
        assert status["NoNewPrivs"] == "1"
        assert b"sesame" not in _bytes(init, "environ")
        assert b"sesame" not in _bytes(init, "cmdline")
        kinds = sorted(_links(init).values())
        assert len(kinds) == 2, kinds
        assert "signalfd" in kinds[0]
        assert kinds[1].startswith("socket:")
    finally:
        process.communicate("\n", timeout=20)
    assert process.returncode == 0


def _children(pid: int) -> list[int]:
    return [int(word) for word in _bytes(pid, f"task/{pid}/children").split()]


def _init_of(childflow: int) -> int:
    while True:
        for pid in _children(childflow):
            if b"childflow-init\0run\0" in _bytes(pid, "cmdline") and _children(pid):
                shell = _children(pid)[0]
                if _bytes(shell, "comm") == b"sh\n" and len(_links(pid)) == 2:
                    return pid


def _bytes(pid: int, name: str) -> bytes:
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read()
    except OSError:
        return b""


def _status(pid: int) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in _bytes(pid, "status").decode().splitlines() if ":\t" in line)


def _links(pid: int) -> dict[str, str]:
    import os

    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            found[name] = os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue
    return found
