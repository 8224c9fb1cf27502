"""Reading jobs, wherever they are: those that are alive in Redis, those that have ended in the archive."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from redis import Redis

from shared.clock import now
from shared.connection import redis_errors
from shared.errors import ArtifactNotFound, JobExpired, JobNotFound
from shared.jobs.archive import LATE, NAME, SEPARATOR, Archive
from shared.jobs.forms import (
    MOST_RESULTS,
    Found,
    Record,
    Stored,
    Texts,
    found_of,
    job_of,
    page_of,
    summary_of,
    whole_of,
)
from shared.jobs.ids import made_at
from shared.jobs.scripts import script
from shared.schemas import ExplainRequest, ItemResult, Job, JobSummary, Status, WholeJob
from shared.store import BlobStore

log = logging.getLogger(__name__)

BATCH, MOST_BATCHES = 100, 20  # lines of a list that are read together at most, and how often for one page
READERS = 8  # of archived jobs at once, for a list
GONE = -2
ALL = 1_000_000  # results: more than any job has

Answer = tuple[str, int, list[str] | None]  # of the script `job`


class Records:
    """Job records as readers see them.

    Where an owner is given, what is not theirs does not exist.

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
        """The job as it stands; without its results if it has many.

        Raises:
            JobNotFound, JobExpired, StoreUnavailable.
        """
        return job_of(job_id, self.stored(job_id, owner, MOST_RESULTS)).under(self.root)

    def whole(self, job_id: str, owner: str | None = None) -> WholeJob:
        """The job as it stands, with all its results. Raises as `job`."""
        return whole_of(job_id, self.stored(job_id, owner, ALL)).under(self.root)

    def page_of_results(self, job_id: str, start: int, count: int) -> tuple[list[ItemResult], int | None]:
        """The job's results from an index on, and the index at which to go on. Raises as `job`."""
        page, following = page_of(job_id, self.stored(job_id, None, ALL), start, count)
        return [result.under(self.root) for result in page], following

    def check(self, job_id: str, owner: str) -> None:
        """Nothing, if the job is there and this owner's.

        Raises:
            JobNotFound, JobExpired, StoreUnavailable.
        """
        self.stored(job_id, owner, None)

    def stored(self, job_id: str, owner: str | None, most: int | None) -> Stored:
        """The job as it is kept.

        Args:
            most: results that are wanted, if any are; of a job of more items there are none then.

        Raises:
            JobNotFound, JobExpired, StoreUnavailable.
        """
        with redis_errors():
            answer = self._read(*keys_of(job_id, most))
        return live_of(job_id, answer, owner) or self.archived(job_id, owner, most)

    def archived(self, job_id: str, owner: str | None, most: int | None) -> Stored:
        """The same of a job that Redis does not have."""
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
        self, owner: str, wanted: Wanted, limit: int, after: Place | None = None
    ) -> tuple[list[JobSummary], Place | None]:
        """An owner's jobs, newest first, and where to go on; None: there are no more.

        Args:
            after: the last job of the page before.
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
        """The next lines of an owner's list behind a place, some `count` at most."""
        start, most = 0, count + 1  # the place itself is found again
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
        """Of jobs that are listed; None of one that cannot be read."""
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
        except (ValueError, KeyError):  # of a version that this one cannot read
            log.exception("job %s cannot be read, so it is not listed", job_id)
            return None

    def head(self, job_id: str) -> Head:
        """Whose job it is, what was asked, and whether it has ended, without reading any of its results.

        Raises:
            JobNotFound, JobExpired, StoreUnavailable.
        """
        record = self.stored(job_id, None, None).record
        request = ExplainRequest.model_validate_json(record["request"])
        ended = Status(record["status"]).terminal
        return Head(job_id, record.get("owner", ""), request, ended, int(record.get("round", 0)))

    def results(self, job_id: str, indices: Sequence[int]) -> list[Found]:
        """Those of these results that are there, each with its blobs (name → SHA-256)."""
        return [found_of(text) for text in self._texts(job_id, indices).values() if text]

    def result(self, job_id: str, index: int) -> tuple[Head, ItemResult, dict[str, str]]:
        """The job's head, one of its results, and its blobs.

        Raises:
            JobNotFound, JobExpired, ArtifactNotFound, StoreUnavailable.
        """
        head = self.head(job_id)
        found = self.results(job_id, [index])
        if not found:
            raise ArtifactNotFound(f"job {job_id} has no result {index} yet")
        return head, *found[0]

    def same(self, fingerprint: str) -> tuple[str, ItemResult, dict[str, str]] | None:
        """The result of the same work of the last day: its job, itself, its blobs; None where there is none now."""
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
        """The job of this owner in whose folder the image lies; None where none is known, or it is gone."""
        with redis_errors():
            recent = self.redis.get(f"ks:held:{owner}:{digest}")
        for job_id in filter(None, (recent, self.archive.image(digest, owner))):
            if self.store.has(job_id, digest):
                return str(job_id)
        return None

    def late(self, job_id: str) -> None:
        """A file may have been written for a job that is gone: if it is, its folder is swept again."""
        with redis_errors():
            if self.redis.exists(f"ks:job:{job_id}") or self.store.has(job_id, NAME):
                return
            self.redis.zadd(LATE, {job_id: now(self.redis)})

    def webhook_of(self, job_id: str) -> tuple[str, list[str]] | None:
        """The webhook's URL of a job that Redis does not have, and what was tried."""
        with redis_errors():
            if self.redis.exists(f"ks:job:{job_id}"):
                return None
        dump = self.archive.read(job_id)
        return (dump.record.get("webhook", ""), dump.webhook) if dump else None

    def log_of(self, job_id: str) -> list[str] | None:
        """The events of an archived job, oldest first; None where there is none."""
        dump = self.archive.read(job_id)
        return dump.log if dump else None

    def texts_of(self, job_id: str) -> Texts:
        """The results of an archived job as they are kept."""
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


