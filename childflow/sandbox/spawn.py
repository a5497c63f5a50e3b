"""From nothing to a command that waits for its release: the processes of a run.

    P  this process: the engine
    +- C  forked here: makes the namespaces, the TAP and the mounts, hands P the TAP, then becomes the TAP's holder
    +- I  childflow-init, pid 1 of the new PID namespace; C clones it as P's own child (CLONE_PARENT)
       +- X  the command

`begin` forks C and returns at once, so that P imports its engine while the kernel works. C runs the list of named steps
below; the first that fails is told to P and becomes a StartError. `finish` collects what C and I have to say.

Invariants: until `release`, nothing of the command has run. When P ends in any way, C, I and X are killed by their
            death signals, and the holder lets the TAP go. A C that failed leaves nothing: its namespaces end with it.
            P's environment reaches the command without SECRET_VARIABLES; I's memory has never been P's (it is exec'd).
Not here:   what the reports mean for childflow (`run.py`), why a step may have failed (`preflight.py`).
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from childflow.errors import StartError
from childflow.sandbox import fdpass, idmap, kernel, link
from childflow.sandbox.link import LinkPlan
from childflow.settings import ADDRESSES, Settings

INIT_PATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "childflow-init")
SECRET_VARIABLES = ("CHILDFLOW_PROXY_PASSWORD",)
# What package managers need of root: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID (linux/capability.h).
ROOT_CAPABILITIES = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7
# What init needs, for its first lines only: SETPCAP (to empty the bounding set), SYS_ADMIN (to mount /proc).
INIT_CAPABILITIES = 1 << 8 | 1 << 21

NO_PID_NAMESPACE = (
    "this host refuses a fresh /proc, so the command has no PID namespace and sees the host's processes; "
    "in Docker add `--security-opt systempaths=unconfined`"
)
NO_FRESH_SYS = (
    "this host refuses a fresh /sys, so the command sees the host's interfaces there; "
    "in Docker add `--security-opt systempaths=unconfined`"
)

ROOT_INSIDE = (
    "where this is the inside of another sandbox, root can't make one more: leave the inner childflow out, or start "
    "the outer one as an ordinary user"
)

_MESSAGE = struct.Struct("=ii56s")  # init.c's struct message
INIT_PATIENCE_S = 2.0  # for a kernel under load to end a whole PID namespace


class Report(NamedTuple):
    """What init says of the command: `kind` is exited, killed, stopped, continued or gone; `value` status or signal."""

    kind: str
    value: int


_KINDS = {ord("E"): "exited", ord("K"): "killed", ord("T"): "stopped", ord("C"): "continued"}


class Sandbox:
    """A command that is ready to be released, and then the one thread by which P holds it.

    `tap_fd` is non-blocking and owned by the sandbox; `offload` says whether the kernel does checksums and segmentation
    on it; `init_pid` is a child of ours; `warnings` must be shown, `notes` are for -v.
    """

    def __init__(self, attempt: _Attempt) -> None:
        self._attempt = attempt
        self.tap_fd = attempt.tap_fd
        self.offload = attempt.offload
        self.init_pid = attempt.init_pid
        self.warnings = tuple(attempt.warnings)
        self.notes = tuple(attempt.notes)

    def fileno(self) -> int:
        """The control socket: readable when `next_report` has something."""
        return self._attempt.control.fileno()

    def release(self) -> None:
        """Start the command."""
        self._send("G", 0)

    def forward(self, signum: int) -> None:
        """Send a signal to the command; nothing happens when it has ended."""
        self._send("S", signum)

    def next_report(self) -> Report | None:
        """The next report, `gone` when init has ended, or None when there is none yet."""
        try:
            data = self._receive()
        except BlockingIOError:
            return None
        if not data:
            return Report("gone", 0)
        kind, value, text = _MESSAGE.unpack(data)
        if kind == ord("F"):
            raise StartError("child_bootstrap", "rootless_bootstrap_sync_failed", _failure(_word(text), value))
        return Report(_KINDS[kind], value)

    def _receive(self) -> bytes:
        control = self._attempt.control
        try:
            return control.recv(_MESSAGE.size, socket.MSG_DONTWAIT)
        except (
            ConnectionResetError
        ):  # init ended with a message of ours unread; its own last ones come after this error
            return control.recv(_MESSAGE.size, socket.MSG_DONTWAIT)

    def close(self) -> None:
        """End what is left of the tree and wait for it; let the TAP go, which its holder takes down in its own time."""
        self._attempt.abandon()

    def _send(self, kind: str, value: int) -> None:
        try:
            self._attempt.control.send(_MESSAGE.pack(ord(kind), value, b""), socket.MSG_NOSIGNAL)
        except ConnectionError:
            pass  # init has ended: `next_report` says so


class Pending:
    """A sandbox that is being made."""

    def __init__(self, settings: Settings, plan: LinkPlan, command_mask: int) -> None:
        self._settings = settings
        self._plan = plan
        self._mask = command_mask
        self._attempt = _Attempt(settings, plan, command_mask, pid_namespace=True)

    def finish(self) -> Sandbox:
        """Wait for C and I; raises StartError. The command waits for `release` then."""
        try:
            if not self._attempt.collect():
                self._retry_without_pid_namespace()
            self._refuse_what_is_not_strict()
        except BaseException:
            self._attempt.abandon()
            raise
        return Sandbox(self._attempt)

    def abandon(self) -> None:
        """Give up: end all that was started."""
        self._attempt.abandon()

    def _retry_without_pid_namespace(self) -> None:
        self._attempt.abandon()
        if self._settings.strict:
            raise _refused(NO_PID_NAMESPACE)
        self._attempt = _Attempt(self._settings, self._plan, self._mask, pid_namespace=False)
        self._attempt.warnings.append(NO_PID_NAMESPACE)
        if not self._attempt.collect():
            raise _unexplained("init failed twice")

    def _refuse_what_is_not_strict(self) -> None:
        if self._settings.strict and self._attempt.warnings:
            raise _refused(self._attempt.warnings[0])


def begin(settings: Settings, plan: LinkPlan, command_mask: int = 0) -> Pending:
    """Fork C and return at once. `command_mask` is the signal mask (bit 0 is signal 1) that the command shall have."""
    return Pending(settings, plan, command_mask)


# ---- P's side of one attempt ----


class _Attempt:
    """The descriptors and processes of one try; `collect` fills in what C and I say."""

    def __init__(self, settings: Settings, plan: LinkPlan, command_mask: int, pid_namespace: bool) -> None:
        self.tap_fd = -1
        self.offload = False
        self.init_pid = 0
        self.warnings: list[str] = []
        self.notes: list[str] = []
        self._init_file = _open_init()
        self._setup, setup_of_c = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control, control_of_init = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        hold_reader, self._hold_writer = os.pipe()
        engine = os.getpid()
        self._c_pid = os.fork()
        if self._c_pid == 0:
            self._setup.close()
            self.control.close()
            os.close(self._hold_writer)
            ends = _Ends(setup_of_c, control_of_init, hold_reader, self._init_file)
            _Child(settings, plan, command_mask, pid_namespace, ends).run(engine)
        setup_of_c.close()
        control_of_init.close()
        os.close(hold_reader)
        os.close(self._init_file)
        if idmap.maps_ranges():
            try:
                self._map_ranges()
            except StartError:
                self.abandon()
                raise

    def _map_ranges(self) -> None:
        # C waits for this first thing, so it is done here and not in `collect`: C works on while P imports.
        words, _fd = fdpass.receive(self._setup)
        if words != ["unshared"]:
            self._take(words, None)
            return
        try:
            idmap.write_ranges(self._c_pid)
        except OSError as error:
            detail = _failure("map root's ids", error.errno or 0)
            raise StartError("child_bootstrap", "user_namespace_mapping_failed", detail, ROOT_INSIDE) from None
        fdpass.send(self._setup, "mapped")

    def collect(self) -> bool:
        """Hear C and I out. False when init was refused its /proc; raises StartError for any other failure."""
        while True:
            words, fd = fdpass.receive(self._setup)
            if not words:
                break
            self._take(words, fd)
        if self.init_pid == 0 or self.tap_fd < 0:
            raise _unexplained("the process that sets the namespaces up was killed")
        return self._init_is_ready()

    def _take(self, words: list[str], fd: int | None) -> None:
        match words:
            case ["tap", offload]:
                self.tap_fd = -1 if fd is None else fd
                self.offload = offload == "1"
            case ["init", pid]:
                self.init_pid = int(pid)
            case ["warn", text]:
                self.warnings.append(text)
            case ["note", text]:
                self.notes.append(text)
            case ["fail", reason_code, step, number]:
                raise StartError("child_bootstrap", reason_code, _failure(step, int(number)))
            case _:
                raise _unexplained("the process that sets the namespaces up ended early")

    def _init_is_ready(self) -> bool:
        data = self.control.recv(_MESSAGE.size)
        kind, value, text = _MESSAGE.unpack(data) if data else (0, 0, b"")
        if kind == ord("R"):
            return True
        step = _word(text)
        if step == "mount /proc":
            return False
        detail = _failure(step, value) if data else "childflow-init ended early"
        raise StartError("child_bootstrap", "rootless_bootstrap_sync_failed", detail)

    def abandon(self) -> None:
        """End C or the holder, init and its tree; wait for init, not for the holder. May be called twice."""
        if self._hold_writer < 0:
            return
        self.control.close()
        if self.init_pid:
            _end(self.init_pid)
        else:
            _kill(self._c_pid)  # not yet the holder
        if self.tap_fd >= 0:
            os.close(self.tap_fd)
        self._setup.close()
        os.close(self._hold_writer)
        self._hold_writer = -1


def _end(init: int) -> None:
    """Wait for init, which ends when its control socket closes; kill it if it doesn't."""
    try:
        pidfd = os.pidfd_open(init)
    except ProcessLookupError:
        return  # our caller ignores SIGCHLD, so nothing of ours is kept for waiting
    ended = select.select([pidfd], [], [], INIT_PATIENCE_S)[0]
    os.close(pidfd)
    if ended:
        _reap(init)
    else:
        _kill(init)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    _reap(pid)


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass  # as above


