"""Which resolvers are asked, and in what order."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from childflow.errors import UsageError
from childflow.services.resolvers import Resolvers, parse_resolv_conf, parse_resolver


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("text", "family", "sockaddr"),
    [
        ("192.0.2.1", socket.AF_INET, ("192.0.2.1", 53)),
        ("192.0.2.1:5353", socket.AF_INET, ("192.0.2.1", 5353)),
        ("2001:db8::1", socket.AF_INET6, ("2001:db8::1", 53, 0, 0)),
        ("[2001:db8::1]", socket.AF_INET6, ("2001:db8::1", 53, 0, 0)),
        ("[2001:db8::1]:5353", socket.AF_INET6, ("2001:db8::1", 5353, 0, 0)),
        ("fe80::1%lo", socket.AF_INET6, ("fe80::1", 53, 0, 1)),
        ("[fe80::1%1]:53", socket.AF_INET6, ("fe80::1", 53, 0, 1)),
    ],
)
def test_resolver_that_dns_names(text: str, family: int, sockaddr: tuple[object, ...]) -> None:
    resolver = parse_resolver(text)
    assert (resolver.family, resolver.sockaddr) == (family, sockaddr)


@pytest.mark.parametrize(
    "text", ["", "example.test", "192.0.2.1:0", "192.0.2.1:65536", "192.0.2.1:x", "192.0.2", "[::1", "[::1]x", "[::1]:",
             "::1%nosuchif", "1.2.3.4:5:6", "192.0.2.1:-1", "192.0.2.1:٣", "192.0.2\0.1", "fe80::1%l\0o"],
)  # fmt: skip
def test_resolver_that_is_none(text: str) -> None:
    with pytest.raises(UsageError, match="give an IP address"):
        parse_resolver(text)


SHAPES = {
    "": ["127.0.0.1:53"],
    "nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch lan\n": ["127.0.0.53:53"],
    "# nameserver 192.0.2.9\n;x\nnameserver 192.0.2.1 # no\nnameserver\n nameserver 2001:db8::1\n": [
        "192.0.2.1:53", "[2001:db8::1]:53",
    ],
    "nameserver fe80::1%lo\nnameserver nonsense\nnameserver 192.0.2.1:99\n": ["[fe80::1%lo]:53"],
    "nameserver 192.0.2.1\nnameserver 192.0.2.1\n": ["192.0.2.1:53"],
    "nameserver 192.0.2\0.1\nnameserver fe80::1%\0\nnameserver 192.0.2.1\n": ["192.0.2.1:53"],
}  # fmt: skip


@pytest.mark.case("C27")
@pytest.mark.parametrize("text", SHAPES)
def test_resolv_conf_shapes(text: str) -> None:
    assert [server.text for server in parse_resolv_conf(text).servers] == SHAPES[text]


@pytest.mark.case("C27")
def test_resolv_conf_options_within_reason() -> None:
    plan = parse_resolv_conf("options timeout:30 attempts:99 rotate ndots:5\n")
    assert (plan.attempt_s, plan.rounds, plan.rotate) == (2.0, 4, True)
    plan = parse_resolv_conf("options timeout:1 attempts:1\noptions timeout:x attempts:0\n")
    assert (plan.attempt_s, plan.rounds, plan.rotate) == (1.0, 1, False)


@pytest.mark.parametrize(
    ("text", "search"),
    [
        ("search a.Example. b.example\n", ("a.example", "b.example")),
        ("search a.example\ndomain b.example\n", ("b.example",)),
        ("domain a.example\nsearch .\n", ()),
        ("#search a.example\nsearch\n", ("host.example",)),
    ],
)
def test_search_list(text: str, search: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "laptop.host.example")
    assert parse_resolv_conf(text).search == search


def test_search_list_is_the_hosts_whoever_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("search a.example\n")
    for dns in (None, "192.0.2.1"):
        assert Resolvers(dns, Clock(), str(path)).search() == ("a.example",)


def test_server_that_is_not_on_the_list_is_not_remembered() -> None:
    resolvers = Resolvers("192.0.2.1", Clock())
    for last in range(1, 200):
        resolvers.avoid(parse_resolver(f"198.51.100.{last}"))
    assert resolvers._avoid == {}


@pytest.mark.case("C27", "E10")
def test_file_that_changes_is_read_again_after_a_second(tmp_path: Path) -> None:
    path, clock = tmp_path / "resolv.conf", Clock()
    path.write_text("nameserver 192.0.2.1\n")
    resolvers = Resolvers(None, clock, str(path))
    assert [s.text for s in resolvers.in_order()] == ["192.0.2.1:53"]
    new = tmp_path / "new"
    new.write_text("nameserver 192.0.2.2\n")
    os.rename(new, path)
    assert [s.text for s in resolvers.in_order()] == ["192.0.2.1:53"]
    clock.now += 1.0
    assert [s.text for s in resolvers.in_order()] == ["192.0.2.2:53"]
    path.unlink()
    clock.now += 1.0
    assert [s.text for s in resolvers.in_order()] == ["192.0.2.2:53"]


@pytest.mark.case("C27")
def test_no_file_is_the_local_host(tmp_path: Path) -> None:
    assert [s.text for s in Resolvers(None, Clock(), str(tmp_path / "none")).in_order()] == ["127.0.0.1:53"]


def texts(resolvers: Resolvers) -> list[str]:
    return [server.text.partition(":")[0] for server in resolvers.in_order()]


def test_avoided_resolver_is_last_for_ten_seconds(tmp_path: Path) -> None:
    path, clock = tmp_path / "resolv.conf", Clock()
    path.write_text("nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\n")
    resolvers = Resolvers(None, clock, str(path))
    resolvers.avoid(resolvers.in_order()[0])
    assert texts(resolvers) == ["192.0.2.2", "192.0.2.3", "192.0.2.1"]
    clock.now += 9.9
    assert texts(resolvers)[0] == "192.0.2.2"
    clock.now += 0.2
    assert texts(resolvers)[0] == "192.0.2.1"
    resolvers.avoid(resolvers.in_order()[0])
    resolvers.answered(parse_resolver("192.0.2.1"))
    assert texts(resolvers)[0] == "192.0.2.1"


def test_rotate_begins_elsewhere_each_time(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 192.0.2.1\nnameserver 192.0.2.2\noptions rotate\n")
    resolvers = Resolvers(None, Clock(), str(path))
    assert {texts(resolvers)[0] for _ in range(4)} == {"192.0.2.1", "192.0.2.2"}
