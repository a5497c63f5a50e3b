"""childflow on a terminal: keys, jobs and shells, inside and outside, as they would be without it."""

from __future__ import annotations

import os
import signal
import struct
import termios
import time
from fcntl import ioctl

from tests.sandbox.conftest import Seat, Terminal, eventually, processes_of

OUTER = ("bash", "--norc", "--noprofile", "-i")
TRAPS = (
    'for s in INT QUIT TERM HUP WINCH USR1; do trap "echo got-$s" $s; done; echo re""ady; while :; do sleep 0.05; done'
)
COUNT = """
import signal, sys, time
counts = {}
def note(number, frame):
    counts[number] = counts.get(number, 0) + 1
for name in ("INT", "QUIT", "TERM", "HUP", "USR1", "WINCH"):
    signal.signal(signal.Signals["SIG" + name], note)
print("ready", flush=True)
while not counts:
    time.sleep(0.01)
time.sleep(0.5)
print({signal.Signals(n).name: c for n, c in counts.items()}, flush=True)
"""


def counting(seat: Seat) -> Terminal:
    return seat.terminal(*seat.argv("/usr/bin/python3", "-c", COUNT))


def test_ctrl_c_reaches_the_command_once(seat: Seat) -> None:
    with counting(seat) as terminal:
        terminal.sees("ready")
        terminal.type("\x03")
        terminal.sees(r"\{'SIGINT': 1\}")
        assert terminal.ends() == 0


def test_ctrl_backslash_reaches_the_command_once(seat: Seat) -> None:
    with counting(seat) as terminal:
        terminal.sees("ready")
        terminal.type("\x1c")
        terminal.sees(r"\{'SIGQUIT': 1\}")
        assert terminal.ends() == 0


def test_window_change_reaches_the_command_once(seat: Seat) -> None:
    with counting(seat) as terminal:
        terminal.sees("ready")
        ioctl(terminal.main, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 99, 0, 0))
        terminal.sees(r"\{'SIGWINCH': 1\}")
        assert terminal.ends() == 0


def test_signals_of_kill_are_forwarded_once(seat: Seat) -> None:
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1):
        with counting(seat) as terminal:
            terminal.sees("ready")
            terminal.process.send_signal(number)
            terminal.sees(rf"\{{'{number.name}': 1\}}")
            assert terminal.ends() == 0


def test_ctrl_c_ends_an_ordinary_program(seat: Seat) -> None:
    with seat.terminal(*seat.argv("sh", "-c", "echo on; exec sleep 60")) as terminal:
        terminal.sees("on")
        terminal.type("\x03")
        assert terminal.ends() == -signal.SIGINT


def test_ctrl_z_and_fg(seat: Seat, mark: str) -> None:
    with seat.terminal(*OUTER) as terminal:
        terminal.sees("outer> ")
        terminal.type(seat.line("sh", "-c", f"echo begin-{mark}; cat; echo after-cat") + "\n")
        terminal.sees(f"\r\nbegin-{mark}")
        ctrl_z(terminal)
        terminal.sees(r"Stopped")
        terminal.sees("outer> ")
        after_a_stop(terminal, "jobs")
        terminal.sees("Stopped")
        terminal.sees("outer> ")
        to_the_front(terminal)
        terminal.type("hello\n")
        terminal.sees("hello\r\nhello")
        terminal.type("\x04")
        terminal.sees("after-cat")
        terminal.sees("outer> ")
        terminal.type("echo status-$?\n")
        terminal.sees("status-0")
        terminal.type("exit\n")


def test_stopping_twice(seat: Seat) -> None:
    with seat.terminal(*OUTER) as terminal:
        terminal.sees("outer> ")
        terminal.type(seat.line("sh", "-c", "echo up-and-running; cat") + "\n")
        terminal.sees("\r\nup-and-running")
        for _ in range(2):
            ctrl_z(terminal)
            terminal.sees("Stopped")
            terminal.sees("outer> ")
            to_the_front(terminal)
            terminal.type("line\n")
            terminal.sees("line\r\nline")
        terminal.type("\x03")
        terminal.sees("outer> ")
        terminal.type("echo status-$?\nexit\n")
        terminal.sees("status-130")


