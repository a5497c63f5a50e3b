"""Exit statuses: the command's, its signal, and childflow's own."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from childflow.sandbox.signals import die_as
from tests.sandbox.conftest import Seat


@pytest.mark.parametrize("status", [0, 1, 2, 3, 63, 64, 77, 124, 125, 126, 127, 128, 129, 137, 143, 192, 254, 255])
def test_exit_status(seat: Seat, status: int) -> None:
    done = seat.run("sh", "-c", f"exit {status}")
    assert done.returncode == status
    assert done.stderr == ""


def test_every_exit_status(ordinary: Seat) -> None:
    for status in range(256):
        assert ordinary.run("sh", "-c", f"exit {status}").returncode == status


@pytest.mark.parametrize(
    "name", ["HUP", "INT", "QUIT", "ILL", "ABRT", "FPE", "KILL", "SEGV", "PIPE", "ALRM", "TERM", "USR1", "USR2"]
)
def test_death_by_signal(seat: Seat, name: str) -> None:
    number = signal.Signals[f"SIG{name}"]
    done = seat.run("sh", "-c", f"ulimit -c 0; kill -{name} $$")
    assert done.returncode == -number
    shown = seat.wait(seat.start(["bash", "-c", f"{seat.line('sh', '-c', f'ulimit -c 0; kill -{name} $$')}; echo $?"]))
    assert shown.stdout.split()[-1] == str(128 + number)


def test_realtime_signal(seat: Seat) -> None:
    assert seat.run("bash", "-c", "kill -40 $$").returncode == -40


def test_no_core_file_of_childflow(seat: Seat) -> None:
    done = seat.wait(
        seat.start(["bash", "-c", f"ulimit -c unlimited; {seat.line('sh', '-c', 'ulimit -c 0; kill -SEGV $$')}"])
    )
    assert "core dumped" not in done.stderr
    assert not list(seat.home.glob("core*"))


def test_command_not_found(seat: Seat) -> None:
    done = seat.run("no-such-command")
    assert done.returncode == 127
    assert done.stderr == "childflow: no-such-command: command not found; check its spelling and PATH\n"
    assert seat.run("./no-such-file").returncode == 127


def test_not_executable(seat: Seat) -> None:
    done = seat.run("/etc/passwd")
    assert done.returncode == 126
    assert done.stderr.startswith("childflow: /etc/passwd: permission denied; ")
    done = seat.run("/etc")
    assert done.returncode == 126
    assert "is a directory" in done.stderr


def test_missing_interpreter(seat: Seat) -> None:
    script = seat.home / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    done = seat.run(str(script))
    assert done.returncode == 126
    assert "interpreter" in done.stderr


def test_script_without_a_first_line_runs_as_execvp_has_it(seat: Seat) -> None:
    script = seat.home / "plain"
    script.write_text("echo plain $1\n")
    script.chmod(0o755)
    assert seat.run(str(script), "word").stdout == "plain word\n"


def test_path_is_searched(seat: Seat) -> None:
    folder = seat.home / "bin"
    folder.mkdir(exist_ok=True)
    (folder / "mine").write_text("#!/bin/sh\necho found\n")
    (folder / "mine").chmod(0o755)
    closed = seat.home / "closed"
    closed.mkdir(mode=0, exist_ok=True)
    assert seat.run("mine", env={"PATH": f"{closed}:{folder}:{seat.env['PATH']}"}).stdout == "found\n"
    done = seat.run("nowhere", env={"PATH": f"/root:{seat.env['PATH']}"})
    assert done.returncode == 127


def test_arguments_pass_unchanged(seat: Seat) -> None:
    words = ["", " a b ", "--", "-x", "\n", "é", "*"]
    shown = seat.python("import sys; print(sys.argv[1:])", *words)
    assert shown.stdout.strip() == str(words)


def test_bytes_that_are_no_text_pass_unchanged(seat: Seat) -> None:
    done = seat.wait(
        seat.start([*seat.argv("sh", "-c", 'printf %s "$1" | od -An -tx1'), "x", os.fsdecode(b"\xff\xfe")])
    )
    assert done.stdout.split() == ["ff", "fe"]


def test_program_for_another_machine_is_not_given_to_sh(seat: Seat) -> None:
    foreign = seat.home / "foreign"
    program = bytearray(Path("/bin/true").read_bytes())
    program[18:20] = b"\xb7\x00" if os.uname().machine != "aarch64" else b"\x3e\x00"  # e_machine
    foreign.write_bytes(program)
    foreign.chmod(0o755)
    for name in (str(foreign), "./foreign"):
        done = seat.run("sh", "-c", f"cd {seat.home} && exec {name}") if name.startswith(".") else seat.run(name)
        assert done.returncode == 126
        assert "Exec format error" in done.stderr
        assert "Syntax error" not in done.stderr


def test_script_without_first_line_is_given_to_sh(seat: Seat) -> None:
    script = seat.home / "plain"
    script.write_text("echo as a shell does\n")
    script.chmod(0o755)
    assert seat.run(str(script)).stdout == "as a shell does\n"


@pytest.mark.parametrize(
    ("command", "status", "part"),
    [(".", 126, "is a directory"), ("FOO=bar", 127, "env FOO=bar COMMAND")],
)
def test_commands_that_are_none(seat: Seat, command: str, status: int, part: str) -> None:
    done = seat.run(command)
    assert done.returncode == status
    assert part in done.stderr


def test_too_many_open_files_is_no_bug(seat: Seat) -> None:
    done = seat.wait(seat.start(["bash", "-c", f"ulimit -n 10; {seat.line('true')}"]))
    assert done.returncode == 125
    assert "ulimit -n" in done.stderr
    assert "internal error" not in done.stderr


def test_root_inside_root_is_told_why(root: Seat) -> None:
    done = root.run("sh", "-c", root.line("true"))
    assert done.returncode == 125
    assert "another sandbox" in done.stderr


def test_low_ports_of_its_own_network_are_the_commands(seat: Seat) -> None:
    bind = "import socket; socket.create_server(('127.0.0.1', 80)); print('bound')"
    assert seat.run("/usr/bin/python3", "-c", bind).stdout == "bound\n"


def test_signal_that_libc_keeps_to_itself() -> None:
    """Python may not set its disposition; the status says it then."""
    pid = os.fork()
    if pid == 0:
        die_as(32)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
