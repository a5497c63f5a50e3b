"""What a proxy costs under childflow: one download through it, against the same without one. `make bench-proxy`

curl downloads 1 GiB from the server host, in two sets of candidates.

    tunnel   The server is its own proxy (`tunnel_server.py`), so proxied and direct differ in nothing but what
             childflow does: the handshake, and carrying a socket that Python opened instead of one that C opened.
             The aim is 0.8 of direct, which is childflow without a proxy.
    real     squid and dante, which cost a core of their own, with childflow and by curl itself: what childflow adds
             to a proxy, beside what the proxy costs anybody.

curl, childflow, proxy and server share the machine's cores.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

from benches.rounds import interleaved, lab, report_ratios
from benches.tunnel_server import CONNECT, DIRECT, SOCKS
from tests.lab.lab import Caller
from tests.lab.proxies import Proxies, proxies_on

ROUNDS = 7
SIZE = 1 << 30
Candidates = dict[str, Callable[[], float]]


def main() -> None:
    where = lab()
    caller = where.caller("ordinary")
    server = where.serve("benches.tunnel_server", str(SIZE))
    host = where.server_ip(4)
    url = f"http://{host}:{DIRECT}/"
    print("one download of 1 GiB through a proxy that costs nothing, Gbit/s")
    report_ratios(interleaved(ROUNDS, tunnel(caller, url, host)), "direct", "Gbit/s")
    with proxies_on(where.server, ("squid", "dante")) as proxies:
        for name in ("squid", "dante"):
            print(f"the same through {name}, Gbit/s")
            report_ratios(interleaved(ROUNDS, real(caller, url, proxies, name)), "alone", "Gbit/s")
    server.kill()


def tunnel(caller: Caller, url: str, host: str) -> Candidates:
    return {
        "direct": partial(download, caller, url),
        "http": partial(download, caller, url, flags=["--proxy", f"http://{host}:{CONNECT}"]),
        "socks5": partial(download, caller, url, flags=["--proxy", f"socks5://{host}:{SOCKS}"]),
        "no childflow": partial(download, caller, url, bare=True),
    }


def real(caller: Caller, url: str, proxies: Proxies, name: str) -> Candidates:
    option = "--proxy" if name == "squid" else "--socks5"
    proxy = proxies.uri(name).partition("://")[2]
    flags = proxies.flags(name)
    login = ("--proxy-user", f"{flags[3]}:{flags[5]}") if len(flags) > 2 else ()
    alone = partial(download, caller, url, option, proxy, "--proxytunnel", *login, bare=True)
    return {"alone": alone, "childflow": partial(download, caller, url, flags=flags)}


def download(caller: Caller, url: str, *more: str, flags: list[str] | None = None, bare: bool = False) -> float:
    """Gbit/s as curl measures it, connecting included."""
    command = ("curl", "-sS", "-o", "/dev/null", "-w", "%{size_download} %{speed_download}", *more, url)
    result = caller.direct(*command) if bare else caller.childflow(*command, flags=flags or [], log=False)
    size, speed = result.ok().stdout.split()
    if int(size) != SIZE:
        raise SystemExit(f"only {size} bytes came: {result.told()}")
    return float(speed) * 8 / 1e9


if __name__ == "__main__":
    sys.exit(main())
