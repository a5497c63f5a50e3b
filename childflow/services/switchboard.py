"""The switchboard: what Python does with each event of the stack.

After each turn the engine hands the waiting events over in one list. A question is judged once and answered allow,
deny, or attach (DNS over TCP, served here); DNS datagrams, ARP, neighbour discovery, pings and fragments go to their
service; the rest is told to the recorder, and only if somebody wants to know.

Invariants: a flow that no verdict allowed stays parked or is refused: an exception of ours never opens anything.
            A flow that died between question and answer (StackError) is nobody's fault and is passed over.
            A service is imported and made when its first event comes: a command that uses no network pays for none.
Not here:   the judgement (`policy/verdict.py`), the packets (the C stack).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from childflow.errors import StackError
from childflow.limits import Limits
from childflow.netstack.events import Connected, Datagram, Denial, Ended, Event, Question, SlowKind, SlowPacket
from childflow.policy.verdict import TCP, Action, Ask, Verdict, judge
from childflow.settings import ADDRESSES, Addresses, Settings

if TYPE_CHECKING:
    from childflow.netstack.stack import Stack
    from childflow.record.null import NullRecorder
    from childflow.services.dns_service import DnsService
    from childflow.services.echo import Echo
    from childflow.services.fragments import Reassembler
    from childflow.services.name_policy import NamePolicy
    from childflow.services.neighbours import Answer
    from childflow.services.resolvers import Resolvers
    from childflow.services.watch import Watch

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
        addresses: Addresses = ADDRESSES,
        limits: Limits | None = None,
    ) -> None:
        """`resolvers` None: those of `settings.dns` or the host. UsageError for a `settings.dns` that is none."""
        self._limits = limits or Limits()
        self._stack = stack
        self._loop = loop
        self._recorder = recorder
        self._addresses = addresses
        if resolvers is None and settings.dns is not None:
            resolvers = self._open_resolvers(settings.dns)
        self._resolvers = resolvers
        self._watch: Watch | None = None
        self._dns: DnsService | None = None
        self._echo: Echo | None = None
        self._fragments: Reassembler | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._events_made = False  # by a packet that a service put into the stack
        self._by_type: dict[type, Callable[[Any], None]] = {
            Question: self._question,
            Datagram: self._datagram,
            SlowPacket: self._slow,
            Connected: recorder.connected,
            Ended: recorder.ended,
        }
        self._by_kind: dict[SlowKind, Callable[[bytes], None]] = {
            SlowKind.ARP: self._arp,
            SlowKind.ND: self._nd,
            SlowKind.ECHO: self._ping,
            SlowKind.ECHO_FRAGMENTABLE: self._ping_fragmentable,
            SlowKind.FRAGMENT: self._fragment,
            SlowKind.SPOOFED: lambda packet: None,
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
        if self._dns is not None:
            self._dns.close()
        if self._echo is not None:
            self._echo.close()
        if self._watch is not None:
            self._watch.close()

    # Flows.

    def _question(self, question: Question) -> None:
        verdict = judge(Ask(question.protocol, question.remote, question.remote_port), self._addresses)
        if verdict.action is Action.ALLOW:
            self._stack.allow(question.flow)
            if self._recorder.active:
                self._recorder.allowed(question, verdict)
        elif verdict.action is Action.SERVE and question.protocol == TCP:
            self._serve_dns(question)
        else:
            self._deny(question, verdict)

    def _deny(self, question: Question, verdict: Verdict) -> None:
        self._stack.deny(question.flow, verdict.denial)
        if self._recorder.active:
            self._recorder.denied(question, verdict)

    def _serve_dns(self, question: Question) -> None:
        end = self._open_dns().open_connection(question.remote)
        if end is None:
            self._stack.deny(question.flow, Denial.RESET)
            return
        try:
            self._stack.attach(question.flow, end.fileno())
        except StackError:
            end.close()
            self._stack.deny(question.flow, Denial.RESET)  # if it is still there
            return
        end.detach()  # the stack's now

    def _datagram(self, datagram: Datagram) -> None:
        self._by_type[Datagram] = self._open_dns().query
        self._by_type[Datagram](datagram)

    def _open_dns(self) -> DnsService:
        if self._dns is None:
            from childflow.services.dns_service import DnsService

            resolvers = self._resolvers if self._resolvers is not None else self._open_resolvers(None)
            watch = self._open_watch()
            policy = self._name_policy(resolvers)
            self._dns = DnsService(self._stack, self._loop, watch, resolvers, self._recorder, policy, self._limits)
        return self._dns

    def _name_policy(self, resolvers: Resolvers) -> NamePolicy:
        from childflow.policy.names import Names
        from childflow.policy.rules import NO_RULES
        from childflow.services.name_policy import NamePolicy

        server = resolvers.fixed()
        return NamePolicy(NO_RULES, Names(), self._recorder, self._addresses, self._loop.time, server=server)

    def _open_resolvers(self, dns: str | None) -> Resolvers:
        from childflow.services.resolvers import Resolvers

        return Resolvers(dns, self._loop.time)

    def _open_watch(self) -> Watch:
        if self._watch is None:
            from childflow.services.watch import Watch

            self._watch = Watch(self._loop)
        return self._watch

    def _broken(self, event: Event, error: Exception) -> None:
        """A bug: say it where bugs are said, and leave the flow closed."""
        self._loop.call_exception_handler({"message": f"childflow: {type(event).__name__} failed", "exception": error})
        if isinstance(event, Question):
            try:
                self._stack.deny(event.flow, Denial.PROHIBITED if event.protocol != TCP else Denial.RESET)
            except StackError:
                pass

    # The slow path.

    def _slow(self, event: SlowPacket) -> None:
        self._by_kind[event.kind](event.packet)

    def _arp(self, frame: bytes) -> None:
        from childflow.services import neighbours

        self._answer_neighbour(neighbours.answer_arp(frame, self._addresses))

    def _nd(self, packet: bytes) -> None:
        from childflow.services import neighbours

        self._answer_neighbour(neighbours.answer_nd(packet, self._addresses))

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
        if self._echo is None:
            from childflow.services.echo import Echo

            watch, sessions = self._open_watch(), self._limits.ping_sessions
            self._echo = Echo(self._stack, self._loop.time, watch, self._recorder, self._addresses, sessions)
        self._echo.handle(packet, may_fragment)
        self._expire_soon()

    def _fragment(self, packet: bytes) -> None:
        if self._fragments is None:
            from childflow.services.fragments import Reassembler

            self._fragments = Reassembler(self._limits.fragment_datagrams, self._limits.fragment_bytes)
        result = self._fragments.take(packet, self._loop.time())
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
            waiting = self._expire_all(self._loop.time())
        finally:
            if waiting:
                self._expire_soon()

    def _expire_all(self, now: float) -> bool:
        waiting = False
        if self._fragments is not None:
            for _ in range(self._fragments.expire(now)):
                self._stack.drop("fragment_timeout")
            waiting = len(self._fragments) > 0
        if self._echo is not None:
            waiting = self._echo.expire(now) or waiting
        return waiting
