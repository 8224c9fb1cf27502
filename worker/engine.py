"""The engine: one thread that keeps a device busy with many callers' questions at once. It knows questions, not jobs.

Questions of the same network and layer are answered in one batch, whoever asked them: new ones join between two steps
and each leaves when it is answered (continuous batching). Batches take turns by the time that they have used, so a slow
layer and a fast one, and big jobs and small ones of the same layer, each get their share of the device. So do the calls
(rankings, feature maps), all together, whose callers wait for one another: however many there are, batches are stepped.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

from shared.errors import DeadlinePassed, KernelscopeError
from worker.questions import Answer, Answered, Batch, Device, Question, Ticket

log = logging.getLogger(__name__)

T = TypeVar("T")


class Asked:
    """Questions in the hands of the engine. Iterate over it for the answers."""

    def __init__(self, questions: Sequence[Question], *, urgent: bool, deadline: float | None) -> None:
        self.tickets = [Ticket(question) for question in questions]
        self.urgent = urgent
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
        return self.deadline is not None and time.time() >= self.deadline


@dataclass
class _Group:
    """The questions of one kind and urgency."""

    batch: Batch
    used: float  # seconds of the device
    waiting: deque[tuple[Asked, deque[Ticket]]] = field(default_factory=deque)
    running: dict[Ticket, Asked] = field(default_factory=dict)

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

    def open(self) -> Iterator[tuple[Asked, Ticket]]:
        """All that have no answer yet."""
        yield from ((asked, ticket) for ticket, asked in self.running.items())
        yield from ((asked, ticket) for asked, tickets in self.waiting for ticket in tickets)


@dataclass
class _Calls:
    """What else is to be run on the engine's thread, in the order in which it came: each caller has one at most."""

    waiting: deque[tuple[Future[Any], Callable[[], Any]]] = field(default_factory=deque)
    used: float = 0.0  # seconds of the device


class Engine:
    """Answers questions on one device.

    Args:
        device: what computes. Nothing but the engine's own thread steps its batches.
        on_broken: called on the engine's thread, which ends then, when the device is good for nothing any more.
    """

    def __init__(self, device: Device, on_broken: Callable[[Exception], None] = lambda _: None) -> None:
        self.device = device
        self.on_broken = on_broken
        self.steps = 0  # grows as long as the engine lives and has something to do
        self._inbox: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._groups: dict[tuple[object, ...], _Group] = {}
        self._calls = _Calls()
        self._clock = 0.0  # what the last to be served had used of the device; who is new begins there
        self._busy = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def ask(self, questions: Sequence[Question], *, urgent: bool = True, deadline: float | None = None) -> Asked:
        """Have these questions answered.

        Args:
            urgent: those of small jobs do not wait behind those of big ones.
            deadline: seconds since 1970; what is running then is answered as far as it is, what waits is not.
        """
        asked = Asked(questions, urgent=urgent, deadline=deadline)
        self._inbox.put(lambda: self._sort_in(asked))
        return asked

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run something else on the engine's thread, between two steps, when it is the calls' turn."""
        future: Future[T] = Future()
        self._inbox.put(lambda: self._queue(future, partial(function, *arguments)))
        return future.result()

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return self._busy or not self._inbox.empty()

    @property
    def running(self) -> int:
        """How many questions the device works on."""
        return sum(len(group.running) for group in list(self._groups.values()))

    def close(self) -> None:
        """End the thread after its present step."""
        self._inbox.put(None)
        self._thread.join()

    def _work(self) -> None:
        try:
            while self._read():
                group = min(self._groups.items(), key=lambda pair: pair[1].used, default=None)
                if self._calls.waiting and (group is None or self._calls.used <= group[1].used):
                    self._clock = self._calls.used
                    self._run_a_call()
                elif group:
                    self._clock = group[1].used
                    self._turn(*group)
                self.steps += 1
        except Exception as error:
            log.critical("the device %s is broken", self.device.name, exc_info=True)
            self.on_broken(error)

    def _read(self) -> bool:
        """Take in what is new; wait for it where there is nothing else to do. False: close."""
        self._busy = bool(self._groups or self._calls.waiting)
        while not self._busy or not self._inbox.empty():
            order = self._inbox.get()
            if order is None:
                for future, _ in self._calls.waiting:
                    future.cancel()
                return False
            self._busy = True
            order()
        return True

    def _queue(self, future: Future[Any], function: Callable[[], Any]) -> None:
        if not self._calls.waiting:
            self._calls.used = max(self._calls.used, self._clock)
        self._calls.waiting.append((future, function))

    def _run_a_call(self) -> None:
        begin = time.perf_counter()
        future, function = self._calls.waiting.popleft()
        try:
            future.set_result(function())
        except Exception as error:
            future.set_exception(error)
            if self.device.broken(error):
                raise
        self._calls.used += time.perf_counter() - begin

    def _sort_in(self, asked: Asked) -> None:
        tickets: dict[tuple[object, ...], deque[Ticket]] = {}
        for ticket in asked.tickets:
            tickets.setdefault((asked.urgent, *ticket.question.kind), deque()).append(ticket)
        for key, part in tickets.items():
            if key not in self._groups:
                try:
                    batch = self.device.batch(part[0].question)
                except Exception as error:
                    self._fail([(asked, ticket) for ticket in part], error)
                    continue
                self._groups[key] = _Group(batch, self._clock)
            self._groups[key].waiting.append((asked, part))

    def _turn(self, key: tuple[object, ...], group: _Group) -> None:
        begin = time.perf_counter()
        try:
            self._weed(group)
            if new := group.next(group.batch.room):
                self._deliver(group, group.batch.add(new))
            self._deliver(group, group.batch.step())
        except Exception as error:
            self._fail(list(group.open()), error)
            del self._groups[key]
            return
        group.used += time.perf_counter() - begin
        if not group.running and not group.waiting:
            del self._groups[key]

    def _weed(self, group: _Group) -> None:
        """Forget what is not wanted any more, and answer what is late."""
        gone = [ticket for ticket, asked in group.running.items() if asked.withdrawn]
        group.batch.drop(gone)
        for ticket in gone:
            del group.running[ticket]
        if late := [ticket for ticket, asked in group.running.items() if asked.late]:
            self._deliver(group, group.batch.stop(late))
        for asked, tickets in group.waiting:
            if asked.late and not asked.withdrawn:
                for ticket in tickets:
                    asked.answer(ticket, DeadlinePassed("the deadline passed before the device was free"))
        group.waiting = deque(pair for pair in group.waiting if not (pair[0].withdrawn or pair[0].late))

    @staticmethod
    def _deliver(group: _Group, answered: Answered) -> None:
        for ticket, answer in answered:
            group.running.pop(ticket).answer(ticket, answer)

    def _fail(self, tickets: Sequence[tuple[Asked, Ticket]], error: Exception) -> None:
        """An error of ours is told; a bug is told in short, and the log says where."""
        if self.device.broken(error):
            raise error
        if not isinstance(error, KernelscopeError):
            log.error("%d questions failed", len(tickets), exc_info=error)
            kind = type(error).__name__
            error = KernelscopeError(f"internal error ({kind}); the worker's log has the details")
        for asked, ticket in tickets:
            asked.answer(ticket, error)
