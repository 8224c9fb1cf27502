"""The queues, and how workers claim slices from them."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import TypeAdapter

from shared.clock import now
from shared.connection import redis_errors
from shared.jobs.claims import QUEUES, SUSPECTED, Claim, LostLease, Next, Queue
from shared.jobs.scripts import Scripts
from shared.schemas import ExplainRequest, Item, plan
from shared.workers import WorkerState, able, given_up

ITEMS = TypeAdapter(list[Item])
LACKING_SECONDS = 15  # for which the list of unmet needs is valid


class Waiting(Scripts):
    """Queued slices, and their claims by workers."""

    def next(
        self, queue: Queue, worker: str, runs: Callable[[str], bool] = lambda _: True, announced: str = ""
    ) -> Next:
        """Claim the slice of this queue whose turn it is, queued → running.

        Callers take turns. Of a caller's slices that this worker can run, the one that has waited longest is claimed.

        Args:
            worker: id of the worker. Leases of the same worker that expire together indicate a single crash.
            runs: whether the worker can run the slices of a bucket, such as "vgg16 conv3_3", or
                "vgg16 conv3_3 suspected" for slices that may have killed workers.
            announced: the slice of the message. If an earlier version, without buckets, has queued it, it is claimed
                whether the worker can run it or not; the worker releases it if it cannot.
        """
        with redis_errors(), self.redis.pipeline(transaction=False) as pipe:
            pipe.hmget(f"ks:slice:{announced}", "status", "bucket")
            pipe.smembers(f"ks:buckets:{queue}")
            (status, bucket), buckets = pipe.execute()
        if status == "queued" and bucket is None and (claim := self.claim(announced, worker)):
            return Next(claim, 0, 0)
        token = secrets.token_hex(8)
        mine = sorted(filter(runs, buckets))
        waiting, unannounced, *found = self._run("next", queue, token, self.lease_seconds, worker, *mine)
        return Next(self._claimed(token, found[0]) if found else None, waiting, unannounced)

    def claim(self, slice_id: str, worker: str = "") -> Claim | None:
        """Claim this slice out of turn, queued → running. None: already claimed, done, or gone."""
        token = secrets.token_hex(8)
        found = self._run("claim", slice_id, token, self.lease_seconds, worker, slice_id=slice_id)
        return self._claimed(token, found) if found else None

    def _claimed(self, token: str, found: list[Any]) -> Claim | None:
        """The claim made by a script; None if its job has just been removed."""
        slice_id, job_id, attempt, waited, left, suspected, items = found
        try:
            return self._claim(
                slice_id,
                job_id,
                token,
                attempt,
                items,
                waited=float(waited),
                seconds_left=float(left) if left else None,
                suspected=bool(suspected),
            )
        except LostLease:
            return None

    def _claim(self, slice_id: str, job_id: str, token: str, attempt: int, items: str | None, **more: Any) -> Claim:
        with redis_errors(), self.redis.pipeline(transaction=True) as pipe:
            pipe.hkeys(f"ks:job:{job_id}:results")
            pipe.hmget(f"ks:job:{job_id}", "request", "expires_at", "queue", "owner", "traceparent")
            done, (text, expires_at, queue, owner, traceparent) = pipe.execute()
        if text is None:
            raise LostLease(slice_id)
        request = ExplainRequest.model_validate_json(text)
        number = int(slice_id.rpartition(":")[2])
        planned = ITEMS.validate_json(items) if items else plan(request, sys.maxsize)[number]
        return Claim(
            slice_id=slice_id,
            job_id=job_id,
            token=token,
            attempt=attempt,
            items=[item for item in planned if str(item.index) not in done],
            request=request,
            expires_at=float(expires_at),
            queue=queue,
            owner=owner or "",
            traceparent=traceparent or "",
            **more,
        )

    def queued(self) -> list[str]:
        """Every queued slice, oldest first, and those of small jobs before the others."""
        with redis_errors(), self.redis.pipeline(transaction=True) as pipe:
            for queue in QUEUES:
                pipe.zrange(f"ks:queued:{queue}", 0, -1)
            return [slice_id for slices in pipe.execute() for slice_id in slices]

    def unsent(self, slices: list[str], older_than: float) -> list[str]:
        """Those slices whose last message was sent more than `older_than` seconds ago."""
        limit = now(self.redis) - older_than
        with redis_errors(), self.redis.pipeline(transaction=False) as pipe:
            for slice_id in slices:
                pipe.hget(f"ks:slice:{slice_id}", "sent_at")
            sent = pipe.execute()
        return [slice_id for slice_id, at in zip(slices, sent, strict=True) if at and float(at) <= limit]

    def sent(self, slice_id: str) -> Queue | None:
        """Record that a message about the slice is sent now. Returns its queue, or None if the slice is gone."""
        queue: Queue | None = self._run("sent", slice_id=slice_id)
        return queue

    def waiting_for(self, need: str, most: int) -> list[str]:
        """At most so many queued slices with this need, such as "vgg16 conv3_3"."""
        places = [f"{queue}:{need}{suffix}" for queue in QUEUES for suffix in ("", SUSPECTED)]
        found: list[str] = []
        with redis_errors():
            for place in places:
                for owner in self.redis.zrange(f"ks:turns:{place}", 0, most):
                    found += self.redis.zrange(f"ks:waiting:{place}:{owner}", 0, most)
        return found[:most]

    def unmet_needs(self, living: Sequence[WorkerState]) -> list[str]:
        """What queued slices need and none of these workers meets: networks and layers, such as "vgg16 conv3_3"."""
        with redis_errors():
            buckets = self.redis.sunion([f"ks:buckets:{queue}" for queue in QUEUES])
        needs = {bucket.removesuffix(SUSPECTED) for bucket in buckets}
        return [need for need in sorted(needs) if not any(able(worker.networks, need) for worker in living)]

    def note_unmet_needs(self, living: Sequence[WorkerState]) -> None:
        """Store which needs of queued slices none of these workers meets, for `waiting_for` of their jobs."""
        lacking = self.unmet_needs(living)
        with redis_errors(), self.redis.pipeline(transaction=True) as pipe:
            pipe.delete("ks:lacking")
            if lacking:
                pipe.hset("ks:lacking", mapping={need: _sentence(need, living) for need in lacking})
                pipe.expire("ks:lacking", LACKING_SECONDS)
            pipe.execute()


def _sentence(need: str, living: Sequence[WorkerState]) -> str:
    model = need.partition(" ")[0]
    states = [worker.networks[model] for worker in living if model in worker.networks]
    if failed := next((state for state in states if state.failure == "temporary"), None):
        return f"{model}, which a worker is trying to load again: {failed.reason}"
    if reason := given_up(living, need):
        return f"a worker that can load {model}: {reason}"
    return f"a worker with {need}: none of the connected ones has it" if living else "a worker: none is connected"
