"""Words, and at times a descriptor, from one process of the start to another.

A message is one datagram of a SOCK_SEQPACKET pair: text fields joined by NUL, and at most one descriptor (SCM_RIGHTS).
Invariants: a received descriptor is close-on-exec. An empty list of fields is the other end's end of file.
"""

from __future__ import annotations

import os
import socket
import struct

FIELDS_MAX = 65536
_FD = struct.Struct("i")


def send(channel: socket.socket, *fields: str, fd: int | None = None) -> None:
    """Send one message; raises OSError (EPIPE when the other end is gone)."""
    ancillary = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, _FD.pack(fd))]
    channel.sendmsg([os.fsencode("\0".join(fields))], ancillary, socket.MSG_NOSIGNAL)


def receive(channel: socket.socket) -> tuple[list[str], int | None]:
    """The next message's fields and its descriptor, or `([], None)` at the end of file."""
    data, ancillary, _flags, _address = channel.recvmsg(FIELDS_MAX, socket.CMSG_LEN(_FD.size), socket.MSG_CMSG_CLOEXEC)
    fd = next((_FD.unpack(payload)[0] for level, kind, payload in ancillary if kind == socket.SCM_RIGHTS), None)
    return (os.fsdecode(data).split("\0") if data else []), fd