@dataclass(frozen=True)
class Head:
    """What a job's record says before its results."""

    job_id: str
    owner: str
    request: ExplainRequest
    ended: bool
    round: int = 0  # how often failed items of it were retried


@dataclass(frozen=True, order=True)
class Place:
    """Where a job stands in its owner's list."""

    created: float
    job_id: str


@dataclass(frozen=True)
class Wanted:
    """Which jobs a reader wants to see listed; what is None does not matter."""

    status: Status | None = None
    model: str | None = None
    layer: str | None = None

    def may_fit(self, line: str) -> bool:
        """Whether the line of a list may be of one of them; only that of an ended job tells."""
        told = line.split(SEPARATOR)[1:]
        return not told or self._fits(told[:3])

    def fits(self, job: JobSummary) -> bool:
        """Whether this is one of them."""
        return self._fits([job.status, job.request.model, job.request.layer])

    def _fits(self, own: Sequence[str]) -> bool:
        asked = (self.status, self.model, self.layer)
        return all(want is None or want == have for want, have in zip(asked, own, strict=True))


def keys_of(job_id: str, most: int | None) -> tuple[list[str], list[str | int]]:
    """Keys and arguments of the script that reads a live job.

    Args:
        most: as of `Records.stored`.
    """
    results = [f"ks:job:{job_id}:results"] if most is not None else []
    return [f"ks:job:{job_id}", f"ks:gone:{job_id}", *results], [f"{job_id}:0", most or 0]


def live_of(job_id: str, answer: Answer, owner: str | None) -> Stored | None:
    """The job that the script has read; None where Redis knows nothing of it.

    Raises:
        JobNotFound: it is not this owner's.
        JobExpired: it was removed.
    """
    text, rank, told = answer
    if not text:
        return None
    record: Record = json.loads(text)
    if owner is not None and record.get("owner", "") != owner:
        raise JobNotFound(f"there is no job {job_id}")
    if rank == GONE:
        raise JobExpired(f"job {job_id} was deleted, or has expired and was removed")
    results = None if told is None else dict(zip(map(int, told[::2]), told[1::2], strict=True))
    return Stored(record, rank, results)


def missing(job_id: str) -> JobNotFound | JobExpired:
    """What to tell of a job that is nowhere: an id that says when it was made was given to somebody."""
    if made_at(job_id) is None:
        return JobNotFound(f"there is no job {job_id}")
    return JobExpired(
        f"job {job_id} is gone: it was deleted, has expired, or Redis lost it (a failover, a restored backup). "
        "Send the request again; its Idempotency-Key is free"
    )
