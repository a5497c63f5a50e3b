"""The command line: argv becomes one frozen `Settings`, or a UsageError that says what to write instead.

A table and a loop of our own: argparse takes 10 ms to import, in each run, and has no word for "everything after the
first word that is no option is the command". An option that is not built yet is unknown here, never ignored.

Not here: what the options do.
"""

from __future__ import annotations

import os
import sys
from typing import Any, NamedTuple

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


OPTIONS = (
    Option(("--backend",), "backend", "NAME", "how the command is contained: rootless-internal (default)"),
    Option(("-d", "--dns"), "dns", "IP[:PORT]", "send all DNS of the command to this resolver"),
    Option(("--flow-log",), "flow_log", "FILE", "write a JSON line for each event; - is stdout, fd:N a descriptor"),
    Option(("--summary",), "summary", "", "say on stderr, after the run, what was reached"),
    Option(("--summary-format",), "summary_format", "FORMAT", "text (default) or json"),
    Option(("--mtu",), "mtu", "BYTES", "MTU of the command's link (default: the host's)"),
    Option(("--map-root",), "map_root", "", "let the command see itself as uid 0"),
    Option(("--keep-fd",), "keep_fds", "N", "leave descriptor N open for the command (may be repeated)"),
    Option(("--allow-socket-stdio",), "allow_socket_stdio", "", "accept a network socket as stdin, stdout or stderr"),
    Option(("--strict",), "strict", "", "refuse to run where a part of the isolation is not to be had"),
    Option(("-v", "--verbose"), "verbose", "", "say more; also CHILDFLOW_DEBUG=1"),
    Option(("-q", "--quiet"), "quiet", "", "no warnings"),
    Option(("--root",), "root", "", "short for --backend rootful (not built yet)"),
    Option(("-h", "--help"), "help", "", "show this help"),
    Option(("-V", "--version"), "version", "", "show the version"),
)
_USAGE = "usage: childflow [OPTIONS] -- COMMAND [ARG...]"
_BY_NAME = {name: option for option in OPTIONS for name in option.names}


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
        say(f"internal error ({type(error).__name__}: {error}); please report it with what CHILDFLOW_DEBUG=1 shows")
        if _debug():
            raise
        return EXIT_FAILED


def _interrupted() -> int:
    """Ctrl-C before `run` holds signals back."""
    import signal

    from childflow.sandbox.signals import die_as

    die_as(signal.SIGINT)
    return EXIT_SIGNAL_BASE + signal.SIGINT


def _debug() -> bool:
    return os.environ.get("CHILDFLOW_DEBUG", "") not in ("", "0")


def split(arguments: list[str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What the options say, by setting (an option with an argument has a list of texts), and the command's argv."""
    found: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--":
            break
        if word == "-" or not word.startswith("-"):
            rest.insert(0, word)
            break
        for option, text in _options_of(word, rest):
            found.setdefault(option.setting, []).append(text)
    return found, tuple(rest)


def _options_of(word: str, rest: list[str]) -> list[tuple[Option, str]]:
    """The options in one word: `--long`, `--long=value`, `-abc`, `-dVALUE`; a value may be taken from `rest`."""
    if word.startswith("--"):
        name, equals, value = word.partition("=")
        option = _known(name)
        if option.argument:
            return [(option, value if equals else _next_word(name, option, rest))]
        if equals:
            raise UsageError(f"{name} takes no value; write {name} alone")
        return [(option, "")]
    options: list[tuple[Option, str]] = []
    for position, letter in enumerate(word[1:], 2):
        option = _known(f"-{letter}")
        if option.argument:
            return [*options, (option, word[position:] or _next_word(f"-{letter}", option, rest))]
        options.append((option, ""))
    return options


def _known(name: str) -> Option:
    if name in _BY_NAME:
        return _BY_NAME[name]
    import difflib

    near = difflib.get_close_matches(name, _BY_NAME, 1)
    hint = f"did you mean {near[0]}?" if near else "see childflow --help"
    raise UsageError(f"unknown option {name}; {hint}")


def _next_word(name: str, option: Option, rest: list[str]) -> str:
    if not rest or rest[0] == "--":
        raise UsageError(f"{name} needs a value; write {name} {option.argument}")
    return rest.pop(0)


def settings_from(found: dict[str, Any], command: tuple[str, ...]) -> Settings:
    """Check what was found and freeze it."""
    texts = {setting: values[-1] for setting, values in found.items()}
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
        summary="summary" in found or "summary_format" in found,
        summary_format=_choice("--summary-format", texts.get("summary_format", "text"), ("text", "json")),
    )


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
    lines = [_USAGE, "", "Run COMMAND in a network of its own, without root.", ""]
    for option in OPTIONS:
        left = ", ".join(option.names) + (f" {option.argument}" if option.argument else "")
        lines.append(f"  {left:<28}{option.text}")
    lines += ["", "Exit status: the command's; 125 if childflow failed before it ran, 126 or 127 if it can't be run."]
    return "\n".join(lines)
