"""`--block-private` where the host itself is concerned: its own addresses, public ones too, are as private as a LAN."""

from __future__ import annotations

from signal import SIGTERM

import pytest

from tests.lab.lab import Lab

LISTEN = """
import socket
listener = socket.create_server(("", 8000), family=socket.AF_INET6, dualstack_ipv6=True)
print("ready", flush=True)
while connection := listener.accept()[0]:
    connection.send(b"HTTP/1.0 204 From The Host\\r\\n\\r\\n")
    print("came", flush=True)
    connection.recv(4096)
    connection.close()
"""


@pytest.mark.case("D03")
@pytest.mark.parametrize("blocked", [True, False])
def test_the_hosts_own_address_with_a_listener(lab: Lab, family: int, blocked: bool) -> None:
    """The listener is on the host, the command inside; without the option the host is a destination as any other."""
    own = lab.laptop.addresses[family]
    where = f"http://{f'[{own}]' if family == 6 else own}:8000/"
    caller = lab.caller("ordinary")
    with caller.start("/usr/bin/python3", "-c", LISTEN, bare=True) as listener:
        listener.says("ready")
        done = caller.childflow(
            "curl", "-sS", "-m", "9", where, flags=["--block-private"] if blocked else [], log=False
        )
        listener.signal(SIGTERM)
        heard = listener.wait(timeout=5).stdout
    assert ("came" in heard) is not blocked
    assert done.status == (7 if blocked else 0), done.stderr
    assert ("is private, in " in done.stderr) is blocked


@pytest.mark.case("D03")
def test_what_is_public_is_still_reached(lab: Lab) -> None:
    done = lab.caller("ordinary").childflow("curl", "-sS", lab.url("/hello", 4), flags=["--block-private"]).ok()
    assert done.stdout == "hello from the lab\n"
