"""Jobs that are submitted and finished by hand, with their files in a store."""

from __future__ import annotations

from pathlib import Path

from redis import Redis

from shared.jobs import Records, Retention, Transitions, new_id
from shared.schemas import ExplainRequest, ItemResult, plan
from shared.store import SHARDS, BlobStore

DAY = 86400.0


class Desk:
    """A record and a store, and jobs that are done by hand."""

    def __init__(self, redis: Redis, folder: Path) -> None:
        self.redis = redis
        self.store = BlobStore(folder.as_uri())
        self.folder = folder
        self.transitions = Transitions(redis)
        self.records = Records(redis, self.store)
        self.retention = Retention(self.transitions, self.records)

    def submit(self, kernels: int = 2, lifetime: float = DAY, key: str | None = None, layer: str = "conv1_1") -> str:
        """A job."""
        job_id = new_id()
        image = self.store.put(job_id, job_id.encode())
        fields = {"images": [image], "layer": layer, "kernels": list(range(kernels))}
        request = ExplainRequest.model_validate(fields)
        return self.transitions.submit(job_id, request, plan(request, 10_000), lifetime, key).job_id

    def finish(self, job_id: str) -> None:
        """All its items succeed."""
        number = 0
        while claim := self.transitions.claim(f"{job_id}:{number}"):
            for item in claim.items:
                blobs = {"optimized.png": self.store.put(job_id, f"{job_id} {item.index}".encode())}
                result = ItemResult.of(item, claim.request, item.kernel)
                self.transitions.commit(claim, result, blobs, f"{job_id} {item.index}")
            self.transitions.finish(claim)
            number += 1

    def done(self, kernels: int = 2, lifetime: float = DAY, key: str | None = None, layer: str = "conv1_1") -> str:
        """A job that has ended."""
        job_id = self.submit(kernels, lifetime, key, layer)
        self.finish(job_id)
        return job_id

    def files(self) -> list[str]:
        """The jobs that have any."""
        return [job for shard in SHARDS for job, _ in self.store.jobs(shard)]
