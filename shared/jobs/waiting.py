"""What waits in the queues, and who is to have it."""

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
from shared.workers import WorkerState, able

ITEMS = TypeAdapter(list[Item])
LACKING_SECONDS = 15  # for which it is believed what no worker can run


class Waiting(Scripts):
    """Slices that wait, and their way into a worker's hands."""

    def next(
        self, queue: Queue, worker: str, runs: Callable[[str], bool] = lambda _: True, announced: str = ""
    ) -> Next:
        """Claim the slice of this queue whose turn it is, queued → running.

        Callers take turns; of each it is the slice that waits longest, among those that this worker can run.

        Args:
            worker: who claims; slices of the same worker that lapse together died together.
            runs: whether the worker can run what waits in a bucket, such as "vgg16 conv3_3", or
                "vgg16 conv3_3 suspected" for slices that workers may have died of.
            announced: the slice that the message was about. One that an earlier version has queued, which knew no
                buckets, is claimed whether the worker can run it or not: it hands it back if not.
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
        """Queued → running, of one slice whose turn it need not be. None: already claimed, done, or gone."""
        token = secrets.token_hex(8)
        found = self._run("claim", slice_id, token, self.lease_seconds, worker, slice_id=slice_id)
        return self._claimed(token, found) if found else None

    def _claimed(self, token: str, found: list[Any]) -> Claim | None:
        """The claim that the script has made; None where its job has just been removed."""
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
        """Every queued slice, those of small jobs first, each oldest first."""
        with redis_errors(), self.redis.pipeline(transaction=True) as pipe:
            for queue in QUEUES:
                pipe.zrange(f"ks:queued:{queue}", 0, -1)
            return [slice_id for slices in pipe.execute() for slice_id in slices]

    def unsent(self, slices: list[str], older_than: float) -> list[str]:
        """Those slices about which the last message went out more than `older_than` seconds ago."""
        limit = now(self.redis) - older_than
        with redis_errors(), self.redis.pipeline(transaction=False) as pipe:
            for slice_id in slices:
                pipe.hget(f"ks:slice:{slice_id}", "sent_at")
            sent = pipe.execute()
        return [slice_id for slice_id, at in zip(slices, sent, strict=True) if at and float(at) <= limit]

    def sent(self, slice_id: str) -> Queue | None:
        """Note that a message about the slice goes out now; returns its queue, or None where the slice is gone."""
        queue: Queue | None = self._run("sent", slice_id=slice_id)
        return queue

    def note_lacking(self, living: Sequence[WorkerState]) -> None:
        """Remember what waits that none of these workers can run, so that its jobs say what they wait for."""
        with redis_errors():
            buckets = self.redis.sunion([f"ks:buckets:{queue}" for queue in QUEUES])
            needs = {bucket.removesuffix(SUSPECTED) for bucket in buckets}
            lacking = {need for need in needs if not any(able(worker.networks, need) for worker in living)}
            with self.redis.pipeline(transaction=True) as pipe:
                pipe.delete("ks:lacking")
                if lacking:
                    pipe.hset("ks:lacking", mapping={need: _sentence(need, living) for need in lacking})
                    pipe.expire("ks:lacking", LACKING_SECONDS)
                pipe.execute()


def _sentence(need: str, living: Sequence[WorkerState]) -> str:
    return f"a worker with {need}: none that runs now has it" if living else "a worker: none runs now"
