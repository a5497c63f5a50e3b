"""Real proxies on a host of the lab, as Debian packages them: tinyproxy, squid (plain and in TLS), dante, microsocks.

    with proxies_on(internet.server) as proxies:
        proxies.uri("squid")                # http://198.51.100.1:3129
        proxies.stop("tinyproxy")           # at once, with all its connections

USER and PASSWORD are asked for by squid and microsocks; the others take anybody. squid's certificate for TLS (443) is
for `proxy.lab.test` and for its address, made by an authority whose certificate is the file `proxies.authority`.

Not here:   scripted and hostile proxies (`tests/services/proxies.py`).
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trustme

from .hosts import SYSTEM_PATH, Host
from .processes import Running, environment, own_directory, start

USER, PASSWORD = "anna", "pa:ss word"
NAME = "proxy.lab.test"
_PORTS = {"tinyproxy": 3128, "squid": 3129, "tls": 3130, "foreign": 3131, "dante": 1080, "microsocks": 1081}
_SCHEMES = {"tls": "https", "foreign": "https", "dante": "socks5", "microsocks": "socks5"}

_TINYPROXY = "Port {tinyproxy}\nListen {address}\nTimeout 60\nMaxClients 400\nLogLevel Critical\n"
_SQUID = """
http_port {address}:{squid}
https_port {address}:{tls} tls-cert={folder}/proxy.pem tls-key={folder}/proxy.key
https_port {address}:{foreign} tls-cert={folder}/foreign.pem tls-key={folder}/foreign.key
auth_param basic program /usr/lib/squid/basic_ncsa_auth {folder}/passwords
auth_param basic children 2 startup=1
acl known proxy_auth REQUIRED
http_access allow known
http_access deny all
cache deny all
cache_mem 0
memory_pools off
netdb_filename none
pinger_enable off
access_log none
cache_log {folder}/squid.log
cache_store_log none
pid_filename none
coredump_dir {folder}
shutdown_lifetime 0 seconds
dns_nameservers {address}
max_filedescriptors 4096
visible_hostname squid.lab.test
"""
_DANTE = """
logoutput: {folder}/dante.log
internal: {address} port = {dante}
external: {address}
external: {address6}
socksmethod: none
clientmethod: none
user.privileged: root
user.unprivileged: nobody
client pass {{ from: 0/0 to: 0/0 }}
socks pass {{ from: 0/0 to: 0/0 }}
"""


@dataclass
class Proxies:
    host: Host
    folder: Path
    running: dict[str, Running] = field(default_factory=dict)

    @property
    def authority(self) -> str:
        return str(self.folder / "authority.pem")

    @property
    def address(self) -> str:
        return self.host.addresses[4]

    def uri(self, name: str, host: str = "") -> str:
        return f"{_SCHEMES.get(name, 'http')}://{host or self.address}:{_PORTS[name]}"

    def flags(self, name: str, host: str = "", password: str = PASSWORD) -> list[str]:
        """childflow's options for this proxy."""
        login = ["--proxy-user", USER, "--proxy-password", password] if name not in ("tinyproxy", "dante") else []
        return ["--proxy", self.uri(name, host), *login]

    def stop(self, name: str) -> None:
        self.running.pop(name).kill()

    def start(self, name: str) -> None:
        """Start it, and wait until it listens."""
        argv = {
            "tinyproxy": ["tinyproxy", "-d", "-c", f"{self.folder}/tinyproxy.conf"],
            "squid": ["squid", "-N", "-f", f"{self.folder}/squid.conf"],
            "dante": ["danted", "-f", f"{self.folder}/dante.conf"],
            "microsocks": [
                *("microsocks", "-i", self.address, "-p", str(_PORTS["microsocks"])),
                *("-u", USER, "-P", PASSWORD),
            ],
        }[name]
        self.running[name] = _started(argv, self.host)
        _wait_for_listener(self.running[name], _PORTS[name])


@contextmanager
def proxies_on(host: Host, names: Sequence[str] = ("tinyproxy", "squid", "dante", "microsocks")) -> Iterator[Proxies]:
    """Start them; killed at the end."""
    folder = own_directory(f"proxies-{host.place.net}", "root")
    shutil.chown(folder, "proxy") if os.geteuid() == 0 and "squid" in names else None
    proxies = Proxies(host, folder)
    _write_certificates(folder, proxies.address)
    for name, text in (("tinyproxy", _TINYPROXY), ("squid", _SQUID), ("dante", _DANTE)):
        words = {
            "address": proxies.address,
            "address6": host.addresses[6],
            "folder": str(folder),
            **{key: str(port) for key, port in _PORTS.items()},
        }
        (folder / f"{name}.conf").write_text(text.format(**words))
    host.run("sh", "-c", f'printf "%s:%s\\n" {USER} "$(openssl passwd -apr1 "$1")" >{folder}/passwords', "sh", PASSWORD)
    try:
        for name in names:
            proxies.start(name)
        yield proxies
    finally:
        for name in list(proxies.running):
            proxies.stop(name)


def _write_certificates(folder: Path, address: str) -> None:
    """The proxy's certificate by the lab's authority, and one by an authority that nobody knows."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    (folder / "authority.pem").chmod(0o644)
    for name, made_by in (("proxy", authority), ("foreign", trustme.CA())):
        made = made_by.issue_cert(NAME, address)
        made.private_key_pem.write_to_path(str(folder / f"{name}.key"))
        (folder / f"{name}.pem").write_bytes(b"".join(part.bytes() for part in made.cert_chain_pems))


def _started(argv: Sequence[str], host: Host) -> Running:
    return start(argv, host.place, "root", cwd="/", env=environment("root", SYSTEM_PATH))


def _wait_for_listener(running: Running, port: int, limit: float = 15.0) -> None:
    """The kernel's list of the namespace's sockets has one that listens on `port` (state 0A)."""
    end = time.monotonic() + limit
    while True:
        for table in ("tcp", "tcp6"):
            lines = Path(f"/proc/{running.pid}/net/{table}").read_text().splitlines()[1:]
            if any(line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A" for line in lines):
                return
        if running.process.poll() is not None or time.monotonic() > end:
            raise AssertionError(f"{running.argv} does not listen: {running.so_far()}")
        time.sleep(0.02)