def _open_init() -> int:
    try:
        return os.open(INIT_PATH, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        detail = f"{INIT_PATH} can't be opened ({error.strerror})"
        hint = "install childflow again (pip install --force-reinstall childflow)"
        raise StartError("child_bootstrap", "rootless_bootstrap_sync_failed", detail, hint) from None


def _refused(warning: str) -> StartError:
    """What is a warning otherwise, under --strict."""
    return StartError("child_bootstrap", "mount_propagation_blocked", warning, "or run without --strict")


def _unexplained(detail: str) -> StartError:
    hint = "look into the kernel's log (`dmesg`)"
    return StartError("child_bootstrap", "rootless_bootstrap_sync_failed", detail, hint)


def _failure(step: str, number: int) -> str:
    return f"could not {step}: {os.strerror(number) if number else 'refused'}"


def _word(text: bytes) -> str:
    return text.split(b"\0", 1)[0].decode("ascii", "replace")


# ---- C ----


class _Ends(NamedTuple):
    """What C has of the connections."""

    setup: socket.socket
    control: socket.socket
    hold_reader: int
    init_file: int


class _Child:
    """C: the steps between the fork and the exec."""

    def __init__(self, settings: Settings, plan: LinkPlan, command_mask: int, pid_namespace: bool, ends: _Ends) -> None:
        self._settings = settings
        self._plan = plan
        self._signal_mask = command_mask
        self._pid_namespace = pid_namespace
        self._ends = ends
        self._ranges = idmap.maps_ranges()
        self._uid, self._gid = os.geteuid(), os.getegid()
        self._root_inside = self._uid == 0 or settings.map_root
        self._nosuid = False
        self._fresh_sys = False
        self._tap: Any = None

    def run(self, engine: int) -> NoReturn:
        """Do all steps, then become the holder. Never returns, never raises."""
        steps: tuple[tuple[str, str, Callable[[], None]], ...] = (
            ("rootless_bootstrap_sync_failed", "set the parent death signal", lambda: _die_with(engine)),
            ("namespace_unshare_failed", "make a user namespace", lambda: kernel.unshare(kernel.CLONE_NEWUSER)),
            ("user_namespace_mapping_failed", "map ids into the user namespace", self._map_ids),
            ("namespace_unshare_failed", "make network and mount namespaces", self._unshare_the_rest),
            ("mount_propagation_blocked", "make mounts private", self._prepare_tree),
            ("tap_create_blocked", "open /dev/net/tun and make tap0", self._make_tap),
            ("tap_create_blocked", "set up tap0", self._configure_links),
            ("mount_propagation_blocked", "lay out /sys", self._lay_out_sys),
            ("mount_propagation_blocked", "mask the host's name services", self._mask_name_services),
            ("resolv_conf_bind_blocked", "lay our file over /etc/resolv.conf", self._install_resolver),
            ("mount_propagation_blocked", "lay copies over ssh's included files", self._lay_over_ssh_files),
            ("mount_propagation_blocked", "make /proc and /sys read-only", self._protect_from_root),
            ("rootless_bootstrap_sync_failed", "start childflow-init", self._start_init),
            ("rootless_bootstrap_sync_failed", "start the TAP's holder", self._become_holder),
        )
        try:
            for reason_code, step, act in steps:
                self._do(reason_code, step, act)
        finally:
            os._exit(1)

    def _do(self, reason_code: str, step: str, act: Callable[[], None]) -> None:
        try:
            act()
        except OSError as error:
            where = f" ({error.filename})" if isinstance(error.filename, str) else ""
            self._tell("fail", reason_code, step + where, str(error.errno or 0))
            os._exit(1)
        except BaseException as error:
            self._tell("fail", "unknown_runtime_failure", f"{step} ({type(error).__name__}: {error})", "0")
            if self._settings.verbose:
                sys.excepthook(*sys.exc_info())
            os._exit(1)

    def _tell(self, *fields: str, fd: int | None = None) -> None:
        fdpass.send(self._ends.setup, *fields, fd=fd)

    def _map_ids(self) -> None:
        if not self._ranges:
            idmap.write_single(self._settings.map_root, self._uid, self._gid)
            return
        self._tell("unshared")
        if fdpass.receive(self._ends.setup)[0] != ["mapped"]:
            os._exit(1)

    def _unshare_the_rest(self) -> None:
        pid = kernel.CLONE_NEWPID if self._pid_namespace else 0
        kernel.unshare(kernel.CLONE_NEWNET | kernel.CLONE_NEWNS | pid)

    def _prepare_tree(self) -> None:
        from childflow.sandbox import mounts

        mounts.make_private()
        self._nosuid = mounts.make_nosuid()

    def _make_tap(self) -> None:
        self._tap, offload = link.open_tap()
        self._tell("tap", "1" if offload else "0", fd=self._tap.fileno())

    def _configure_links(self) -> None:
        link.configure(self._plan, ADDRESSES)
        link.open_low_ports()
        if not link.open_ping_sockets(0 if self._settings.map_root else self._gid):
            self._tell("note", "ping will not work: net.ipv4.ping_group_range can't be written here")

    def _lay_out_sys(self) -> None:
        from childflow.sandbox import mounts

        self._fresh_sys = mounts.fresh_sys(readonly=self._uid == 0)
        if not self._fresh_sys:
            self._tell("warn", NO_FRESH_SYS)

    def _mask_name_services(self) -> None:
        from childflow.sandbox import mounts

        mounts.mask_name_services()
        mounts.cover_other_procs()

    def _install_resolver(self) -> None:
        from childflow.sandbox import resolver

        blind = self._settings.virtual_names and self._settings.proxy is not None
        resolver.install(socket.inet_ntoa(ADDRESSES.gateway4), search=not blind)

    def _lay_over_ssh_files(self) -> None:
        if self._uid == 0:
            return  # root's files are still root's
        from childflow.sandbox import ssh_files

        ssh_files.lay_over_includes()

    def _protect_from_root(self) -> None:
        """A root caller's uid owns the host's switches; childflow-init mounts the fresh /proc read-only itself."""
        if self._uid != 0:
            return
        from childflow.sandbox import mounts

        # In a user namespace of its own making the command could mount cgroups afresh, writable.
        link.forbid_user_namespaces()
        mounts.make_readonly("/sys")
        mounts.make_readonly_types(("cgroup", "cgroup2", "sysfs"))
        if not self._pid_namespace:
            mounts.make_readonly("/proc")

    def _start_init(self) -> None:
        arguments, environment = self._init_arguments(), self._command_environment()
        pid = kernel.fork_sibling()
        if pid == 0:
            try:
                os.set_inheritable(self._ends.control.fileno(), True)
                kernel.carry_capabilities(INIT_CAPABILITIES)
                os.execve(self._ends.init_file, arguments, environment)
            except OSError as error:
                what = b"start childflow-init"
                self._ends.control.send(_MESSAGE.pack(ord("F"), error.errno or 0, what))
            finally:
                os._exit(1)
        self._tell("init", str(pid))

    def _init_arguments(self) -> list[str]:
        flags = ("p" if self._pid_namespace else "") + ("r" if self._uid == 0 else "") + ("b" if self._nosuid else "")
        kept = ",".join(str(fd) for fd in self._settings.keep_fds)
        capabilities = ROOT_CAPABILITIES if self._root_inside else 0
        control = str(self._ends.control.fileno())
        numbers = [control, flags or "-", f"{capabilities:x}", f"{self._signal_mask:x}", kept or "-"]
        return ["childflow-init", "run", *numbers, "--", *self._settings.command]

    @staticmethod
    def _command_environment() -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if name not in SECRET_VARIABLES}

    def _become_holder(self) -> None:
        tap, pipe = self._tap.fileno(), self._ends.hold_reader
        os.set_inheritable(tap, True)
        os.set_inheritable(pipe, True)
        os.execve(self._ends.init_file, ["childflow-init", "hold", str(tap), str(pipe)], {})


def _die_with(engine: int) -> None:
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != engine:
        os._exit(1)
