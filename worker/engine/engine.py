"""The engine: one thread that keeps a device busy with the questions of many callers. It knows questions, not jobs.

It owns the state of every question: waiting, running or answered. Questions about the same network and layer are
answered in one batch, whatever job they belong to. New ones join between two steps, and each leaves as soon as it is
answered (continuous batching).

Device time is shared fairly (scheduling.py): half of it goes to urgent work, and within each half the callers share it
equally, whose batches take turns. All calls (rankings, feature maps) together count as one further caller, so their
number cannot delay the batches.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

from shared.errors import DeadlinePassed, DeviceOutOfMemory, KernelscopeError
from worker.engine.questions import Answered, Device, OutOfMemory, Question, Ticket, internal_error
from worker.engine.scheduling import Account, DeviceCall, EngineRequest, Group, PriorityClass

log = logging.getLogger(__name__)

T = TypeVar("T")


class Engine:
    """Answers questions on one device.

    Args:
        device: its batches are stepped by the engine's thread only.
        on_broken: called on the engine's thread, which then ends, when the device cannot be used any more.
    """

    def __init__(self, device: Device, on_broken: Callable[[Exception], None] = lambda _: None) -> None:
        self.device = device
        self.on_broken = on_broken
        self.steps = 0  # grows as long as the engine lives and has work
        self._inbox: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._classes = {urgent: PriorityClass() for urgent in (True, False)}
        self._shared_account = Account()  # of calls without an account
        self._virtual_time = 0.0  # what the last served class had used by then
        self._busy = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def ask(
        self, questions: Sequence[Question], *, account: Account | None = None, deadline: float | None = None
    ) -> EngineRequest:
        """Submit questions.

        Args:
            questions: answered in any order.
            account: of the caller, to which the device time is charged; a new one by default.
            deadline: on the monotonic clock. Questions that run then are answered with the present X̂; those that wait
                fail with DeadlinePassed.
        """
        request = EngineRequest(questions, account or Account(), deadline)
        self._inbox.put(lambda: self._enqueue(request))
        return request

    def call(self, function: Callable[..., T], *arguments: Any, account: Account | None = None) -> T:
        """Run a function on the engine's thread, between two steps, and return its result."""
        call = DeviceCall(Future(), partial(function, *arguments), account or self._shared_account)
        self._inbox.put(lambda: self._class_of(call.account).add_call(call, self._virtual_time))
        found: T = call.future.result()
        return found

    @property
    def busy(self) -> bool:
        """Whether there is any work."""
        return self._busy or not self._inbox.empty()

    @property
    def running(self) -> int:
        """The number of questions on the device."""
        return sum(len(group.running) for one in self._classes.values() for group in list(one.groups.values()))

    def close(self) -> None:
        """End the thread after its present step."""
        self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._receive():
                self._expire_blocked()
                running = self.running
                if active := [one for one in self._classes.values() if one.ready(running)]:
                    chosen = min(active, key=lambda one: one.used)
                    self._virtual_time = chosen.used
                    self._serve(chosen, running)
                self.steps += 1
        except Exception as error:
            log.critical("the device %s is broken", self.device.name, exc_info=True)
            self.on_broken(error)

    def _receive(self) -> bool:
        """Process the inbox; wait for it if there is no other work. False: the engine is closed."""
        self._busy = any(self._classes.values())
        while not self._busy or not self._inbox.empty():
            command = self._inbox.get()
            if command is None:
                for one in self._classes.values():
                    one.cancel_calls()
                return False
            self._busy = True
            command()
        return True

    def _class_of(self, account: Account) -> PriorityClass:
        return self._classes[account.urgent]

    def _enqueue(self, request: EngineRequest) -> None:
        priority_class = self._class_of(request.account)
        priority_class.register(request.account, self._virtual_time)
        kinds: dict[tuple[str, ...], list[Ticket]] = {}
        for ticket in request.tickets:
            kinds.setdefault(ticket.question.kind, []).append(ticket)
        for kind, tickets in kinds.items():
            try:
                make = partial(self.device.batch, tickets[0].question)
                priority_class.group(kind, make).add(request, tickets)
            except Exception as error:
                self._fail([(request, ticket) for ticket in tickets], error)

    def _serve(self, priority_class: PriorityClass, running: int) -> None:
        """Run the next call, or step the next batch, of this class."""
        begin = time.perf_counter()
        group = priority_class.next_group(running)
        rows = Counter({priority_class.run_call(self.device.broken): 1}) if group is None else self._step(group)
        priority_class.charge(group, rows, time.perf_counter() - begin)
        priority_class.remove_empty()

    def _step(self, group: Group) -> Counter[Account]:
        """One step of a batch. Returns the number of its questions by account."""
        rows: Counter[Account] = Counter(group.accounts())
        try:
            self._expire(group)
            if new := group.next(self._room(group)):
                self._deliver(group, group.batch.add(new))
            rows = Counter(request.account for request in group.running.values()) or rows
            self._deliver(group, group.batch.step())
        except Exception as error:
            self._isolate(group, error)
        return rows

    def _room(self, group: Group) -> int:
        """How many questions may join the batch now; none after memory ran out, until a question has ended."""
        if 0 < group.running_when_full <= self.running:
            return 0
        group.running_when_full = 0
        room = group.batch.room
        return room if group.limit is None else min(room, group.limit - len(group.running))

    def _deliver(self, group: Group, answered: Answered) -> None:
        """Deliver answers. A question without memory is requeued, or fails if it ran alone."""
        alone = self.running == 1
        back: list[tuple[EngineRequest, Ticket]] = []
        for ticket, answer in answered:
            request = group.running.pop(ticket)
            if not isinstance(answer, OutOfMemory):
                request.answer(ticket, answer)
            elif alone:
                question = ticket.question
                where = f"{question.layer} of {question.model}"
                request.answer(ticket, DeviceOutOfMemory(f"{where} does not fit into {self.device.name}"))
            else:
                back.append((request, ticket))
        if back:
            log.warning("out of memory: %d of %d questions wait", len(back), len(back) + self.running)
            group.requeue(back)
            group.limit, group.running_when_full = max(1, len(group.running)), self.running

    def _expire(self, group: Group) -> None:
        """Remove what is cancelled, and end what is overdue."""
        cancelled = [ticket for ticket, request in group.running.items() if request.cancelled]
        group.batch.drop(cancelled)
        for ticket in cancelled:
            del group.running[ticket]
        if overdue := [ticket for ticket, request in group.running.items() if request.overdue]:
            self._deliver(group, group.batch.stop(overdue))
        for request, ticket in group.expire():
            request.answer(ticket, DeadlinePassed("the deadline passed before the device was free"))

    def _expire_blocked(self) -> None:
        """`_expire` for the groups that cannot be stepped now."""
        for priority_class in self._classes.values():
            for group in priority_class.groups.values():
                if group.blocked(self.running):
                    self._expire(group)
            priority_class.remove_empty()

    def _isolate(self, group: Group, error: Exception) -> None:
        """After a step raised: a question that ran alone fails; several start again, from then on one at a time."""
        running = [(request, ticket) for ticket, request in group.running.items()]
        if not running:  # it raised before any started: fail the first, since the others get a new batch
            running = [(group.running[ticket], ticket) for ticket in group.next(1)]
        group.running.clear()
        if len(running) > 1 and not self.device.broken(error):
            log.error("one of %d questions raised; each is tried alone", len(running), exc_info=error)
            group.requeue(running)
            group.limit = 1
        else:
            self._fail(running, error)
            group.limit = None
        if group.question is None:
            return
        try:
            group.batch = self.device.batch(group.question)
        except Exception as another:
            self._fail([(request, ticket) for request, tickets in group.waiting for ticket in tickets], another)
            group.waiting.clear()

    def _fail(self, tickets: Sequence[tuple[EngineRequest, Ticket]], error: Exception) -> None:
        """Deliver an error: one of ours unchanged, any other as an internal error that is logged."""
        if self.device.broken(error):
            raise error
        public = error if isinstance(error, KernelscopeError) else internal_error(error)
        if public is not error:
            log.error("%d questions failed", len(tickets), exc_info=error)
        for request, ticket in tickets:
            request.answer(ticket, public)
