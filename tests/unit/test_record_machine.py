"""The job record against a model of it in plain Python, under any sequence of calls and any course of time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import count
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings, stateful
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, MultipleResults, initialize, invariant, multiple, precondition, rule
from redis import Redis

from shared import errors
from shared.jobs import Claim, LostLease, Records, Retention, Submitted, Transitions
from shared.jobs.claims import QUEUES, Queue
from shared.schemas import ExplainRequest, ItemResult, Job, plan
from tests.conftest import FULL
from tests.unit.record_model import LEASE, PROGRESS, SILENT, Part, Work, facts

KERNELS: list[list[int] | str] = [[3], [3, 5], [3, 5, 7], "top:1", "top:3", list(range(20)), "top:18"]
ASKED = partial(ExplainRequest, images=["0" * 64], layer="relu1_1")
REQUESTS = st.builds(ASKED, kernels=st.sampled_from(KERNELS), deadline_s=st.sampled_from([None, None, None, 10]))
FINGERPRINTS = st.sampled_from(["", "", "print", "other print"])
AGES = st.sampled_from([0, 0, 1, 1, 2, 3])
LIFETIMES = st.sampled_from([60.0, 600.0, 6000.0])
KEYS = st.sampled_from(["", "", "a", "b"])
MANY = 2000 if FULL else 100
BLOBS = {"panel.png": "f" * 64}
LEFT_OVER = (
    "ks:gone:",
    "ks:idempotency:",
    "ks:same:",
    "ks:done:",
    "ks:ended",
    "ks:orphans",
)  # counts, and what runs out by itself


def contents(redis: Redis) -> dict[str, Any]:
    """Everything in the database but plain strings, which run out by the real time."""
    zset = partial(redis.zrange, start=0, end=-1, withscores=True)
    readers = {"hash": redis.hgetall, "set": redis.smembers, "zset": zset}
    kinds = {key: redis.type(key) for key in redis.keys("ks:*")}
    return {key: readers[kind](key) for key, kind in kinds.items() if kind in readers}


class RecordMachine(stateful.RuleBasedStateMachine):
    """Each call is made on Redis and on the model, within what the runner promises.

    It finishes a slice when no item is left, and resolves "top:N" only, skipping neither what has a result nor all.
    """

    ENDS = ("succeeded", "failed", "cancelled")
    redis: ClassVar[Redis]
    slices = Bundle("slices")

    def __init__(self) -> None:
        super().__init__()
        self.redis.flushdb()
        self.now = 1_000_000.0
        self.transitions = Transitions(self.redis, LEASE, lambda: self.now)
        self.records = Records(self.redis)
        self.works: dict[str, Work] = {}
        self.parts: dict[str, Part] = {}
        self.holds: dict[str, tuple[float, set[str]]] = {}  # of each job: when it expires, its blobs
        self.keys: dict[str, Work] = {}
        self.same: dict[str, tuple[Work, int, float]] = {}  # of a fingerprint: job, item, since when
        self.fixed: dict[tuple[str, int | None], ItemResult | Job] = {}  # results, and jobs that have ended
        self.numbers = count()

    def queued(self, queue: Queue) -> list[str]:
        """The queue as it must be."""
        waiting = [part for part in self.parts.values() if part.status == "queued" and part.work.queue == queue]
        return [part.name for part in sorted(waiting, key=lambda part: (part.queued_at, part.name))]

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
        return self.submit(request, lifetime, "", same=False)

    @precondition(lambda self: sum(work.finished is None and not work.removed for work in self.works.values()) < 3)
    @rule(target=slices, request=REQUESTS, lifetime=LIFETIMES, key=KEYS, same=st.booleans())
    def submit(self, request: ExplainRequest, lifetime: float, key: str, *, same: bool) -> MultipleResults[str]:
        """A job; with a key that was used before, the old one or a refusal."""
        known = self.keys.get(key)
        request = known.request if known and same else request
        slices, expires, name = plan(request, 100), self.now + lifetime, f"j{next(self.numbers)}"
        self.records.hold(name, ["shared", name], expires)
        self.holds[name] = (expires, {"shared", name})
        submit = partial(self.transitions.submit, name, request, slices, expires, key or None)
        if known and not known.removed:
            with nullcontext() if known.request == request else pytest.raises(errors.IdempotencyConflict):
                assert submit() == Submitted(known.name, [])
            return multiple()
        queue: Queue = "interactive" if sum(map(len, slices)) <= 16 else "bulk"
        deadline = None if request.deadline_s is None else self.now + request.deadline_s
        work = self.works[name] = Work(name, request, queue, self.now, expires, deadline)
        work.parts = [Part(f"{name}:{n}", work, items, self.now, self.now) for n, items in enumerate(slices)]
        for part in work.parts:
            part.claims = [Claim(part.name, name, "made up", 0, part.items, request, expires, deadline, queue, "")]
        assert submit() == Submitted(name, [(part.name, queue) for part in work.parts])
        # The answer was lost, the client asks again: announced again, made once.
        assert submit() == Submitted(name, [(part.name, queue) for part in work.parts])
        self.parts |= {part.name: part for part in work.parts}
        self.keys |= {key: work} if key else {}
        return multiple(*(part.name for part in work.parts))

    @rule(slice_id=slices, worker=st.sampled_from(["", "a", "a", "b"]))
    def claim(self, slice_id: str, worker: str = "a") -> None:
        """Only what is queued can be claimed."""
        part, left = self.parts[slice_id], self.parts[slice_id].left
        claim = self.transitions.claim(slice_id, worker)
        assert (claim is not None) == (part.status == "queued")
        if claim:
            part.begin(claim.token, self.now, worker)
            about = (part.work.request, part.work.expires, part.work.deadline, part.work.queue, "")
            assert claim == Claim(slice_id, part.work.name, claim.token, part.attempt, left, *about)
            part.claims.append(claim)

    @rule(slice_id=slices, age=AGES, step=st.sampled_from([{}, PROGRESS, {"iteration": 8}]))
    def renew(self, slice_id: str, age: int, step: dict[str, float]) -> None:
        """A sign of life, with or without progress."""
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
                part.work.results[item.index], part.deaths = (result.status, seconds, error), (0, 0)
                self.same |= {fingerprint: (part.work, item.index, self.now)} if fingerprint else {}

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
        """An attempt is given back."""
        claim, part = self.chosen(slice_id, age)
        if self.made(claim, lambda: self.transitions.release(claim), repeats=part.has("queued", claim)):
            part.status, part.queued_at = "queued", self.now
            part.attempt -= 1

    @rule(slice_id=slices)
    def cancel(self, slice_id: str) -> None:
        """All claims are void at once; what has ended stays as it is."""
        work = self.parts[slice_id].work
        over = errors.JobNotFound if work.removed else errors.JobEnded if work.finished is not None else None
        with pytest.raises(over) if over else nullcontext():
            self.transitions.cancel(work.name)
        if over:
            return
        work.cancelled, work.finished, work.progress = True, self.now, {}
        for part in work.parts:
            part.status, part.token = "done", part.token if part.status == "done" else ""

    @rule(seconds=st.sampled_from([0, LEASE - 1, LEASE - 0.5, LEASE]), most=st.integers(1, 3))
    def lapsed(self, seconds: float, most: int) -> None:
        """Slices without a sign of life are queued again; those whose workers died of nothing else are failed."""
        self.now += seconds
        late = [part for part in self.parts.values() if part.status == "running" and part.lease <= self.now + 1]
        dead = [part.worker for part in late if part.lease <= self.now]
        late = sorted((part for part in late if part.worker in dead), key=lambda part: (part.lease, part.name))
        crowd = [part.worker for part in late]
        found, again = self.transitions.lapsed(most), []
        for part in late:
            company, (alone, beside), part.token = crowd.count(part.worker) > 1, part.deaths, ""
            part.deaths = (alone, beside + 1) if company else (alone + 1, beside)
            if company or part.deaths[0] < most:
                part.status, part.queued_at = "queued", self.now
                again.append(part.name)
            else:
                part.end(self.now, errors.AttemptsExhausted.type_uri())
        assert found == again

    @rule(seconds=st.sampled_from([0, 10]))
    def overdue(self, seconds: float) -> None:
        """What is queued beyond its deadline fails."""
        self.now += seconds
        queued = [(part.work.deadline, part) for part in self.parts.values() if part.status == "queued"]
        late = {part.name: (at, part.name) for at, part in queued if at is not None and at <= self.now}
        assert self.transitions.overdue() == sorted(late, key=late.__getitem__)
        for part in map(self.parts.__getitem__, late):
            part.begin("", self.now)
            part.end(self.now, errors.DeadlinePassed.type_uri())

    @rule(seconds=st.sampled_from([0, 0, 60]))
    def expire(self, seconds: float) -> None:
        """Jobs whose time is over go, with the blobs that no other job refers to."""
        self.now += seconds
        due = [name for name, (at, _) in self.holds.items() if at <= self.now]
        gone = {blob for name in due for blob in self.holds.pop(name)[1]}
        kept = {blob for _, blobs in self.holds.values() for blob in blobs}
        assert sorted(Retention(self.transitions).expire()) == sorted(gone - kept)
        for part in self.parts.values():
            if part.work.name in due:
                part.status, part.token, part.work.removed = "gone", "", True

    @rule(slice_id=slices)
    def sent(self, slice_id: str) -> None:
        """A message goes out."""
        part = self.parts[slice_id]
        assert self.transitions.sent(slice_id) == (None if part.work.removed else part.work.queue)
        part.sent_at = self.now

    @rule(seconds=st.sampled_from([1, 5, LEASE - 1, LEASE, 100, 1000]))
    def advance(self, seconds: float) -> None:
        """Time goes by."""
        self.now += seconds

    @invariant()
    def readers_see_the_model(self) -> None:
        """And no result that was seen once ever changes, nor a job that has ended."""
        ranks = {name: rank for queue in QUEUES for rank, name in enumerate(self.queued(queue), 1)}
        for work in self.works.values():
            with pytest.raises(errors.JobExpired) if work.removed else nullcontext():
                job = self.records.job(work.name)
                assert facts(job) == work.seen(ranks.get(f"{work.name}:0"))
                assert all(self.fixed.setdefault((job.id, each.index), each) == each for each in job.results)
                self.readers_were_told(job)
                assert not job.status.terminal or self.fixed.setdefault((job.id, None), job) == job

    def readers_were_told(self, job: Job) -> None:
        """Each state once and in order, each result once; of the progress at most the latest."""
        events = [entry for _, entry in self.redis.xrange(f"ks:job:{job.id}:events")]
        states = [entry["data"] for entry in events if entry["kind"] == "status"]
        assert states == sorted(states, key=["queued", "running", *self.ENDS].index)
        assert states[-1] == job.status
        assert len(states) == len(set(states)) <= 3
        told = [int(entry["data"]) for entry in events if entry["kind"] == "result"]
        kept = [index for index, text in self.redis.hgetall(f"ks:job:{job.id}:results").items() if text]
        assert sorted(told) == sorted(map(int, kept))
        assert [entry["kind"] for entry in events].count("progress") <= 1
        assert events[-1]["kind"] == "status" or not job.status.terminal

    @invariant()
    def indices_are_the_model_s(self) -> None:
        """Queues, terms and fingerprints: nothing more and nothing less in them."""
        assert self.transitions.queued() == [name for queue in QUEUES for name in self.queued(queue)]
        old = [part.name for part in self.parts.values() if part.status != "gone" and part.sent_at <= self.now - 15]
        assert self.transitions.unsent(list(self.parts), 15) == old
        open_ = [part for part in self.parts.values() if part.status in {"queued", "running"}]
        for part in open_:
            assert self.transitions.suspected(part.name, 3) == (part.deaths[0] > 0 or part.deaths[1] >= 2)
        expected = {
            "leases": {part.name: part.lease for part in open_ if part.status == "running"},
            "deadlines": {part.name: part.work.deadline for part in open_ if part.work.deadline is not None},
            "jobs:": {work.name: work.created for work in self.works.values() if not work.removed},
            "expiry": {name: at for name, (at, _) in self.holds.items()},
        }
        assert {name: dict(self.redis.zrange(f"ks:{name}", 0, -1, withscores=True)) for name in expected} == expected
        assert self.redis.smembers("ks:open:") == {part.name for part in open_}
        for fingerprint, (work, index, at) in self.same.items():
            found = self.records.same(fingerprint)
            seen = found and (found[0].index, found[0].status, found[0].seconds, None, found[1])
            gone = work.removed or (found is None and work.expires - at < 300)
            assert seen == (None if gone else (index, *(work.results[index] or ()), BLOBS))

    def teardown(self) -> None:
        """After everything has expired, nothing is left but what runs out by itself."""
        self.now += 1_000_000
        Retention(self.transitions).expire()
        assert [key for key in self.redis.keys("ks:*") if not key.startswith(LEFT_OVER)] == []


@pytest.mark.parametrize(("examples", "steps"), [(60, 40), pytest.param(MANY, 60, marks=pytest.mark.contract)])
def test_the_record_does_what_its_model_does(
    redis: Redis, record_property: Callable[[str, object], None], examples: int, steps: int
) -> None:
    """Any sequence of calls; 100 longer ones in `make test-slow`, 2,000 in `make soak`."""
    record_property("examples", examples)
    RecordMachine.redis = redis
    slow = [HealthCheck.too_slow]
    many = settings(deadline=None, suppress_health_check=slow, max_examples=examples, stateful_step_count=steps)
    stateful.run_state_machine_as_test(RecordMachine, settings=many)
