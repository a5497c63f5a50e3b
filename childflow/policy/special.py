"""Special ranges: what --block-private and --block-metadata deny.

Not here: what never leaves whatever the rules say (`addresses.py`, `martian_kind`).
"""

from __future__ import annotations

from collections.abc import Iterable
from socket import AF_INET, AF_INET6, inet_pton

from childflow.policy.addresses import address_text, reached
from childflow.policy.tables import NameTable, Network, Networks

# Nothing behind these is a host of the public internet (IANA's registries of special-purpose addresses).
PRIVATE = (
    "0.0.0.0/8",  # this host (RFC 791)
    "10.0.0.0/8",  # private (RFC 1918)
    "100.64.0.0/10",  # shared by carriers (RFC 6598)
    "127.0.0.0/8",  # loopback
    "169.254.0.0/16",  # link-local (RFC 3927)
    "172.16.0.0/12",  # private
    "192.0.0.0/24",  # IETF protocols (RFC 6890)
    "192.0.2.0/24",  # documentation (RFC 5737)
    "192.88.99.0/24",  # 6to4 relays, withdrawn (RFC 7526)
    "192.168.0.0/16",  # private
    "198.18.0.0/15",  # benchmarks (RFC 2544)
    "224.0.0.0/4",  # multicast
    "240.0.0.0/4",  # reserved, broadcast
    "::/127",  # unspecified and loopback
    "100::/64",  # discard (RFC 6666)
    "2001:db8::/32",  # documentation (RFC 3849)
    "3fff::/20",  # documentation (RFC 9637)
    "5f00::/16",  # segment routing (RFC 9602)
    "fc00::/7",  # unique local (RFC 4193)
    "fe80::/10",  # link-local
    "fec0::/10",  # site-local, deprecated (RFC 3879)
    "ff00::/8",  # multicast
)

# Where clouds tell a machine, and whoever asks from it, its credentials.
METADATA = (
    "169.254.169.254",  # AWS, Azure, Google, Oracle, DigitalOcean, Hetzner, OpenStack, ...
    "169.254.170.2",  # AWS: containers of ECS
    "169.254.170.23",  # AWS: pods of EKS
    "169.254.42.42",  # Scaleway
    "169.254.0.23",  # Tencent
    "168.63.129.16",  # Azure: WireServer
    "100.100.100.200",  # Alibaba
    "192.0.0.192",  # Oracle
    "fd00:ec2::254",  # AWS
    "fd00:ec2::23",  # AWS: pods of EKS
    "fd20:ce::254",  # Google
    "fd00:42::42",  # Scaleway
    "fd00:a9fe:a9fe::1",  # Akamai
)
METADATA_NAMES = (
    "metadata",
    "metadata.google.internal",
    "metadata.goog",
    "instance-data",
    "instance-data.ec2.internal",
    "metadata.tencentyun.com",
    "metadata.packet.net",
    "metadata.platformequinix.com",
    "api.metadata.cloud.ibm.com",
)


def private_networks(host_addresses: Iterable[bytes] = ()) -> Networks:
    """What --block-private denies; `host_addresses` (packed) are the host's own."""
    return Networks([*map(_network, PRIVATE), *map(_own, host_addresses)])


def _own(address: bytes) -> Network:
    end = reached(address)
    return Network(end, len(end) * 8, 0, 0, f"{address_text(address)}, the host's own")


def metadata() -> tuple[Networks, NameTable]:
    """What --block-metadata denies: addresses, and names with all that is below them."""
    return Networks(map(_network, METADATA)), NameTable({name: {0: "block-metadata"} for name in METADATA_NAMES})


def _network(text: str) -> Network:
    address, _, prefix = text.partition("/")
    first = inet_pton(AF_INET6 if ":" in address else AF_INET, address)
    return Network(first, int(prefix) if prefix else len(first) * 8, 0, 0, text)
