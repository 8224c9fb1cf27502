"""The transitions of slices and jobs. Each is atomic; those of a running slice need the fencing token of its claim."""

from __future__ import annotations

import json
import secrets
from base64 import b64encode
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any

from shared.clock import now
from shared.connection import redis_errors
from shared.errors import (
    AttemptsExhausted,
    DeadlinePassed,
    JobEnded,
    JobNotFound,
    KernelscopeError,
    ModelUnavailable,
)
from shared.jobs.claims import Claim, Heartbeat, LeaseState, LostLease
from shared.jobs.forms import text_of
from shared.jobs.submission import Submission
from shared.jobs.waiting import Waiting
from shared.schemas import Item, ItemResult, Status
from shared.workers import WorkerState, given_up

SAME_SECONDS = 24 * 3600  # for which results are cached
UNLOADABLE = "ks:unloadable"  # hash: need → since when no worker can load its network
MOST_FAILED = 100  # queued slices of one need that are failed together
UNLOADABLE_SECONDS = 60.0  # for which no worker can load a network before its jobs fail; workers may be restarting
SAME_DEATH_SECONDS = 1.0  # leases of one worker that expire so close together were last renewed together


class Transitions(Submission, Waiting):
    """Every change of a job's record. All times are by Redis's clock.

    Args:
        redis: a client that decodes responses.
        lease_seconds: how long a claim is valid without a heartbeat.
    """

    def renew(self, claim: Claim, progress: dict[str, Any]) -> None:
        """A heartbeat of the engine: extends the lease and publishes the progress.

        Raises:
            LostLease: the claim is no longer valid.
        """
        if self.renew_all([Heartbeat(claim, progress)])[0] is LeaseState.LOST:
            raise LostLease(claim.slice_id)

    def renew_all(self, signs: Sequence[Heartbeat]) -> list[LeaseState]:
        """Heartbeats in one round trip and one sync of the append-only file. Returns the states of the claims."""
        with redis_errors(), self.redis.pipeline(transaction=False) as pipe:
            for sign in signs:
                claim, progress = sign.claim, json.dumps(sign.progress) if sign.progress else ""
                previews = [part for index, picture in sign.previews.items() for part in (index, b64encode(picture))]
                arguments = (claim.slice_id, claim.token, self.lease_seconds, progress, *previews)
                self._scripts["renew"](keys=[f"ks:slice:{claim.slice_id}"], args=arguments, client=pipe)
            return list(map(LeaseState, pipe.execute()))

    def resolve(self, claim: Claim, skipped: Sequence[Item]) -> None:
        """The ranks of this slice are resolved to kernels, except `skipped` ones, as too few kernels are active."""
        self._fenced("resolve", claim, claim.token, *(item.index for item in skipped))

    def check(self, claim: Claim) -> None:
        """Checks that the claim is still valid before files are written for it.

        Raises:
            LostLease.
        """
        with redis_errors():
            if self.redis.hmget(f"ks:slice:{claim.slice_id}", "status", "token") != ["running", claim.token]:
                raise LostLease(claim.slice_id)

    def commit(self, claim: Claim, result: ItemResult, blobs: dict[str, str], fingerprint: str = "") -> None:
        """Store the result of an item and its blobs (name → SHA-256, already written); repeating it changes nothing.

        Args:
            fingerprint: of the computation, so that `Records.same` finds the result for a day; empty: not cached.
        """
        text = text_of(result, blobs)
        failed = int(result.status == "failed")
        arguments = (claim.token, self.lease_seconds, result.index, text, failed, fingerprint, SAME_SECONDS)
        self._fenced("commit", claim, claim.slice_id, *arguments)

    def finish(self, claim: Claim) -> None:
        """Running → done. The job ends with its last slice."""
        self._fenced("finish", claim, claim.slice_id, claim.token)

    def release(self, claim: Claim) -> None:
        """Running → queued: the worker stops and releases the slice; not counted as an attempt."""
        self._fenced("release", claim, claim.slice_id, claim.token)

    def fail(self, claim: Claim, error: KernelscopeError) -> None:
        """Running → done; every item without a result fails with this error."""
        if isinstance(claim.request.kernels, str):
            self.resolve(claim, [])
        for item in claim.items:
            self.commit(claim, ItemResult.of(item, claim.request, item.kernel).failed(error), {})
        self.finish(claim)

    def cancel(self, job_id: str) -> None:
        """Queued or running → cancelled, immediately. All claims become invalid, and unfinished items have no results.

        Raises:
            JobNotFound: there is no such job.
            JobEnded: it has already ended.
        """
        with redis_errors():
            before = self.redis.hget(f"ks:job:{job_id}", "status")
            status = self._scripts["cancel"](keys=[f"ks:job:{job_id}"], args=[job_id])
        if status is None:
            raise JobNotFound(f"there is no job {job_id}")
        if status != Status.CANCELLED or before == Status.CANCELLED:
            raise JobEnded(f"job {job_id} has already {status}; only a queued or running job can be cancelled")

    def expire_leases(self, max_attempts: int) -> list[str]:
        """Queue every slice whose lease has expired again. Returns these slices.

        A slice whose worker died `max_attempts` times, with no item finished in between, fails. If a worker held
        several slices when it died, none is blamed, unless exactly one of them was already suspected.
        """
        queued = []
        for slice_id, company in self._late(max_attempts):
            token = secrets.token_hex(8)
            arguments = (slice_id, token, SAME_DEATH_SECONDS, self.lease_seconds, max_attempts, int(company))
            state = self._run("lapse", *arguments, slice_id=slice_id)
            if state == "queued":
                queued.append(slice_id)
            elif state == "exhausted":
                self._exhausted(slice_id, token)
        return queued

    def _late(self, max_attempts: int) -> list[tuple[str, bool]]:
        """The slices of workers with an expired lease, each with whether another slice may have killed the worker."""
        at = now(self.redis)
        with redis_errors():
            if not self.redis.zcount("ks:leases", "-inf", at):
                return []
            ends: list[tuple[str, float]] = self.redis.zrangebyscore(
                "ks:leases", "-inf", at + SAME_DEATH_SECONDS, withscores=True
            )
            with self.redis.pipeline(transaction=False) as pipe:
                for slice_id, _ in ends:
                    pipe.hmget(f"ks:slice:{slice_id}", "worker", "strikes", "company")
                known = [
                    (slice_id, worker or slice_id, _suspected(strikes, company, max_attempts))
                    for (slice_id, _), (worker, strikes, company) in zip(ends, pipe.execute(), strict=True)
                ]
        dead = {worker for (_, worker, _), (_, end) in zip(known, ends, strict=True) if end <= at}
        held = Counter(worker for _, worker, _ in known)
        suspects = Counter(worker for _, worker, suspected in known if suspected)
        return [
            (slice_id, held[worker] > 1 and not (suspected and suspects[worker] == 1))
            for slice_id, worker, suspected in known
            if worker in dead
        ]

    def _exhausted(self, slice_id: str, token: str) -> None:
        with redis_errors():
            job_id, attempt, items = self.redis.hmget(f"ks:slice:{slice_id}", "job", "attempt", "items")
        error = AttemptsExhausted(f"the worker died or stopped responding {attempt} times; there are no more retries")
        with suppress(LostLease):  # cancelled or removed at this moment
            self.fail(self._claim(slice_id, job_id, token, int(attempt), items), error)

    def fail_overdue(self) -> list[str]:
        """Fail every queued slice whose deadline has passed; returns them. Workers handle those that are running."""
        with redis_errors():
            late: list[str] = self.redis.zrangebyscore("ks:deadlines", "-inf", now(self.redis))
        error = DeadlinePassed("the deadline passed before a worker was free")
        return self._fail_queued(late, error)

    def fail_unloadable(self, living: Sequence[WorkerState]) -> list[str]:
        """Fail queued slices whose network workers have tried in vain to load; returns them.

        A worker that has the network may be starting or restarting: they only fail if none has come for a minute.
        """
        unmet = self.unmet_needs(living)
        reasons = {need: reason for need in unmet if (reason := given_up(living, need))}
        failed = []
        for need in self._for_a_minute(reasons, unmet):
            error = ModelUnavailable(f"{need.partition(' ')[0]} cannot be explained: {reasons[need]}")
            failed += self._fail_queued(self.waiting_for(need, MOST_FAILED), error)
        return failed

    def _for_a_minute(self, needs: Collection[str], unmet: Collection[str]) -> list[str]:
        """Those of the needs that were given up a minute ago, and that no worker has met since.

        A further attempt of a worker does not begin the minute anew: with many workers, one is always trying. The times
        are in Redis, for a restart of housekeeping. After a longer pause of it, the minute begins again.

        Args:
            needs: those that are given up now.
            unmet: all that no worker meets.
        """
        at = now(self.redis)
        with redis_errors():
            before: dict[str, str] = self.redis.hgetall(UNLOADABLE)
            since = {need: float(before.get(need, at)) for need in unmet if need in before or need in needs}
            with self.redis.pipeline(transaction=True) as pipe:
                pipe.delete(UNLOADABLE)
                if since:
                    pipe.hset(UNLOADABLE, mapping=since)
                    pipe.expire(UNLOADABLE, int(UNLOADABLE_SECONDS))
                pipe.execute()
        return [need for need in needs if at - since[need] >= UNLOADABLE_SECONDS]

    def _fail_queued(self, slices: Sequence[str], error: KernelscopeError) -> list[str]:
        """Fail those of these slices that are still queued; returns them."""
        failed = []
        for slice_id in slices:
            if claim := self.claim(slice_id):
                with suppress(LostLease):  # cancelled or removed at this moment
                    self.fail(claim, error)
                failed.append(slice_id)
        return failed

    def _fenced(self, name: str, claim: Claim, *arguments: object) -> None:
        if not self._run(name, *arguments, slice_id=claim.slice_id):
            raise LostLease(claim.slice_id)


def _suspected(strikes: str | None, company: str | None, max_attempts: int) -> bool:
    return int(strikes or 0) > 0 or int(company or 0) >= max(1, max_attempts - 1)
