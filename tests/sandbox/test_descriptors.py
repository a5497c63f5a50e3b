"""Which descriptors the command has."""

from __future__ import annotations

import os
import select
import socket

import pytest

from tests.sandbox.conftest import Seat

OPEN = """
import os, sys
for fd in map(int, sys.argv[1:]):
    try:
        print(fd, oct(os.fstat(fd).st_mode >> 12))
    except OSError as error:
        print(fd, error.strerror)
"""


def closed(fd: int) -> str:
    return f"{fd} Bad file descriptor"


def test_only_stdio_by_default(seat: Seat) -> None:
    with open("/etc/passwd") as file:
        shown = seat.python(OPEN, str(file.fileno()), pass_fds=[file.fileno()])
        assert shown.stdout.strip() == closed(file.fileno())
    # 3 is the listing's own
    assert seat.run("ls", "/proc/self/fd").stdout.split() == ["0", "1", "2", "3"]


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK])
def test_inherited_sockets_are_closed(seat: Seat, family: int, kind: int) -> None:
    with socket.socket(family, socket.SOCK_RAW if family == socket.AF_NETLINK else kind) as host:
        shown = seat.python(OPEN, str(host.fileno()), pass_fds=[host.fileno()])
        assert shown.stdout.strip() == closed(host.fileno())


def test_namespace_and_directory_descriptors_are_closed(seat: Seat) -> None:
    paths = ("/proc/self/ns/net", "/", "/dev/null")
    fds = [os.open(path, os.O_RDONLY) for path in paths]
    shown = seat.python(OPEN, *map(str, fds), pass_fds=fds)
    assert shown.stdout.splitlines() == [closed(fd) for fd in fds]
    for fd in fds:
        os.close(fd)


def test_pipes_stay(seat: Seat) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"through the pipe")
    shown = seat.python(f"import os; print(os.read({reader}, 99))", pass_fds=[reader])
    assert "through the pipe" in shown.stdout
    os.close(reader)
    os.close(writer)


def test_process_substitution(seat: Seat) -> None:
    line = f"{seat.line('cat')} <(echo one) <(echo two)"
    shown = seat.wait(seat.start(["bash", "-c", line]))
    assert shown.stdout == "one\ntwo\n", shown.stderr


@pytest.mark.parametrize("which", ["inherited pipe", "stdin", "stdout"])
def test_what_the_command_closes_is_closed(seat: Seat, which: str) -> None:
    """childflow keeps no copy: the other end sees the command's close at once, not the run's end."""
    reader, writer = os.pipe()
    ours, theirs = (writer, reader) if which == "stdin" else (reader, writer)
    target = {"inherited pipe": theirs, "stdin": 0, "stdout": 1}[which]
    standard = {} if which == "inherited pipe" else {which: theirs}
    code = f"import os, time; os.close({target}); os.write(2, b'closed\\n'); time.sleep(100)"
    process = seat.start(seat.argv("/usr/bin/python3", "-c", code), pass_fds=[] if standard else [theirs], **standard)
    os.close(theirs)
    try:
        assert process.stderr
        assert process.stderr.readline() == "closed\n"
        gone = select.poll()
        gone.register(ours, 0)
        assert gone.poll(5000), "someone still holds the other end"
    finally:
        process.terminate()
        process.communicate(timeout=20)
        os.close(ours)


def test_keep_fd(seat: Seat) -> None:
    with open("/etc/passwd") as file:
        fd = file.fileno()
        shown = seat.python(OPEN, str(fd), str(fd + 1), pass_fds=[fd], flags=["--keep-fd", str(fd)])
        assert shown.stdout.splitlines()[0] == f"{fd} 0o10"


def test_keep_fd_of_a_directory_is_refused(seat: Seat) -> None:
    """It would lead past what is hidden."""
    fd = os.open("/run", os.O_RDONLY | os.O_DIRECTORY)
    done = seat.run("true", pass_fds=[fd], flags=["--keep-fd", str(fd)])
    os.close(fd)
    assert done.returncode == 125
    assert "is a directory or a namespace" in done.stderr


def test_keep_fd_of_a_unix_socket(seat: Seat) -> None:
    one, other = socket.socketpair()
    shown = seat.python(OPEN, str(one.fileno()), pass_fds=[one.fileno()], flags=["--keep-fd", str(one.fileno())])
    assert shown.stdout.strip() == f"{one.fileno()} 0o14"
    one.close()
    other.close()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_keep_fd_of_a_network_socket_is_refused(seat: Seat, family: int) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as host:
        shown = seat.run("true", pass_fds=[host.fileno()], flags=["--keep-fd", str(host.fileno())])
        assert shown.returncode == 125
        assert f"--keep-fd {host.fileno()} is a network socket" in shown.stderr


@pytest.mark.parametrize("fd", [0, 1, 2])
def test_network_socket_as_stdio(seat: Seat, fd: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as host:
        standard = {("stdin", "stdout", "stderr")[fd]: host.fileno()}
        refused = seat.run("touch", "was-started", **standard)
        assert refused.returncode == 125
        assert not (seat.home / "was-started").exists()
        if fd != 2:
            assert "--allow-socket-stdio" in refused.stderr
        assert seat.run("true", flags=["--allow-socket-stdio"], **standard).returncode == 0


def test_closed_stdio_stays_closed(seat: Seat) -> None:
    code = "import os; open('seen', 'w').write(' '.join(str(os.path.exists(f'/proc/self/fd/{n}')) for n in (0, 1, 2)))"
    line = f"{seat.line('/usr/bin/python3', '-c', code)} <&- >&- 2>&-"
    seat.wait(seat.start(["bash", "-c", line]))
    # the file itself takes the lowest free number, 0
    assert (seat.home / "seen").read_text() == "True False False"


def test_rlimits_are_the_callers(seat: Seat) -> None:
    shown = seat.wait(seat.start(["bash", "-c", f"ulimit -Sn 321; {seat.line('bash', '-c', 'ulimit -Sn')}"]))
    assert shown.stdout.strip() == "321"