def test_background_and_reading_from_the_terminal(seat: Seat) -> None:
    with seat.terminal(*OUTER) as terminal:
        terminal.sees("outer> ")
        terminal.type(seat.line("sh", "-c", "cat; echo cat-is-done") + " &\n")
        terminal.sees("outer> ")
        terminal.type('sleep 1; jobs; echo lis""ted\n')
        terminal.sees("listed\r\n")
        assert "Stopped" in terminal.text
        to_the_front(terminal)
        terminal.type("typed\n")
        terminal.sees("typed\r\ntyped")
        terminal.type("\x04")
        terminal.sees("\r\ncat-is-done")
        terminal.type("exit\n")


def test_bg_continues(seat: Seat) -> None:
    with seat.terminal(*OUTER) as terminal:
        terminal.sees("outer> ")
        terminal.type(seat.line("sh", "-c", "echo on; sleep 1; echo slept-well") + "\n")
        terminal.sees("\r\non")
        ctrl_z(terminal)
        terminal.sees("Stopped")
        after_a_stop(terminal, "bg")
        terminal.sees(r"&\r\n")
        terminal.sees("slept-well")
        terminal.type("wait; exit\n")


def test_sigcont_to_childflow_alone_continues_the_command(seat: Seat, mark: str) -> None:
    with seat.terminal(*OUTER) as terminal:
        terminal.sees("outer> ")
        terminal.type(seat.line("sh", "-c", f": {mark}; echo begin; while :; do sleep 0.1; done") + "\n")
        terminal.sees("\r\nbegin")
        ctrl_z(terminal)
        terminal.sees("Stopped")
        shell, childflow = _shell_of(mark), _childflow_of(mark)
        eventually(lambda: _state(shell) == "T" and _state(childflow) == "T")
        os.kill(childflow, signal.SIGCONT)
        eventually(lambda: _state(shell) in "SR" and _state(childflow) in "SR")
        os.kill(childflow, signal.SIGTERM)
        eventually(lambda: not processes_of(mark))
        terminal.type("exit\n")


def test_a_command_stopped_by_kill_stops_childflow(seat: Seat, mark: str) -> None:
    process = seat.start(seat.argv("sh", "-c", f": {mark}; kill -STOP $$; echo went-on"))
    eventually(lambda: _state(process.pid) == "T")
    process.send_signal(signal.SIGCONT)
    assert seat.wait(process).stdout == "went-on\n"


def test_interactive_bash_inside(seat: Seat) -> None:
    with seat.terminal(*OUTER) as terminal:
        terminal.sees("outer> ")
        terminal.type("PS1='inner> ' " + seat.line(*OUTER) + "\n")
        terminal.sees("inner> ")
        terminal.type("sleep 100\n")
        terminal.sees("sleep 100\r\n")
        _until_foreground(terminal, "sleep")
        ctrl_z(terminal)
        terminal.sees("Stopped")
        terminal.sees("inner> ")
        terminal.type("fg\n")
        terminal.sees("sleep 100\r\n")
        _until_foreground(terminal, "sleep")
        terminal.type("\x03")
        terminal.sees("inner> ")
        terminal.type("echo status-$?\n")
        terminal.sees("status-130")
        assert "no job control" not in terminal.text
        terminal.type("exit 5\n")
        terminal.sees("outer> ")
        terminal.type("echo outer-status-$?\n")
        terminal.sees("outer-status-5")
        terminal.type("cat\n")  # the terminal is the outer shell's again
        _until_foreground(terminal, "cat")
        terminal.type("still mine\n")
        terminal.sees("still mine\r\nstill mine")
        terminal.type("\x04")
        terminal.type("exit\n")


