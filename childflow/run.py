"""The life of one run, top to bottom. The first file to read.

    1. hold the signals back          sandbox/signals.py
    2. fork C early                   sandbox/spawn.py     (C makes the namespaces while we import)
    3. open the recorder              record/flowlog.py    (an output that can't be written is refused here)
    4. take what C made               sandbox/spawn.py     (TAP, init)
    5. start the engine               engine.py
    6. release the command, and serve: signals to it, stops and continuations from it
    7. its end: engine, recorder, leftovers, summary, status

Invariants: the command runs only after 1-5 went well; any failure before that is a ChildflowError, and leaves nothing.
            When this process dies in any way the command dies with it, and had only the TAP for a network.
Not here:   how the sandbox is made (`sandbox/`), what the engine does (`engine.py`), the options (`cli.py`).
"""

from __future__ import annotations

import os
import sys
from signal import SIGHUP
from typing import TYPE_CHECKING, Any

from childflow.errors import EXIT_FAILED, EXIT_LEAK, EXIT_SIGNAL_BASE, ChildflowError, StartError
from childflow.messages import say, write
from childflow.sandbox import link, spawn
from childflow.sandbox.signals import STOPPING, Signals, die_as, stop_as
from childflow.sandbox.spawn import Report, Sandbox
from childflow.settings import Settings

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from childflow.engine import Engine
    from childflow.record.null import NullRecorder


def run(settings: Settings) -> int:
    """Run the command of `settings`; returns the exit status. If a signal ended it, so it ends this process.

    Raises ChildflowError when the command could not be started.
    """
    signals = Signals.block()
    refuse_network_descriptors(settings)
    plan = link.plan_from_host(settings.mtu)
    try:
        pending = spawn.begin(settings, plan, signals.caller_mask)
        end = _with_sandbox(settings, plan, signals, pending)
    except StartError as error:
        from childflow import preflight

        raise preflight.explain(error) from error
    if end.kind == "killed":
        die_as(end.value)
        return EXIT_SIGNAL_BASE + end.value
    return end.value


def _with_sandbox(settings: Settings, plan: link.LinkPlan, signals: Signals, pending: spawn.Pending) -> Report:
    recorder = None
    try:
        # Heavy, and therefore here: the kernel makes C's namespaces meanwhile.
        loop, engine_class, make_recorder = _import_engine()
        recorder = make_recorder(settings)
        sandbox = pending.finish()
    except BaseException as error:
        pending.abandon()
        if recorder and isinstance(error, StartError):
            recorder.failure(error.phase, error.reason_code, error.detail)
            recorder.close()
        raise
    try:
        _tell_warnings(settings, sandbox)
        engine = engine_class(sandbox.tap_fd, sandbox.offload, plan, settings, loop, recorder)
        return _Life(settings, signals, sandbox, engine, recorder, loop).run()
    finally:
        sandbox.close()


def _import_engine() -> tuple[asyncio.AbstractEventLoop, type[Engine], Callable[[Settings], NullRecorder]]:
    try:
        import uvloop

        from childflow.engine import Engine
        from childflow.record.flowlog import make_recorder
    except ImportError as error:
        detail = f"the engine can't be loaded: {error}"
        if "failed to map" in str(error):  # the dynamic linker's words
            hint = "there is not enough memory; end some programs, or raise the limit (`ulimit -v`)"
        else:
            hint = "install childflow again (pip install --force-reinstall childflow)"
        raise StartError("child_bootstrap", "unknown_runtime_failure", detail, hint) from error
    return uvloop.new_event_loop(), Engine, make_recorder


def _tell_warnings(settings: Settings, sandbox: Sandbox) -> None:
    if not settings.quiet:
        for text in sandbox.warnings:
            say(text)
    if settings.verbose:
        for text in sandbox.notes:
            say(text)


BUGS_TOLD = 20  # of different kinds


