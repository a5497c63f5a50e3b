"""The doorway to the C stack: the only module that imports the extension.

Every C function has one method here; its return code becomes a `StackError` in one place (`checked`). Events cross in
batches. C copies what it is given before it returns, and what it gives is copied here, so no buffer outlives a call.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from childflow._netstack import ffi, lib
from childflow.errors import StackError
from childflow.limits import Limits
from childflow.netstack.events import (
    Connected,
    Datagram,
    Denial,
    End,
    Ended,
    Event,
    Flight,
    Question,
    SlowKind,
    SlowPacket,
)

if TYPE_CHECKING:
    from childflow.settings import Addresses

EVENT_BATCH = 512

_DROP_PREFIX = "CF_DROP_"
_DROP_NAMES: tuple[str, ...] = tuple(
    name.removeprefix(_DROP_PREFIX).lower()
    for _, name in sorted(ffi.typeof("enum cf_drop").elements.items())
    if name != "CF_DROP_COUNT"
)
_DROP_NUMBER = {name: number for number, name in enumerate(_DROP_NAMES)}
_C_LIMITS = tuple(name for name, _ in ffi.typeof("struct cf_config").fields if name in Limits._fields)
_ENDS = tuple(End)
_SLOW_KINDS = tuple(SlowKind)


def checked(code: int, what: str) -> None:
    """Raise `StackError` for a negative `cf_result`; `what` names the call and the flow."""
    if code < 0:
        if code == lib.CF_ESYS:
            what = f"{what}: {os.strerror(ffi.errno)}"
        raise StackError(code, what)


class Stack:
    """One userspace network stack on a TAP descriptor. The descriptor stays the caller's to close."""

    def __init__(
        self, tap_fd: int, addresses: Addresses, *, mtu: int = 1500, offload: bool = True, limits: Limits | None = None,
        crash_path: str = "", clock: Callable[[], int] | None = None,
    ) -> None:  # fmt: skip
        """`crash_path`: the pcapng file that the last frames are written to when an assertion of the stack fails.

        `clock`: microseconds as `turn` gets them; an answer may come long after the last turn. None: it never does.
        """
        self.limits = (limits or Limits()).fitted()
        config = ffi.new("struct cf_config *")
        config.tap_fd = tap_fd
        config.offload = offload
        config.mtu = mtu
        for name in _C_LIMITS:
            setattr(config, name, getattr(self.limits, name))
        config.crash_path = os.fsencode(crash_path)
        for field in ("child4", "gateway4", "child6", "gateway6", "child_mac", "gateway_mac"):
            ffi.memmove(getattr(config, field), getattr(addresses, field), len(getattr(addresses, field)))
        ffi.memmove(config.hash_key, os.urandom(16), 16)
        ffi.memmove(config.isn_key, os.urandom(16), 16)
        st = lib.cf_stack_new(config)
        if st == ffi.NULL:
            raise OSError(ffi.errno, f"network stack: {os.strerror(ffi.errno)}")
        self._st = ffi.gc(st, lib.cf_stack_free)
        self._events = ffi.new("struct cf_event[]", EVENT_BATCH)
        self.fd: int = lib.cf_stack_fd(self._st)
        self.tap_gone = False
        self._clock = clock

    def close(self) -> None:
        """Close every host socket and free the stack; no other method may be called afterwards."""
        if self._st is not None:
            ffi.release(self._st)
            self._st = None

    def turn(self, now_us: int) -> bool:
        """Do a bounded amount of work at `now_us`; True: call again at once, no descriptor fires for the rest."""
        flags = lib.cf_turn(self._st, now_us)
        if flags & lib.CF_TURN_TAP_GONE:
            self.tap_gone = True
        self.has_events = bool(flags & lib.CF_TURN_EVENTS)
        return bool(flags & lib.CF_TURN_MORE)

    has_events = False

    def events(self) -> list[Event]:
        """All waiting events; a flow's own come in their order."""
        out: list[Event] = []
        self.has_events = True
        while self.has_events:
            out += self.some_events(EVENT_BATCH)
        return out

    def some_events(self, most: int) -> list[Event]:
        """Waiting events, at most `most` (6 to EVENT_BATCH); `has_events` is false when there were none."""
        out: list[Event] = []
        count = lib.cf_events(self._st, self._events, most)
        for i in range(count):
            try:
                out.append(_event(self._events[i]))
            except MemoryError:
                self._lose(self._events[i])
        self.has_events = count > 0
        return out

    def _lose(self, event: Any) -> None:
        """There is no memory for this event. Nobody will judge the flow that it is about, so the child hears no."""
        if event.kind in (lib.CF_EVENT_QUESTION, lib.CF_EVENT_FLIGHT):
            lib.cf_flow_deny(self._st, event.flow, lib.CF_DENY_RESET)

    def allow(self, flow: int) -> None:
        """Let a parked flow out; C opens the host socket."""
        checked(lib.cf_flow_allow(self._st, flow), f"allow flow {flow}")

    def deny(self, flow: int, how: Denial) -> None:
        """Refuse a parked flow, or a held one: nothing that is held of it ever leaves."""
        self._look_at_clock()
        checked(lib.cf_flow_deny(self._st, flow, how), f"deny flow {flow}")

    def _look_at_clock(self) -> None:
        if self._clock is not None:
            lib.cf_clock(self._st, self._clock())

    def allow_to(self, flow: int, address: bytes, port: int) -> None:
        """As `allow`, to this packed address and port; what the child sees keeps the address that it used."""
        self._look_at_clock()
        code = lib.cf_flow_allow_to(self._st, flow, len(address), address, port)
        checked(code, f"allow flow {flow} to {address.hex()} port {port}")

    def hold(self, flow: int) -> None:
        """Hold a parked flow. Once it is allowed or attached, a TCP child is connected, and nothing that it says leaves
        before `pass_on`; a UDP peer stays parked until it is allowed. `Flight` events tell of what comes."""
        checked(lib.cf_flow_hold(self._st, flow), f"hold flow {flow}")

    def held(self, flow: int, index: int = 0) -> bytes:
        """What a held TCP child has said, or the `index`-th datagram of a held peer that is not empty; b"" for none."""
        size = self._held(flow, index, ffi.NULL, 0)
        out = bytearray(size)
        if size:
            self._held(flow, index, ffi.from_buffer(out), size)
        return bytes(out)

    def _held(self, flow: int, index: int, out: Any, size: int) -> int:
        code = int(lib.cf_flow_held(self._st, flow, index, out, size))
        checked(code, f"look at flow {flow}")
        return code

    def pass_on(self, flow: int) -> None:
        """Let what is held of a TCP flow leave at the next `turn`, and all that follows."""
        checked(lib.cf_flow_pass(self._st, flow), f"pass flow {flow} on")

    def attach(self, flow: int, fd: int) -> None:
        """Make the connected stream socket `fd` the host side of a parked TCP flow; it belongs to the stack then."""
        self._look_at_clock()
        checked(lib.cf_flow_attach(self._st, flow, fd), f"attach flow {flow}")

    def forget(self, flow: int) -> None:
        """End a UDP peer whose host side is gone: nothing is sent there any more. Its next datagram asks."""
        self._look_at_clock()
        checked(lib.cf_flow_forget(self._st, flow), f"forget flow {flow}")

    def reply_datagram(self, to: Datagram, payload: bytes) -> None:
        """Answer a datagram, from the address and port that it was sent to. A full TAP loses it, as a wire would."""
        code = lib.cf_reply_datagram(self._st, len(to.remote), to.remote, to.child_port, payload, len(payload))
        if code != lib.CF_EBUSY:
            checked(code, f"answer port {to.child_port}")

    def send_ip(self, packet: bytes) -> None:
        """Give the child a whole IP packet, checksums complete. A full TAP loses it."""
        code = lib.cf_send_ip(self._st, packet, len(packet))
        if code != lib.CF_EBUSY:
            checked(code, "send a packet")

    def send_frame(self, frame: bytes) -> None:
        """Give the child a whole Ethernet frame. A full TAP loses it."""
        code = lib.cf_send_frame(self._st, frame, len(frame))
        if code != lib.CF_EBUSY:
            checked(code, "send a frame")

    def input_ip(self, packet: bytes) -> None:
        """Take a whole IP packet as if the child had just sent it."""
        checked(lib.cf_input_ip(self._st, packet, len(packet)), "input a packet")

    def drop(self, reason: str) -> None:
        """Count a drop that Python decided, under one of the names of `counters()`."""
        checked(lib.cf_drop(self._st, _DROP_NUMBER[reason]), f"count {reason}")

    def close_all(self) -> None:
        """End every flow as killed, so that `events()` tells what each one carried."""
        checked(lib.cf_close_all(self._st), "close all flows")

    def counters(self) -> dict[str, int]:
        """Frames that were not carried, by reason; only reasons that occurred."""
        drops = lib.cf_drops(self._st)
        return {name: drops[i] for i, name in enumerate(_DROP_NAMES) if drops[i]}

    def counted(self, reason: str) -> int:
        """One of the counters."""
        return int(lib.cf_drops(self._st)[_DROP_NUMBER[reason]])

    def flow_count(self) -> int:
        """Flows in the table now."""
        return int(lib.cf_flow_count(self._st))

    def unfinished(self) -> int:
        """TCP flows whose child has not finished sending, or whose host has not taken everything; walks the table."""
        return int(lib.cf_unfinished(self._st))

    def buffered(self) -> int:
        """Payload bytes that flows hold now."""
        return int(lib.cf_buffered(self._st))


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071) of `data`, as the number that stands in a header."""
    return int(lib.cf_checksum(data, len(data)))


def _event(e: Any) -> Event:
    kind = e.kind
    if kind == lib.CF_EVENT_QUESTION:
        return Question(e.flow, e.protocol, e.child_port, bytes(ffi.buffer(e.remote, e.address_len)), e.remote_port)
    if kind == lib.CF_EVENT_CONNECTED:
        return Connected(e.flow, e.error, e.duration_us)
    if kind == lib.CF_EVENT_FLIGHT:
        return Flight(e.flow, bool(e.detail))
    if kind == lib.CF_EVENT_ENDED:
        return Ended(e.flow, _ENDS[e.detail], e.bytes_up, e.bytes_down, e.duration_us)
    data = bytes(ffi.buffer(e.data, e.data_len))
    if kind == lib.CF_EVENT_DATAGRAM:
        return Datagram(bytes(ffi.buffer(e.remote, e.address_len)), e.child_port, e.remote_port, data)
    return SlowPacket(_SLOW_KINDS[e.detail], data)
