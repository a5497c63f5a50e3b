"""The command line: argv becomes one frozen `Settings`, or a UsageError that says what to write instead.

The first word that is no option begins the command, and everything after it is the command's. An option that is not
built yet is unknown here, never ignored.

Invariants: argparse is the only import that costs (7 ms of start-up), since everything here runs before the fork.
Not here:   what the options do.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any, NamedTuple, NoReturn

from childflow import __version__
from childflow.errors import EXIT_FAILED, EXIT_SIGNAL_BASE, ChildflowError, UsageError
from childflow.messages import say
from childflow.settings import Settings

MTU_MIN, MTU_MAX = 68, 65521  # RFC 791; what a TAP with a virtio header takes


class Option(NamedTuple):
    """One option: its names, the setting it fills, its argument's name ("" for a flag), and its line of help."""

    names: tuple[str, ...]
    setting: str
    argument: str
    text: str


GROUPS = {
    "network": (
        Option(("-d", "--dns"), "dns", "IP[:PORT]", "send all DNS of the command to this resolver"),
        Option(("--mtu",), "mtu", "BYTES", "MTU of the command's link (default: the host's)"),
        Option(("--limit",), "limits", "NAME=N", "change a limit, as max_flows=1000 (may be repeated)"),
    ),
    "policy": (
        Option(("--offline",), "offline", "", "nothing leaves at all"),
        Option(
            ("--block-private",), "block_private", "", "deny private, CGNAT, link-local and the host's own addresses"
        ),
        Option(("--block-metadata",), "block_metadata", "", "deny the metadata services of clouds"),
        Option(("--default-policy",), "default_policy", "POLICY", "what no rule matches: allow (default) or deny"),
        Option(
            ("--allow-cidr",),
            "allow_cidrs",
            "RULE",
            "allow a network, as 10.0.0.0/8, tcp:[2001:db8::/32]:22 (repeatable)",
        ),
        Option(("--deny-cidr",), "deny_cidrs", "RULE", "deny a network"),
        Option(("--allow-domain",), "allow_domains", "NAME[:PORT]", "allow a name and all names below it"),
        Option(("--deny-domain",), "deny_domains", "NAME[:PORT]", "deny a name and all names below it"),
        Option(("--allow-domain-exact",), "allow_domains_exact", "NAME[:PORT]", "allow this name only"),
        Option(("--deny-domain-exact",), "deny_domains_exact", "NAME[:PORT]", "deny this name only"),
        Option(("--allow-domain-file",), "allow_domain_files", "FILE", "as --allow-domain, one name a line"),
        Option(("--deny-domain-file",), "deny_domain_files", "FILE", "as --deny-domain, one name a line"),
        Option(("--fail-on-leak",), "fail_on_leak", "", "exit 1 if something was denied and the command exits 0"),
    ),
    "names and proxies": (
        Option(
            ("-p", "--proxy"), "proxy", "URI", "connect through http://, https://, socks5:// or socks5h://HOST:PORT"
        ),
        Option(("-U", "--proxy-user"), "proxy_user", "USER", "the proxy's user"),
        Option(
            ("-P", "--proxy-password"),
            "proxy_password",
            "PASSWORD",
            "the proxy's password; others see it in `ps`, but not if it is in CHILDFLOW_PROXY_PASSWORD",
        ),
        Option(("--proxy-insecure",), "proxy_insecure", "", "trust any certificate with the https proxy's name"),
        Option(("--proxy-only",), "proxy_only", "", "nothing leaves except through the proxy, DNS included"),
        Option(("--dns-mode",), "dns_mode", "MODE", "forward, or virtual: an address for each name (with a proxy)"),
        Option(("--keep-ech",), "keep_ech", "", "leave keys for encrypted names (ECH) in DNS answers"),
    ),
    "what happened": (
        Option(("--summary",), "summary", "", "say on stderr, after the run, what was reached"),
        Option(("--summary-format",), "summary_format", "FORMAT", "text (default) or json; implies --summary"),
        Option(("--flow-log",), "flow_log", "FILE", "write a JSON line for each event; - is stdout, fd:N a descriptor"),
    ),
    "isolation": (
        Option(("--backend",), "backend", "NAME", "how the command is contained: rootless-internal (default)"),
        Option(("--root",), "root", "", "short for --backend rootful (not in this version)"),
        Option(("--map-root",), "map_root", "", "let the command see itself as uid 0"),
        Option(("--strict",), "strict", "", "refuse to run where a part of the isolation is not to be had"),
        Option(("--keep-fd",), "keep_fds", "N", "leave descriptor N open for the command (may be repeated)"),
        Option(("--allow-socket-stdio",), "allow_socket_stdio", "", "accept network sockets as stdin, stdout, stderr"),
    ),
    "general": (
        Option(("-v", "--verbose"), "verbose", "", "say more, and count what was dropped; also CHILDFLOW_DEBUG=1"),
        Option(("-q", "--quiet"), "quiet", "", "no warnings"),
        Option(("-h", "--help"), "help", "", "show this help"),
        Option(("-V", "--version"), "version", "", "show the version"),
    ),
}
_NAMES = [name for options in GROUPS.values() for option in options for name in option.names]


