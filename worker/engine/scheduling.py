"""The engine's queues: which questions wait, which run, and which are served next.

Device time is shared by weighted fair queueing. Each caller has an account of the device seconds that it has used, and
the one with the fewest is served next. A caller that arrives, or comes back, starts at the virtual time of its priority
class (the seconds that the last served caller had used), so that it cannot claim time that has passed.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from shared.errors import KernelscopeError
from worker.engine.questions import Answer, Batch, Question, Ticket


@dataclass(eq=False)
class Account:
    """The device time of one caller."""

    urgent: bool = True  # the priority class: small jobs do not wait behind big ones
    used: float = 0.0  # seconds of the device


class EngineRequest:
    """Questions that were submitted to the engine together. Iterate over it for the answers."""

    def __init__(self, questions: Sequence[Question], account: Account, deadline: float | None) -> None:
        self.tickets = [Ticket(question) for question in questions]
        self.account = account
        self.deadline = deadline
        self.cancelled = False
        self._answers: SimpleQueue[tuple[int, Answer | KernelscopeError] | None] = SimpleQueue()
        self._numbers = {ticket: number for number, ticket in enumerate(self.tickets)}

    def __iter__(self) -> Iterator[tuple[int, Answer | KernelscopeError]]:
        """(number of the question, its answer or the error) in the order of completion; ends early if cancelled."""
        for _ in self.tickets:
            found = self._answers.get()
            if found is None:
                return
            yield found

    def cancel(self) -> None:
        """Discard the open questions; the engine removes them before its next step."""
        self.cancelled = True
        self._answers.put(None)

    def answer(self, ticket: Ticket, answer: Answer | KernelscopeError) -> None:
        """Deliver an answer; called by the engine."""
        ticket.answered = True
        self._answers.put((self._numbers[ticket], answer))

    @property
    def overdue(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline


@dataclass(eq=False)
class DeviceCall:
    """A function to be run on the engine's thread, for whose result its caller waits."""

    future: Future[Any]
    function: Callable[[], Any]
    account: Account


@dataclass(eq=False)
class Group:
    """The questions of one kind and priority class: those that wait, and those in the batch."""

    batch: Batch
    waiting: deque[tuple[EngineRequest, deque[Ticket]]] = field(default_factory=deque)
    running: dict[Ticket, EngineRequest] = field(default_factory=dict)
    used: float = 0.0  # seconds of the device
    limit: int | None = None  # on the questions that run at once, after memory ran out or one of them raised
    running_when_full: int = 0  # questions on the whole device when memory last ran out; 0: one has ended since

    def __bool__(self) -> bool:
        """Whether any question waits or runs."""
        return bool(self.waiting or self.running)

    def add(self, request: EngineRequest, tickets: Sequence[Ticket]) -> None:
        """Append these questions of a request to the queue."""
        self.waiting.append((request, deque(tickets)))

    def next(self, count: int) -> list[Ticket]:
        """Move up to `count` questions from the queue to `running`, one of each request in turn."""
        started: list[Ticket] = []
        while self.waiting and len(started) < count:
            request, tickets = self.waiting.popleft()
            ticket = tickets.popleft()
            started.append(ticket)
            self.running[ticket] = request
            if tickets:
                self.waiting.append((request, tickets))
        return started

    def requeue(self, tickets: Sequence[tuple[EngineRequest, Ticket]]) -> None:
        """Put these back at the head of the queue."""
        self.waiting.extendleft((request, deque([ticket])) for request, ticket in reversed(tickets))
        for _, ticket in tickets:
            ticket.step = None

    def expire(self) -> list[tuple[EngineRequest, Ticket]]:
        """Remove from the queue what is cancelled or overdue. Returns what is overdue and not cancelled."""
        overdue = [(request, ticket) for request, tickets in self.waiting if request.overdue for ticket in tickets]
        self.waiting = deque(pair for pair in self.waiting if not (pair[0].cancelled or pair[0].overdue))
        return [(request, ticket) for request, ticket in overdue if not request.cancelled]

    def accounts(self) -> Iterator[Account]:
        """The accounts of all requests in this group, possibly repeated."""
        yield from (request.account for request in self.running.values())
        yield from (request.account for request, _ in self.waiting)

    def blocked(self, running: int) -> bool:
        """Whether its questions cannot start before one of those on the device ends, for lack of memory.

        Args:
            running: questions on the whole device.
        """
        return not self.running and 0 < self.running_when_full <= running

    @property
    def question(self) -> Question | None:
        """A question that waits, if any."""
        return self.waiting[0][1][0].question if self.waiting else None


