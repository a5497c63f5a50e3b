"""Policy from the outside: one line of options, and what a command can reach under it."""

from __future__ import annotations

from tests.lab.lab import Caller, Lab


def test_offline_is_offline_and_says_so(lab: Lab, caller: Caller, family: int) -> None:
    r = caller.childflow("curl", "-sS", "--max-time", "5", lab.url("/hello", family), flags=["--offline"])
    assert (r.status, r.stdout) == (7, ""), r.told()
    assert "childflow: blocked tcp " in r.stderr
    assert "--offline" in r.stderr
    (violation,) = r.events_of("policy_violation")
    assert (violation["reason_code"], violation["control"]) == ("offline", "offline")


def test_leak_is_an_exit_status(lab: Lab, caller: Caller) -> None:
    flags = ["--offline", "--fail-on-leak"]
    assert caller.childflow("sh", "-c", f"curl -sS {lab.url('/hello', 4)}; true", flags=flags).status == 1
    assert caller.childflow("true", flags=flags).status == 0
    assert caller.childflow("curl", "-sS", lab.url("/hello", 4), flags=flags).status == 7


def test_only_what_is_allowed_is_reached(lab: Lab, caller: Caller, family: int) -> None:
    ip = lab.server_ip(family)
    net = f"{ip}/32" if family == 4 else f"[{ip}/128]"
    deny = ["--default-policy", "deny"]
    allowed = [*deny, "--allow-cidr", f"tcp:{net}:80"]
    assert (
        caller.childflow("curl", "-sS", lab.url("/hello", family), flags=allowed).ok().stdout == "hello from the lab\n"
    )
    assert caller.childflow("curl", "-sS", lab.url("/hello", family), flags=deny).status == 7
