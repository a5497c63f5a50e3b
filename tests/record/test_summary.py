"""The summary's two forms, and that the schemas in docs are the code's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from childflow.netstack.events import Connected, End, Ended, Question
from childflow.policy.verdict import ALLOWED
from childflow.record import schema, summary, tally
from childflow.record.flowlog import make_recorder
from childflow.record.recorder import Recorder
from childflow.record.summary_form import Summary
from childflow.settings import Settings
from tests.record.test_flowlog import TCP, UDP, asked, tell_everything
from tests.services.play import FAR4, FAR6, answer_to

DOCS = Path(__file__).parents[2] / "docs" / "schema"


def told(**more: Any) -> tuple[Settings, Recorder]:
    settings = Settings(command=("npm", "ci", "a b"), summary=True, **more)
    recorder = make_recorder(settings)
    assert isinstance(recorder, Recorder)
    tell_everything(recorder)
    return settings, recorder


def test_text_says_where_it_went_and_what_failed() -> None:
    text = summary.render(*told(), 3)
    lines = text.splitlines()
    assert lines[0].startswith("childflow: npm ci 'a b': exit status 3, ")
    assert lines[1] == "  4 flows, 105 B up, 2.0 KiB down; 2 DNS queries for 1 name"
    table = [line.split() for line in lines]
    assert ["reached", "flows", "up", "down"] in table
    assert ["www.example.test:443", "1", "100", "B", "2.0", "KiB"] in table
    assert ["[2001:db8::7]:443", "1", "5", "B", "6", "B"] in table
    assert "  refused by policy: 3 x martian, 1 x dns_malformed" in lines
    failed = lines.index("  connects that failed:")
    assert lines[failed + 1] == "    192.0.0.1:80      the gateway answers only DNS and ping (1)"
    assert lines[failed + 2] == "    [2001:db8::7]:80  Connection refused (1)"
    assert text.endswith("\n")


def test_text_of_a_run_that_reached_nothing_says_so() -> None:
    settings = Settings(command=("true",), summary=True)
    text = summary.render(settings, make_recorder(settings), 0)
    assert text.splitlines()[2:] == ["  reached nothing"]
    assert "0 flows, 0 B up, 0 B down; 0 DNS queries for 0 names" in text


def test_text_has_the_controls_and_what_a_proxy_hides() -> None:
    """A proxy that is given addresses has them checked."""
    settings = Settings(command=("true",), summary=True, proxy="http://proxy.test:1", block_private=True)
    lines = summary.render(settings, make_recorder(settings), 0).splitlines()
    assert lines[2] == "  controls: block-private, proxy=http://proxy.test:1"
    assert lines[3].startswith("  note: names are looked up by the proxy: ")
    assert lines[3].endswith("against --block-private")
    assert summary.notes(settings._replace(dns_mode="forward")) == []
    assert summary.notes(settings._replace(block_private=False, deny_domains=("a.test",))) == []
    assert summary.notes(settings._replace(proxy=None)) == []


def test_text_shows_a_few_controls() -> None:
    settings = Settings(command=("true",), summary=True, deny_domains=tuple(f"{n}.test" for n in range(9)))
    lines = summary.render(settings, make_recorder(settings), 0).splitlines()
    assert lines[2].endswith(", deny-domain=4.test and 4 more")


def test_text_tells_names_that_were_only_looked_up() -> None:
    settings, recorder = told()
    resolved(recorder, "elsewhere.test", bytes((192, 0, 2, 9)))
    for name, rcode in (("nowhere.test", 3), ("broken.test", 2)):
        read, message = asked(name)
        recorder.dns_query("udp", "127.0.0.1:53", read)
        recorder.dns_answer("udp", "127.0.0.1:53", read, answer_to(message, rcode=rcode), "relayed", 0)
    recorder.dns_query("udp", "127.0.0.1:53", asked("waiting.test")[0])
    text = summary.render(settings, recorder, 0)
    assert "only looked up: elsewhere.test\n" in text
    assert "no such name: nowhere.test\n" in text
    assert "not resolved: broken.test, waiting.test\n" in text


def test_text_tells_resolvers_that_did_not_answer() -> None:
    settings, recorder = fresh()
    for server in ["192.0.2.1:53"] * 4 + ["[2001:db8::53]:53", "192.0.2.2:5353"]:
        recorder.resolver_silent(server)
    text = summary.render(settings, recorder, 0)
    assert "  DNS: 192.0.2.1 did not answer (4 queries)\n" in text
    assert "  DNS: 192.0.2.2:5353 did not answer (1 query)\n" in text
    assert "  DNS: 2001:db8::53 did not answer (1 query)\n" in text


def test_text_shows_no_control_characters() -> None:
    settings = Settings(command=("sh", "-c", "echo \x1b[2J\necho b"), summary=True)
    text = summary.render(settings, make_recorder(settings), 0)
    assert text.startswith("childflow: sh -c 'echo ?[2J echo b': exit status 0, ")
    assert text.count("\n") == 3


@pytest.mark.parametrize(
    ("status", "killed", "end"),
    [(137, True, "killed by signal 9 (KILL)"), (137, None, "killed by signal 9 (KILL)"),
     (137, False, "exit status 137"), (128, None, "exit status 128"), (168, True, "killed by signal 40"),
     (3, None, "exit status 3")],
)  # fmt: skip
def test_text_tells_the_end(status: int, killed: bool | None, end: str) -> None:
    settings = Settings(command=("true",), summary=True)
    first = summary.render(settings, make_recorder(settings), status, killed).splitlines()[0]
    assert first.startswith(f"childflow: true: {end}, ")


def test_text_is_short_however_much_was_reached() -> None:
    settings, recorder = told()
    for number in range(200):
        recorder.allowed(Question(100 + number, TCP, 1, number.to_bytes(4, "big"), 80), ALLOWED)
        recorder.connected(Connected(100 + number, 0, 1))
        recorder.allowed(Question(500 + number, TCP, 1, number.to_bytes(4, "big"), 81), ALLOWED)
        recorder.connected(Connected(500 + number, 111, 1))
        recorder.allowed(Question(900 + number, TCP, 1, number.to_bytes(4, "big"), 82), ALLOWED)
    text = summary.render(settings, recorder, 0)
    assert len(text.splitlines()) < 40
    assert "  and 187 more; all of them: --flow-log FILE" in text
    assert "    and 194 more" in text
    assert "no answer: 0.0.0.0:82 (1), 0.0.0.1:82 (1)" in text
    assert text.index("  0.0.0.2:80 ") < text.index("  0.0.0.10:80 ")


def resolved(recorder: Recorder, name: str, address: bytes = FAR4) -> None:
    read, message = asked(name)
    recorder.dns_query("udp", "127.0.0.1:53", read)
    recorder.dns_answer("udp", "127.0.0.1:53", read, answer_to(message, address), "relayed", 0)


def flow(recorder: Recorder, number: int, protocol: int = TCP, port: int = 443, errno: int = 0, down: int = 0) -> None:
    """A flow to FAR4 from start to end."""
    recorder.allowed(Question(number, protocol, 1, FAR4, port), ALLOWED)
    if protocol == TCP:
        recorder.connected(Connected(number, errno, 1))
    recorder.ended(Ended(number, End.FIN, 10, down, 1))


def fresh() -> tuple[Settings, Recorder]:
    settings = Settings(command=("true",), summary=True)
    recorder = make_recorder(settings)
    assert isinstance(recorder, Recorder)
    return settings, recorder


def table(text: str) -> dict[str, str]:
    """Flows by label."""
    return {line.split()[0]: line.split()[1] for line in text.splitlines()[1:] if len(line.split()) > 1}


def test_names_that_share_an_address_have_rows_of_their_own() -> None:
    settings, recorder = fresh()
    for number, name in enumerate(("pypi.test", "files.test", "pypi.test")):
        resolved(recorder, name)
        flow(recorder, number)
    rows = table(summary.render(settings, recorder, 0))
    assert (rows["pypi.test:443"], rows["files.test:443"]) == ("2", "1")
    (target,) = recorder.tally.targets.values()
    assert (target.target, target.attempts) == ("198.51.100.7:443", 3)


def test_what_did_not_answer_was_not_reached() -> None:
    settings, recorder = fresh()
    recorder.allowed(Question(1, TCP, 1, FAR4, 80), ALLOWED)  # still connecting when the command ended
    flow(recorder, 2, UDP, 123)
    flow(recorder, 3, UDP, 53, down=20)
    text = summary.render(settings, recorder, 0)
    assert "  no answer: 198.51.100.7:80 (1), 198.51.100.7:123 (1)\n" in text
    assert table(text)["198.51.100.7:53"] == "1"


def test_pings_are_counted_by_address() -> None:
    settings, recorder = fresh()
    for _ in range(2):
        recorder.ping_sent(FAR6)
    for _ in range(3):  # one came twice
        recorder.ping_answered(FAR6)
    resolved(recorder, "far.test")
    recorder.ping_failed(FAR4, 101)
    text = summary.render(settings, recorder, 0)
    assert "  ping 2001:db8::7: 2 sent, 2 answered\n" in text
    assert "  ping far.test (198.51.100.7): 1 not sent: Network is unreachable\n" in text
    assert "only looked up" not in text
    assert recorder.tally.events["connect_attempt"] == 0


def test_failures_name_their_destination() -> None:
    settings, recorder = fresh()
    for number in range(3):
        flow(recorder, number, port=80, errno=111)
    assert "    198.51.100.7:80  Connection refused (3)\n" in summary.render(settings, recorder, 0)


def test_json_fits_its_schema_and_counts() -> None:
    settings, recorder = told(summary_format="json")
    text = summary.render(settings, recorder, 3)
    msgspec.json.decode(text, type=Summary, strict=True)
    found = json.loads(text)
    assert (found["command"], found["exit_code"], found["sandbox_controls"]) == ("npm ci 'a b'", 3, [])
    assert found["capture"]["status"] == "disabled"
    log = found["flow_log"]
    assert (log["status"], log["path"]) == ("disabled", None)
    assert log["event_counts"] == {
        "total": 19, "dns_query": 3, "dns_answer": 2, "connect_attempt": 4, "connect_result": 3, "policy_violation": 4,
        "flow_end": 2, "runtime_failure": 1, "unknown_event": 0,
    }  # fmt: skip
    assert log["top_dns_name"] == {
        "qname": "www.example.test", "queries": 2, "answers": 2, "answer_ips": ["198.51.100.7"],
    }  # fmt: skip
    assert log["dns_policy_rows"][0]["target"] == "198.51.100.7:443"
    assert log["top_target"]["target"] == "192.0.0.1:80"
    assert log["policy_violations"] == {"martian": 3, "dns_malformed": 1}
    assert log["connect_errors"]["Connection refused (ECONNREFUSED)"] == 1
    assert log["runtime_failure_phases"] == {"run": 1}
    assert {k: v for k, v in found["traffic"].items() if k != "duration_ms"} == {
        "bytes_up": 105, "bytes_down": 2006, "flows": 4,
    }  # fmt: skip


def test_json_tells_whether_the_log_is_whole(tmp_path: Path) -> None:
    for target, status in ((str(tmp_path / "log"), "available"), ("/dev/full", "unavailable")):
        settings, recorder = told(summary_format="json", flow_log=target, quiet=True)
        recorder.close()
        assert json.loads(summary.render(settings, recorder, 0))["flow_log"]["status"] == status


def test_nothing_was_asked_for() -> None:
    settings = Settings(command=("true",))
    assert summary.render(settings, make_recorder(settings), 0) == ""


def test_tables_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "MAX_ROWS", 10)
    settings, recorder = told()
    for number in range(100):
        recorder.allowed(Question(100 + number, TCP, 1, number.to_bytes(4, "big"), 80), ALLOWED)
        recorder.ended(Ended(100 + number, End.FIN, 1, 1, 1))
        read, message = asked(f"n{number}.test")
        recorder.dns_answer("udp", "127.0.0.1:53", read, answer_to(message), "relayed", 0)
    assert (len(recorder.tally.targets), len(recorder.tally.names)) == (11, 11)
    assert recorder.tally.targets[tally.OTHERS].attempts == 100 - (10 - 4)
    assert summary.render(settings, recorder, 0)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (102_349, "100 KiB"), (1023 * 1024, "1.0 MiB"),
     (35_000_000, "33.4 MiB"), (5 << 30, "5.0 GiB"), (5 << 40, "5.0 TiB")],
)  # fmt: skip
def test_size_text(size: int, text: str) -> None:
    assert summary.size_text(size) == text


@pytest.mark.parametrize("name", schema.SURFACES)
def test_schema_in_docs_is_current(name: str) -> None:
    assert (DOCS / name).read_text() == schema.schema_text(name), "run: python -m childflow.record.schema docs/schema"
