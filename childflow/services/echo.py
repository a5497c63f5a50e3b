"""Echo: the child's pings, sent from the host by a socket of the caller's, and what comes back.

Linux lets an ordinary user ping with a datagram socket of IPPROTO_ICMP, if `ping_group_range` has one of his groups.
Where it has not and the caller may open raw sockets, one raw socket per family does the same. Else the child is told
"administratively prohibited": a reply that nobody sent would be a lie. Either way the host's own id goes on the wire,
and a session (one per family and id of the child) puts the child's back.

A TTL of 64, the default, stays the host's default; any other goes out one less, as from a router, so traceroute sees
the gateway first and then the real path. ICMP errors about our echo come back through the socket's error queue and go
to the child from the address that sent them, quoting the child's own packet. DSCP and ECN bits go out as they came; an
echo that may not be cut leaves whole or is answered "too big" with the path's MTU.

Invariants: at most MAX_SESSIONS sessions with QUOTES packets each; a reply is passed on only from an address that its
            session has pinged.
Not here:   whether an address may be pinged (`policy/verdict.py`), ICMP errors of UDP and TCP (the C stack).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from childflow.netstack.events import Denial
from childflow.policy.policy import Policy
from childflow.policy.verdict import Action, Verdict
from childflow.services import packets
from childflow.services.watch import Watch

if TYPE_CHECKING:
    from childflow.netstack.stack import Stack
    from childflow.record.null import NullRecorder

MAX_SESSIONS = 256
IDLE_S = 60.0
QUOTES = 256  # packets of a session that an ICMP error may still name
QUOTE_BYTES = 128
PEERS = 256
_RECEIVE_BATCH = 64
_MAX_MESSAGE = 65535
_MTU_CERTAIN = 576  # every IPv4 host takes that much (RFC 791 3.1)
_RECEIVE_BUFFER = 1 << 20  # bytes; a burst of pings that one look has not read yet, some 1,300 of 56 bytes

_ICMP_FILTER = 1  # linux/icmp.h; at level SOL_RAW
_ICMP6_FILTER = 1  # linux/icmpv6.h; at level IPPROTO_ICMPV6
_SOL_RAW = 255
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h
_IP_RECVERR = 11  # linux/in.h
_IP_RECVTTL = 12
_IP_MTU_DISCOVER = 10
_IPV6_MTU_DISCOVER = 23
_PMTUDISC_DONT, _PMTUDISC_DO = 0, 2
_IPV6_RECVERR = 25  # linux/in6.h
_ERROR = struct.Struct("=IBBBxII")  # struct sock_extended_err, linux/errqueue.h: errno, origin, type, code, info, data
_ORIGIN_LOCAL = 1
_ORIGIN_ICMP = 2
_ORIGIN_ICMP6 = 3
_SOCKADDR_IN_ADDRESS = slice(4, 8)
_SOCKADDR_IN6_ADDRESS = slice(8, 24)


_MESSAGE = struct.Struct("!BBHHH")  # type, code, checksum, id, sequence number (RFC 792, 4443)

K = TypeVar("K")
V = TypeVar("V")


class Family(NamedTuple):
    """The numbers of one IP version."""

    version: int
    af: socket.AddressFamily
    protocol: int
    request: int
    reply: int
    prohibited: tuple[int, int]  # ICMP type and code
    time_exceeded: tuple[int, int]
    no_route: tuple[int, int]
    no_host: tuple[int, int]
    too_big: tuple[int, int]
    errors: tuple[int, ...]  # ICMP types that are passed on


FAMILY4 = Family(4, socket.AF_INET, socket.IPPROTO_ICMP, 8, 0, (3, 13), (11, 0), (3, 0), (3, 1), (3, 4), (3, 11))
FAMILY6 = Family(6, socket.AF_INET6, socket.IPPROTO_ICMPV6, 128, 129, (1, 1), (3, 0), (1, 0), (1, 3), (2, 0), (1, 2, 3))


class Manner(NamedTuple):
    """What of a packet's IP header goes with the echo. `ttl` in hops."""

    ttl: int = packets.TTL
    tos: int = 0
    may_fragment: bool = False


