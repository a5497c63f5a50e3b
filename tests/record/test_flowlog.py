"""The flow log's lines, where they go, and what happens when they can't."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import socket
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from childflow.errors import ChildflowError, UsageError
from childflow.netstack.events import Connected, End, Ended, Question
from childflow.policy.verdict import ALLOWED, Ask, judge
from childflow.record import log_file
from childflow.record.events import AnyEvent
from childflow.record.flowlog import make_recorder
from childflow.record.null import NullRecorder
from childflow.record.recorder import NAMED_ADDRESSES, NAMES_PER_ADDRESS, Recorder
from childflow.services import dns
from childflow.settings import Settings
from tests.services.play import FAR4, FAR6, GATEWAY4, answer_to, query, run, until

TCP, UDP = 6, 17


def settings(log: str | None = None, **more: Any) -> Settings:
    return Settings(command=("true",), flow_log=log, **more)


def recorder(path: Path) -> Recorder:
    made = make_recorder(settings(str(path)))
    assert isinstance(made, Recorder)
    return made


def lines(path: Path) -> list[dict[str, Any]]:
    """Every line, once it has been read strictly by the schema's own types."""
    raw = path.read_bytes().splitlines()
    for line in raw:
        msgspec.json.decode(line, type=AnyEvent, strict=True)
    return [json.loads(line) for line in raw]


def asked(name: str = "www.example.test", qtype: int = 1) -> tuple[dns.Query, bytes]:
    message = query(name, qtype)
    read = dns.read_query(message)
    assert isinstance(read, dns.Query)
    return read, message


def tell_everything(r: NullRecorder) -> None:
    read, message = asked()
    r.dns_query("udp", "127.0.0.53:53", read)
    r.dns_answer("udp", "127.0.0.53:53", read, answer_to(message, FAR4), "relayed", 0.0121)
    r.dns_query("tcp", "[fe80::1%eth0]:53", asked(qtype=65)[0])
    r.dns_answer("tcp", "[fe80::1%eth0]:53", asked(qtype=65)[0], answer_to(message, rcode=2), "synthetic_empty", 4.5)
    r.dns_refused("udp", dns.Bad(None), GATEWAY4)
    r.allowed(Question(1, TCP, 40000, FAR4, 443), ALLOWED)
    r.connected(Connected(1, 0, 12_345))
    r.ended(Ended(1, End.FIN, 100, 2000, 1_000_000))
    r.allowed(Question(2, TCP, 40001, FAR6, 80), ALLOWED)
    r.connected(Connected(2, 111, 99))
    r.allowed(Question(3, UDP, 40001, FAR6, 443), ALLOWED)
    r.ended(Ended(3, End.IDLE, 5, 6, 120_000_000))
    for flow, protocol, remote, port in (
        (4, TCP, b"\x7f\0\0\1", 80),
        (5, UDP, bytes(15) + b"\1", 9),
        (6, TCP, GATEWAY4, 80),
    ):
        r.denied(Question(flow, protocol, 1, remote, port), judge(Ask(protocol, remote, port)))
    r.icmp_denied(1, b"\x7f\0\0\1", judge(Ask(1, b"\x7f\0\0\1", 0)))
    r.failure("run", "unknown_runtime_failure", "it broke")