def test_pipeline_into_a_pager(seat: Seat) -> None:
    with seat.terminal(*OUTER) as terminal:
        terminal.sees("outer> ")
        terminal.type(seat.line("seq", "1", "500") + " | TERM=vt100 less\n")
        terminal.sees(r"\n2\r\n")
        terminal.type("q")
        terminal.sees("outer> ")
        terminal.type("echo ${PIPESTATUS[*]}-$?\n")
        terminal.sees(r"\n(0|141) 0-0")
        terminal.type("exit\n")


def test_head_of_an_endless_stream(seat: Seat) -> None:
    shown = seat.wait(seat.start(["bash", "-c", f"{seat.line('yes')} | head -1; echo ${{PIPESTATUS[*]}}"]))
    assert shown.stdout.split() == ["y", "141", "0"]
    shown = seat.wait(seat.start(["bash", "-c", f"yes | {seat.line('head', '-1')}; echo ${{PIPESTATUS[*]}}"]))
    assert shown.stdout.split() == ["y", "141", "0"]


def test_command_substitution(seat: Seat) -> None:
    shown = seat.wait(seat.start(["bash", "-c", f'x=$({seat.line("echo", "word")}); echo "[$x]" $?']))
    assert shown.stdout == "[word] 0\n"


def test_hangup_of_the_terminal(seat: Seat, mark: str) -> None:
    terminal = seat.terminal(*seat.argv("sh", "-c", f": {mark}; echo on; exec sleep 60"))
    terminal.sees("on")
    os.close(terminal.main)
    assert terminal.process.wait(10) == -signal.SIGHUP


def test_ctrl_c_while_starting(seat: Seat) -> None:
    """Whenever it comes, the run ends as interrupted: the command is ended, or never started."""
    for delay in (0.0, 0.02, 0.04, 0.06, 0.08, 0.1, 0.12):
        process = seat.start(seat.argv("sleep", "30"), start_new_session=True)
        _sleep_until_python_holds_signals(process.pid)
        signal.sigtimedwait([], delay)
        os.killpg(process.pid, signal.SIGINT)
        seat.wait(process, timeout=10)
        assert process.returncode == -signal.SIGINT


def _sleep_until_python_holds_signals(pid: int) -> None:
    """Until childflow blocks SIGINT (before that it is Python that starts, and Python's KeyboardInterrupt)."""

    def holds() -> bool:
        with open(f"/proc/{pid}/status") as file:
            return any(line.startswith("SigBlk:") and int(line.split()[1], 16) & 2 for line in file)

    eventually(holds)


def ctrl_z(terminal: Terminal) -> None:
    """A shell that has just printed may be between vfork and exec, where no shell can be stopped; so a moment later."""
    time.sleep(0.3)
    terminal.type("\x1a")


def after_a_stop(terminal: Terminal, line: str) -> None:
    """Type a line at a shell whose job has just stopped. A terminal drops its input at a Ctrl-Z, and at times
    what comes just after it (without childflow as well): so it is typed until it is echoed."""
    for _ in range(5):
        terminal.type(f"{line}\n")
        if terminal.hears(f"{line}\r\n", 2):
            return
    raise AssertionError(f"the shell does not take {line!r}:\n{terminal.text}")


def to_the_front(terminal: Terminal) -> None:
    """`fg`, and wait until the outer shell has given the terminal away."""
    after_a_stop(terminal, "fg")
    eventually(lambda: os.tcgetpgrp(terminal.main) != terminal.process.pid)


def _until_foreground(terminal: Terminal, name: str) -> None:
    """Until the terminal's foreground group is led by a program of this name."""

    def is_there() -> bool:
        leader = os.tcgetpgrp(terminal.main)
        try:
            with open(f"/proc/{leader}/comm") as file:
                return file.read().strip() == name
        except OSError:
            return False

    eventually(is_there)


def _shell_of(mark: str) -> int:
    return next(pid for pid in processes_of(mark) if _words(pid)[0] == b"sh")


def _childflow_of(mark: str) -> int:
    return next(pid for pid in processes_of(mark) if _words(pid)[0] not in (b"sh", b"childflow-init"))


def _words(pid: int) -> list[bytes]:
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read().split(b"\0")


def _state(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]
