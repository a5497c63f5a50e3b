"""The flow log and the summary of real runs."""

from __future__ import annotations

import pytest

from tests.lab.hosts import CLOSED_PORT
from tests.lab.lab import Caller, Lab


def test_fetch_by_name_is_told_from_question_to_end(lab: Lab, caller: Caller) -> None:
    fetch = "curl -sS -4 http://a.lab.test/hello && sleep 0.5"  # without it the flow may be killed first
    r = caller.childflow("sh", "-c", fetch).ok()
    query, answer = r.events_of("dns_query")[0], r.events_of("dns_answer")[0]
    assert (query["qname"], query["qtype"], query["server_ip"]) == ("a.lab.test", "A", lab.server_ip(4))
    assert (answer["answer_ips"], answer["rcode"], answer["mode"]) == ([lab.server_ip(4)], "NOERROR", "relayed")
    (attempt,), (result,), (end,) = (r.events_of(name) for name in ("connect_attempt", "connect_result", "flow_end"))
    assert (attempt["remote_addr"], attempt["names"], attempt["evidence"]) == (
        f"{lab.server_ip(4)}:80", ["a.lab.test"], "dns",
    )  # fmt: skip
    assert (result["status"], result["error"]) == ("ok", None)
    assert (end["end"], end["bytes_up"] > 50, end["bytes_down"] > len(r.stdout)) == ("fin", True, True)
    assert attempt["flow_id"] == result["flow_id"] == end["flow_id"]


def test_refused_connect_is_told_with_its_error(lab: Lab, caller: Caller, family: int) -> None:
    r = caller.childflow(*lab.client("connect", lab.server_ip(family), CLOSED_PORT))
    (result,) = r.events_of("connect_result")
    assert (result["status"], result["error"], result["evidence"]) == (
        "error", "Connection refused (ECONNREFUSED)", "address",
    )  # fmt: skip


@pytest.mark.parametrize("address", ["0.1.2.3", "64:ff9b::127.0.0.1", "2002:7f00:1::1"])
def test_martian_is_refused_and_told(lab: Lab, caller: Caller, address: str) -> None:
    r = caller.childflow(*lab.client("connect", address, 80)).ok()
    assert r.json()["80"]["error"] == "ECONNREFUSED"
    (violation,) = r.events_of("policy_violation")
    assert (violation["reason_code"], violation["control"], violation["protocol"]) == ("martian", None, "tcp")
    assert r.events_of("connect_attempt") == []


def test_gateway_refuses_other_ports_at_once(lab: Lab, caller: Caller) -> None:
    r = caller.childflow(*lab.client("connect", "192.0.0.1", "22,80,443")).ok()
    assert {port: told["error"] for port, told in r.json().items()} == dict.fromkeys(
        ("22", "80", "443"), "ECONNREFUSED"
    )
    assert r.events_of("policy_violation") == []