def main(argv: list[str] | None = None) -> int:
    """Run childflow with `argv` (without the program's name); returns the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        found, command = split(arguments)
        if "help" in found or "version" in found:
            print(help_text() if "help" in found else f"childflow {__version__}")
            return 0
        settings = settings_from(found, command)
        _fill_stdio()
        from childflow.run import run

        return run(settings)
    except ChildflowError as error:
        say(str(error))
        return error.exit_status
    except KeyboardInterrupt:
        return _interrupted()
    except Exception as error:
        bug = f"internal error ({type(error).__name__}: {error}); please report it with what CHILDFLOW_DEBUG=1 shows"
        say(_shortage(error) or bug)
        if _debug():
            raise
        return EXIT_FAILED


_NO_MEMORY = "not enough memory; end some programs, or raise the limit (`ulimit -v`)"


def _shortage(error: Exception) -> str | None:
    """What the user can change about an error that is neither the command line's nor a bug."""
    import errno

    if isinstance(error, ModuleNotFoundError) and str(error.name).startswith("childflow."):
        return f"this checkout is not built ({error.name} is missing); run `make run`, or install it with pip"
    if isinstance(error, MemoryError):
        return _NO_MEMORY
    if not isinstance(error, OSError):
        return None
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "too many open files; raise the limit (`ulimit -n 1024`), or close what is open"
    if error.errno == errno.EAGAIN:
        return "no process can be started; raise the limit (`ulimit -u`), or end some"
    if error.errno == errno.ENOMEM:
        return _NO_MEMORY
    if error.errno == errno.ENOSPC and error.filename is None:
        return "no more descriptors can be watched; raise the limit (`sysctl fs.epoll.max_user_watches`)"
    return None


def _interrupted() -> int:
    """Ctrl-C before `run` holds signals back."""
    import signal

    from childflow.sandbox.signals import die_as

    die_as(signal.SIGINT)
    return EXIT_SIGNAL_BASE + signal.SIGINT


def _debug() -> bool:
    return os.environ.get("CHILDFLOW_DEBUG", "") not in ("", "0")


class _Parser(argparse.ArgumentParser):
    """argparse, but for what a wrong word costs: one line of ours instead of the usage and an exit."""

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ").replace(": expected one argument", " needs a value")
        message = message.replace(": ignored explicit argument", " takes no value; leave out")
        raise UsageError(message if ";" in message else f"{message}; see childflow --help")


