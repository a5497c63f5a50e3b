"""How a connection ends, all ways against all (B03): each end closes, resets, closes with text unread, or vanishes;
first the one, then the other; idle, with text in flight, and before a closed window.

The end that is still there must see what the other one did: its end of file behind all of its text, or its reset. And
when both are done, or gone, the flow's slot and descriptor are free, after hours at the most."""

from __future__ import annotations

import socket
import struct

import pytest

from childflow.netstack.stack import Limits

from .play import ACK, FIN, RST, Play, text_of
from .wire import Segment

pytestmark = pytest.mark.case("B03")

ENDS = ["fin", "rst", "fin unread", "vanish"]
STATES = ["idle", "in flight", "window 0"]
DOWN, UP = 3000, 500
ORPHAN_MS = 60_000  # a Linux socket in FIN-WAIT-2 that no process holds


class Kernel:
    """The child's kernel behind one connection: it acknowledges while it is there, and resets what nobody holds."""

    def __init__(self, play: Play) -> None:
        self.play, self.child = play, play.child
        self.got = b""
        self.saw: set[str] = set()
        self.reading = True
        self.state = "open"

    def takes(self) -> None:
        """Answer all that came."""
        while self.child.inbox:
            s = self.child.inbox.popleft()
            if s.flags & RST:
                self.saw.add("rst")
                self.state = "gone"
            elif self.state == "gone":
                self._resets(s)
            elif self.state != "deaf":
                self._hears(s)

    def _hears(self, s: Segment) -> None:
        at = self.child.relative(s)
        if at == self.child.got and self.reading:
            self.got += s.text
            self.child._take(s)
            if s.flags & FIN:
                self.saw.add("fin")
        if s.text or s.flags & FIN or at < self.child.got:
            self.child.sends(ACK)

    def _resets(self, s: Segment) -> None:
        """A segment for no connection (RFC 9293, 3.10.7.1)."""
        self.child.sends(RST, seq=self.child.acked(s))

    def ends(self, how: str) -> None:
        if how == "vanish":
            self.state = "deaf"
        elif how == "fin":
            self.child.sends(FIN | ACK)
        else:
            self.child.sends(RST)
            self.state = "gone"

    def is_orphaned(self) -> None:
        """A minute after its close, if nothing was left to wait for."""
        if self.state == "open":
            self.state = "gone"


def far_ends(play: Play, how: str) -> None:
    end = play.host.end
    if how == "rst":
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if how != "vanish":
        end.close()
    play.until(lambda: True)


def far_sees(play: Play) -> tuple[bytes, str]:
    """All that the host can read, and what then: "fin", "rst", or "" when it would wait."""
    out = b""
    while True:
        try:
            got = play.host.end.recv(1 << 16)
        except BlockingIOError:
            return out, ""
        except ConnectionResetError:
            return out, "rst"
        if not got:
            return out, "fin"
        out += got


def set_the_scene(play: Play, state: str, host_end: str) -> Kernel:
    play.establish(host="tcp", window=0 if state == "window 0" else 65_535)
    kernel = Kernel(play)
    if state != "idle":
        play.host.sends(text_of(DOWN))
    play.child.sends(ACK, text=text_of(UP))
    play.until(lambda: play.host.end.recv(UP, socket.MSG_PEEK) == text_of(UP))
    if host_end != "fin unread":
        assert play.host.end.recv(UP) == text_of(UP)
    return kernel


def child_sees_what_the_host_did(play: Play, kernel: Kernel, how: str) -> None:
    wanted = {"fin": "fin", "rst": "rst", "fin unread": "rst", "vanish": ""}[how]
    kernel.child.window = 65_535

    def done() -> bool:
        kernel.takes()
        play.clock.advance(ms=250)
        return not wanted or bool(kernel.saw)

    play.until(done)
    assert kernel.saw == ({wanted} if wanted else set())
    if how == "fin":
        assert kernel.got == text_of(len(kernel.got))
        assert len(kernel.got) in (0, DOWN)


def host_sees_what_the_child_did(play: Play, how: str, host_end: str) -> None:
    wanted = {"fin": "fin", "rst": "rst", "fin unread": "rst", "vanish": "rst"}[how]
    seen: list[tuple[bytes, str]] = []

    def done() -> bool:
        seen.append(far_sees(play))
        return bool(seen[-1][1])

    for _ in range(40 if how == "vanish" else 0):  # timers, one a step: retransmissions, probes, keep-alives
        play.clock.advance(ms=7_200_000)
    play.until(done)
    assert seen[-1][1] == wanted
    if how == "fin":
        assert b"".join(text for text, _ in seen) == (text_of(UP) if host_end == "fin unread" else b"")


def all_is_free(play: Play, kernel: Kernel) -> None:
    kernel.child.window = 65_535
    for i in range(100):
        kernel.takes()
        if play.stack.flow_count() == 0:
            break
        play.clock.advance(ms=250 if i < 20 else ORPHAN_MS if i < 30 else 7_200_000)
        if i == 30:
            kernel.is_orphaned()
    assert play.stack.flow_count() == 0
    assert play.stack.buffered() == 0


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("host_end", ENDS)
@pytest.mark.parametrize("child_end", ENDS)
@pytest.mark.parametrize("first", ["child", "host"])
def test_each_end_against_each(stage, first, child_end, host_end, state):
    play = stage(limits=Limits(max_flows=4))
    kernel = set_the_scene(play, state, host_end)
    if first == "host":
        far_ends(play, host_end)
        child_sees_what_the_host_did(play, kernel, host_end)
        kernel.ends(child_end)
    else:
        kernel.ends(child_end)
        host_sees_what_the_child_did(play, child_end, host_end)
        far_ends(play, host_end)
    all_is_free(play, kernel)
    play.forgets_events()
    play.establish(50_000)  # and the slots are there: four of them


def test_a_thousand_ends_leave_no_slot_taken(stage):
    """microsandbox #1180: 256 leaked slots were the end of all traffic. Here there are four."""
    play = stage(limits=Limits(max_flows=4))
    for i in range(1000):
        play.establish(1000 + i)
        if i % 3 == 0:
            play.child.sends(RST)
        elif i % 3 == 1:
            play.child.sends(FIN | ACK)
            play.host.closes()
            play.child.sends(ACK, ack=2)
        else:
            play.host.closes()
            play.child.sends(FIN | ACK, ack=2)
            play.clock.advance(ms=2000)  # TIME-WAIT
        play.child.forgets()
        play.forgets_events()
        assert play.stack.flow_count() == 0