class Request(NamedTuple):
    """The child's echo request: addresses, its manner, id and sequence number, the data, and the packet to quote."""

    family: Family
    child: bytes
    remote: bytes
    manner: Manner
    ident: int
    sequence: int
    data: bytes
    quote: bytes


class Session:
    """One id of the child in one family. `sock` is its own ping socket or the family's raw one."""

    __slots__ = ("family", "host_id", "ident", "manner", "peers", "quotes", "sock", "used_at")

    def __init__(self, family: Family, ident: int, sock: socket.socket, host_id: int) -> None:
        self.family = family
        self.ident = ident
        self.sock = sock
        self.host_id = host_id
        self.manner: Manner | None = None  # of the last that `sock` sent; None: unknown
        self.used_at = 0.0
        self.peers: dict[bytes, bytes] = {}  # address pinged: the child's address it was pinged from
        self.quotes: dict[tuple[bytes, int], bytes] = {}  # by address and sequence number

    def remember(self, request: Request, now: float) -> None:
        """Note what an answer or an error will need."""
        self.used_at = now
        _keep_last(self.peers, request.remote, request.child, PEERS)
        _keep_last(self.quotes, (request.remote, request.sequence), request.quote, QUOTES)


def _keep_last(table: dict[K, V], key: K, value: V, limit: int) -> None:
    """Set `key` as the youngest of at most `limit`."""
    table.pop(key, None)
    if len(table) >= limit:
        del table[next(iter(table))]
    table[key] = value


