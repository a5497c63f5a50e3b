"""Admission: may this flow leave, and how. Each question of the stack is judged and the verdict carried out.

    out directly        the stack connects to where the child wanted to go (`Stack.allow`)
    through a proxy     a connection is dialled and handed to the stack (`Stack.attach`)
    to a virtual name   the name is resolved now, and the stack connects to what was found (`Stack.allow_to`)
    DNS                 served inside childflow, whatever address the child chose
    refused             as the verdict says

While domain rules are in force the first bytes of the child are held in the stack until they were read and judged: the
name in them must be one that the rules allow and that led to this address.

Invariants: a flow that no verdict allowed stays parked or held, or is refused: what raises, is cancelled or takes too
            long never opens anything. What waits here is forgotten when the stack says that the flow is over.
Not here:   the judgement (`policy/verdict.py`), the names on the wire (`first_flight.py`, `quic.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from childflow.errors import DialError, StackError
from childflow.netstack.events import Denial, Ended, Flight, Question
from childflow.policy.verdict import TCP, UDP, Action, Ask, Verdict, judge, judge_flight, judge_name, refusal
from childflow.policy.virtual import is_virtual
from childflow.settings import DNS_PORT

if TYPE_CHECKING:
    from childflow.netstack.stack import Stack
    from childflow.policy.policy import Policy
    from childflow.record.null import NullRecorder
    from childflow.services import first_flight, quic
    from childflow.services.on_demand import OnDemand

FLIGHT_S = 10.0  # the longest that an incomplete first flight is held
MORE = "more"  # as `first_flight.MORE` has it
UNREADABLE = "unreadable"  # there may be a name, but which one can't be told


class _Held:
    """A flow whose first flight is being read."""

    __slots__ = ("ask", "datagrams", "initials", "question", "reader", "target", "timer", "verdict")

    def __init__(self, question: Question, ask: Ask, verdict: Verdict, target: str | None) -> None:
        self.question = question
        self.ask = ask
        self.verdict = verdict
        self.target = target  # a virtual name
        self.reader: first_flight.FirstFlight | None = None  # of TCP
        self.initials: quic.Initials | None = None  # of UDP
        self.datagrams = 0  # that were read
        self.timer: asyncio.TimerHandle | None = None


class Admission:
    """Decides on new flows, and on what they say first."""

    def __init__(
        self,
        stack: Stack,
        loop: asyncio.AbstractEventLoop,
        recorder: NullRecorder,
        policy: Policy,
        services: OnDemand,
    ) -> None:
        self._stack = stack
        self._loop = loop
        self._recorder = recorder
        self._policy = policy
        self._services = services
        self._held: dict[int, _Held] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def close(self) -> None:
        """Forget everything that waits. The loop may have stopped already: then it runs once more for their sake."""
        for held in self._held.values():
            if held.timer is not None:
                held.timer.cancel()
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks and not self._loop.is_running():
            self._loop.run_until_complete(asyncio.wait(tasks))

    def ended(self, event: Ended) -> None:
        """The stack says that a flow is over."""
        if self._held:
            self._release(event.flow)
        if self._tasks and (task := self._tasks.get(event.flow)) is not None:
            task.cancel()
        self._services.flow_ended(event.flow)

    # The question.

    def question(self, question: Question) -> None:
        """Judge a new flow and begin to carry the verdict out."""
        policy = self._policy
        if question.protocol == TCP and question.remote_port == DNS_PORT:
            self._dns_over_tcp(question)
            return
        if policy.virtual is not None and is_virtual(question.remote):
            self._to_virtual(question, policy.virtual.name_of(question.remote))
            return
        ask = policy.ask(question.protocol, question.remote, question.remote_port)
        verdict = judge(ask, policy.link, policy.rules)
        if verdict.action is Action.ALLOW:
            self._let_out(question, ask, verdict, None)
        else:
            self._deny(question, verdict)

    def _dns_over_tcp(self, question: Question) -> None:
        """Served here whatever the address, and ruled query by query; what must never leave stays refused."""
        verdict = judge(Ask(TCP, question.remote, DNS_PORT), self._policy.link)
        if verdict.action is Action.DENY:
            self._deny(question, verdict)
        else:
            self._serve_dns(question)

    def _to_virtual(self, question: Question, name: str | None) -> None:
        if name is None:
            where = Verdict(Action.DENY, Denial.UNREACHABLE_HOST, sentence="no name has this address")
            self._deny(question, where)
            return
        ask = Ask(question.protocol, question.remote, question.remote_port, (name,))
        verdict = judge_name(name, question.remote_port, self._policy.rules, protocol=question.protocol)
        if verdict.action is Action.ALLOW:
            self._let_out(question, ask, verdict, name)
        else:
            self._deny(question, verdict)

    def _deny(self, question: Question, verdict: Verdict) -> None:
        self._stack.deny(question.flow, verdict.denial)
        self._recorder.denied(question, verdict)

    def _serve_dns(self, question: Question) -> None:
        end = self._services.dns().open_connection(question.remote)
        if end is None:
            self._stack.deny(question.flow, Denial.RESET)
            return
        self._attach(question, end)

    def _attach(self, question: Question, sock: Any) -> None:
        try:
            self._stack.attach(question.flow, sock.fileno())
        except StackError:
            sock.close()
            self._stack.deny(question.flow, Denial.RESET)  # if it is still there
            return
        sock.detach()  # the stack's now

    def _let_out(self, question: Question, ask: Ask, verdict: Verdict, name: str | None) -> None:
        if verdict.inspect:
            self._held[question.flow] = _Held(question, ask, verdict, name)
            self._stack.hold(question.flow)
            if question.protocol == UDP:
                return  # not before its first datagrams were read
        self._carry(question, ask, verdict, name)

    # The way out.

    def _carry(self, question: Question, ask: Ask, verdict: Verdict, name: str | None) -> None:
        proxied = self._policy.rules.proxied
        if name is None and not proxied:
            self._stack.allow(question.flow)
        elif proxied:
            dial = self._through_proxy if question.protocol == TCP else self._through_association
            self._begin(question, dial(question, name or question.remote))
        else:
            assert name is not None
            self._begin(question, self._to_name(question, ask, name))
        if self._recorder.active:
            self._recorder.allowed(question, verdict, ask.names, proxied)

    def _begin(self, question: Question, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(self._guarded(question, work))
        self._tasks[question.flow] = task
        task.add_done_callback(lambda _: self._done(question.flow, work))

    def _done(self, flow: int, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.pop(flow, None)
        work.close()  # the flow may have ended before it began

    async def _guarded(self, question: Question, work: Coroutine[Any, Any, None]) -> None:
        """A fault of ours, as any other, ends in a refusal."""
        try:
            await work
        except StackError:
            self._refuse(question.flow, refusal(question.protocol))  # most likely it is over already
        except asyncio.CancelledError:
            self._refuse(question.flow, Denial.RESET)
            raise
        except Exception as error:
            self._refuse(question.flow, refusal(question.protocol))
            self._loop.call_exception_handler({"message": "childflow: a flow could not be let out", "exception": error})

    def _refuse(self, flow: int, how: Denial) -> None:
        try:
            self._stack.deny(flow, how)
        except StackError:
            pass

    async def _through_proxy(self, question: Question, target: str | bytes) -> None:
        since = self._loop.time()
        try:
            sock = await self._services.dialer().connect(target, question.remote_port)
        except DialError as error:
            self._recorder.not_connected(question.flow, str(error), self._loop.time() - since)
            self._stack.deny(question.flow, error.denial)
            return
        self._attach(question, sock)

    async def _through_association(self, question: Question, target: str | bytes) -> None:
        try:
            address, port = await self._services.associations().open(question.flow, target, question.remote_port)
        except DialError as error:
            self._stack.deny(question.flow, error.denial)
            return
        try:
            self._stack.allow_to(question.flow, address, port)
        except StackError:
            self._services.flow_ended(question.flow)
            raise

    async def _to_name(self, question: Question, ask: Ask, name: str) -> None:
        """To the first address of `name` that the rules let through."""
        from childflow.services.lookup import LookupFailed

        since = self._loop.time()
        try:
            found = await self._services.lookup().find(name)
        except LookupFailed:
            if question.protocol == TCP:
                self._recorder.not_connected(question.flow, f"{name} is not found", self._loop.time() - since)
            self._stack.deny(question.flow, Denial.UNREACHABLE_HOST)
            return
        verdict = None
        for address in found.addresses:
            verdict = judge(ask._replace(remote=address, aliases=found.aliases), self._policy.link, self._policy.rules)
            if verdict.action is Action.ALLOW:
                self._stack.allow_to(question.flow, address, question.remote_port)
                return
        if verdict is None:
            self._stack.deny(question.flow, Denial.UNREACHABLE_HOST)
        else:
            self._deny(question, verdict)

    # The first flight.

    def flight(self, event: Flight) -> None:
        """More of what a held flow says first has come."""
        held = self._held.get(event.flow)
        if held is None:
            return
        found = self._read_tcp(held, event) if held.question.protocol == TCP else self._read_quic(held)
        if found.source == MORE:
            if held.timer is None:
                held.timer = self._loop.call_later(FLIGHT_S, self._too_late, event.flow)
            return
        self._release(event.flow)
        source = UNREADABLE if found.doubt else found.source
        verdict = judge_flight(held.ask, held.verdict, found.name, source, self._policy.rules)
        if verdict.action is Action.ALLOW:
            self._go_on(held, verdict, found.name)
        else:
            self._deny(held.question, verdict if not found.doubt else _with_doubt(verdict, found.doubt))

    def _go_on(self, held: _Held, verdict: Verdict, name: str | None) -> None:
        flow = held.question.flow
        if held.question.protocol == TCP:
            self._stack.pass_on(flow)
        else:
            self._carry(held.question, held.ask, verdict, held.target)
        self._recorder.judged(flow, verdict, name)

    def _read_tcp(self, held: _Held, event: Flight) -> first_flight.Flight:
        from childflow.services import first_flight

        if held.reader is None:
            held.reader = first_flight.FirstFlight()
        return held.reader.feed(self._stack.held(event.flow), ended=event.ended)

    def _read_quic(self, held: _Held) -> first_flight.Flight:
        from childflow.services import quic

        if held.initials is None:
            held.initials = quic.Initials()
        found = held.initials.answer()
        while datagram := self._stack.held(held.question.flow, held.datagrams):
            held.datagrams += 1
            found = held.initials.take(datagram)
        return found

    def _too_late(self, flow: int) -> None:
        """What did not come whole in time is refused: to let it go would be to let the rest go unread."""
        held = self._held.get(flow)
        if held is None:
            return
        self._release(flow)
        verdict = judge_flight(held.ask, held.verdict, None, UNREADABLE, self._policy.rules)
        try:
            self._deny(held.question, _with_doubt(verdict, f"it did not come whole in {FLIGHT_S:.0f} s"))
        except StackError:
            pass

    def _release(self, flow: int) -> None:
        held = self._held.pop(flow, None)
        if held is not None and held.timer is not None:
            held.timer.cancel()


def _with_doubt(verdict: Verdict, doubt: str) -> Verdict:
    return verdict._replace(sentence=f"{verdict.sentence}: {doubt}") if doubt not in verdict.sentence else verdict
