"""UDP through a SOCKS5 proxy (RFC 1928, UDP ASSOCIATE).

A peer of the command (one of its ports, one destination) has an association of its own: a control connection, a socket
towards the proxy's relay, and a socket on loopback that the stack sends to in the peer's place (`Stack.allow_to`). What
goes up gets the SOCKS header, what comes down loses it. One association for several peers would be cheaper for the
proxy, but what comes back for a name could not be told from what comes back for another.

Invariants: datagrams are taken from the relay's address only, and only those that say to come from the destination;
            of a name, from the address that answered first. Fragments (FRAG not 0) are dropped.
            On loopback the first to send is the stack; nobody else is heard from then on.
            At most ASSOCIATIONS associations; the one that was used last longest ago gives way.
            An association ends with the flow (`ended`): the stack knows when that is idle. One that ends before, with
            its control connection or to give way, takes the flow with it: what the command said next would go to
            whoever has the port on loopback then. A further datagram is a new question, and has a new association.
Not here:   who may be reached (`policy/`), the handshake (`proxy.py`).
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from itertools import count

from childflow.errors import DialError
from childflow.netstack.events import Denial
from childflow.services.dial import Dialer
from childflow.services.proxy import (
    COMMAND_NOT_SUPPORTED,
    address_text,
    check_destination,
    read_socks_address,
    socks_address,
)
from childflow.services.watch import Watch

ASSOCIATIONS = 256
LOOPBACK = bytes((127, 0, 0, 1))
_BATCH = 64  # datagrams of one socket before the others have their turn
_MAX_DATAGRAM = 65535


class Associations:
    """All associations of a run, by flow."""

    def __init__(self, dialer: Dialer, watch: Watch, forget: Callable[[int], None]) -> None:
        """`forget`: what ends a flow in the stack; called before the flow's sockets are closed."""
        self._dialer = dialer
        self._forget = forget
        self._watch = watch
        self._of: dict[int, Association] = {}
        self._tick = count().__next__
        self._carries_udp = dialer.proxy.scheme == "socks5"

    def __len__(self) -> int:
        return len(self._of)

    async def open(self, flow: int, host: str | bytes, port: int) -> tuple[bytes, int]:
        """Where the stack shall send this flow's datagrams for `host` (a name or a packed address) and `port`.

        DialError when the proxy carries no UDP, or not now. May be cancelled.
        """
        check_destination(host)
        if not self._carries_udp:
            raise DialError(Denial.PROHIBITED, "the proxy carries no UDP")
        try:
            control, said, relay_port = await self._dialer.associate()
        except DialError as error:
            self._carries_udp = error.code != COMMAND_NOT_SUPPORTED
            denial = Denial.PROHIBITED if error.denial == Denial.RESET else error.denial
            raise DialError(denial, str(error), error.proxy_fault, error.code) from None
        try:
            opened = Association(control, relay_sockaddr(control, said, relay_port), host, port, self._tick)
        except OSError as error:
            control.close()
            what = f"no UDP socket for the proxy: {error.strerror or error}"
            raise DialError(Denial.PROHIBITED, what) from None
        self._admit(flow, opened)
        return LOOPBACK, opened.port

    def ended(self, flow: int) -> None:
        """The flow is over; one that has no association is none of ours."""
        association = self._of.pop(flow, None)
        if association is not None:
            for descriptor in association.descriptors:
                self._watch.remove(descriptor)
            association.finish()

    def close(self) -> None:
        for flow in list(self._of):
            self.ended(flow)

    def _admit(self, flow: int, association: Association) -> None:
        if len(self._of) >= ASSOCIATIONS:
            self._lose(min(self._of, key=lambda other: self._of[other].used_at))
        self._of[flow] = association
        for descriptor, read in zip(association.descriptors, association.readers, strict=True):
            self._watch.add(descriptor, _until_ended(read, lambda: self._lose(flow)))

    def _lose(self, flow: int) -> None:
        self._forget(flow)
        self.ended(flow)