def test_every_kind_of_line_as_documented(tmp_path: Path) -> None:
    r = recorder(tmp_path / "log")
    tell_everything(r)
    r.close()
    found = lines(tmp_path / "log")
    assert len({line["run_id"] for line in found}) == 1
    assert all(line["schema_version"] == 1 and abs(line["ts_ms"] - time.time() * 1000) < 10_000 for line in found)
    by_kind = [{k: v for k, v in line.items() if k not in ("run_id", "schema_version", "ts_ms")} for line in found]
    assert by_kind[0] == {
        "event": "dns_query", "protocol": "udp", "server": "127.0.0.53:53", "server_ip": "127.0.0.53",
        "server_port": 53, "qname": "www.example.test", "qtype": "A", "qtype_name": "A",
    }  # fmt: skip
    assert by_kind[1] == {
        "event": "dns_answer", "protocol": "udp", "server": "127.0.0.53:53", "server_ip": "127.0.0.53",
        "server_port": 53, "qname": "www.example.test", "qtype": "A", "qtype_name": "A", "mode": "relayed",
        "bytes": 50, "answer_ips": ["198.51.100.7"], "rcode": "NOERROR", "duration_ms": 12,
    }  # fmt: skip
    assert (by_kind[2]["server_ip"], by_kind[2]["qtype"], by_kind[2]["qtype_name"]) == (
        "fe80::1%eth0",
        "other",
        "HTTPS",
    )
    assert (by_kind[3]["rcode"], by_kind[3]["mode"], by_kind[3]["answer_ips"]) == ("SERVFAIL", "synthetic_empty", [])
    assert (by_kind[4]["qname"], by_kind[4]["qtype"], by_kind[4]["qtype_name"]) == (None, "unknown", None)
    malformed = by_kind.pop(5)
    assert (malformed["event"], malformed["protocol"], malformed["reason_code"]) == (
        "policy_violation", "dns", "dns_malformed",
    )  # fmt: skip
    assert (malformed["remote"], malformed["control"]) == ("192.0.0.1:53", None)
    flow = {
        "flow_id": 1, "protocol": "tcp", "remote_addr": "198.51.100.7:443", "remote_ip": "198.51.100.7",
        "remote_port": 443,
    }  # fmt: skip
    why = {"via_proxy": False, "names": ["www.example.test"], "rule": None, "evidence": "dns", "process": None}
    assert by_kind[5] == {"event": "connect_attempt", **flow, **why}
    assert by_kind[6] == {"event": "connect_result", **flow, **why, "status": "ok", "error": None, "duration_ms": 12}
    assert by_kind[7] == {
        "event": "flow_end", **flow, "names": ["www.example.test"], "bytes_up": 100, "bytes_down": 2000,
        "duration_ms": 1000, "end": "fin", "server_name": None, "evidence": "dns",
    }  # fmt: skip
    assert (by_kind[8]["remote_addr"], by_kind[8]["evidence"], by_kind[8]["names"]) == (
        "[2001:db8::7]:80",
        "address",
        [],
    )
    assert (by_kind[9]["status"], by_kind[9]["error"]) == ("error", "Connection refused (ECONNREFUSED)")
    assert (by_kind[10]["protocol"], by_kind[11]["end"]) == ("udp", "idle")
    assert by_kind[12] == {
        "event": "policy_violation", "protocol": "tcp", "remote": "127.0.0.1:80", "remote_ip": "127.0.0.1",
        "remote_port": 80, "action": "deny", "reason_code": "martian", "control": None, "matched_cidr": None,
        "matched_domain": None, "reason": "127.0.0.1 is a loopback address; those never leave",
    }  # fmt: skip
    assert (by_kind[13]["protocol"], by_kind[13]["remote"]) == ("udp", "[::1]:9")
    assert [line["event"] for line in by_kind[14:16]] == ["connect_attempt", "connect_result"]
    assert by_kind[15]["error"] == "the gateway answers only DNS and ping"
    assert (by_kind[16]["protocol"], by_kind[16]["remote"], by_kind[16]["remote_port"]) == ("icmpv4", "127.0.0.1", None)
    assert by_kind[17] == {
        "event": "runtime_failure", "phase": "run", "reason_code": "unknown_runtime_failure", "detail": "it broke",
    }  # fmt: skip
    assert len(by_kind) == 18


def test_lines_are_flushed_while_the_run_goes_on(tmp_path: Path) -> None:
    async def body() -> None:
        r = recorder(tmp_path / "log")
        r.start(asyncio.get_running_loop())
        tell_everything(r)
        assert (tmp_path / "log").read_bytes() == b""
        await until(lambda: len(lines(tmp_path / "log")) == 19, 0.5)
        tell_everything(r)
        r.close()
        assert len(lines(tmp_path / "log")) == 38

    run(body)


def test_nothing_is_gathered_when_nobody_asks() -> None:
    assert type(make_recorder(settings())) is NullRecorder
    assert make_recorder(settings()).active is False
    tell_everything(make_recorder(settings()))


def test_summary_alone_needs_no_msgspec_and_no_file() -> None:
    made = make_recorder(settings(summary=True))
    assert isinstance(made, Recorder)
    assert made.log is None
    tell_everything(made)
    made.close()


def test_names_are_bounded_and_the_latest_stay(tmp_path: Path) -> None:
    r = recorder(tmp_path / "log")
    for number in range(NAMED_ADDRESSES + 10):
        read, message = asked(f"n{number}.test")
        r.dns_answer("udp", "127.0.0.1:53", read, answer_to(message, number.to_bytes(4, "big")), "relayed", 0)
    assert len(r._names) == NAMED_ADDRESSES
    for number in range(20):
        read, message = asked(f"m{number}.test")
        r.dns_answer("udp", "127.0.0.1:53", read, answer_to(message, FAR4), "relayed", 0)
    assert list(r._names[FAR4]) == [f"m{n}.test" for n in range(20 - NAMES_PER_ADDRESS, 20)]
    r.close()


def test_name_that_was_confirmed_last_is_last(tmp_path: Path) -> None:
    r = recorder(tmp_path / "log")
    for name in ("a.test", "b.test", "a.test"):
        read, message = asked(name)
        r.dns_answer("udp", "127.0.0.1:53", read, answer_to(message, FAR4), "relayed", 0)
    r.allowed(Question(1, TCP, 1, FAR4, 443), ALLOWED)
    r.ended(Ended(1, End.FIN, 1, 1, 1))
    r.close()
    assert [line["names"] for line in lines(tmp_path / "log")[-2:]] == [["b.test", "a.test"]] * 2