def parser() -> argparse.ArgumentParser:
    """The options in their groups, and the command as all that is left."""
    made = _Parser(
        prog="childflow",
        usage="childflow [OPTIONS] -- COMMAND [ARG...]",
        description="Run COMMAND in a network of its own, without root.",
        epilog="Exit status: the command's; 125 if childflow failed before it ran, 126 or 127 if it can't be run.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=30, width=100),
        add_help=False,
        allow_abbrev=False,
    )
    for title, options in GROUPS.items():
        group = made.add_argument_group(title)
        for option in options:
            _add(group, option)
    made.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return made


def _add(group: Any, option: Option) -> None:
    if option.argument:
        group.add_argument(
            *option.names, dest=option.setting, metavar=option.argument, action="append", help=option.text
        )
    else:
        group.add_argument(*option.names, dest=option.setting, action="store_true", help=option.text)


def split(arguments: list[str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What the options say, by setting (an option with an argument has a list of texts), and the command's argv."""
    namespace, strangers = parser().parse_known_args(arguments)
    if strangers:
        raise UsageError(_unknown(strangers[0].partition("=")[0]))
    found = {setting: value for setting, value in vars(namespace).items() if value}
    command = found.pop("command", [])
    return found, tuple(command[1:] if command[:1] == ["--"] else command)


def _unknown(name: str) -> str:
    import difflib

    near = difflib.get_close_matches(name, _NAMES, 1)
    return f"unknown option {name}; {f'did you mean {near[0]}?' if near else 'see childflow --help'}"


def settings_from(found: dict[str, Any], command: tuple[str, ...]) -> Settings:
    """Check what was found and freeze it."""
    texts = {setting: values[-1] for setting, values in found.items() if isinstance(values, list)}
    _check_backend(texts, "root" in found)
    if not command:
        raise UsageError("no command; write childflow -- COMMAND [ARG...]")
    if not command[0]:
        raise UsageError("the command's name is empty; write childflow -- COMMAND [ARG...]")
    return Settings(
        command=command,
        mtu=_mtu(texts["mtu"]) if "mtu" in texts else None,
        map_root="map_root" in found,
        keep_fds=tuple(sorted({_kept_descriptor(text) for text in found.get("keep_fds", [])})),
        allow_socket_stdio="allow_socket_stdio" in found,
        strict="strict" in found,
        verbose="verbose" in found or _debug(),
        quiet="quiet" in found,
        dns=_dns(texts["dns"]) if "dns" in texts else None,
        flow_log=_flow_log(texts["flow_log"]) if "flow_log" in texts else None,
        limits=_limits(found["limits"]) if "limits" in found else (),
        summary="summary" in found or "summary_format" in found,
        summary_format=_choice("--summary-format", texts.get("summary_format", "text"), ("text", "json")),
        default_policy=_choice("--default-policy", texts.get("default_policy", "allow"), ("allow", "deny")),
        dns_mode=_dns_mode(texts, found),
        **_policy(found),
        **_proxy(texts, found),
    )


_POLICY_FLAGS = ("offline", "block_private", "block_metadata", "fail_on_leak", "proxy_only", "keep_ech")
_POLICY_LISTS = (
    "allow_cidrs", "deny_cidrs", "allow_domains", "allow_domains_exact", "deny_domains", "deny_domains_exact",
    "allow_domain_files", "deny_domain_files",
)  # fmt: skip


def _policy(found: dict[str, Any]) -> dict[str, Any]:
    flags = {name: name in found for name in _POLICY_FLAGS}
    return flags | {name: tuple(found.get(name, ())) for name in _POLICY_LISTS}


_PROXY_OPTIONS = {
    "proxy_only": "--proxy-only",
    "proxy_user": "--proxy-user",
    "proxy_password": "--proxy-password",
    "proxy_insecure": "--proxy-insecure",
}


def _proxy(texts: dict[str, str], found: dict[str, Any]) -> dict[str, Any]:
    """The settings about the proxy. A password in the environment counts only beside a user."""
    if "proxy" not in texts:
        for setting, option in _PROXY_OPTIONS.items():
            if setting in found:
                raise UsageError(f"{option} needs a proxy; add --proxy URI")
        return {}
    user, password = texts.get("proxy_user"), texts.get("proxy_password")
    if user is None and password is not None:
        raise UsageError("--proxy-password needs a user; add --proxy-user USER")
    if user is not None and password is None:
        password = os.environ.get("CHILDFLOW_PROXY_PASSWORD") or None
        if password is None:
            raise UsageError("--proxy-user needs a password; set CHILDFLOW_PROXY_PASSWORD, or add --proxy-password")
    insecure = "proxy_insecure" in found
    from childflow.services.proxy import parse_proxy

    parse_proxy(texts["proxy"], user, password, insecure)  # refuses what can't be
    return {"proxy": texts["proxy"], "proxy_user": user, "proxy_password": password, "proxy_insecure": insecure}


def _dns_mode(texts: dict[str, str], found: dict[str, Any]) -> str | None:
    if "dns_mode" not in texts:
        return None
    mode = _choice("--dns-mode", texts["dns_mode"], ("forward", "virtual"))
    if mode == "forward" and "proxy_only" in found:
        raise UsageError("--dns-mode forward sends names past the proxy; leave it out, or --proxy-only")
    return mode


def _check_backend(texts: dict[str, str], root: bool) -> None:
    backend = "rootful" if root else texts.get("backend", "rootless-internal")
    if backend == "rootful":
        said = "--root" if root else "--backend rootful"
        raise UsageError(f"{said}: the rootful backend is not built yet; leave it out to use rootless-internal")
    _choice("--backend", backend, ("rootless-internal",))


def _choice(name: str, text: str, choices: tuple[str, ...]) -> str:
    if text not in choices:
        raise UsageError(f"{name} can't be {text!r}; choose {' or '.join(choices)}")
    return text


def _number(name: str, text: str, low: int, high: int) -> int:
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1
    if not low <= number <= high:
        raise UsageError(f"{name} can't be {text!r}; give a number from {low} to {high}")
    return number


def _mtu(text: str) -> int:
    return _number("--mtu", text, MTU_MIN, MTU_MAX)


def _kept_descriptor(text: str) -> int:
    """A descriptor that the caller left open for us; our own are all close-on-exec."""
    fd = _number("--keep-fd", text, 3, 1 << 20)
    try:
        inherited = os.get_inheritable(fd)
    except OSError:
        inherited = False
    if not inherited:
        raise UsageError(f"--keep-fd {fd}: descriptor {fd} is not open; open it first, as in `{fd}<FILE`")
    return fd


def _dns(text: str) -> str:
    """A resolver: an IPv4 or IPv6 address, with a port as `IP:PORT` or `[IP]:PORT`. The text itself is kept."""
    address, port = text, "53"
    if text.startswith("["):
        address, closed, tail = text[1:].partition("]")
        port = tail[1:] if tail.startswith(":") else "53" if closed and not tail else ""
    elif text.count(":") == 1:
        address, _, port = text.partition(":")
    if not _is_address(address) or not port.isdigit() or not 1 <= int(port[:6]) <= 65535:
        raise UsageError(f"--dns can't be {text!r}; give IP, IP:PORT or [IPv6]:PORT")
    return text


def _is_address(text: str) -> bool:
    import socket

    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, text.partition("%")[0])
        except OSError:
            continue
        return True
    return False


def _limits(texts: list[str]) -> tuple[tuple[str, int], ...]:
    from childflow import limit_table

    return limit_table.parse(texts)


def _flow_log(text: str) -> str:
    if not text:
        raise UsageError("--flow-log needs a file's name; write --flow-log FILE")
    if text.startswith("fd:"):
        _number("--flow-log fd:N", text[3:], 0, 1 << 20)
    return text


def _fill_stdio() -> None:
    """Where the caller closed 0, 1 or 2, let nothing of ours come to lie. The command finds them closed again."""
    while (fd := os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)) <= 2:
        pass
    os.close(fd)


def help_text() -> str:
    """The text of --help."""
    return parser().format_help().rstrip("\n")
