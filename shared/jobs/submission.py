"""Submits and retries jobs, and rejects those that exceed a limit."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections import defaultdict

from shared import telemetry
from shared.clock import now
from shared.connection import redis_errors
from shared.errors import (
    IdempotencyConflict,
    JobNotFound,
    KernelscopeError,
    NothingToRetry,
    QueueFull,
    QuotaExceeded,
)
from shared.jobs.claims import ANYONE, QUEUES, Caller, Queue, Submitted
from shared.jobs.forms import FORM
from shared.jobs.scripts import Scripts
from shared.schemas import SLICE_ITEMS, ExplainRequest, Item, Status

IDEMPOTENCY_SECONDS = 24 * 3600
IMAGE_SECONDS = 24 * 3600  # an image is found through Redis for so long, and then through the archive
PACE_MINUTES = 5  # over which the speed of the queue is measured
LONGEST_WAIT, UNKNOWN_WAIT = 3600, 60  # seconds, in Retry-After


class Submission(Scripts):
    """Submits and retries jobs."""

    def submit(
        self,
        job_id: str,
        request: ExplainRequest,
        slices: list[list[Item]],
        lifetime: float,
        idempotency_key: str | None = None,
        caller: Caller = ANYONE,
    ) -> Submitted:
        """Create a job with its slices, all queued.

        Args:
            slices: of the request, from `plan`.
            lifetime: seconds until the job expires, by Redis's clock.
            idempotency_key: for 24 h the same request with the same key returns the same job.

        Raises:
            IdempotencyConflict: the key was used with another request.
            QuotaExceeded: the caller has too many unfinished slices.
            QueueFull: too many slices of all callers are queued.
        """
        small = sum(map(len, slices)) <= SLICE_ITEMS and not request.surveys
        queue: Queue = "interactive" if small else "bulk"
        text = request.model_dump_json()
        known = _idempotency(caller, idempotency_key) if idempotency_key is not None else ""
        whole = {"v": FORM, "owner": caller.owner, "queue": queue, "traceparent": telemetry.traceparent()}
        record = {"idempotency": known, **whole, **_initial(request, text, slices)}
        fields = json.dumps({name: str(value) for name, value in record.items() if value != ""})
        what = (job_id, _sha256(text), IDEMPOTENCY_SECONDS, fields, _seconds(request))
        with redis_errors():
            found, state = self._scripts["submit"](
                keys=[f"ks:job:{job_id}", known], args=(*what, *_limits(caller), lifetime, IMAGE_SECONDS)
            )
        if state < 0:
            raise self._refusal(state, found, len(slices), caller)
        return Submitted(found, [(f"{job_id}:{number}", queue) for number in range(len(slices))] if state else [])

    def retry(self, job_id: str, caller: Caller = ANYONE) -> list[tuple[str, Queue]]:
        """Queue the failed items of an ended job again, with a new deadline and new attempts.

        Returns:
            the slices to announce.

        Raises:
            JobNotFound: there is no such job.
            NothingToRetry: it has not ended, was cancelled, or has no failed items.
            QuotaExceeded, QueueFull: as `submit`.
        """
        token = secrets.token_hex(8)
        while True:  # until the job does not change in between
            finished, request, queue = self._ended(job_id)
            failed = self._failed(job_id)
            slices = [part for number, indices in failed.items() for part in (number, json.dumps(indices))]
            arguments = (job_id, token, finished, _seconds(request), *_limits(caller), *slices)
            with redis_errors():
                state = self._scripts["retry"](keys=[f"ks:job:{job_id}"], args=arguments)
            if state < 0:
                raise self._refusal(state, "", len(failed), caller)
            if state:
                return [(f"{job_id}:{number}", queue) for number in failed]

    def _ended(self, job_id: str) -> tuple[str, ExplainRequest, Queue]:
        """The `finished_at` of an ended job with failed items, as stored, its request, and its queue."""
        with redis_errors():
            status, failed, finished, request, queue = self.redis.hmget(
                f"ks:job:{job_id}", "status", "failed", "finished_at", "request", "queue"
            )
        if status is None:
            raise JobNotFound(f"there is no job {job_id}")
        check_retry(job_id, Status(status), int(failed))
        return finished, ExplainRequest.model_validate_json(request), queue

    def _failed(self, job_id: str) -> dict[int, list[int]]:
        """The indices of the failed items, by the number of their slice."""
        with redis_errors():
            results = self.redis.hgetall(f"ks:job:{job_id}:results")
        failed: defaultdict[int, list[int]] = defaultdict(list)
        for index in sorted(int(index) for index, text in results.items() if text and json.loads(text)["error"]):
            failed[index // SLICE_ITEMS].append(index)
        return failed

    def check_submit(
        self, request: ExplainRequest, slices: int, idempotency_key: str | None = None, caller: Caller = ANYONE
    ) -> str | None:
        """Checks what `submit` would do. Returns the earlier job with this key; None: it would create one.

        Raises:
            IdempotencyConflict, QuotaExceeded, QueueFull: as `submit`.
        """
        with redis_errors(), self.redis.pipeline(transaction=False) as pipe:
            pipe.hmget(_idempotency(caller, idempotency_key or ""), "job", "digest")
            pipe.scard(f"ks:open:{caller.owner}")
            for queue in QUEUES:
                pipe.zcard(f"ks:queued:{queue}")
            (job_id, digest), unfinished, *waiting = pipe.execute()
            if idempotency_key is not None and job_id:
                if digest != _sha256(request.model_dump_json()):
                    raise self._refusal(-1, job_id, slices, caller)
                return str(job_id)
        if unfinished + slices > caller.max_open:
            raise self._refusal(-2, "", slices, caller)
        if sum(waiting) + slices > caller.max_queued:
            raise self._refusal(-3, "", slices, caller)
        return None

    def free(self, idempotency_key: str, job_id: str, caller: Caller = ANYONE) -> None:
        """Release an idempotency key whose job is lost, so that it can create another."""
        with redis_errors():
            if self.redis.hget(_idempotency(caller, idempotency_key), "job") == job_id:
                self.redis.delete(_idempotency(caller, idempotency_key))

    def _refusal(self, state: int, found: str, slices: int, caller: Caller) -> KernelscopeError:
        """The error for a state returned by a script, why a job was rejected."""
        if state == -1:
            return IdempotencyConflict(
                f"this Idempotency-Key was used with another request in the last 24 hours (job {found}); use a new key"
            )
        kind, most = (QuotaExceeded, caller.max_open) if state == -2 else (QueueFull, caller.max_queued)
        job = f"this job has {slices} parts of up to {SLICE_ITEMS} items"
        if slices > most:  # without Retry-After
            whose = "you may have" if kind is QuotaExceeded else "the queue has room for"
            return kind(
                f"{job}, and {whose} {most} unfinished ones at most, so waiting does not help; ask for less in one "
                f"job: {most} parts are {most * SLICE_ITEMS} items (image × kernel × method × α × β)"
            )
        wait = self.wait_for(slices)
        if kind is QuotaExceeded:
            return QuotaExceeded(
                f"{job}, and you may have {most} unfinished ones; wait for your jobs, or cancel some", retry_after=wait
            )
        return QueueFull(
            f"the queue holds {self._waiting()} parts of jobs, of at most {most}; at its present pace "
            f"there will be room for this job in about {wait} s",
            retry_after=wait,
        )

    def wait_for(self, slices: int) -> int:
        """Estimated seconds until so many slices are done, at the speed of the last minutes."""
        at = now(self.redis)
        minutes = [int(at // 60) - back for back in range(PACE_MINUTES)]
        with redis_errors():
            done = sum(int(count or 0) for count in self.redis.mget([f"ks:done:{minute}" for minute in minutes]))
        seconds = (PACE_MINUTES - 1) * 60 + at % 60
        return max(1, min(LONGEST_WAIT, round(slices * seconds / done))) if done else UNKNOWN_WAIT

    def _waiting(self) -> int:
        with redis_errors(), self.redis.pipeline(transaction=False) as pipe:
            for queue in QUEUES:
                pipe.zcard(f"ks:queued:{queue}")
            return sum(pipe.execute())


def check_retry(job_id: str, status: Status, failed: int) -> None:
    """Checks that a job has ended and has failed items.

    Raises:
        NothingToRetry: with the reason.
    """
    if status is Status.CANCELLED:
        raise NothingToRetry(f"job {job_id} was cancelled; send a new request instead")
    if not status.terminal:
        raise NothingToRetry(f"job {job_id} is still {status}; retry it once it has ended")
    if not failed:
        raise NothingToRetry(f"job {job_id} has no failed items")


def _initial(request: ExplainRequest, text: str, slices: list[list[Item]]) -> dict[str, object]:
    """The initial fields of a record."""
    return {
        "status": "queued",
        "request": text,
        "needs": f"{request.model} {request.layer}",
        "webhook": request.webhook_url or "",
        "planned": sum(map(len, slices)),
        "unresolved": len(slices) if isinstance(request.kernels, str) else 0,
        "slices": len(slices),
        "open": len(slices),
        "completed": 0,
        "failed": 0,
        "attempt": 0,
    }


def _seconds(request: ExplainRequest) -> float | str:
    """The job's deadline in seconds, as an argument of scripts."""
    return "" if request.deadline_s is None else request.deadline_s


def _limits(caller: Caller) -> tuple[int, int]:
    """The caller's limits, as arguments of scripts."""
    return caller.max_queued, caller.max_open


def _idempotency(caller: Caller, idempotency_key: str) -> str:
    """The key in Redis of an idempotency key."""
    return f"ks:idempotency:{_sha256(f'{caller.owner}/{idempotency_key}')}"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