class Echo:
    """Sends the child's pings and brings their answers."""

    def __init__(
        self,
        stack: Stack,
        clock: Callable[[], float],
        watch: Watch,
        recorder: NullRecorder,
        policy: Policy,
        sessions_max: int = MAX_SESSIONS,
    ) -> None:
        """`clock` in seconds; `watch` tells when a socket has something."""
        self._sessions_max = sessions_max
        self._stack = stack
        self._clock = clock
        self._watch = watch
        self._recorder = recorder
        self._policy = policy
        self._link = policy.link
        self._sessions: dict[tuple[int, int], Session] = {}  # by version and the child's id, least recently used first
        self._by_host: dict[tuple[int, int], Session] = {}  # by version and the id on the wire
        self._raw: dict[int, socket.socket] = {}
        self._told = False

    def close(self) -> None:
        """Close every socket."""
        for session in list(self._sessions.values()):
            self._end(session)
        for sock in self._raw.values():
            self._close(sock)
        self._raw.clear()

    def expire(self, now: float) -> bool:
        """End idle sessions; true while there are others."""
        for session in [session for session in self._sessions.values() if session.used_at + IDLE_S <= now]:
            self._end(session)
        return bool(self._sessions)

    def handle(self, packet: bytes, may_fragment: bool = False) -> None:
        """Deal with the echo request in the IP `packet`; `may_fragment`: it may be cut on its way."""
        request = read_request(packet, may_fragment)
        if request is None:
            self._stack.drop("bad_icmp")
            return
        verdict = self._policy.judge(int(request.family.protocol), request.remote, 0)
        if verdict.action is Action.SERVE:
            self._reply(request.family, request.remote, request.child, request.ident, request.sequence, request.data)
        elif verdict.action is Action.DENY:
            self._deny(request, verdict)
        elif request.manner.ttl <= 1:
            self._error(request, request.family.time_exceeded)
        else:
            self._forward(request)

    # Up.

    def _deny(self, request: Request, verdict: Verdict) -> None:
        if verdict.denial is Denial.SILENT:
            self._stack.drop("martian")
        else:
            self._error(request, request.family.prohibited)
        self._recorder.icmp_denied(int(request.family.protocol), request.remote, verdict)

    def _forward(self, request: Request) -> None:
        try:
            session = self._session(request)
        except PermissionError:
            self._no_socket(request)
            return
        except OSError as error:
            self._unsendable(request, error)
            return
        session.remember(request, self._clock())
        try:
            self._send(session, request)
        except BlockingIOError:
            return  # a full socket is a lost ping
        except OSError as error:
            self._unsendable(request, error)
            return
        if self._recorder.active:
            self._recorder.ping_sent(request.remote)

    def _send(self, session: Session, request: Request) -> None:
        if request.manner != session.manner or session.sock is self._raw.get(session.family.version):
            _set_manner(session.sock, session.family, request.manner)
            session.manner = request.manner
        message = _MESSAGE.pack(session.family.request, 0, 0, session.host_id, request.sequence) + request.data
        if session.family is FAMILY4:
            message = packets.icmp4_with_checksum(message)  # a raw socket sends what it is given
        to = (socket.inet_ntop(session.family.af, request.remote), 0)
        try:
            session.sock.sendto(message, to)
        except BlockingIOError:
            raise
        except OSError:  # perhaps the error that an earlier ping earned, and only now told
            self._take_errors(session.sock, session.family)
            self._send_again(session, message, to, request)

    def _send_again(self, session: Session, message: bytes, to: tuple[str, int], request: Request) -> None:
        try:
            session.sock.sendto(message, to)
        except OSError as error:
            if error.errno != errno.EMSGSIZE:
                raise
            mtu = self._take_errors(session.sock, session.family)
            self._error(request, request.family.too_big, _mtu(request.family, mtu or _MTU_CERTAIN))

    def _no_socket(self, request: Request) -> None:
        self._error(request, request.family.prohibited)
        if self._recorder.active:
            self._recorder.ping_failed(request.remote, errno.EACCES)
        if not self._told:
            self._told = True
            self._recorder.notice(
                "ping is closed to this user: no group of yours is in net.ipv4.ping_group_range; "
                "widen it with sysctl -w net.ipv4.ping_group_range='0 2147483647'"
            )

    def _unsendable(self, request: Request, error: OSError) -> None:
        family = request.family
        if self._recorder.active:
            self._recorder.ping_failed(request.remote, error.errno or errno.EIO)
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
            self._stack.drop("echo_limit")
        elif error.errno in (errno.EACCES, errno.EPERM):
            self._error(request, family.prohibited)
        else:
            self._error(request, family.no_host if error.errno == errno.EHOSTUNREACH else family.no_route)

    def _error(self, request: Request, what: tuple[int, int], rest: int = 0) -> None:
        """An ICMP error from the gateway about `request`; `rest` ends its header."""
        source = self._link.gateway4 if request.family is FAMILY4 else self._link.gateway6
        self._stack.send_ip(packets.icmp_error(source, request.child, *what, request.quote, rest))

    # Down.

    def _receive(self, sock: socket.socket, family: Family) -> None:
        """Take the replies and then the errors that wait on `sock`."""
        for _ in range(_RECEIVE_BATCH):
            try:
                message, control, _, address = sock.recvmsg(_MAX_MESSAGE, 64)
            except BlockingIOError:
                break
            except OSError:
                break  # an error's shadow; the error queue has all of it
            self._take_reply(sock, family, message, control, socket.inet_pton(family.af, address[0].partition("%")[0]))
        self._take_errors(sock, family)

    def _take_reply(
        self, sock: socket.socket, family: Family, message: bytes, control: list[tuple[int, int, bytes]], remote: bytes
    ) -> None:
        if family is FAMILY4 and sock is self._raw.get(4):
            message = message[(message[0] & 15) * 4 :]
        if len(message) < 8 or message[0] != family.reply:
            return
        session = self._by_host.get((family.version, message[4] << 8 | message[5]))
        child = session.peers.get(remote) if session is not None else None
        if session is None or child is None:
            return
        session.used_at = self._clock()
        sequence = message[6] << 8 | message[7]
        if self._recorder.active:
            self._recorder.ping_answered(remote)
        self._reply(family, remote, child, session.ident, sequence, message[8:], _ttl_of(control))

    def _reply(
        self, family: Family, remote: bytes, child: bytes, ident: int, seq: int, data: bytes, ttl: int = packets.TTL
    ) -> None:
        message = _MESSAGE.pack(family.reply, 0, 0, ident, seq) + data
        self._stack.send_ip(packets.icmp_packet(remote, child, message, ttl))

    def _take_errors(self, sock: socket.socket, family: Family) -> int:
        """Pass on what is in the error queue. Returns the MTU for which this host refused a message, 0 for none."""
        local_mtu = 0
        for _ in range(_RECEIVE_BATCH):
            try:
                quoted, control, _, address = sock.recvmsg(512, 512, socket.MSG_ERRQUEUE)
            except OSError:
                break
            for _, kind, data in control:
                if kind not in (_IP_RECVERR, _IPV6_RECVERR) or len(data) < _ERROR.size:
                    continue
                if data[4] == _ORIGIN_LOCAL:
                    number, _, _, _, info, _ = _ERROR.unpack_from(data)
                    local_mtu = info if number == errno.EMSGSIZE else local_mtu
                elif len(quoted) >= 8:
                    self._take_error(family, quoted, data, socket.inet_pton(family.af, address[0].partition("%")[0]))
        return local_mtu

    def _take_error(self, family: Family, quoted: bytes, data: bytes, remote: bytes) -> None:
        """Pass one ICMP error on: `quoted` is our echo request as the error quotes it, `data` the kernel's report."""
        _, origin, kind, code, info, _ = _ERROR.unpack_from(data)
        session = self._by_host.get((family.version, quoted[4] << 8 | quoted[5]))
        packet = session.quotes.get((remote, quoted[6] << 8 | quoted[7])) if session is not None else None
        if packet is None or origin not in (_ORIGIN_ICMP, _ORIGIN_ICMP6) or kind not in family.errors:
            return
        offender = data[_ERROR.size :][_SOCKADDR_IN_ADDRESS if family is FAMILY4 else _SOCKADDR_IN6_ADDRESS]
        child = packet[12:16] if family is FAMILY4 else packet[8:24]
        rest = _mtu(family, info) if (kind, code) == family.too_big else 0
        self._stack.send_ip(packets.icmp_error(offender, child, kind, code, packet, rest))

    # Sessions and sockets.

    def _session(self, request: Request) -> Session:
        """The session of the request's id, opened if need be. PermissionError where the caller may have no socket."""
        key = (request.family.version, request.ident)
        session = self._sessions.pop(key, None)
        if session is None:
            if len(self._sessions) >= self._sessions_max:
                self._end(next(iter(self._sessions.values())))
                self._stack.drop("echo_limit")
            session = self._open_session(request.family, request.ident)
        self._sessions[key] = session
        self._by_host[request.family.version, session.host_id] = session
        return session

    def _open_session(self, family: Family, ident: int) -> Session:
        try:
            sock, host_id = _ping_socket(family)
        except PermissionError:
            return Session(family, ident, self._raw_socket(family), self._free_host_id(family))
        self._watch.add(sock.fileno(), lambda: self._receive(sock, family))
        return Session(family, ident, sock, host_id)

    def _raw_socket(self, family: Family) -> socket.socket:
        sock = self._raw.get(family.version)
        if sock is None:
            sock = own = _raw_socket(family)
            self._watch.add(sock.fileno(), lambda: self._receive(own, family))
            self._raw[family.version] = sock  # only now: one that can't be watched is of no use
        return sock

    def _free_host_id(self, family: Family) -> int:
        host_id = int.from_bytes(os.urandom(2), "big")
        while (family.version, host_id) in self._by_host:
            host_id = (host_id + 1) & 0xFFFF
        return host_id

    def _end(self, session: Session) -> None:
        version = session.family.version
        self._sessions.pop((version, session.ident), None)
        self._by_host.pop((version, session.host_id), None)
        if session.sock is not self._raw.get(version):
            self._close(session.sock)

    def _close(self, sock: socket.socket) -> None:
        self._watch.remove(sock.fileno())
        sock.close()


