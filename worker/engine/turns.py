"""Who waits, who runs, and whose turn it is: the engine's books."""

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
    """Of one caller."""

    urgent: bool = True  # small jobs do not wait behind big ones
    used: float = 0.0  # seconds of the device


class Asked:
    """Questions in the hands of the engine. Iterate over it for the answers."""

    def __init__(self, questions: Sequence[Question], account: Account, deadline: float | None) -> None:
        self.tickets = [Ticket(question) for question in questions]
        self.account = account
        self.deadline = deadline
        self.withdrawn = False
        self._answers: SimpleQueue[tuple[int, Answer | KernelscopeError] | None] = SimpleQueue()
        self._numbers = {ticket: number for number, ticket in enumerate(self.tickets)}

    def __iter__(self) -> Iterator[tuple[int, Answer | KernelscopeError]]:
        """(number of the question, its answer or why there is none) as each comes; ends early if withdrawn."""
        for _ in self.tickets:
            found = self._answers.get()
            if found is None:
                return
            yield found

    def withdraw(self) -> None:
        """The answers that are still open are not wanted any more; the engine forgets them before its next step."""
        self.withdrawn = True
        self._answers.put(None)

    def answer(self, ticket: Ticket, answer: Answer | KernelscopeError) -> None:
        """From the engine."""
        ticket.answered = True
        self._answers.put((self._numbers[ticket], answer))

    @property
    def late(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline


@dataclass(eq=False)
class Call:
    """Something else to be run on the engine's thread; its caller waits for it."""

    future: Future[Any]
    function: Callable[[], Any]
    account: Account


@dataclass(eq=False)
class Group:
    """The questions of one kind and urgency: those that wait, and those in the batch."""

    batch: Batch
    waiting: deque[tuple[Asked, deque[Ticket]]] = field(default_factory=deque)
    running: dict[Ticket, Asked] = field(default_factory=dict)
    used: float = 0.0  # seconds of the device
    most: int | None = None  # that are to run at once, once memory ran out or one of them raised
    crowded: int = 0  # how many ran on the whole device when memory ran out last; 0: not since something ended

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.waiting or self.running)

    def wait(self, asked: Asked, tickets: Sequence[Ticket]) -> None:
        """These are new."""
        self.waiting.append((asked, deque(tickets)))

    def next(self, count: int) -> list[Ticket]:
        """Up to `count` that wait, one of each caller in turn; they run from now on."""
        taken: list[Ticket] = []
        while self.waiting and len(taken) < count:
            asked, tickets = self.waiting.popleft()
            ticket = tickets.popleft()
            taken.append(ticket)
            self.running[ticket] = asked
            if tickets:
                self.waiting.append((asked, tickets))
        return taken

    def set_back(self, tickets: Sequence[tuple[Asked, Ticket]]) -> None:
        """These wait again, before the others."""
        self.waiting.extendleft((asked, deque([ticket])) for asked, ticket in reversed(tickets))
        for _, ticket in tickets:
            ticket.step = None

    def weed(self) -> list[tuple[Asked, Ticket]]:
        """Let go of those that wait and whose caller is gone; return those whose deadline has passed."""
        late = [(asked, ticket) for asked, tickets in self.waiting if asked.late for ticket in tickets]
        self.waiting = deque(pair for pair in self.waiting if not (pair[0].withdrawn or pair[0].late))
        return [(asked, ticket) for asked, ticket in late if not asked.withdrawn]

    def accounts(self) -> Iterator[Account]:
        """Of everybody who has a question here, more than once perhaps."""
        yield from (asked.account for asked in self.running.values())
        yield from (asked.account for asked, _ in self.waiting)

    def blocked(self, running: int) -> bool:
        """Whether it waits for others to end, so many running on the whole device, because there was no memory."""
        return not self.running and 0 < self.crowded <= running

    @property
    def question(self) -> Question | None:
        """One of those that wait."""
        return self.waiting[0][1][0].question if self.waiting else None


@dataclass(eq=False)
class Share:
    """Half of the device: urgent work, or the rest."""

    groups: dict[tuple[str, ...], Group] = field(default_factory=dict)
    calls: deque[Call] = field(default_factory=deque)
    used: float = 0.0  # seconds of the device
    called: float = 0.0  # by calls
    clock: float = 0.0  # what who was served last had used then; who is new begins there

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.groups or self.calls)

    def enter(self, account: Account, clock: float) -> None:
        """A caller comes, who has no claim on time that has passed; nor has this share, if it had nothing to do."""
        if not self:
            self.used = max(self.used, clock)
        if not any(account in group.accounts() for group in self.groups.values()):
            account.used = max(account.used, self.clock)

    def wait(self, call: Call, clock: float) -> None:
        """A call is new."""
        self.enter(call.account, clock)
        if not self.calls:
            self.called = max(self.called, self.clock)
        self.calls.append(call)

    def ready(self, running: int) -> bool:
        """Whether there is anything that can be done now, with so many problems running on the whole device."""
        return bool(self.calls) or any(not group.blocked(running) for group in self.groups.values())

    def due(self, running: int) -> Group | None:
        """The batch whose turn it is: of the caller that has used least, the one that has; none: it is a call's."""
        groups = [group for group in self.groups.values() if not group.blocked(running)]
        least = {group: min(account.used for account in group.accounts()) for group in groups}
        group = min(groups, key=lambda group: (least[group], group.used), default=None)
        if self.calls and (group is None or self.called <= least[group]):
            self.clock = self.called
            return None
        self.clock = least[group] if group else self.clock
        return group

    def group(self, kind: tuple[str, ...], make: Callable[[], Batch]) -> Group:
        """The questions of a kind."""
        if kind not in self.groups:
            begun = min((group.used for group in self.groups.values()), default=0.0)
            self.groups[kind] = Group(make(), used=begun)
        return self.groups[kind]

    def sweep(self) -> None:
        """Forget the groups that have nothing to do."""
        self.groups = {kind: group for kind, group in self.groups.items() if group}

    def call(self, broken: Callable[[Exception], bool]) -> Account:
        """Run the call that came first. Returns whose it was; raises what `broken` says is the device's end."""
        call = self.calls.popleft()
        try:
            call.future.set_result(call.function())
        except Exception as error:
            call.future.set_exception(error)
            if broken(error):
                raise
        return call.account

    def charge(self, group: Group | None, rows: Counter[Account], seconds: float) -> None:
        """Seconds of the device, on everybody who had a part in them."""
        self.used += seconds
        if group is not None:
            group.used += seconds
        else:
            self.called += seconds
        for account, count in rows.items():
            account.used += seconds * count / rows.total()

    def cancel(self) -> None:
        """Nobody will run the calls that wait."""
        for call in self.calls:
            call.future.cancel()