@dataclass(eq=False)
class PriorityClass:
    """The groups and calls of urgent work, or those of all other work. Each class is given half of the device."""

    groups: dict[tuple[str, ...], Group] = field(default_factory=dict)
    calls: deque[DeviceCall] = field(default_factory=deque)
    used: float = 0.0  # seconds of the device
    used_by_calls: float = 0.0
    virtual_time: float = 0.0  # what the last served caller had used by then

    def __bool__(self) -> bool:
        """Whether there is any work."""
        return bool(self.groups or self.calls)

    def register(self, account: Account, virtual_time: float) -> None:
        """Prepare for a caller's work: neither it nor an idle class has a claim on time that has passed.

        Args:
            account: of the caller.
            virtual_time: of the engine.
        """
        if not self:
            self.used = max(self.used, virtual_time)
        if not any(account in group.accounts() for group in self.groups.values()):
            account.used = max(account.used, self.virtual_time)

    def add_call(self, call: DeviceCall, virtual_time: float) -> None:
        """Append a call to the queue."""
        self.register(call.account, virtual_time)
        if not self.calls:
            self.used_by_calls = max(self.used_by_calls, self.virtual_time)
        self.calls.append(call)

    def ready(self, running: int) -> bool:
        """Whether any work can be done now, while `running` questions are on the whole device."""
        return bool(self.calls) or any(not group.blocked(running) for group in self.groups.values())

    def next_group(self, running: int) -> Group | None:
        """The next group: of the caller with the least device time, the one with the least. None: a call is next."""
        groups = [group for group in self.groups.values() if not group.blocked(running)]
        least = {group: min(account.used for account in group.accounts()) for group in groups}
        group = min(groups, key=lambda group: (least[group], group.used), default=None)
        if self.calls and (group is None or self.used_by_calls <= least[group]):
            self.virtual_time = self.used_by_calls
            return None
        self.virtual_time = least[group] if group else self.virtual_time
        return group

    def group(self, kind: tuple[str, ...], make: Callable[[], Batch]) -> Group:
        """The group of a kind, which is created with the batch that `make` returns if there is none."""
        if kind not in self.groups:
            begun = min((group.used for group in self.groups.values()), default=0.0)
            self.groups[kind] = Group(make(), used=begun)
        return self.groups[kind]

    def remove_empty(self) -> None:
        """Remove the groups without questions."""
        self.groups = {kind: group for kind, group in self.groups.items() if group}

    def run_call(self, broken: Callable[[Exception], bool]) -> Account:
        """Run the first call. Returns its account; raises an error after which the device is `broken`."""
        call = self.calls.popleft()
        try:
            call.future.set_result(call.function())
        except Exception as error:
            call.future.set_exception(error)
            if broken(error):
                raise
        return call.account

    def charge(self, group: Group | None, rows: Counter[Account], seconds: float) -> None:
        """Charge seconds of the device to the accounts in proportion to their rows.

        Args:
            group: that was stepped; None: a call was run.
            rows: questions of each account.
            seconds: of the device.
        """
        self.used += seconds
        if group is not None:
            group.used += seconds
        else:
            self.used_by_calls += seconds
        for account, count in rows.items():
            account.used += seconds * count / rows.total()

    def cancel_calls(self) -> None:
        """Cancel the calls that wait."""
        for call in self.calls:
            call.future.cancel()
