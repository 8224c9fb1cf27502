"""The transitions of slices and jobs. Each is atomic; those of a running slice are fenced by the claim's token."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.resources import files
from typing import Any

from pydantic import TypeAdapter
from redis import Redis

from shared.errors import (
    AttemptsExhausted,
    DeadlinePassed,
    IdempotencyConflict,
    JobEnded,
    JobNotFound,
    KernelscopeError,
    QueueFull,
    QuotaExceeded,
)
from shared.jobs.claims import ANYONE, QUEUES, Caller, Claim, Hold, LostLease, Queue, Sign, Submitted
from shared.jobs.record import redis_errors
from shared.schemas import SLICE_ITEMS, ExplainRequest, Item, ItemResult, Status

IDEMPOTENCY_SECONDS = 24 * 3600
PACE_MINUTES = 5  # over which the queue's pace is taken
LONGEST_WAIT, UNKNOWN_WAIT = 3600, 60  # seconds that a caller is asked to wait for room in the queue
SAME_DEATH_SECONDS = 1.0  # leases of one worker that end so close together were last renewed together
SCRIPTS = ("submit", "claim", "renew", "resolve", "commit", "finish", "release", "lapse", "cancel")
ITEMS = TypeAdapter(list[Item])


class Transitions:
    """Every change of a job's record.

    Args:
        redis: a client that decodes responses.
        lease_seconds: how long a slice stays claimed without a sign of life.
        clock: seconds since 1970; a test may move it.
    """

    def __init__(self, redis: Redis, lease_seconds: float = 20.0, clock: Callable[[], float] = time.time) -> None:
        self.redis = redis
        self.lease_seconds = lease_seconds
        self.clock = clock
        lua = {name: (files("shared.jobs") / "lua" / f"{name}.lua").read_text() for name in ("common", *SCRIPTS)}
        self._scripts = {name: redis.register_script(lua["common"] + lua[name]) for name in SCRIPTS}

    def submit(
        self,
        job_id: str,
        request: ExplainRequest,
        slices: list[list[Item]],
        expires_at: float,
        idempotency_key: str | None = None,
        caller: Caller = ANYONE,
    ) -> Submitted:
        """Create a job with its slices, all queued.

        Args:
            idempotency_key: names the request for 24 h: the same request with it is given the same job.

        Raises:
            IdempotencyConflict: the key was used with another request.
            QuotaExceeded: the caller has too much open.
            QueueFull: everybody together has.
        """
        now = self.clock()
        queue: Queue = "interactive" if sum(map(len, slices)) <= SLICE_ITEMS else "bulk"
        text = request.model_dump_json()
        deadline = now + request.deadline_s if request.deadline_s is not None else ""
        when = {"created_at": now, "expires_at": expires_at, "deadline": deadline}
        record = {**when, "owner": caller.owner, "queue": queue, **_begun(request, text, slices)}
        fields = json.dumps({name: str(value) for name, value in record.items()})
        items = json.dumps([ITEMS.dump_json(part).decode() for part in slices])
        known = f"ks:idempotency:{_sha256(f'{caller.owner}/{idempotency_key}')}" if idempotency_key is not None else ""
        what = (job_id, now, expires_at, _sha256(text), IDEMPOTENCY_SECONDS, queue, fields, items, deadline)
        whose = (caller.owner, caller.max_queued, caller.max_open)
        with redis_errors():
            found, state = self._scripts["submit"](keys=[f"ks:job:{job_id}", known], args=(*what, *whose))
        if state < 0:
            raise self._refusal(state, found, len(slices), caller)
        return Submitted(found, [(f"{job_id}:{number}", queue) for number in range(len(slices))] if state else [])

    def _refusal(self, state: int, found: str, slices: int, caller: Caller) -> KernelscopeError:
        """Why a job was not taken: what the script's answer means."""
        if state == -1:
            return IdempotencyConflict(
                f"this Idempotency-Key came with another request in the last 24 hours (job {found}); use a new key"
            )
        wait = self.wait_for(slices)
        if state == -2:
            return QuotaExceeded(
                f"this job has {slices} parts of up to {SLICE_ITEMS} items, and you may have {caller.max_open} that are"
                " not finished; wait for your jobs, or cancel some",
                retry_after=wait,
            )
        return QueueFull(
            f"the queue holds {len(self.queued())} parts of jobs and takes {caller.max_queued}; at its present pace "
            f"there is room for this one in about {wait} s",
            retry_after=wait,
        )

    def wait_for(self, slices: int) -> int:
        """Seconds until so many slices are done, at the pace of the last minutes."""
        now = self.clock()
        minutes = [int(now // 60) - back for back in range(PACE_MINUTES)]
        with redis_errors():
            done = sum(int(count or 0) for count in self.redis.mget([f"ks:done:{minute}" for minute in minutes]))
        seconds = (PACE_MINUTES - 1) * 60 + now % 60
        return max(1, min(LONGEST_WAIT, round(slices * seconds / done))) if done else UNKNOWN_WAIT

    def claim(self, slice_id: str, worker: str = "") -> Claim | None:
        """Queued → running. None where there is nothing to do: already claimed, done, or gone.

        Args:
            worker: who claims; slices of the same worker that lapse together died together.
        """
        token = secrets.token_hex(8)
        now = self.clock()
        claimed = self._run("claim", slice_id, slice_id, token, now, now + self.lease_seconds, worker)
        if claimed is None:
            return None
        job_id, items, attempt = claimed
        try:
            return self._claim(slice_id, job_id, token, attempt, items)
        except LostLease:  # its job has just been removed
            return None

    def suspected(self, slice_id: str, max_attempts: int) -> bool:
        """Whether workers died of this slice, or might have: it shall run alone."""
        with redis_errors():
            alone, company = self.redis.hmget(f"ks:slice:{slice_id}", "strikes", "company")
        return int(alone or 0) > 0 or int(company or 0) >= max(1, max_attempts - 1)

    def renew(self, claim: Claim, progress: dict[str, Any]) -> None:
        """A sign of life from the engine: extends the lease and publishes the progress.

        Raises:
            LostLease: the claim no longer holds.
        """
        if self.renew_all([Sign(claim, progress)])[0] is Hold.LOST:
            raise LostLease(claim.slice_id)

    def renew_all(self, signs: Sequence[Sign]) -> list[Hold]:
        """Several signs of life in one round trip (and one sync of the append-only file). Returns how each holds."""
        lease = self.clock() + self.lease_seconds
        with redis_errors(), self.redis.pipeline(transaction=False) as pipe:
            for sign in signs:
                claim, progress = sign.claim, json.dumps(sign.progress) if sign.progress else ""
                previews = [part for index, picture in sign.previews.items() for part in (index, b64encode(picture))]
                arguments = (claim.slice_id, claim.token, lease, progress, *previews)
                self._scripts["renew"](keys=[f"ks:slice:{claim.slice_id}"], args=arguments, client=pipe)
            return list(map(Hold, pipe.execute()))

    def resolve(self, claim: Claim, skipped: Sequence[Item]) -> None:
        """The ranks of this slice have kernels now, but for the `skipped`, because too few kernels are active."""
        self._fenced("resolve", claim, claim.token, *(item.index for item in skipped))

    def commit(self, claim: Claim, result: ItemResult, blobs: dict[str, str], fingerprint: str = "") -> None:
        """One item is finished: its result and its blobs (name → SHA-256, already stored) become visible, once.

        Args:
            fingerprint: of the work, under which `Records.same` finds the result while the job is kept; empty: nowhere.
        """
        text = json.dumps({**result.model_dump(mode="json", exclude={"artifacts"}), "blobs": blobs})
        lease = self.clock() + self.lease_seconds
        failed = int(result.status == "failed")
        kept = max(1, int(claim.expires_at - self.clock()))
        arguments = (claim.token, lease, result.index, text, failed, fingerprint, kept)
        self._fenced("commit", claim, claim.slice_id, *arguments)

    def finish(self, claim: Claim) -> None:
        """Running → done; with the last slice the job ends."""
        self._fenced("finish", claim, claim.slice_id, claim.token, self.clock())

    def release(self, claim: Claim) -> None:
        """Running → queued: the worker stops and hands the rest of the slice back; not counted as an attempt."""
        self._fenced("release", claim, claim.slice_id, claim.token, self.clock())

    def fail(self, claim: Claim, error: KernelscopeError) -> None:
        """Running → done, every item that has no result yet failed with this error."""
        if isinstance(claim.request.kernels, str):
            self.resolve(claim, [])
        for item in claim.items:
            self.commit(claim, ItemResult.of(item, claim.request, item.kernel).failed(error), {})
        self.finish(claim)

    def cancel(self, job_id: str) -> None:
        """Queued or running → cancelled, at once: what is not finished never will be, and no claim of it holds.

        Raises:
            JobNotFound: there is no such job.
            JobEnded: it ended before.
        """
        with redis_errors():
            before = self.redis.hget(f"ks:job:{job_id}", "status")
            status = self._scripts["cancel"](keys=[f"ks:job:{job_id}"], args=[job_id, self.clock()])
        if status is None:
            raise JobNotFound(f"there is no job {job_id}")
        if status != Status.CANCELLED or before == Status.CANCELLED:
            raise JobEnded(f"job {job_id} has already {status}; only a queued or running job can be cancelled")

    def lapsed(self, max_attempts: int) -> list[str]:
        """Take back every slice whose lease has run out. Returns those that are queued again.

        One whose worker died of it `max_attempts` times, with no item finished in between, is failed. A worker that
        held several slices died of none of them, as far as one can know.
        """
        now = self.clock()
        queued = []
        for slice_id, company in self._late(now):
            token = secrets.token_hex(8)
            until, lease = now + SAME_DEATH_SECONDS, now + self.lease_seconds
            arguments = (slice_id, token, now, until, lease, max_attempts, int(company))
            state = self._run("lapse", slice_id, *arguments)
            if state == "queued":
                queued.append(slice_id)
            elif state == "exhausted":
                self._exhausted(slice_id, token)
        return queued

    def _late(self, now: float) -> list[tuple[str, bool]]:
        """The slices of workers that a lease has run out of, and whether the worker held others."""
        with redis_errors():
            if not self.redis.zcount("ks:leases", "-inf", now):
                return []
            ends: list[tuple[str, float]] = self.redis.zrangebyscore(
                "ks:leases", "-inf", now + SAME_DEATH_SECONDS, withscores=True
            )
            with self.redis.pipeline(transaction=False) as pipe:
                for slice_id, _ in ends:
                    pipe.hget(f"ks:slice:{slice_id}", "worker")
                workers = [worker or slice_id for worker, (slice_id, _) in zip(pipe.execute(), ends, strict=True)]
        dead = {worker for worker, (_, end) in zip(workers, ends, strict=True) if end <= now}
        held = Counter(workers)
        return [
            (slice_id, held[worker] > 1) for (slice_id, _), worker in zip(ends, workers, strict=True) if worker in dead
        ]

    def _exhausted(self, slice_id: str, token: str) -> None:
        with redis_errors():
            job_id, attempt, items = self.redis.hmget(f"ks:slice:{slice_id}", "job", "attempt", "items")
        error = AttemptsExhausted(f"the worker died or went silent {attempt} times while it ran this; given up")
        with suppress(LostLease):  # cancelled or removed at this moment
            self.fail(self._claim(slice_id, job_id, token, int(attempt), items), error)

    def overdue(self) -> list[str]:
        """Fail every queued slice whose deadline has passed; returns them. A running one is its worker's business."""
        with redis_errors():
            late: list[str] = self.redis.zrangebyscore("ks:deadlines", "-inf", self.clock())
        failed = []
        for slice_id in late:
            if claim := self.claim(slice_id):
                with suppress(LostLease):  # cancelled or removed at this moment
                    self.fail(claim, DeadlinePassed("the deadline passed before a worker was free"))
                failed.append(slice_id)
        return failed

    def queued(self) -> list[str]:
        """Every queued slice, those of small jobs first, each oldest first."""
        with redis_errors(), self.redis.pipeline(transaction=True) as pipe:
            for queue in QUEUES:
                pipe.zrange(f"ks:queued:{queue}", 0, -1)
            return [slice_id for slices in pipe.execute() for slice_id in slices]

    def unsent(self, slices: list[str], older_than: float) -> list[str]:
        """Those slices about which the last message went out more than `older_than` seconds ago."""
        with redis_errors(), self.redis.pipeline(transaction=False) as pipe:
            for slice_id in slices:
                pipe.hget(f"ks:slice:{slice_id}", "sent_at")
            sent = pipe.execute()
        limit = self.clock() - older_than
        return [slice_id for slice_id, at in zip(slices, sent, strict=True) if at and float(at) <= limit]

    def sent(self, slice_id: str) -> Queue | None:
        """Note that a message about the slice goes out now; returns its queue, or None where the slice is gone."""
        with redis_errors():
            queue: Queue | None = self.redis.hget(f"ks:slice:{slice_id}", "queue")
            if queue is not None:
                self.redis.hset(f"ks:slice:{slice_id}", "sent_at", self.clock())
        return queue

    def _claim(self, slice_id: str, job_id: str, token: str, attempt: int, items: str) -> Claim:
        with redis_errors(), self.redis.pipeline(transaction=True) as pipe:
            pipe.hkeys(f"ks:job:{job_id}:results")
            pipe.hmget(f"ks:job:{job_id}", "request", "expires_at", "deadline", "queue", "owner")
            done, (request, expires_at, deadline, queue, owner) = pipe.execute()
        if request is None:
            raise LostLease(slice_id)
        return Claim(
            slice_id=slice_id,
            job_id=job_id,
            token=token,
            attempt=attempt,
            items=[item for item in ITEMS.validate_json(items) if str(item.index) not in done],
            request=ExplainRequest.model_validate_json(request),
            expires_at=float(expires_at),
            deadline=float(deadline) if deadline else None,
            queue=queue,
            owner=owner or "",
        )

    def _fenced(self, name: str, claim: Claim, *arguments: object) -> None:
        if not self._run(name, claim.slice_id, *arguments):
            raise LostLease(claim.slice_id)

    def _run(self, name: str, slice_id: str, *arguments: object) -> Any:
        with redis_errors():
            return self._scripts[name](keys=[f"ks:slice:{slice_id}"], args=arguments)


def _begun(request: ExplainRequest, text: str, slices: list[list[Item]]) -> dict[str, object]:
    """What a record says of a job's work before any of it is done."""
    return {
        "status": "queued",
        "request": text,
        "webhook": request.webhook_url or "",
        "planned": sum(map(len, slices)),
        "unresolved": len(slices) if isinstance(request.kernels, str) else 0,
        "slices": len(slices),
        "open": len(slices),
        "completed": 0,
        "failed": 0,
        "attempt": 0,
    }


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
