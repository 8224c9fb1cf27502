"""Reads jobs: live ones from Redis, ended ones from the archive."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from redis import Redis

from shared.clock import now
from shared.connection import redis_errors
from shared.errors import ArtifactNotFound, JobExpired, JobNotFound
from shared.jobs.archive import LATE, NAME, SEPARATOR, Archive
from shared.jobs.forms import (
    MOST_RESULTS,
    Found,
    Stored,
    Texts,
    found_of,
    job_of,
    page_of,
    summary_of,
    whole_of,
)
from shared.jobs.scripts import script
from shared.jobs.views import Answer, Head, JobFilter, Place, keys_of, live_of, missing
from shared.schemas import ExplainRequest, ItemResult, Job, JobSummary, Status, WholeJob
from shared.store import BlobStore

log = logging.getLogger(__name__)

BATCH, MOST_BATCHES = 100, 20  # most lines of a list that are read together, and most batches for one page
READERS = 8  # archived jobs read at the same time for a list
ALL = 1_000_000  # more results than any job has


class Records:
    """Read access to job records.

    Where an owner is given, jobs of others are treated as missing.

    Args:
        root: the path under which the API is served.
    """

    def __init__(self, redis: Redis, store: BlobStore, root: str = "") -> None:
        self.redis = redis
        self.store = store
        self.root = root
        self.archive = Archive(redis, store)
        self._read = script(redis, "job")

    def job(self, job_id: str, owner: str | None = None) -> Job:
        """A job; without its results if it has many.

        Raises:
            JobNotFound, JobExpired, StoreUnavailable.
        """
        return job_of(job_id, self.stored(job_id, owner, MOST_RESULTS)).under(self.root)

    def whole(self, job_id: str, owner: str | None = None) -> WholeJob:
        """A job with all its results. Raises as `job`."""
        return whole_of(job_id, self.stored(job_id, owner, ALL)).under(self.root)

    def page_of_results(self, job_id: str, start: int, count: int) -> tuple[list[ItemResult], int | None]:
        """A job's results from an index on, and the index of the next page. Raises as `job`."""
        page, following = page_of(job_id, self.stored(job_id, None, ALL), start, count)
        return [result.under(self.root) for result in page], following

    def check(self, job_id: str, owner: str) -> None:
        """Checks that the job exists and belongs to this owner.

        Raises:
            JobNotFound, JobExpired, StoreUnavailable.
        """
        self.stored(job_id, owner, None)

    def stored(self, job_id: str, owner: str | None, most: int | None) -> Stored:
        """A job as stored.

        Args:
            most: with results if the job has at most so many items; None: without results.

        Raises:
            JobNotFound, JobExpired, StoreUnavailable.
        """
        with redis_errors():
            answer = self._read(*keys_of(job_id, most))
        return live_of(job_id, answer, owner) or self.archived(job_id, owner, most)

    def archived(self, job_id: str, owner: str | None, most: int | None) -> Stored:
        """As `stored`, for a job that is not in Redis."""
        record = self.archive.head(job_id)
        if record is None:
            raise missing(job_id)
        if owner is not None and record.get("owner", "") != owner:
            raise JobNotFound(f"there is no job {job_id}")
        if float(record["expires_at"]) <= now(self.redis):
            raise JobExpired(f"job {job_id} has expired")
        if most is None or (int(record["planned"]) > most and record["status"] != Status.FAILED):
            return Stored(record)
        dump = self.archive.read(job_id)
        if dump is None:  # removed at this moment
            raise missing(job_id)
        return Stored(dump.record, -1, dump.results)

    def page(
        self, owner: str, wanted: JobFilter, limit: int, after: Place | None = None
    ) -> tuple[list[JobSummary], Place | None]:
        """An owner's jobs, newest first, and where the next page starts; None if this is the last page.

        Args:
            after: the last job of the previous page.
        """
        found: list[JobSummary] = []
        count = limit
        for _ in range(MOST_BATCHES):
            lines = self._lines(owner, after, count)
            fitting = [place for line, place in lines if wanted.may_fit(line)]
            for place, summary in zip(fitting, self._summaries([place.job_id for place in fitting]), strict=True):
                if summary and wanted.fits(summary):
                    found.append(summary.under(self.root))
                if len(found) == limit:
                    return found, place
            if not lines:
                return found, None
            after = lines[-1][1]
            count = min(2 * count, BATCH)
        return found, after

    def _lines(self, owner: str, after: Place | None, count: int) -> list[tuple[str, Place]]:
        """Up to `count` lines of an owner's list after a place."""
        start, most = 0, count + 1  # the place itself is read again
        while True:
            with redis_errors():
                batch = self.redis.zrevrangebyscore(
                    f"ks:jobs:{owner}", after.created if after else "+inf", "-inf", start, most, withscores=True
                )
            places = [(line, Place(created, line.partition(SEPARATOR)[0])) for line, created in batch]
            behind = [one for one in places if after is None or one[1] < after]
            if behind or len(batch) < most:
                return behind[:count]
            start += most

    def _summaries(self, job_ids: list[str]) -> list[JobSummary | None]:
        """The summaries of these jobs; None for jobs that cannot be read."""
        with redis_errors(), self.redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                keys, arguments = keys_of(job_id, None)
                self._read(keys, arguments, client=pipe)
            answers = pipe.execute() if job_ids else []
        live = dict(zip(job_ids, answers, strict=True))
        with ThreadPoolExecutor(READERS) as pool:
            return list(pool.map(lambda job_id: self._listed(job_id, live[job_id]), job_ids))

    def _listed(self, job_id: str, answer: Answer) -> JobSummary | None:
        try:
            return summary_of(job_id, live_of(job_id, answer, None) or self.archived(job_id, None, None))
        except (JobNotFound, JobExpired):
            return None
        except (ValueError, KeyError):  # written by an incompatible version
            log.exception("job %s cannot be read and is not listed", job_id)
            return None

    def head(self, job_id: str) -> Head:
        """The owner, the request and the state of a job, without its results.

        Raises:
            JobNotFound, JobExpired, StoreUnavailable.
        """
        record = self.stored(job_id, None, None).record
        request = ExplainRequest.model_validate_json(record["request"])
        ended = Status(record["status"]).terminal
        return Head(job_id, record.get("owner", ""), request, ended, int(record.get("round", 0)))

    def results(self, job_id: str, indices: Sequence[int]) -> list[Found]:
        """Those of these results that exist, each with its blobs (name → SHA-256)."""
        return [found_of(text) for text in self._texts(job_id, indices).values() if text]

    def result(self, job_id: str, index: int) -> tuple[Head, ItemResult, dict[str, str]]:
        """A job's head, one of its results, and the blobs of that.

        Raises:
            JobNotFound, JobExpired, ArtifactNotFound, StoreUnavailable.
        """
        head = self.head(job_id)
        found = self.results(job_id, [index])
        if not found:
            raise ArtifactNotFound(f"job {job_id} has no result {index} yet")
        return head, *found[0]

    def same(self, fingerprint: str) -> tuple[str, ItemResult, dict[str, str]] | None:
        """A cached result of the same computation, with the id of its job and its blobs; None if there is none."""
        with redis_errors():
            place = self.redis.get(f"ks:same:{fingerprint}")
        if place is None:
            return None
        job_id, index = place.rsplit(":", 1)
        try:
            _, result, blobs = self.result(job_id, int(index))
        except (JobNotFound, JobExpired, ArtifactNotFound):
            return None
        return job_id, result, blobs

    def image(self, digest: str, owner: str) -> str | None:
        """The id of a job of this owner with this image in its folder; None if there is none any more."""
        with redis_errors():
            recent = self.redis.get(f"ks:held:{owner}:{digest}")
        for job_id in filter(None, (recent, self.archive.image(digest, owner))):
            if self.store.has(job_id, digest):
                return str(job_id)
        return None

    def schedule_cleanup(self, job_id: str) -> None:
        """After writing a file for a job that may be gone: if it is, schedule the deletion of its files."""
        with redis_errors():
            if self.redis.exists(f"ks:job:{job_id}") or self.store.has(job_id, NAME):
                return
            self.redis.zadd(LATE, {job_id: now(self.redis)})

    def webhook_of(self, job_id: str) -> tuple[str, list[str]] | None:
        """The URL of an archived job's webhook, and the log of attempts."""
        with redis_errors():
            if self.redis.exists(f"ks:job:{job_id}"):
                return None
        dump = self.archive.read(job_id)
        return (dump.record.get("webhook", ""), dump.webhook) if dump else None

    def log_of(self, job_id: str) -> list[str] | None:
        """The events of an archived job, oldest first; None if there is no such job."""
        dump = self.archive.read(job_id)
        return dump.log if dump else None

    def texts_of(self, job_id: str) -> Texts:
        """The stored results of an archived job."""
        dump = self.archive.read(job_id)
        return dump.results if dump else {}

    def _texts(self, job_id: str, indices: Sequence[int]) -> Texts:
        if not indices:
            return {}
        with redis_errors():
            texts = self.redis.hmget(f"ks:job:{job_id}:results", [str(index) for index in indices])
            found = {index: text for index, text in zip(indices, texts, strict=True) if text}
            if found or self.redis.exists(f"ks:job:{job_id}"):
                return found
        archived = self.texts_of(job_id)
        return {index: archived[index] for index in indices if index in archived}
