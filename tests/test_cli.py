"""The command line: what each word means, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from childflow import __version__
from childflow.cli import help_text, main, settings_from, split
from childflow.errors import UsageError
from childflow.limit_table import TABLE
from childflow.limits import Limits
from childflow.settings import Settings


def parsed(*words: str) -> Settings:
    return settings_from(*split(list(words)))


def test_everything_after_the_first_non_option_is_the_command() -> None:
    assert parsed("npm", "ci", "--verbose", "--", "-q").command == ("npm", "ci", "--verbose", "--", "-q")
    assert parsed("-v", "--", "-odd", "--name").command == ("-odd", "--name")
    assert parsed("--", "--", "x").command == ("--", "x")
    assert parsed("-").command == ("-",)


def test_defaults() -> None:
    assert parsed("true") == Settings(command=("true",), verbose=parsed("true").verbose)


@pytest.mark.parametrize(
    ("words", "setting", "value"),
    [
        (["--mtu", "1400"], "mtu", 1400),
        (["--mtu=68"], "mtu", 68),
        (["-d", "192.0.2.1"], "dns", "192.0.2.1"),
        (["-d192.0.2.1:5353"], "dns", "192.0.2.1:5353"),
        (["--dns=[2001:db8::1]:53"], "dns", "[2001:db8::1]:53"),
        (["--dns", "2001:db8::1"], "dns", "2001:db8::1"),
        (["--dns", "fe80::1%eth0"], "dns", "fe80::1%eth0"),
        (["--flow-log", "-"], "flow_log", "-"),
        (["--flow-log", "fd:2"], "flow_log", "fd:2"),
        (["--summary"], "summary", True),
        (["--summary-format", "json"], "summary_format", "json"),
        (["--map-root"], "map_root", True),
        (["--strict"], "strict", True),
        (["-vq"], "quiet", True),
        (["-vq"], "verbose", True),
        (["--backend", "rootless-internal"], "backend", "rootless-internal"),
        (["--allow-socket-stdio"], "allow_socket_stdio", True),
        (["--limit", "max_flows=1000"], "limits", (("max_flows", 1000),)),
        (
            ["--limit", "max-flows = 7", "--limit=dns_queries=9", "--limit", "max_flows=8"],
            "limits",
            (("max_flows", 8), ("dns_queries", 9)),
        ),
    ],
)
def test_options(words: list[str], setting: str, value: object) -> None:
    assert getattr(parsed(*words, "true"), setting) == value


POLICY_FLAGS = ["offline", "block_private", "block_metadata", "fail_on_leak", "keep_ech"]
POLICY_LISTS = ["allow_cidrs", "deny_cidrs", "allow_domains", "deny_domains", "allow_domains_exact",
                "deny_domains_exact", "allow_domain_files", "deny_domain_files"]  # fmt: skip


@pytest.mark.parametrize("setting", POLICY_FLAGS)
def test_policy_flags(setting: str) -> None:
    name = setting.replace("_", "-")
    settings = parsed(f"--{name}", "true")
    assert getattr(settings, setting) is True
    assert settings.controls() == [name]


@pytest.mark.parametrize("setting", POLICY_LISTS)
def test_policy_lists_accumulate(setting: str) -> None:
    name = setting.replace("s_exact", "_exact").removesuffix("s").replace("_", "-")
    settings = parsed(f"--{name}", "one", f"--{name}=two", "true")
    assert getattr(settings, setting) == ("one", "two")
    assert settings.controls() == [f"{name}=one", f"{name}=two"]


def test_default_policy() -> None:
    assert parsed("--default-policy", "allow", "true").controls() == []
    assert parsed("--default-policy", "deny", "true").controls() == ["default-policy=deny"]


PROXY = ("-p", "socks5://192.0.2.1:1080")


def test_proxy_and_its_user(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = parsed(*PROXY, "-U", "bob", "-P", "secret", "true")
    assert (settings.proxy, settings.proxy_user, settings.proxy_password) == (PROXY[1], "bob", "secret")
    assert settings.controls() == ["proxy=socks5://192.0.2.1:1080"]
    monkeypatch.setenv("CHILDFLOW_PROXY_PASSWORD", "quiet")
    assert parsed(*PROXY, "-U", "bob", "true").proxy_password == "quiet"
    assert parsed(*PROXY, "-U", "bob", "-P", "secret", "true").proxy_password == "secret"
    assert parsed(*PROXY, "true").proxy_password is None
    assert parsed("true").proxy_password is None


def test_proxy_flags() -> None:
    settings = parsed("--proxy=https://proxy.example:3129", "--proxy-insecure", "--proxy-only", "true")
    assert settings.proxy_insecure
    assert settings.proxy_only
    assert settings.controls() == ["proxy-only", "proxy=https://proxy.example:3129", "proxy-insecure"]


@pytest.mark.parametrize(
    ("words", "virtual"),
    [
        ([], False),
        ([*PROXY], True),
        ([*PROXY, "--proxy-only"], True),
        ([*PROXY, "--dns-mode", "forward"], False),
        (["--dns-mode", "virtual"], True),
    ],
)
def test_names_are_virtual_with_a_proxy_or_by_choice(words: list[str], virtual: bool) -> None:
    assert parsed(*words, "true").virtual_names is virtual


def test_debug_variable_is_verbose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHILDFLOW_DEBUG", "1")
    assert parsed("true").verbose
    monkeypatch.setenv("CHILDFLOW_DEBUG", "0")
    assert not parsed("true").verbose


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "no command"),
        (["--"], "no command"),
        (["-v"], "no command"),
        ([""], "name is empty"),
        (["--mtu", "67", "true"], "from 68 to 65521"),
        (["--mtu", "65522", "true"], "from 68 to 65521"),
        (["--mtu", "1e3", "true"], "--mtu can't be '1e3'"),
        (["--mtu", "²", "true"], "--mtu"),
        (["--mtu"], "--mtu needs a value"),
        (["--mtu", "--", "true"], "--mtu needs a value"),
        (["--dns", "example.com", "true"], "--dns can't be"),
        (["--dns", "192.0.2.1:0", "true"], "--dns can't be"),
        (["--dns", "192.0.2.1:99999", "true"], "--dns can't be"),
        (["--dns", "[2001:db8::1", "true"], "--dns can't be"),
        (["--dns", "[2001:db8::1]x", "true"], "--dns can't be"),
        (["--summary-format", "xml", "true"], "choose text or json"),
        (["--summary=yes", "true"], "takes no value"),
        (["--keep-fd", "2", "true"], "from 3 to"),
        (["--keep-fd", "977", "true"], "is not open"),
        (["--flow-log", "", "true"], "needs a file's name"),
        (["--flow-log", "fd:x", "true"], "fd:N"),
        (["--backend", "rootful", "true"], "--backend rootful: the rootful backend is not built yet"),
        (["--root", "true"], "--root: the rootful backend is not built yet"),
        (["--backend", "magic", "true"], "choose rootless-internal"),
        (["--default-policy", "drop", "true"], "choose allow or deny"),
        (["--dns-mode", "magic", "true"], "choose forward or virtual"),
        (["--proxy-only", "true"], "--proxy-only needs a proxy; add --proxy URI"),
        (["-U", "bob", "true"], "--proxy-user needs a proxy"),
        (["-P", "secret", "true"], "--proxy-password needs a proxy"),
        (["--proxy-insecure", "true"], "--proxy-insecure needs a proxy"),
        ([*PROXY, "-U", "bob", "true"], "--proxy-user needs a password; set CHILDFLOW_PROXY_PASSWORD"),
        ([*PROXY, "-P", "secret", "true"], "--proxy-password needs a user"),
        ([*PROXY, "--proxy-insecure", "true"], "is for https:// proxies, and this one is socks5://"),
        ([*PROXY, "--proxy-only", "--dns-mode", "forward", "true"], "sends names past the proxy"),
        (["-p", "ftp://192.0.2.1", "true"], "--proxy ftp://192.0.2.1: the scheme must be http, https"),
        (["-p", "192.0.2.1:3128", "true"], "the scheme must be"),
        (["-p", "http://", "true"], "the host must be a name"),
        (["-p", "http://192.0.2.1:99999", "true"], "the port must be a number"),
        (["-p", "http://2001:db8::1:80", "true"], "put an IPv6 address in brackets"),
        ([*PROXY, "-U", "b" * 256, "-P", "secret", "true"], "SOCKS5 takes 1 to 255"),
        (["--allow-cidr"], "--allow-cidr needs a value"),
        (["--offline=yes", "true"], "takes no value"),
        (["--sumary", "true"], "did you mean --summary?"),
        (["-x", "true"], "unknown option -x"),
    ],
)
def test_refused(words: list[str], part: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    shown = capfd.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("childflow: ")
    assert shown.err.count("\n") == 1
    assert part in shown.err


@pytest.mark.parametrize("name", ["--capture", "-c", "--iface", "--hosts-file", "--profile", "--doctor"])
def test_options_that_are_not_built_are_unknown(name: str) -> None:
    with pytest.raises(UsageError, match="unknown option"):
        parsed(name, "true")


@pytest.mark.parametrize(
    "words",
    [["-p", "http://bob:secret@192.0.2.1:3128"], ["-P", "secret"], [*PROXY, "-P", "secret"]],
)
@pytest.mark.case("D22")
def test_a_refusal_does_not_tell_the_password(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "true"]) == 2
    assert "secret" not in capfd.readouterr().err


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == help_text() + "\n"
    assert main(["-V"]) == 0
    assert capsys.readouterr().out == f"childflow {__version__}\n"
    assert all(len(line) <= 100 for line in help_text().splitlines())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_flow=1", "--limit 'max_flow' is unknown; did you mean max_flows?"),
        ("pings=1", "did you mean ping_sessions?"),
        ("?", "choose of max_flows, max_half_open, "),
        ("max_flows", "--limit max_flows needs a number; write --limit max_flows=65536"),
        ("max_flows=", "--limit max_flows can't be ''; give flows, from 2 to 16777216"),
        ("max_flows=1", "from 2 to"),
        ("max_flows=-5", "can't be '-5'"),
        ("max_flows=9999999999999999999999", "from 2 to"),
        ("flow_window=100000", "give bytes, a power of two, from 65536"),
    ],
)
def test_limits_that_can_not_be(text: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        parsed("--limit", text, "true")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_every_limit_is_documented() -> None:
    """The table in docs/behaviour.md is the one in the code."""
    text = (Path(__file__).parent.parent / "docs/behaviour.md").read_text()
    for name, bound in TABLE.items():
        default = getattr(Limits(), name)
        assert f"| `{name}` | {default:,} | {bound.unit} | {bound.reason} | {bound.too_many} |" in text
