"""The switchboard: what Python does with each event of the stack.

After each turn the engine hands the waiting events over in one list. Questions about flows, and what a held flow says
first, go to `admission.py`; DNS datagrams, ARP, neighbour discovery, pings and fragments to their service; the rest is
told to the recorder, and only if somebody wants to know.

Invariants: a flow that no verdict allowed stays parked or is refused: an exception of ours never opens anything.
            A flow that died between question and answer (StackError) is nobody's fault and is passed over.
Not here:   the judgement (`policy/verdict.py`), how it is carried out (`admission.py`), the packets (the C stack).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from childflow.errors import StackError
from childflow.limits import Limits
from childflow.netstack.events import Connected, Datagram, Denial, Ended, Event, Flight, Question, SlowKind, SlowPacket
from childflow.policy.policy import Policy, without_rules
from childflow.policy.verdict import TCP
from childflow.services.admission import Admission
from childflow.services.on_demand import OnDemand
from childflow.settings import Settings

if TYPE_CHECKING:
    from childflow.netstack.stack import Stack
    from childflow.record.null import NullRecorder
    from childflow.services.neighbours import Answer
    from childflow.services.resolvers import Resolvers

EXPIRE_S = 1.0  # how often half-received datagrams and idle ping sockets are looked at, while there are any


class Switchboard:
    """Connects the stack's events with policy, services and recorder."""

    def __init__(
        self,
        stack: Stack,
        settings: Settings,
        loop: asyncio.AbstractEventLoop,
        recorder: NullRecorder,
        resolvers: Resolvers | None = None,
        policy: Policy | None = None,
        limits: Limits | None = None,
        has_ipv6: bool = True,
    ) -> None:
        """`resolvers` None: those of `settings.dns` or the host, UsageError for a `settings.dns` that is none.

        `policy` None: no rules. `has_ipv6`: the host has a way out for it.
        """
        self._stack = stack
        self._loop = loop
        self._recorder = recorder
        self._policy = policy or without_rules(clock=loop.time)
        limits = limits or Limits()
        self._services = OnDemand(stack, loop, recorder, settings, self._policy, limits, resolvers, has_ipv6)
        self._admission = Admission(stack, loop, recorder, self._policy, self._services)
        self._timer: asyncio.TimerHandle | None = None
        self._events_made = False  # by a packet that a service put into the stack
        self._by_type: dict[type, Callable[[Any], None]] = {
            Question: self._admission.question,
            Flight: self._admission.flight,
            Datagram: self._datagram,
            SlowPacket: self._slow,
            Connected: recorder.connected,
            Ended: self._ended,
        }
        self._by_kind: dict[SlowKind, Callable[[bytes], None]] = {
            SlowKind.ARP: self._arp,
            SlowKind.ND: self._nd,
            SlowKind.ECHO: self._ping,
            SlowKind.ECHO_FRAGMENTABLE: self._ping_fragmentable,
            SlowKind.FRAGMENT: self._fragment,
            SlowKind.SPOOFED: self._spoofed,
        }
        recorder.start(loop)

    def handle(self, events: Iterable[Event]) -> None:
        """Deal with `events` in their order. Never raises: a fault of ours costs the one event."""
        by_type = self._by_type
        for event in events:
            try:
                by_type[type(event)](event)
            except StackError:
                pass
            except Exception as error:
                self._broken(event, error)
        if self._events_made:
            self._events_made = False
            self.handle(self._stack.events())

    def close(self) -> None:
        """Close every socket and timer of the services. The recorder stays open."""
        if self._timer is not None:
            self._timer.cancel()
        self._admission.close()
        self._services.close()

    def _ended(self, event: Ended) -> None:
        self._admission.ended(event)
        self._recorder.ended(event)

    def _datagram(self, datagram: Datagram) -> None:
        self._by_type[Datagram] = self._services.dns().query
        self._by_type[Datagram](datagram)

    def _broken(self, event: Event, error: Exception) -> None:
        """A bug: say it where bugs are said, and refuse the flow: it would wait for ever."""
        self._loop.call_exception_handler({"message": f"childflow: {type(event).__name__} failed", "exception": error})
        if isinstance(event, Question):
            self._refuse(event.flow, Denial.PROHIBITED if event.protocol != TCP else Denial.RESET)
        elif isinstance(event, Flight):
            self._refuse(event.flow, Denial.RESET)

    def _refuse(self, flow: int, how: Denial) -> None:
        try:
            self._stack.deny(flow, how)
        except StackError:
            pass

    # The slow path.

    def _slow(self, event: SlowPacket) -> None:
        self._by_kind[event.kind](event.packet)

    def _arp(self, frame: bytes) -> None:
        from childflow.services import neighbours

        self._answer_neighbour(neighbours.answer_arp(frame, self._policy.link))

    def _nd(self, packet: bytes) -> None:
        from childflow.services import neighbours

        self._answer_neighbour(neighbours.answer_nd(packet, self._policy.link))

    def _answer_neighbour(self, answer: Answer) -> None:
        if answer.frame is not None:
            self._stack.send_frame(answer.frame)
        elif answer.packet is not None:
            self._stack.send_ip(answer.packet)
        elif answer.drop is not None:
            self._stack.drop(answer.drop)

    def _ping_fragmentable(self, packet: bytes) -> None:
        self._ping(packet, may_fragment=True)

    def _ping(self, packet: bytes, may_fragment: bool = False) -> None:
        self._services.echo().handle(packet, may_fragment)
        self._expire_soon()

    def _spoofed(self, packet: bytes) -> None:
        from childflow.services.packets import ends_of

        found = ends_of(packet)
        if found is not None:
            self._recorder.spoofed(*found)

    def _fragment(self, packet: bytes) -> None:
        result = self._services.fragments().take(packet, self._loop.time())
        if result.drop is not None:
            self._stack.drop(result.drop)
        for _ in range(result.evicted):
            self._stack.drop("fragment_limit")
        if result.error is not None:
            self._stack.send_ip(result.error)
        if result.packet is not None:
            self._stack.input_ip(result.packet)
            self._events_made = True
        self._expire_soon()

    def _expire_soon(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(EXPIRE_S, self._expire)

    def _expire(self) -> None:
        self._timer = None
        waiting = True  # also if this goes wrong
        try:
            waiting = self._services.expire(self._loop.time())
        finally:
            if waiting:
                self._expire_soon()
