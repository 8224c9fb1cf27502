"""The job record compared with a model in plain Python, for arbitrary sequences of calls and times."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from math import inf

import pytest
from hypothesis import HealthCheck, settings, stateful
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule
from redis import Redis

from shared import errors
from shared.jobs.claims import QUEUES
from tests.conftest import FULL
from tests.unit.record_calls import BLOBS, OWNERS, RecordCalls
from tests.unit.record_model import LEASE, LEFT_OVER, facts, line_of, readers_were_told

MANY = 2000 if FULL else 100
HOUR = 3600


class RecordMachine(RecordCalls):
    """The calls, with time that passes between them, and what must hold after each."""

    slices = RecordCalls.slices

    @rule(seconds=st.sampled_from([0, LEASE - 1, LEASE - 0.5, LEASE]), most=st.integers(1, 3))
    def lapsed(self, seconds: float, most: int) -> None:
        """Slices with expired leases are queued again; those that used up their attempts fail."""
        self.now += seconds
        late = [part for part in self.parts.values() if part.status == "running" and part.lease <= self.now + 1]
        dead = [part.worker for part in late if part.lease <= self.now]
        late = sorted((part for part in late if part.worker in dead), key=lambda part: (part.lease, part.name))
        crowd = [part.worker for part in late]
        suspects = [part.worker for part in late if part.suspected(most)]
        only = [part.suspected(most) and suspects.count(part.worker) == 1 for part in late]
        found, again = self.transitions.expire_leases(most), []
        for part, alone_suspected in zip(late, only, strict=True):
            company = crowd.count(part.worker) > 1 and not alone_suspected
            (alone, beside), part.token = part.deaths, ""
            part.deaths = (alone, beside + 1) if company else (alone + 1, beside)
            if company or part.deaths[0] < most:
                part.tolerated = max(1, most - 1)
                part.wait(self.now)
                again.append(part.name)
            else:
                part.end(self.now, errors.AttemptsExhausted.type_uri())
        assert found == again

    @rule(seconds=st.sampled_from([0, 10]))
    def overdue(self, seconds: float) -> None:
        """Queued slices fail after their deadline."""
        self.now += seconds
        queued = [(part.work.deadline, part) for part in self.parts.values() if part.status == "queued"]
        late = {part.name: (at, part.name) for at, part in queued if at is not None and at <= self.now}
        assert self.transitions.fail_overdue() == sorted(late, key=late.__getitem__)
        for part in map(self.parts.__getitem__, late):
            part.begin("", self.now)
            part.end(self.now, errors.DeadlinePassed.type_uri())

    @rule(seconds=st.sampled_from([0, 0, 60]))
    def expire(self, seconds: float) -> None:
        """Jobs whose time is over go; the archived ones within the hour, but they are no longer listed at once."""
        self.now += seconds
        self.retention.expire()
        for work in self.works.values():
            over = work.expires // HOUR < self.now // HOUR if work.archived else work.expires <= self.now
            work.key_stays |= over and work.archived and not work.removed
            work.removed = work.removed or over
        for part in self.parts.values():
            if part.work.removed:
                part.status, part.token = "gone", ""

    @rule()
    def archive(self) -> None:
        """Ended jobs are moved to the archive, and read as before."""
        ended = [work for work in self.works.values() if work.finished is not None and not work.gone]
        assert self.retention.archive_ended(1000, 0) == len(ended)
        for work in ended:
            work.archived = True
            for part in work.parts:
                part.token, part.sent_at = "", inf

    @rule(slice_id=slices)
    def remove(self, slice_id: str) -> None:
        """The job is gone, live or archived, and its files are deleted."""
        work = self.parts[slice_id].work
        self.retention.remove(work.name)
        self.retention.remove_files(1000, 0)
        work.removed = True
        for part in work.parts:
            part.status, part.token = "gone", ""

    @rule(slice_id=slices)
    def sent(self, slice_id: str) -> None:
        """A message goes out."""
        part = self.parts[slice_id]
        assert self.transitions.sent(slice_id) == (None if part.work.gone else part.work.queue)
        part.sent_at = inf if part.work.gone else self.now

    @rule(seconds=st.sampled_from([1, 5, LEASE - 1, LEASE, 100, 1000]))
    def advance(self, seconds: float) -> None:
        """Time passes."""
        self.now += seconds

    @invariant()
    def readers_see_the_model(self) -> None:
        """And no result that was seen once ever changes, nor a job that has ended."""
        ranks = {name: rank for queue in QUEUES for rank, name in enumerate(self.queued(queue), 1)}
        for work in self.works.values():
            with pytest.raises(errors.JobExpired) if work.removed or self.over(work) else nullcontext():
                job = self.records.whole(work.name)
                assert facts(job) == work.seen(ranks.get(f"{work.name}:0"))
                assert all(self.fixed.setdefault((job.id, each.index), each) == each for each in job.results)
                readers_were_told(self.records, job, work)
                assert not job.status.terminal or self.fixed.setdefault((job.id, None), job) == job

    @invariant()
    def indices_are_the_model_s(self) -> None:
        """Queues, terms and fingerprints: nothing more and nothing less in them."""
        assert self.transitions.queued() == [name for queue in QUEUES for name in self.queued(queue)]
        old = [part.name for part in self.parts.values() if part.status != "gone" and part.sent_at <= self.now - 15]
        assert self.transitions.unsent(list(self.parts), 15) == old
        open_ = [part for part in self.parts.values() if part.status in {"queued", "running"}]
        for part in open_:
            assert part.status != "queued" or self.redis.hget(f"ks:slice:{part.name}", "bucket") == part.bucket
        expected = {
            "leases": {part.name: part.lease for part in open_ if part.status == "running"},
            "deadlines": {part.name: part.work.deadline for part in open_ if part.work.deadline is not None},
            **{f"jobs:{owner}": self.created(owner) for owner in OWNERS},
            "expiry": {work.name: work.expires for work in self.works.values() if not work.gone},
        }
        assert {name: self.scores(name) for name in expected} == expected
        for owner in OWNERS:
            assert self.redis.smembers(f"ks:open:{owner}") == {part.name for part in open_ if part.work.owner == owner}
        for fingerprint, (work, index) in self.same.items():
            found = self.records.same(fingerprint)
            seen = found and (found[1].index, found[1].status, found[1].seconds, None, found[2])
            gone = work.removed or self.over(work)
            assert seen == (None if gone else (index, *(work.results[index] or ()), BLOBS))

    def scores(self, name: str) -> dict[str, float]:
        """What is in a sorted set."""
        return dict(self.redis.zrange(f"ks:{name}", 0, -1, withscores=True))

    def created(self, owner: str) -> dict[str, float]:
        """The owner's list as it must be."""
        works = [work for work in self.works.values() if work.owner == owner and not work.removed]
        return {line_of(work) if work.archived else work.name: work.created for work in works}

    @invariant()
    def turns_are_the_model_s(self) -> None:
        """Whose slices wait where, and who was served when, in an order: nothing more and nothing less."""
        for queue in QUEUES:
            parts = [part for part in self.parts.values() if part.work.queue == queue and part.status == "queued"]
            expected = self.turns[queue].places(queue, parts)
            kinds = [f"ks:{kind}:{queue}:*" for kind in ("waiting", "turns")]
            keys = [key.removeprefix("ks:") for kind in kinds for key in self.redis.keys(kind)]
            assert {key: self.scores(key) for key in keys} == expected
            assert self.redis.smembers(f"ks:buckets:{queue}") == {part.bucket for part in parts}
            assert self.scores(f"served:{queue}") == self.turns[queue].served

    def teardown(self) -> None:
        """After everything has expired, nothing is left but what runs out by itself."""
        self.now += 1_000_000
        while self.retention.expire():
            pass
        self.retention.remove_files(1000, 0)
        assert [key for key in self.redis.keys("ks:*") if not key.startswith(LEFT_OVER)] == []


@pytest.mark.parametrize(
    ("examples", "steps"), [(30, 40), pytest.param(MANY, 60, marks=[pytest.mark.contract, pytest.mark.timeout(3600)])]
)
def test_the_record_does_what_its_model_does(
    redis: Redis, record_property: Callable[[str, object], None], examples: int, steps: int
) -> None:
    """Any sequence of calls; 100 longer ones in `make test-slow`, 2,000 in `make soak`."""
    record_property("examples", examples)
    RecordMachine.redis = redis
    slow = [HealthCheck.too_slow]
    many = settings(deadline=None, suppress_health_check=slow, max_examples=examples, stateful_step_count=steps)
    stateful.run_state_machine_as_test(RecordMachine, settings=many)
