"""What a rule's text means, and what is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from childflow.errors import UsageError
from childflow.policy import rule_text
from childflow.policy.rules import NO_RULES
from childflow.policy.tables import ICMP4, TCP, UDP
from tests.policy.make import packed, rules


@pytest.mark.parametrize(
    ("text", "first", "prefix", "protocol", "port"),
    [
        ("10.0.0.0/8", "10.0.0.0", 8, 0, 0),
        ("203.0.113.7", "203.0.113.7", 32, 0, 0),
        ("0.0.0.0/0", "0.0.0.0", 0, 0, 0),
        ("10.0.0.0/8:5432", "10.0.0.0", 8, 0, 5432),
        ("203.0.113.7:443", "203.0.113.7", 32, 0, 443),
        ("udp:203.0.113.0/24:443", "203.0.113.0", 24, UDP, 443),
        ("TCP:203.0.113.0/24", "203.0.113.0", 24, TCP, 0),
        ("icmp:0.0.0.0/0", "0.0.0.0", 0, ICMP4, 0),
        ("icmp:2001:db8::/32", "2001:db8::", 32, ICMP4, 0),
        ("2001:db8::/32", "2001:db8::", 32, 0, 0),
        ("::/0", "::", 0, 0, 0),
        ("::1", "::1", 128, 0, 0),
        ("[2001:db8::/32]:22", "2001:db8::", 32, 0, 22),
        ("tcp:[2001:db8::1]:22", "2001:db8::1", 128, TCP, 22),
        ("[2001:db8::1]", "2001:db8::1", 128, 0, 0),
        (" 10.0.0.0/8 ", "10.0.0.0", 8, 0, 0),
    ],
)
def test_network(text: str, first: str, prefix: int, protocol: int, port: int) -> None:
    found = rule_text.network("allow-cidr", text)
    assert found == (packed(first), prefix, protocol, port, text.strip())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "give NETWORK/BITS"),
        ("example.com", "give NETWORK/BITS"),
        ("10.0.0/8", "give NETWORK/BITS"),
        ("010.0.0.0/8", "give NETWORK/BITS"),
        ("10.0.0.0/255.0.0.0", "a number from 0 to 32"),
        ("10.0.0.0/33", "a number from 0 to 32"),
        ("10.0.0.0/", "a number from 0 to 32"),
        ("10.0.0.0/-1", "a number from 0 to 32"),
        ("2001:db8::/129", "a number from 0 to 128"),
        ("10.0.0.0/8:", "the port must be"),
        ("10.0.0.0/8:0", "the port must be"),
        ("10.0.0.0/8:65536", "the port must be"),
        ("10.0.0.0/8:http", "the port must be"),
        ("sctp:10.0.0.0/8", "give NETWORK/BITS"),
        ("icmp:10.0.0.0/8:7", "ICMP has no ports; leave :7 out"),
        ("[10.0.0.0/8]:22", "give NETWORK/BITS"),
        ("[2001:db8::/32", "give NETWORK/BITS"),
        ("[2001:db8::/32]22", "give NETWORK/BITS"),
        ("[2001:db8::]/32", "give NETWORK/BITS"),
        ("fe80::1%eth0", "give NETWORK/BITS"),
        ("10.0.0.1/8", "10.0.0.1/8 is no network; write 10.0.0.0/8, or the address alone"),
        ("2001:db8::1/32", "2001:db8::1/32 is no network; write 2001:db8::/32"),
        ("::ffff:10.0.0.0/104", "IPv4-mapped addresses are judged as the IPv4 ones that they reach; write 10.0.0.0/8"),
        ("::ffff:10.0.0.1", "write 10.0.0.1/32"),
        ("::ffff:0:0/96", "write rules for the IPv4 networks that are meant"),
        ("64:ff9b::a00:0/104", "NAT64 addresses are judged as the IPv4 ones that they reach; write 10.0.0.0/8"),
        ("2002:a00::/24", "6to4 addresses are judged as the IPv4 ones that they reach; write 10.0.0.0/8"),
        ("2002:a00:1:1::/64", "6to4 addresses are judged as the IPv4 ones that they reach; write 10.0.0.1"),
        ("64:ff9b:1::/48", "write rules for the IPv4 networks"),
        ("64:ff9b:1:a00:0:100::", "write 10.0.0.1"),
        ("::7f00:0/104", "write 127.0.0.0/8"),
        ("::/127", "write rules for the IPv4 networks"),
        ("10.0.0.0\0/8", "give NETWORK/BITS"),
    ],
)
def test_network_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        rule_text.network("deny-cidr", text)
    assert str(error.value).startswith("--deny-cidr ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "name", "port"),
    [
        ("example.com", "example.com", 0),
        ("Example.COM.", "example.com", 0),
        ("example.com:443", "example.com", 443),
        ("example.com.:443", "example.com", 443),
        ("_dmarc.example.com", "_dmarc.example.com", 0),
        ("localhost", "localhost", 0),
        ("münchen.example", "xn--mnchen-3ya.example", 0),
        ("MÜNCHEN.example:80", "xn--mnchen-3ya.example", 80),
        ("例え.jp", "xn--r8jz45g.jp", 0),
        ("a。b.example", "a.b.example", 0),
        ("xn--mnchen-3ya.example", "xn--mnchen-3ya.example", 0),
        ("1.2.3.example", "1.2.3.example", 0),
        ("r3---sn-4g5e6.example", "r3---sn-4g5e6.example", 0),
    ],
)
def test_name(text: str, name: str, port: int) -> None:
    assert rule_text.name_and_port(text, "here") == (name, port)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is no name"),
        (".", "is no name"),
        ("a..b", "is no name"),
        ("https://example.com", "give NAME or NAME:PORT"),
        ("example.com/path", "is no name"),
        ("exam ple.com", "is no name"),
        ("-a.example", "is no name"),
        ("example.com:", "give NAME or NAME:PORT"),
        ("example.com:0", "give NAME or NAME:PORT"),
        ("example.com:99999", "give NAME or NAME:PORT"),
        ("*.example.com", "names below are covered anyway; write example.com"),
        (".example.com", "names below are covered anyway; write example.com"),
        ("203.0.113.7", "is an address; use the options for CIDRs"),
        ("0x7f.1", "is an address"),
        ("2130706433", "is an address"),
        ("2001:db8::1", "is an address"),
        ("[2001:db8::1]", "is an address"),
        ("faß.example", "is encoded in two ways"),
        ("\ud800.example", "can't be encoded"),
        ("a" * 64 + ".example", "63 between dots"),
        (".".join(["a" * 60] * 5), "at most 253"),
        ("ü" * 70 + ".example", "can't be encoded"),
    ],
)
def test_name_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        rule_text.name_and_port(text, "here")
    assert str(error.value).startswith("here: ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_file_of_names_and_hosts_lines(tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_bytes(
        b"\xef\xbb\xbf# a list\r\nads.example\r\n\n  Tracker.Example.  # why\n0.0.0.0 one.example two.example\n"
        b"::1 three.example\n0.0.0.0 0.0.0.0\nfe80::1%lo0 four.example\nshop.example:8443\nm\xc3\xbcnchen.example\n"
    )
    table = rules("--deny-domain-file", str(path)).deny_below
    for name in ("ads", "tracker", "one", "two", "three", "four", "xn--mnchen-3ya"):
        assert table.below(f"{name}.example", 1) == ("deny-domain-file", f"{name}.example")
        assert table.below(f"x.{name}.example", 1) is not None
    assert table.below("shop.example", 8443) == ("deny-domain-file", "shop.example:8443")
    assert table.below("shop.example", 443) is None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("two words", "give one name, or ADDRESS NAME... as in a hosts file"),
        ("||ads.example^", "'||ads.example^': is no name"),
        ("203.0.113.7", "'203.0.113.7': is an address"),
        ("*.ads.example", "write ads.example"),
        ("0.0.0.0 a..b", "'a..b': is no name"),
    ],
)
def test_file_with_a_bad_line_names_it(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "list"
    path.write_text(f"# list\ngood.example\n{line}\n")
    with pytest.raises(UsageError) as error:
        rules("--allow-domain-file", str(path))
    assert str(error.value).startswith(f"{path}, line 3: ")
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"), [(None, "can't be read (No such file"), (b"\xff\xfe", "is no text in UTF-8")]
)
def test_file_that_can_not_be_read(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "list"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError) as error:
        rules("--deny-domain-file", str(path))
    assert str(error.value).startswith("--deny-domain-file ")
    assert said in str(error.value)


def test_the_same_name_in_option_and_file_with_ports(tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_text("a.example\nb.example\nb.example:22\n")
    table = rules("--allow-domain-file", str(path), "--allow-domain", "a.example:80").allow_below
    assert table.exact("a.example", 80) == ("allow-domain", "a.example:80")
    assert table.exact("a.example", 81) == ("allow-domain-file", "a.example")
    assert table.exact("b.example", 22) == ("allow-domain-file", "b.example:22")
    assert table.exact("b.example", 0) == ("allow-domain-file", "b.example")


def test_no_option_is_no_rules() -> None:
    assert rules() is NO_RULES
    assert rules("--default-policy", "allow") is NO_RULES
    assert rules("--summary", "--dns", "192.0.2.1") is NO_RULES


def test_what_the_rules_say_of_themselves() -> None:
    assert rules("--proxy", "SOCKS5://192.0.2.1").proxy_takes_udp
    assert not rules("--proxy", "http://192.0.2.1").proxy_takes_udp
    assert rules("--deny-domain", "a.example").has_domain_rules
    assert rules("--allow-domain-exact", "a.example").has_domain_rules
    assert not rules("--allow-cidr", "10.0.0.0/8").has_domain_rules
    for options in (["--block-private"], ["--block-metadata"], ["--deny-cidr", "::/0"], ["--allow-cidr", "::/0"]):
        assert rules(*options).has_ip_rules
    assert not rules("--default-policy", "deny", "--allow-domain", "a.example").has_ip_rules
    assert rules("--keep-ech").keep_ech
