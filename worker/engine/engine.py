"""The engine: one thread that keeps a device busy with many callers' questions at once. It knows questions, not jobs.

It alone knows which questions wait, run and are answered. Questions of the same network and layer are answered in one
batch, whoever asked them: new ones join between two steps and each leaves when it is answered (continuous batching).

Whose turn it is follows from the seconds of the device that each has used: urgent work and the rest share it equally;
within each, callers do, whose batches take turns. Calls (rankings, feature maps) are work like any other: all of them
together are one more caller, so however many there are, batches are stepped.
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
from worker.engine.questions import Answered, Device, NoMemory, Question, Ticket, internal
from worker.engine.turns import Account, Asked, Call, Group, Share

log = logging.getLogger(__name__)

T = TypeVar("T")


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
        self._shares = {urgent: Share() for urgent in (True, False)}
        self._anyone = Account()  # of calls without one
        self._clock = 0.0  # what the share that was served last had used then
        self._busy = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def ask(
        self, questions: Sequence[Question], *, account: Account | None = None, deadline: float | None = None
    ) -> Asked:
        """Have these questions answered.

        Args:
            account: of the caller, on which the time is charged; one of its own unless given.
            deadline: on the monotonic clock; what is running then is answered as far as it is, what waits is not.
        """
        asked = Asked(questions, account or Account(), deadline)
        self._inbox.put(lambda: self._sort_in(asked))
        return asked

    def call(self, function: Callable[..., T], *arguments: Any, account: Account | None = None) -> T:
        """Run something else on the engine's thread, between two steps, when it is the calls' turn."""
        call = Call(Future(), partial(function, *arguments), account or self._anyone)
        self._inbox.put(lambda: self._share(call.account).wait(call, self._clock))
        found: T = call.future.result()
        return found

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return self._busy or not self._inbox.empty()

    @property
    def running(self) -> int:
        """How many questions the device works on."""
        return sum(len(group.running) for share in self._shares.values() for group in list(share.groups.values()))

    def close(self) -> None:
        """End the thread after its present step."""
        self._inbox.put(None)
        self._thread.join()

    def _work(self) -> None:
        try:
            while self._read():
                self._weed_blocked()
                running = self.running
                if active := [share for share in self._shares.values() if share.ready(running)]:
                    share = min(active, key=lambda one: one.used)
                    self._clock = share.used
                    self._serve(share, running)
                self.steps += 1
        except Exception as error:
            log.critical("the device %s is broken", self.device.name, exc_info=True)
            self.on_broken(error)

    def _read(self) -> bool:
        """Take in what is new; wait for it where there is nothing else to do. False: close."""
        self._busy = any(self._shares.values())
        while not self._busy or not self._inbox.empty():
            order = self._inbox.get()
            if order is None:
                for share in self._shares.values():
                    share.cancel()
                return False
            self._busy = True
            order()
        return True

    def _share(self, account: Account) -> Share:
        return self._shares[account.urgent]

    def _sort_in(self, asked: Asked) -> None:
        share = self._share(asked.account)
        share.enter(asked.account, self._clock)
        kinds: dict[tuple[str, ...], list[Ticket]] = {}
        for ticket in asked.tickets:
            kinds.setdefault(ticket.question.kind, []).append(ticket)
        for kind, tickets in kinds.items():
            try:
                share.group(kind, partial(self.device.batch, tickets[0].question)).wait(asked, tickets)
            except Exception as error:
                self._fail([(asked, ticket) for ticket in tickets], error)

    def _serve(self, share: Share, running: int) -> None:
        """A call, or a step of one batch, whichever is due in this share."""
        begin = time.perf_counter()
        group = share.due(running)
        rows = Counter({share.call(self.device.broken): 1}) if group is None else self._turn(group)
        share.charge(group, rows, time.perf_counter() - begin)
        share.sweep()

    def _turn(self, group: Group) -> Counter[Account]:
        """One step of a batch. Returns how many problems of each caller were in it."""
        rows: Counter[Account] = Counter(group.accounts())
        try:
            self._weed(group)
            if new := group.next(self._room(group)):
                self._settle(group, group.batch.add(new))
            rows = Counter(asked.account for asked in group.running.values()) or rows
            self._settle(group, group.batch.step())
        except Exception as error:
            self._find_out(group, error)
        return rows

    def _room(self, group: Group) -> int:
        """How many may join a batch: what it has room for, but where memory has run out none before something ends."""
        if 0 < group.crowded <= self.running:
            return 0
        group.crowded = 0
        room = group.batch.room
        return room if group.most is None else min(room, group.most - len(group.running))

    def _settle(self, group: Group, answered: Answered) -> None:
        """Hand on what is answered. What there was no memory for waits again; what does not fit even alone is told."""
        alone = self.running == 1
        back: list[tuple[Asked, Ticket]] = []
        for ticket, answer in answered:
            asked = group.running.pop(ticket)
            if not isinstance(answer, NoMemory):
                asked.answer(ticket, answer)
            elif alone:
                question = ticket.question
                where = f"{question.layer} of {question.model}"
                asked.answer(ticket, DeviceOutOfMemory(f"{where} does not fit into {self.device.name}"))
            else:
                back.append((asked, ticket))
        if back:
            log.warning("no memory for %d of %d problems; they wait", len(back), len(back) + self.running)
            group.set_back(back)
            group.most, group.crowded = max(1, len(group.running)), self.running

    def _weed(self, group: Group) -> None:
        """Forget what is not wanted any more, and answer what is late."""
        gone = [ticket for ticket, asked in group.running.items() if asked.withdrawn]
        group.batch.drop(gone)
        for ticket in gone:
            del group.running[ticket]
        if late := [ticket for ticket, asked in group.running.items() if asked.late]:
            self._settle(group, group.batch.stop(late))
        for asked, ticket in group.weed():
            asked.answer(ticket, DeadlinePassed("the deadline passed before the device was free"))

    def _weed_blocked(self) -> None:
        """The same of those whose batch has no turn now."""
        for share in self._shares.values():
            for group in share.groups.values():
                if group.blocked(self.running):
                    self._weed(group)
            share.sweep()

    def _find_out(self, group: Group, error: Exception) -> None:
        """A problem that raises fails alone: where others ran beside it all begin anew, one at a time from then on."""
        running = [(asked, ticket) for ticket, asked in group.running.items()]
        if not running:  # it has not come to that: the first that waits stands for all
            running = [(group.running[ticket], ticket) for ticket in group.next(1)]
        group.running.clear()
        if len(running) > 1 and not self.device.broken(error):
            log.error("one of %d questions raises; each is asked alone", len(running), exc_info=error)
            group.set_back(running)
            group.most = 1
        else:
            self._fail(running, error)
            group.most = None
        if group.question is None:
            return
        try:
            group.batch = self.device.batch(group.question)
        except Exception as another:
            self._fail([(asked, ticket) for asked, tickets in group.waiting for ticket in tickets], another)
            group.waiting.clear()

    def _fail(self, tickets: Sequence[tuple[Asked, Ticket]], error: Exception) -> None:
        """An error of ours is told; a bug is told in short, and the log says where."""
        if self.device.broken(error):
            raise error
        told = error if isinstance(error, KernelscopeError) else internal(error)
        if told is not error:
            log.error("%d questions failed", len(tickets), exc_info=error)
        for asked, ticket in tickets:
            asked.answer(ticket, told)
