"""`--fail-on-leak` at its edges: what is a leak, and what it does to the status. The plain case: `test_policy.py`."""

from __future__ import annotations

from tests.lab.lab import Lab
from tests.lab.processes import Result

TRY = """
import os, socket, sys
with socket.socket() as tried:
    try:
        tried.connect((sys.argv[1], 80))
        print("connected")
    except OSError as error:
        print(error.strerror)
os.kill(os.getpid(), int(sys.argv[2]))
"""
LEAK = "--fail-on-leak"


def attempt(lab: Lab, *flags: str, signal: int = 0) -> Result:
    command = ("/usr/bin/python3", "-c", TRY, lab.server_ip(4), str(signal))
    return lab.caller("ordinary").childflow(*command, flags=flags, log=False)


def test_summary_has_the_status_that_the_caller_sees(lab: Lab) -> None:
    done = attempt(lab, "--default-policy", "deny", LEAK, "--summary")
    assert (done.stdout, done.status) == ("Connection refused\n", 1), done.stderr
    assert ": exit status 1, " in done.stderr
    assert "1 attempt was blocked (--fail-on-leak)" in done.stderr


def test_a_rule_that_denied_nothing_is_no_leak(lab: Lab) -> None:
    done = attempt(lab, "--deny-cidr", "192.0.2.0/24", LEAK)
    assert (done.stdout, done.status, done.stderr) == ("connected\n", 0, "")


def test_a_signal_is_still_a_signal(lab: Lab) -> None:
    assert attempt(lab, "--offline", LEAK, signal=15).status == 128 + 15


def test_multicast_that_never_leaves_is_no_leak(lab: Lab) -> None:
    """Desktops' chatter (mDNS, SSDP) goes nowhere without any rule, and is told to nobody."""
    code = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('224.0.0.251', 5353))"
    done = lab.caller("ordinary").childflow("/usr/bin/python3", "-c", code, flags=[LEAK], log=False)
    assert (done.status, done.stderr) == (0, "")
