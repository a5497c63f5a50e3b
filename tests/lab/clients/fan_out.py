"""fan_out.py HOSTS PORT: one unconnected socket, a datagram to each host's echo port; each must answer for itself.

Prints {"right": answers from the very host, with its own text, "wrong": others}.
"""

from __future__ import annotations

import json
import socket
import sys


def main() -> None:
    hosts, port = sys.argv[1].split(","), int(sys.argv[2])
    right = wrong = 0
    with socket.socket(socket.AF_INET6 if ":" in hosts[0] else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(3)
        for host in hosts:
            sock.sendto(host.encode(), (host, port))
        try:
            while right + wrong < len(hosts):
                text, sender = sock.recvfrom(100)
                if (text.decode(), port) == sender[:2]:
                    right += 1
                else:
                    wrong += 1
        except TimeoutError:
            pass
    print(json.dumps({"right": right, "wrong": wrong}))


main()