def read_request(packet: bytes, may_fragment: bool = False) -> Request | None:
    """The echo request in `packet`; None where it is none."""
    if packet[:1] and packet[0] >> 4 == 4:
        if len(packet) < packets.IP4_BYTES or packet[9] != packets.ICMP4:
            return None
        header = (packet[0] & 15) * 4
        total = packet[2] << 8 | packet[3]
        manner = Manner(packet[8], packet[1], may_fragment)
        return _request(FAMILY4, packet, header, total, packet[12:16], packet[16:20], manner)
    if len(packet) < packets.IP6_BYTES or packet[6] != packets.ICMP6:
        return None
    total = packets.IP6_BYTES + (packet[4] << 8 | packet[5])
    manner = Manner(packet[7], (packet[0] << 8 | packet[1]) >> 4 & 0xFF, may_fragment)
    return _request(FAMILY6, packet, packets.IP6_BYTES, total, packet[8:24], packet[24:40], manner)


def _request(
    family: Family, packet: bytes, header: int, total: int, child: bytes, remote: bytes, manner: Manner
) -> Request | None:
    if total > len(packet) or header + 8 > total or packet[header] != family.request or packet[header + 1] != 0:
        return None
    _, _, _, ident, sequence = _MESSAGE.unpack_from(packet, header)
    return Request(family, child, remote, manner, ident, sequence, packet[header + 8 : total], packet[:QUOTE_BYTES])


