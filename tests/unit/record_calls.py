"""The calls that are made on the job record and on its model in plain Python, for a state machine."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import count
from typing import ClassVar

import pytest
from hypothesis import stateful
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, MultipleResults, initialize, multiple, precondition, rule
from redis import Redis

from shared import errors
from shared.jobs import Caller, Claim, LostLease, Retention, Submitted, Transitions
from shared.jobs.claims import QUEUES, SUSPECTED, Queue
from shared.schemas import ExplainRequest, ItemResult, Job, plan
from tests.conftest import Clock, records_of
from tests.unit.record_model import LEASE, PROGRESS, SILENT, Part, Turns, Work, contents

KERNELS: list[list[int] | str] = [[3], [3, 5], [3, 5, 7], "top:1", "top:3", list(range(20)), "top:18"]
ASKED = partial(ExplainRequest, images=["0" * 64])
DEADLINES = st.sampled_from([None, None, None, 10])
LAYERS = ["relu1_1", "relu2_1"]
REQUESTS = st.builds(ASKED, layer=st.sampled_from(LAYERS), kernels=st.sampled_from(KERNELS), deadline_s=DEADLINES)
OWNERS = ("", "a", "b")
BUCKETS = [f"vgg16 {layer}{suspected}" for layer in LAYERS for suspected in ("", SUSPECTED)]
FINGERPRINTS = st.sampled_from(["", "", "print", "other print"])
AGES = st.sampled_from([0, 0, 1, 1, 2, 3])
LIFETIMES = st.sampled_from([60.0, 600.0, 6000.0])
KEYS = st.sampled_from(["", "", "a", "b"])
BLOBS = {"panel.png": "f" * 64}


class RecordCalls(stateful.RuleBasedStateMachine):
    """Each call is made on Redis and on the model, within what the runner promises.

    It finishes a slice when no item is left, and resolves "top:N" only, skipping neither what has a result nor all.
    """

    redis: ClassVar[Redis]
    slices = Bundle("slices")

    def __init__(self) -> None:
        super().__init__()
        self.redis.flushdb()
        self.clock = Clock(self.redis)
        self.transitions = Transitions(self.redis, LEASE)
        self.records = records_of(self.redis)
        self.works: dict[str, Work] = {}
        self.parts: dict[str, Part] = {}
        self.retention = Retention(self.transitions, self.records)
        self.keys: dict[str, Work] = {}
        self.same: dict[str, tuple[Work, int]] = {}  # of a fingerprint: job, item
        self.fixed: dict[tuple[str, int | None], ItemResult | Job] = {}  # results, and jobs that have ended
        self.numbers = count()
        self.turns = {queue: Turns() for queue in QUEUES}

    @property
    def now(self) -> float:
        """Redis's time."""
        return self.clock.now

    @now.setter
    def now(self, seconds: float) -> None:
        self.clock.now = seconds

    def queued(self, queue: Queue) -> list[str]:
        """The queue as it must be."""
        waiting = [part for part in self.parts.values() if part.status == "queued" and part.work.queue == queue]
        return [part.name for part in sorted(waiting, key=lambda part: (part.queued_at, part.name))]

    def over(self, work: Work) -> bool:
        """Whether an archived job's time is over; its line may still be there."""
        return work.archived and work.expires <= self.now

    def chosen(self, slice_id: str, age: int) -> tuple[Claim, Part]:
        """A second later: the newest claim of the slice (0: if need be, a new one), or an older or even made-up one."""
        if age == 0:
            self.claim(slice_id)
        part, self.now = self.parts[slice_id], self.now + 1
        return part.claims[max(-(age or 1), -len(part.claims))], part

    def made(self, claim: Claim, call: Callable[[], None], *, repeats: bool = False) -> bool:
        """Make the call; whether its claim holds. Another one, or one that repeats the last, changes nothing."""
        if self.parts[claim.slice_id].has("running", claim):
            call()
            return True
        before = contents(self.redis)
        with nullcontext() if repeats else pytest.raises(LostLease):
            call()
        assert contents(self.redis) == before
        return False

    @initialize(target=slices, request=REQUESTS, lifetime=LIFETIMES)
    def begin(self, request: ExplainRequest, lifetime: float) -> MultipleResults[str]:
        """With a job."""
        return self.submit(request, lifetime, "", "", same=False)

    @precondition(lambda self: sum(work.finished is None and not work.removed for work in self.works.values()) < 3)
    @rule(
        target=slices,
        request=REQUESTS,
        lifetime=LIFETIMES,
        key=KEYS,
        owner=st.sampled_from(OWNERS),
        same=st.booleans(),
    )
    def submit(
        self, request: ExplainRequest, lifetime: float, key: str, owner: str, *, same: bool
    ) -> MultipleResults[str]:
        """A job; with a key that was used before, its owner's old one or a refusal."""
        known = self.keys.get(key)
        owner = known.owner if known else owner
        request = known.request if known and same else request
        slices, expires, name = plan(request, 100), self.now + lifetime, f"j{next(self.numbers)}"
        submit = partial(self.transitions.submit, name, request, slices, lifetime, key or None, Caller(owner))
        if known and (not known.removed or known.key_stays):
            with nullcontext() if known.request == request else pytest.raises(errors.IdempotencyConflict):
                assert submit() == Submitted(known.name, [])
            if known.removed:  # who finds no job behind the key frees it
                self.transitions.free(key, known.name, Caller(owner))
                known.key_stays = False
            return multiple()
        queue: Queue = "interactive" if sum(map(len, slices)) <= 16 else "bulk"
        deadline = None if request.deadline_s is None else self.now + request.deadline_s
        work = self.works[name] = Work(name, request, queue, self.now, expires, deadline, owner)
        work.parts = [Part(f"{name}:{n}", work, items, self.now, self.now) for n, items in enumerate(slices)]
        for part in work.parts:
            part.wait(self.now)
            part.claims = [Claim(part.name, name, "made up", 0, part.items, request, expires, queue, owner)]
        assert submit() == Submitted(name, [(part.name, queue) for part in work.parts])
        # The answer was lost, the client asks again: announced again, made once.
        assert submit() == Submitted(name, [(part.name, queue) for part in work.parts])
        self.parts |= {part.name: part for part in work.parts}
        self.keys |= {key: work} if key else {}
        return multiple(*(part.name for part in work.parts))

    @rule(slice_id=slices, worker=st.sampled_from(["", "a", "a", "b"]))
    def claim(self, slice_id: str, worker: str = "a") -> None:
        """Only what is queued can be claimed."""
        part = self.parts[slice_id]
        claim = self.transitions.claim(slice_id, worker)
        assert (claim is not None) == (part.status == "queued")
        if claim:
            self.begun(part, claim, worker)

    def begun(self, part: Part, claim: Claim, worker: str) -> None:
        """This claim is right, and the part runs."""
        work, left = part.work, part.left
        part.begin(claim.token, self.now, worker)
        about = (work.request, work.expires, work.queue, work.owner, "")
        times = (None if work.deadline is None else work.deadline - self.now, self.now - part.queued_at)
        suspected = part.bucket.endswith(SUSPECTED)
        assert claim == Claim(part.name, work.name, claim.token, part.attempt, left, *about, *times, suspected)
        part.claims.append(claim)

    @rule(
        queue=st.sampled_from(QUEUES),
        worker=st.sampled_from(["a", "b"]),
        buckets=st.one_of(st.just(BUCKETS), st.lists(st.sampled_from(BUCKETS), unique=True)),
    )
    def next(self, queue: Queue, worker: str, buckets: list[str]) -> None:
        """Callers take turns; slices that the worker cannot run are skipped."""
        parts = [part for part in self.parts.values() if part.work.queue == queue]
        part, waiting = self.turns[queue].next(parts, buckets), len(self.queued(queue))
        found = self.transitions.next(queue, worker, buckets.__contains__)
        assert (found.claim is None, found.waiting) == (part is None, waiting - (part is not None))
        assert found.unannounced == found.waiting  # there is no broker here
        if part and found.claim:
            self.begun(part, found.claim, worker)

    @rule(slice_id=slices)
    def retry(self, slice_id: str) -> None:
        """Failed items are run again; nothing else changes."""
        work = self.parts[slice_id].work
        failed, possible = set(work.failed), work.finished is not None and not work.cancelled
        if self.over(work):
            return
        if work.removed:
            with pytest.raises(errors.JobNotFound):
                self.transitions.retry(work.name)
            return
        assert self.records.archive.restore(work.name) == work.archived
        work.restore()
        if not possible or not failed:
            with pytest.raises(errors.NothingToRetry):
                self.transitions.retry(work.name)
            return
        work.retry(self.now)
        for index in (None, *failed):
            self.fixed.pop((work.name, index), None)
        queued = [(part.name, work.queue) for part in work.parts if part.status == "queued"]
        assert self.transitions.retry(work.name, Caller(work.owner)) == queued

    @rule(slice_id=slices, age=AGES, step=st.sampled_from([{}, PROGRESS, {"iteration": 8}]))
    def renew(self, slice_id: str, age: int, step: dict[str, float]) -> None:
        """A heartbeat, with or without progress."""
        claim, part = self.chosen(slice_id, age)
        if self.made(claim, lambda: self.transitions.renew(claim, step)):
            part.lease, part.work.progress = self.now + LEASE, step or part.work.progress

    @rule(slice_id=slices, age=AGES, kept=st.integers(0, 16))
    def resolve(self, slice_id: str, age: int, kept: int) -> None:
        """Some ranks may have no kernel; only the first call of a slice counts."""
        claim, part = self.chosen(slice_id, age)
        skipped = part.left[kept:]
        wrong = part.has("running", claim) and not isinstance(claim.request.kernels, str)
        if not wrong and self.made(claim, lambda: self.transitions.resolve(claim, skipped)) and not part.resolved:
            part.resolved = True
            part.work.results |= {item.index: None for item in skipped}

    @rule(slice_id=slices, age=AGES, number=st.integers(0, 15), failed=st.booleans(), fingerprint=FINGERPRINTS)
    def commit(self, slice_id: str, age: int, number: int, fingerprint: str, *, failed: bool) -> None:
        """Any item of the slice, the first time or again; a failure has no fingerprint."""
        claim, part = self.chosen(slice_id, age)
        item = part.items[number % len(part.items)]
        seconds, error = float(next(self.numbers)), SILENT.type_uri() if failed else None
        result = ItemResult.of(item, claim.request, item.kernel).model_copy(update={"seconds": seconds})
        if failed:
            result, fingerprint = result.failed(SILENT), ""
        if self.made(claim, lambda: self.transitions.commit(claim, result, BLOBS, fingerprint)):
            part.lease = self.now + LEASE
            if item.index not in part.work.results:
                part.work.commit(item.index, (result.status, seconds, error))
                part.deaths = (0, 0)
                self.same |= {fingerprint: (part.work, item.index)} if fingerprint else {}

    @rule(slice_id=slices, age=AGES, before=st.sampled_from(["", "succeed", "fail"]))
    def finish(self, slice_id: str, age: int, before: str) -> None:
        """When no item is left: as it is, or after those that are left, as in an undisturbed worker."""
        claim, part = self.chosen(slice_id, age)
        if before:
            self.resolve(slice_id, age, 16)
        for item in part.left if before else []:
            self.commit(slice_id, age, part.items.index(item), "", failed=before == "fail")
        early = part.has("running", claim) and part.left
        if not early and self.made(claim, lambda: self.transitions.finish(claim), repeats=part.has("done", claim)):
            part.end(self.now)

    @rule(slice_id=slices, age=AGES)
    def fail(self, slice_id: str, age: int) -> None:
        """What is left has failed."""
        claim, part = self.chosen(slice_id, age)
        repeats = part.has("done", claim) and not claim.items and not isinstance(claim.request.kernels, str)
        if self.made(claim, lambda: self.transitions.fail(claim, SILENT), repeats=repeats):
            part.end(self.now, SILENT.type_uri())

    @rule(slice_id=slices, age=AGES)
    def release(self, slice_id: str, age: int) -> None:
        """The attempt does not count."""
        claim, part = self.chosen(slice_id, age)
        if self.made(claim, lambda: self.transitions.release(claim), repeats=part.has("queued", claim)):
            part.wait(self.now)
            part.attempt -= 1

    @rule(slice_id=slices)
    def cancel(self, slice_id: str) -> None:
        """All claims are void at once; what has ended stays as it is."""
        work = self.parts[slice_id].work
        over = errors.JobNotFound if work.gone else errors.JobEnded if work.finished is not None else None
        with pytest.raises(over) if over else nullcontext():
            self.transitions.cancel(work.name)
        if over:
            return
        work.cancelled, work.finished, work.progress = True, self.now, {}
        for part in work.parts:
            part.status, part.token = "done", part.token if part.status == "done" else ""