def _until_ended(read: Callable[[], bool], end: Callable[[], None]) -> Callable[[], None]:
    def ready() -> None:
        if not read():
            end()

    return ready


class Association:
    """One flow's way through the proxy. The readers return False when it has ended."""

    def __init__(
        self, control: socket.socket, relay: tuple[str, int], host: str | bytes, port: int, tick: Callable[[], int]
    ) -> None:
        self._control = control
        self._header = bytes(3) + socks_address(host, port)
        self._from = (host if isinstance(host, bytes) else None, port)
        self._tick = tick
        self.used_at = tick()  # in the order of use
        self._far = self._near = control
        try:
            self._far = _datagram_socket(control.family)
            self._far.connect(relay)
            self._near = _datagram_socket(socket.AF_INET)
            self._near.bind((socket.inet_ntop(socket.AF_INET, LOOPBACK), 0))
        except BaseException:
            self.close()
            raise
        self._near_known = False
        self.port: int = self._near.getsockname()[1]
        self.descriptors = (control.fileno(), self._far.fileno(), self._near.fileno())
        self.readers = (self._control_says, self._down, self._up)

    def finish(self) -> None:
        """Send what the stack has sent before, and close."""
        self._up()
        self.close()

    def close(self) -> None:
        for sock in (self._control, self._far, self._near):
            sock.close()

    def _control_says(self) -> bool:
        """Nothing is ever said there: what comes is its end."""
        try:
            return bool(self._control.recv(4096))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def _up(self) -> bool:
        for _ in range(_BATCH):
            try:
                data, sender = self._near.recvfrom(_MAX_DATAGRAM)
            except BlockingIOError:
                return True
            except OSError:
                return False  # the stack's socket is gone
            if not self._near_known:
                self._near.connect(sender)
                self._near_known = True
            self.used_at = self._tick()
            _send(self._far, self._header + data)
        return True

    def _down(self) -> bool:
        for _ in range(_BATCH):
            try:
                data = self._far.recv(_MAX_DATAGRAM)
            except BlockingIOError:
                return True
            except OSError:
                continue  # an ICMP error: the control connection says whether it is over
            payload = self._payload(data)
            if payload is not None and self._near_known:
                self.used_at = self._tick()
                _send(self._near, payload)
        return True

    def _payload(self, data: bytes) -> bytes | None:
        """What a datagram of the relay carries for the command, or None."""
        if len(data) < 4 or data[2] != 0:
            return None
        try:
            address, port, length = read_socks_address(data[3:])
        except DialError:
            return None
        host, expected_port = self._from
        if not length or port != expected_port or host not in (None, address):
            return None
        self._from = (address, port)
        return data[3 + length :]


def _datagram_socket(family: int) -> socket.socket:
    return socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)


def _send(sock: socket.socket, data: bytes) -> None:
    """What does not go is lost, as on any wire: a full queue, a datagram that the header has made too large."""
    try:
        sock.send(data)
    except OSError:
        pass


def relay_sockaddr(control: socket.socket, said: bytes, port: int) -> tuple[str, int]:
    """Where the relay is: the address that the proxy named, or the proxy's own where that names none that can be meant
    (a name, 0.0.0.0, loopback of another machine, another family). Names are not looked up."""
    peer = control.getpeername()
    own: str = peer[0]
    if len(said) != (4 if control.family == socket.AF_INET else 16):
        return own, port
    text = address_text(said)
    return (own if _is_nowhere(said) or text == own else text), port


def _is_nowhere(address: bytes) -> bool:
    """Unspecified, loopback, link-local or multicast, of either family."""
    if len(address) == 4:
        return address[0] in (0, 127) or address[0] >= 224 or address[:2] == b"\xa9\xfe"
    return address[:15] == bytes(15) or address[0] == 0xFF or address[:2] == b"\xfe\x80" or address[:12] == _MAPPED


_MAPPED = bytes(10) + b"\xff\xff"
