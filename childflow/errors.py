"""Errors, one tree that says whose fault it is.

ChildflowError  something the user or the host can change; its message is the one line that is printed.
  UsageError    the command line or a profile is wrong (exit status 2).
  StartError    the run could not be set up (exit status 125); carries what CONTRACT.md's `runtime_failure` needs.
  StackError    the C stack refused a call: the flow is gone, or a limit was met.
  DialError     the proxy could not or would not carry a connection.

Anything else that is raised is a bug of childflow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from childflow.netstack.events import Denial

EXIT_USAGE = 2
EXIT_LEAK = 1
EXIT_FAILED = 125
EXIT_SIGNAL_BASE = 128


class ChildflowError(Exception):
    """A fault outside childflow; `str()` of it is one line: what is wrong and what to do."""

    exit_status = EXIT_FAILED


class UsageError(ChildflowError):
    """The command line or profile asks for something that can't be."""

    exit_status = EXIT_USAGE


class StartError(ChildflowError):
    """The run ended before its command started.

    `phase` and `reason_code` are the words of the flow log's `runtime_failure` event; `hint` is the remedy, or None.
    """

    def __init__(self, phase: str, reason_code: str, detail: str, hint: str | None = None) -> None:
        super().__init__(f"{detail}; {hint}" if hint else detail)
        self.phase = phase
        self.reason_code = reason_code
        self.detail = detail
        self.hint = hint


class StackError(ChildflowError):
    """A call into the C stack did not succeed; `code` is its `cf_result`."""

    def __init__(self, code: int, what: str) -> None:
        super().__init__(f"{what}: error {code} of the network stack")
        self.code = code


class DialError(ChildflowError):
    """No connection through the proxy. `denial` is what the command sees.

    `proxy_fault`: it is not about the destination: every other one would fail, too. `code` is SOCKS5's, if it gave one.
    """

    def __init__(self, denial: Denial, what: str, proxy_fault: bool = False, code: int = 0) -> None:
        super().__init__(what)
        self.denial = denial
        self.proxy_fault = proxy_fault
        self.code = code
