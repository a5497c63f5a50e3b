"""What must hold whatever a child sends, as one object that a test puts around its frames.

    oracle.takes(raw, drop="bad_ip_header")                  # one frame: one counter, silence, nothing opened
    oracle.takes(raw, drop="hop_limit", answers=1)           # at most one answer, and a fit one
    oracle.still_sings()                                     # the canary's byte goes up and down within 100 ms
    with flat(play): ...                                     # memory and descriptors afterwards as before

The canary is a connection of its own that was there before. "Opened" is judged by what a host would see of us: no
question for Python, no flow, no descriptor more, no byte at the canary's host.

Invariants: the oracle only listens; what it opens is the canary.
Not here:   what a fit answer says (the tests), sanitizers (`asan.py`).
"""

from __future__ import annotations

import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from . import wire
from .play import ACK, Play, descriptors

CANARY_PORT = 7
PATIENCE_S = 0.1  # CPU time: another process on this machine is not the stack's fault
ICMP_ERRORS = {(4, wire.ICMP): (3, 4, 5, 11, 12), (6, wire.ICMPV6): range(128)}
SANITIZED = "sanitized_netstack" in sys.modules  # asan.py: what is freed stays in quarantine for a while
FLAT_BYTES = 64 << 20 if SANITIZED else 1 << 20  # what an interpreter's own memory moves by


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


@contextmanager
def flat(play: Play) -> Iterator[None]:
    """I3: what is done here leaves memory and descriptors as they were."""
    fds, memory = descriptors(), resident()
    yield
    assert descriptors() == fds
    assert resident() - memory < FLAT_BYTES, f"{resident() - memory} bytes more"
    assert play.stack.buffered() == 0


class Oracle:
    """I1, I2, I5 and I6 of one play."""

    def __init__(self, play: Play) -> None:
        self.play = play
        play.establish(CANARY_PORT)
        self._child, self._host = play.child, play.host
        play.forgets_events()
        self.still_sings()

    def still_sings(self) -> None:
        """I2."""
        begin = time.process_time()
        self._child.sends(ACK, text=b"?")
        self._host.gets(b"?")
        self._host.sends(b"!")
        assert b"".join(s.text for s in self._child.forgets()) == b"!"
        self._child.got += 1
        self._child.sends(ACK)
        self._child.gets_nothing()
        assert time.process_time() - begin < PATIENCE_S, "the canary was slow"

    def takes(self, raw: bytes, *, drop: str | None, answers: int = 0) -> None:
        """The frame `raw` is counted once as `drop` (None: not at all), earns `answers` answers, and opens nothing."""
        play = self.play
        counted, frames, flows, fds = play.stack.counters(), play.frames, play.stack.flow_count(), descriptors()
        play.injects(raw)
        assert moved(counted, play.stack.counters()) == ({drop: 1} if drop else {})
        assert play.frames - frames == answers
        told = play.spoofed()
        assert len(told) <= (drop == "spoofed_source")
        assert all(told)
        play.no_event()
        assert (play.stack.flow_count(), descriptors()) == (flows, fds)
        assert play.stack.buffered() == 0
        self._host.gets_nothing()
        self._fit(raw)

    def _fit(self, raw: bytes) -> None:
        """I6, for whatever waits to be looked at: an answer to `raw`."""
        asked = subject(raw)
        if self.play.errors:
            assert not asked.error, "an error about an error"
            assert not asked.group, "an error about what went to a group"
            assert asked.own, "an error about a packet that is not the child's own"
        assert not (asked.reset and self.play.strays), "an answer to an RST"


class Subject:
    """What a frame was, as far as its bytes tell: enough to say who may be answered."""

    def __init__(self, packet: bytes) -> None:
        version = packet[0] >> 4 if packet else 0
        self.own = self.group = self.error = self.reset = False
        if version == 4 and len(packet) >= 20:
            self._read(4, packet[9], packet[12:16], packet[(packet[0] & 15) * 4 :])
            self.group = packet[16] >= 224 or packet[16:20] == b"\xff" * 4
        elif version == 6 and len(packet) >= 40:
            self._read(6, packet[6], packet[8:24], packet[40:])
            self.group = packet[24] == 0xFF

    def _read(self, version: int, protocol: int, src: bytes, payload: bytes) -> None:
        self.own = src in (wire.CHILD[4], wire.CHILD[6])
        self.error = payload[:1] != b"" and payload[0] in ICMP_ERRORS.get((version, protocol), ())
        self.reset = protocol == wire.TCP and len(payload) > 13 and bool(payload[13] & wire.RST)


def subject(raw: bytes) -> Subject:
    kind = struct.unpack_from("!H", raw, 22)[0] if len(raw) >= 24 else 0
    return Subject(raw[24:] if kind in (wire.IPV4, wire.IPV6) else b"")


def moved(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """The counters that moved, and by how much."""
    return {name: count - before.get(name, 0) for name, count in after.items() if count != before.get(name, 0)}