def _ping_socket(family: Family) -> tuple[socket.socket, int]:
    """A ping socket and the id that the kernel gave it."""
    sock = _socket(family, socket.SOCK_DGRAM)
    try:
        sock.bind(("", 0))
        return sock, sock.getsockname()[1]
    except OSError:
        sock.close()
        raise


def _raw_socket(family: Family) -> socket.socket:
    """A raw socket that gets echo replies only."""
    sock = _socket(family, socket.SOCK_RAW)
    if family is FAMILY4:
        sock.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("=I", 0xFFFFFFFF ^ 1 << family.reply))
    else:
        blocked = [0xFFFFFFFF] * 8
        blocked[family.reply >> 5] ^= 1 << (family.reply & 31)
        sock.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, struct.pack("=8I", *blocked))
    return sock


def _socket(family: Family, kind: int) -> socket.socket:
    sock = socket.socket(family.af, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, family.protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)  # the kernel cuts it to rmem_max
    if family is FAMILY4:
        sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
        sock.setsockopt(socket.IPPROTO_IP, _IP_RECVTTL, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
    return sock


def _set_manner(sock: socket.socket, family: Family, manner: Manner) -> None:
    """What `sock` sends next goes out like this. The default TTL stays the host's, any other becomes one less."""
    ttl = -1 if manner.ttl == packets.TTL else manner.ttl - 1
    discovery = _PMTUDISC_DONT if manner.may_fragment else _PMTUDISC_DO
    if family is FAMILY4:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, manner.tos)
        sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, discovery)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, ttl)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, manner.tos)
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, discovery)


def _ttl_of(control: list[tuple[int, int, bytes]]) -> int:
    for _, kind, data in control:
        if kind in (socket.IP_TTL, socket.IPV6_HOPLIMIT):
            return int.from_bytes(data[:4], sys.byteorder) & 0xFF
    return packets.TTL


def _mtu(family: Family, mtu: int) -> int:
    """The MTU to tell the child: IPv6 has none below 1280 (RFC 8200 5)."""
    return mtu & 0xFFFF if family is FAMILY4 else max(mtu, 1280)
