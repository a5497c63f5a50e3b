"""What is laid over files of the host: the resolver's file in all its shapes, and ssh's included files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

import pytest

from childflow.sandbox.resolver import resolv_conf
from tests.lab import namespaces as ns
from tests.lab.enter import SCRATCH
from tests.sandbox.conftest import Seat
from tests.sandbox.test_preflight import own_mounts

OURS = "# childflow: queries go to its gateway\nnameserver 192.0.0.1\n"
HOSTS = "# the host's\nnameserver 203.0.113.53\nsearch one.example two.example\noptions ndots:2 edns0\n"


def test_resolv_conf_keeps_how_names_are_searched() -> None:
    host = b"nameserver 1.2.3.4\n  search a b\n;comment\ndomain c\noptions rotate\nsortlist 1.2.3.0\nfamily inet4\n"
    assert resolv_conf(host, "192.0.0.1").decode().splitlines()[1:] == [
        "nameserver 192.0.0.1",
        "search a b",
        "domain c",
        "options rotate",
        "sortlist 1.2.3.0",
    ]


def test_resolv_conf_for_a_proxy_searches_no_names() -> None:
    host = b"nameserver 1.2.3.4\n  search a b\n;comment\ndomain c\noptions rotate\nsortlist 1.2.3.0\nfamily inet4\n"
    assert resolv_conf(host, "192.0.0.1", search=False).decode().splitlines()[1:] == [
        "nameserver 192.0.0.1",
        "options rotate",
        "sortlist 1.2.3.0",
        "search .",
    ]


def own_etc_and_run(shape: Callable[[], None]) -> Callable[[], None]:
    """For `before`: a private /etc (a copy) and /run (empty), in which `shape` may do as it likes."""

    def prepare() -> None:
        ns.unshare(ns.CLONE_NEWNS)
        ns.mount("none", "/", flags=ns.MS_REC | ns.MS_PRIVATE)
        ns.mount("tmpfs", "/run", "tmpfs", data="mode=755")
        copy = f"{SCRATCH}/etc-{os.getpid()}"
        os.mkdir(copy)
        ns.mount("tmpfs", copy, "tmpfs", data="mode=755")
        for name in ("passwd", "group", "nsswitch.conf", "ssh", "ld.so.cache", "hosts", "alternatives"):
            source = f"/etc/{name}"
            if os.path.isdir(source):
                shutil.copytree(source, f"{copy}/{name}", symlinks=True)
            elif os.path.exists(source):
                shutil.copy(source, f"{copy}/{name}")
        ns.mount(copy, "/etc", flags=ns.MS_BIND)
        os.umask(0o022)
        shape()

    return prepare


def write(path: str, text: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write(text)


def link(target: str, existing: bool) -> None:
    real = os.path.normpath(os.path.join("/etc", target))
    if existing:
        write(real, HOSTS)
    os.symlink(target, "/etc/resolv.conf")


def chain() -> None:
    write("/run/one/real.conf", HOSTS)
    os.makedirs("/run/two")
    os.symlink("/run/one/real.conf", "/run/two/middle.conf")
    os.symlink("../run/two/middle.conf", "/etc/resolv.conf")


def loop() -> None:
    os.symlink("resolv.conf", "/etc/resolv.conf")


def dangling_below_a_folder() -> None:
    os.makedirs("/run/systemd")
    link("../run/systemd/resolve/stub-resolv.conf", existing=False)


SHAPES: dict[str, Callable[[], None]] = {
    "regular file in /etc": lambda: write("/etc/resolv.conf", HOSTS),
    "systemd-resolved": lambda: link("../run/systemd/resolve/stub-resolv.conf", existing=True),
    "NetworkManager": lambda: link("/run/NetworkManager/resolv.conf", existing=True),
    "a chain of links": chain,
    "directly in /run": lambda: link("/run/resolv.conf", existing=True),
    "outside of /etc and /run": lambda: link("/mnt/elsewhere-resolv.conf", existing=True),
    "dangling, no folder": lambda: link("../run/systemd/resolve/stub-resolv.conf", existing=False),
    "dangling, with a folder": dangling_below_a_folder,
    "dangling in /etc": lambda: link("resolv.conf.real", existing=False),
    "a link to itself": loop,
    "missing": lambda: None,
    "empty": lambda: write("/etc/resolv.conf", ""),
}


@pytest.mark.case("C27")
@pytest.mark.parametrize("shape", SHAPES)
def test_resolver_file(seat: Seat, shape: str) -> None:
    done = seat.run("cat", "/etc/resolv.conf", before=own_etc_and_run(SHAPES[shape]))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(OURS)
    kept = "search one.example two.example\noptions ndots:2 edns0\n"
    assert done.stdout[len(OURS) :] in ("", kept)
    assert "203.0.113" not in done.stdout


@pytest.mark.parametrize("shape", ["directly in /run", "dangling, no folder", "missing"])
def test_the_rest_of_a_rebuilt_folder_is_there(seat: Seat, shape: str) -> None:
    def prepare() -> None:
        write("/run/lock/something", "still here\n")
        write("/etc/own", "here too\n")
        os.symlink("/etc/own", "/run/link")
        SHAPES[shape]()

    done = seat.run("cat", "/run/lock/something", "/etc/own", "/run/link", before=own_etc_and_run(prepare))
    assert done.stdout == "still here\nhere too\nhere too\n", done.stderr


@pytest.mark.case("C27")
def test_the_hosts_resolver_may_rename_a_new_file_over_its_own(seat: Seat) -> None:
    """As systemd-resolved does at each change of network; a file that is bound over it would fall off then."""
    names = f"{SCRATCH}/run-{os.getpid()}-{seat.user}"

    def prepare() -> None:
        os.makedirs(names, exist_ok=True)
        ns.mount(names, "/run", flags=ns.MS_BIND)
        SHAPES["systemd-resolved"]()

    process = seat.start(
        seat.argv("sh", "-c", "echo up; read x; cat /etc/resolv.conf"), own_etc_and_run(prepare), stdin=-1
    )
    assert process.stdout
    assert process.stdout.readline() == "up\n"
    write(f"{names}/systemd/resolve/new", "nameserver 198.51.100.53\n")
    os.rename(f"{names}/systemd/resolve/new", f"{names}/systemd/resolve/stub-resolv.conf")
    out, err = process.communicate("\n", timeout=20)
    assert out.startswith(OURS), err
    shutil.rmtree(names)


def test_name_services_are_masked(seat: Seat) -> None:
    def prepare() -> None:
        for path in ("/run/nscd/socket", "/run/systemd/resolve/io.systemd.Resolve", "/run/avahi-daemon/socket"):
            write(path, "")
        write("/etc/resolv.conf", HOSTS)

    done = seat.run("find", "/run", "-type", "f", before=own_etc_and_run(prepare))
    assert done.stdout == ""


def test_ssh_reads_the_systems_included_files(seat: Seat) -> None:
    def prepare() -> None:
        write("/etc/resolv.conf", HOSTS)
        write("/etc/ssh/ssh_config", "Include /etc/ssh/ssh_config.d/*.conf\nInclude more\n")
        write("/etc/ssh/ssh_config.d/10-port.conf", "Host *\n Port 2201\n Include /etc/ssh/nested\n")
        write("/etc/ssh/nested", "User nested\n")
        write("/etc/ssh/more", "Ciphers aes256-ctr\n")
        write("/run/linked", "Compression yes\n")
        os.symlink("/run/linked", "/etc/ssh/ssh_config.d/20-linked.conf")

    done = seat.run("ssh", "-G", "host.example", before=own_etc_and_run(prepare))
    assert done.returncode == 0, done.stderr
    for line in ("port 2201", "user nested", "ciphers aes256-ctr", "compression yes"):
        assert line in done.stdout.splitlines()


def test_a_private_included_file_is_left_alone(ordinary: Seat) -> None:
    def prepare() -> None:
        write("/etc/resolv.conf", HOSTS)
        write("/etc/ssh/ssh_config.d/10-closed.conf", "Port 2201\n")
        os.chmod("/etc/ssh/ssh_config.d/10-closed.conf", 0o600)

    assert ordinary.run("true", before=own_etc_and_run(prepare)).returncode == 0


def test_laid_over_files_are_not_the_hosts(seat: Seat) -> None:
    """What the command writes into its resolver file goes nowhere."""
    seat.run("sh", "-c", "echo changed > /etc/resolv.conf")
    with open("/etc/resolv.conf") as file:
        assert "changed" not in file.read()


def test_working_directory_under_a_mask_is_the_masked_one(root: Seat) -> None:
    """Entered before the mounts, it would lead past them."""
    line = root.line("sh", "-c", "echo core > core_pattern; echo $?")
    done = root.wait(root.start(["sh", "-c", f"cd /proc/sys/kernel && exec {line}"]))
    assert done.stdout.strip() not in ("", "0")
    assert "Read-only" in done.stderr


def test_a_second_proc_is_covered(seat: Seat) -> None:
    def second_proc() -> None:
        own_mounts()
        ns.mount("proc", "/srv", "proc")

    assert seat.run("ls", "-A", "/srv", before=second_proc).stdout == ""


def test_root_makes_no_user_namespace(root: Seat) -> None:
    assert root.run("unshare", "-U", "true").returncode != 0
