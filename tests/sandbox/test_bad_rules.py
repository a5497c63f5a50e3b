"""A rule that can't be is refused in one line, before the command runs."""

from __future__ import annotations

import pytest

from tests.sandbox.conftest import Seat


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--deny-cidr", "10.0.0.1/8"), "10.0.0.1/8 is no network; write 10.0.0.0/8"),
        (("--allow-domain", "*.example.com"), "write example.com"),
        (("--allow-domain-file", "/nowhere/list"), "can't be read (No such file or directory)"),
        (("--offline", "--allow-cidr", "nonsense"), "give NETWORK/BITS"),
        (("-p", "http://192.0.2.1:99999"), "--proxy"),
        (("-p", "socks5://192.0.2.1:1080", "-U", "u" * 256, "-P", "x"), "255"),
    ],
)
def test_refused_before_the_command_runs(ordinary: Seat, flags: tuple[str, ...], said: str) -> None:
    done = ordinary.run("echo", "it ran", flags=flags)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("childflow: ")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