def test_notice_speaks_under_verbose_only(capfd: pytest.CaptureFixture[str]) -> None:
    make_recorder(settings()).notice("a")
    make_recorder(settings(verbose=True)).notice("b")
    assert capfd.readouterr().err == "childflow: b\n"


# Where the log goes.


@pytest.mark.parametrize("target", ["fd:99", "fd:x", "fd:-1", "fd:"])
def test_descriptor_that_is_none_is_refused(target: str) -> None:
    with pytest.raises(UsageError, match="flow-log"):
        make_recorder(settings(target))


@pytest.mark.parametrize("target", ["", "no/such/folder/log", "folder", "fifo"])
def test_path_that_can_not_be_written_is_refused(target: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ChildflowError, match="can't be written"):
        make_recorder(settings(str(tmp_path / target)))


def test_descriptor_open_for_reading_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    fd = os.open(tmp_path / "log", os.O_RDONLY)
    with pytest.raises(UsageError, match="not open for writing"):
        make_recorder(settings(f"fd:{fd}"))
    os.close(fd)


def test_inherited_file_is_written_at_its_own_place(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"{}\n")
    r = make_recorder(settings(f"fd:{fd}"))
    r.failure("run", "unknown_runtime_failure", "x")
    r.close()
    assert (tmp_path / "log").read_bytes().startswith(b'{}\n{"event"')
    os.close(fd)


def test_pipe_that_nobody_drains_loses_lines_and_stays_blocking_for_others(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_file, "MAX_WAITING", 1 << 20)
    monkeypatch.setattr(log_file, "CLOSE_S", 0.1)
    reader, writer = os.pipe()
    r = make_recorder(settings(f"fd:{writer}"))
    assert isinstance(r, Recorder)
    assert os.get_blocking(writer)
    assert r.log is not None
    start = time.monotonic()
    for _ in range(10_000):
        r.failure("run", "unknown_runtime_failure", "x" * 500)
        r.log.flush()
    r.close()
    assert time.monotonic() - start < 5
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 2
    assert "nobody reads" in said[0]
    assert said[1].endswith("were lost")
    assert r.log_whole is False
    os.close(reader)
    os.close(writer)


def test_slow_reader_gets_every_line_whole() -> None:
    async def body() -> None:
        reader, writer = os.pipe()
        r = make_recorder(settings(f"fd:{writer}"))
        os.close(writer)
        r.start(asyncio.get_running_loop())
        for number in range(2000):
            r.failure("run", "unknown_runtime_failure", f"{number} " + "x" * 500)
        data = bytearray()
        os.set_blocking(reader, False)
        while data.count(b"\n") < 2000:
            await asyncio.sleep(0.01)
            try:
                data += os.read(reader, 65536)
            except BlockingIOError:
                pass
        details = [json.loads(line)["detail"].split()[0] for line in data.splitlines()]
        assert details == [str(number) for number in range(2000)]
        r.close()
        os.close(reader)

    run(body)


def broken_pipe() -> tuple[str, list[int]]:
    reader, writer = os.pipe()
    os.close(reader)
    return f"fd:{writer}", [writer]


def broken_socket() -> tuple[str, list[int]]:
    ours, theirs = socket.socketpair()
    theirs.close()
    fd = ours.detach()
    return f"fd:{fd}", [fd]


def full_disk() -> tuple[str, list[int]]:
    return "/dev/full", []


@pytest.mark.parametrize("make", [broken_pipe, broken_socket, full_disk])
def test_log_that_breaks_is_said_once_and_stops_nothing(make: Any, capfd: pytest.CaptureFixture[str]) -> None:
    target, fds = make()
    if make is broken_pipe:
        reopenable = False
        try:
            r = make_recorder(settings(target))
            reopenable = True
        except ChildflowError:
            pass
        assert reopenable
    r = make_recorder(settings(target))
    assert isinstance(r, Recorder)
    for _ in range(3):
        tell_everything(r)
        assert r.log is not None
        r.log.flush()
    r.close()
    said = [line for line in capfd.readouterr().err.splitlines() if "childflow: blocked " not in line]
    assert len(said) == 2
    assert "the run goes on without it" in said[0]
    assert said[1].startswith("childflow: 57 lines of the flow log")
    for fd in fds:
        os.close(fd)


def test_file_size_limit_is_a_full_disk(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    r = recorder(tmp_path / "log")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
        tell_everything(r)
        r.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large" in capfd.readouterr().err


def test_socket_takes_lines() -> None:
    ours, theirs = socket.socketpair()
    r = make_recorder(settings(f"fd:{ours.fileno()}"))
    r.failure("run", "unknown_runtime_failure", "x")
    r.close()
    assert theirs.recv(4096).endswith(b"}\n")
    assert ours.getblocking()
    ours.close()
    theirs.close()