class _Life:
    """From the engine's start to its stop: the loop, and the two descriptors that it watches beside the engine's."""

    def __init__(
        self,
        settings: Settings,
        signals: Signals,
        sandbox: Sandbox,
        engine: Engine,
        recorder: NullRecorder,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._settings = settings
        self._signals = signals
        self._sandbox = sandbox
        self._engine = engine
        self._recorder = recorder
        self._loop = loop
        self._inherited = inherited_descriptors()
        self._end: Report | None = None
        self._failure: ChildflowError | None = None
        self._bugs: set[str] = set()

    def run(self) -> Report:
        """Start the engine and the command, serve until the command ends, and tidy up."""
        if (number := self._signals.before_the_command()) is not None:
            return Report("killed", number)
        self._loop.set_exception_handler(self._on_bug)
        self._engine.start()
        try:
            self._loop.add_reader(self._signals.fd, self._on_signals)
            self._loop.add_reader(self._sandbox.fileno(), self._on_reports)
            self._release()
            self._loop.run_forever()
        finally:
            try:
                self._engine.stop()
            finally:
                self._recorder.close()
        if self._failure:
            raise self._failure
        assert self._end is not None, "the loop ended before the command did"
        end = self._leak_end(self._end)
        self._tell_the_end(end)
        return end

    def _leak_end(self, end: Report) -> Report:
        """Under --fail-on-leak a run is no success if anything was blocked, though the command called it one."""
        leaks = self._recorder.violations
        if not self._settings.fail_on_leak or not leaks or end != Report("exited", 0):
            return end
        say(f"{leaks} {'attempt was' if leaks == 1 else 'attempts were'} blocked (--fail-on-leak); exit status 1")
        return Report("exited", EXIT_LEAK)

    def _release(self) -> None:
        if (number := self._signals.before_the_command()) is not None:
            self._finish(Report("killed", number))
            self._loop.call_soon(self._loop.stop)
            return
        self._sandbox.release()
        let_go_of(self._inherited, self._settings.flow_log)

    def _on_signals(self) -> None:
        for number, from_kernel in self._signals.arrived():
            if not from_kernel or (number == SIGHUP and _leads_session()):
                self._sandbox.forward(number)

    def _on_reports(self) -> None:
        try:
            stopped = self._take_reports()
        except ChildflowError as error:
            self._failure = error
            self._finish(Report("exited", EXIT_FAILED))
            return
        if stopped:
            stop_as(stopped)
            self._on_signals()  # a SIGCONT for us alone waits there, and is the command's too

    def _take_reports(self) -> int:
        """Read all reports; returns the signal that the command stands stopped by, or 0."""
        stopped = 0
        while (report := self._sandbox.next_report()) is not None:
            match report.kind:
                case "stopped":
                    stopped = report.value if report.value in STOPPING else 0
                case "continued":
                    stopped = 0
                case "gone":
                    say("the command's init was killed from outside, and the command with it")
                    self._finish(Report("killed", 9))
                    return 0
                case _:
                    self._finish(report)
                    return 0
        return stopped

    def _finish(self, end: Report) -> None:
        self._end = end
        self._loop.remove_reader(self._sandbox.fileno())
        self._loop.stop()

    def _on_bug(self, _loop: Any, context: dict[str, Any]) -> None:
        """An exception that escaped a callback: our bug. Said, once each; the command keeps what works."""
        error = context.get("exception")
        told = f"{context.get('message')} ({error!r})"
        if told in self._bugs or len(self._bugs) == BUGS_TOLD:
            return
        self._bugs.add(told)
        short = isinstance(error, MemoryError)
        say(f"not enough memory: {told}" if short else f"internal error, please report it: {told}")
        if self._settings.verbose and error is not None:
            sys.excepthook(type(error), error, error.__traceback__)

    def _tell_the_end(self, end: Report) -> None:
        if self._settings.summary:
            from childflow.record.summary import render

            status = end.value + (EXIT_SIGNAL_BASE if end.kind == "killed" else 0)
            write(render(self._settings, self._recorder, status, end.kind == "killed"))
        if self._settings.verbose:
            counted = " ".join(f"{name}={count}" for name, count in self._engine.counters().items() if count)
            say(f"drops: {counted or 'none'}")


def _leads_session() -> bool:
    """At a hangup the kernel signals the session's leader alone: the command would be that, without us."""
    return os.getsid(0) == os.getpid()


def inherited_descriptors() -> list[int]:
    """What our caller left open for the command, above stderr; all of our own are close-on-exec."""
    return [fd for fd in map(int, os.listdir("/proc/self/fd")) if fd > 2 and _is_inherited(fd)]


def _is_inherited(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:  # the listing's own
        return False


def let_go_of(inherited: list[int], flow_log: str | None) -> None:
    """Drop our copies of the command's descriptors, so that its closing them is seen as it would be without us.

    stderr stays, for our messages, and whatever the flow log goes to.
    """
    log = 1 if flow_log == "-" else int(flow_log[3:]) if flow_log and flow_log.startswith("fd:") else -1
    nothing = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for fd in {0, 1} - {log}:
        os.dup2(nothing, fd, inheritable=False)
    for fd in {nothing, *inherited} - {log}:
        os.close(fd)


def refuse_network_descriptors(settings: Settings) -> None:
    """Refuse descriptors by which the command would have the host's network, or another that is not this run's."""
    for fd in settings.keep_fds:
        if _is_way_out(fd):
            what = f"--keep-fd {fd} is a directory or a namespace of the host, and leads past what is hidden"
            hint = "it can't be kept; leave it out"
            raise StartError("cli_validate", "rootless_bootstrap_sync_failed", what, hint)
    for fd in (*range(3), *settings.keep_fds):
        family = _socket_family(fd)
        if family in (None, "AF_UNIX") or (fd <= 2 and settings.allow_socket_stdio):
            continue
        if fd <= 2:
            what = f"descriptor {fd} of the command would be a network socket ({family}) of the host"
            hint = "redirect it to a file or pipe, or pass --allow-socket-stdio"
        else:
            what, hint = f"--keep-fd {fd} is a network socket ({family}) of the host", "it can't be kept; leave it out"
        raise StartError("cli_validate", "rootless_bootstrap_sync_failed", what, hint)


_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "time", "time_for_children", "user", "uts")


def _is_way_out(fd: int) -> bool:
    """A directory, an O_PATH or a namespace descriptor leads past what is hidden from the command."""
    import fcntl
    import stat

    name = os.readlink(f"/proc/self/fd/{fd}")
    path_only = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH
    kind = name.partition(":[")[0] if ":[" in name else ""
    return bool(stat.S_ISDIR(os.fstat(fd).st_mode) or path_only or kind in _NAMESPACES)


def _socket_family(fd: int) -> str | None:
    """The address family's name if `fd` is an open socket."""
    import socket

    try:
        described = socket.socket(fileno=fd)
    except OSError:
        return None
    family = described.family
    described.detach()
    return getattr(family, "name", f"family {int(family)}")
