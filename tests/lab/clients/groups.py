"""groups.py: what a desktop says to groups and to everybody: mDNS, LLMNR, SSDP, DHCP, and that it listens to a group.

Prints {"sent": datagrams that left without an error, "told": errors and answers that came within the time limit}.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import time

WAIT_S = 0.3
GROUPS4 = (("224.0.0.251", 5353), ("224.0.0.252", 5355), ("239.255.255.250", 1900), ("224.0.0.1", 9))
GROUPS6 = (("ff02::fb", 5353), ("ff02::1:3", 5355), ("ff02::c", 1900))
DHCP = ("255.255.255.255", 67)


def main() -> None:
    four, six = (socket.socket(family, socket.SOCK_DGRAM) for family in (socket.AF_INET, socket.AF_INET6))
    device = socket.if_nametoindex("tap0")
    four.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    four.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, struct.pack("=4s4si", bytes(4), bytes(4), device))
    six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, device)
    membership = struct.pack("=4s4si", socket.inet_aton("224.0.0.251"), bytes(4), device)
    four.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
    group = socket.inet_pton(socket.AF_INET6, "ff02::fb")
    six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, struct.pack("=16si", group, device))
    for sock in (four, six):
        sock.setsockopt(*LOOP[sock.family], 0)
    sent = sum(
        sock.sendto(b"anybody?", to) > 0 for sock, all_to in ((four, (*GROUPS4, DHCP)), (six, GROUPS6)) for to in all_to
    )
    print(json.dumps({"sent": sent, "told": answers([four, six])}))


LOOP = {
    socket.AF_INET: (socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP),
    socket.AF_INET6: (socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP),
}


def answers(socks: list[socket.socket]) -> list[str]:
    told = []
    end = time.monotonic() + WAIT_S
    while (left := end - time.monotonic()) > 0:
        for sock in select.select(socks, [], [], left)[0]:
            try:
                told.append(f"{sock.recvfrom(2048)}")
            except OSError as error:
                told.append(f"{error}")
    return told


if __name__ == "__main__":
    main()
