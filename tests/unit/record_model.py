"""The job record in plain Python: jobs and slices as they must be."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Any

from redis import Redis

from shared.errors import SilentKernel
from shared.jobs import Claim, Records
from shared.jobs.claims import SUSPECTED, Queue
from shared.schemas import ExplainRequest, Item, WholeJob

LEASE = 20.0
PROGRESS = {"iteration": 4, "budget": 10, "loss": 0.5}
SILENT = SilentKernel("silent")
END = re.compile(r"( running)?( (succeeded|failed|cancelled) ?)?")
LEFT_OVER = (
    "ks:gone:",
    "ks:held:",
    "ks:idempotency:",
    "ks:same:",
    "ks:done:",
    "ks:ended",
    "ks:orphans",
    "ks:served:",
    "ks:claimed:",
    "ks:clock",
    "ks:owners",
    "ks:walked",
)  # counts, and what runs out by itself


@dataclass(eq=False)
class Work:
    """A job as it must be."""

    name: str
    request: ExplainRequest
    queue: Queue
    created: float
    expires: float
    deadline: float | None
    owner: str = ""
    parts: list[Part] = field(default_factory=list)
    results: dict[int, tuple[str, float | None, str | None] | None] = field(default_factory=dict)  # None: skipped
    progress: dict[str, float] = field(default_factory=dict)
    attempt: int = 0
    started: float | None = None
    finished: float | None = None
    cancelled: bool = False
    removed: bool = False
    key_stays: bool = False  # it has expired in the archive, which knows nothing of its idempotency key
    reported: list[int] = field(default_factory=list)  # indices of results, as often as readers received them
    archived: bool = False
    rounds: int = 1  # of which all but the first are retries

    @property
    def gone(self) -> bool:
        """Whether Redis has it no more."""
        return self.removed or self.archived

    def restore(self) -> None:
        """Archived → in Redis, as it was when it ended; who held a slice of it then is forgotten."""
        if self.archived:
            self.archived = False
            for part in self.parts:
                part.status, part.token, part.attempt, part.deaths, part.sent_at = "done", "", 0, (0, 0), inf

    @property
    def needs(self) -> str:
        """The bucket of its slices while nobody suspects them."""
        return f"{self.request.model} {self.request.layer}"

    @property
    def failed(self) -> list[int]:
        """The indices of what has failed."""
        return [index for index, outcome in self.results.items() if outcome and outcome[0] == "failed"]

    def commit(self, index: int, outcome: tuple[str, float | None, str | None]) -> None:
        """An item has a result."""
        self.results[index] = outcome
        self.reported.append(index)

    def retry(self, now: float) -> None:
        """What has failed is as if it had never been."""
        failed, seconds = set(self.failed), self.request.deadline_s
        self.results = {index: outcome for index, outcome in self.results.items() if index not in failed}
        self.deadline = None if seconds is None else now + seconds
        self.attempt, self.started, self.finished, self.rounds = 0, None, None, self.rounds + 1
        for part in self.parts:
            if any(item.index in failed for item in part.items):
                part.attempt, part.deaths, part.resolved, part.sent_at = 0, (0, 0), False, now
                part.wait(now)

    def seen(self, rank: int | None) -> dict[str, object]:
        """What a reader must see."""
        done = {index: outcome for index, outcome in sorted(self.results.items()) if outcome}
        failed = [error for status, _, error in done.values() if status == "failed"]
        known = not isinstance(self.request.kernels, str) or all(part.resolved for part in self.parts)
        total = sum(len(part.items) for part in self.parts) - list(self.results.values()).count(None)
        left = {item.index: ("cancelled", None, None) for part in self.parts for item in part.left if self.cancelled}
        open_ = any(part.status != "done" for part in self.parts)
        end = "cancelled" if self.cancelled else "succeeded" if len(done) > len(failed) else "failed"
        status = end if not open_ else "queued" if self.started is None else "running"
        return {
            "state": (status, self.attempt, rank if status == "queued" else None),
            "times": (self.created, self.started, self.finished, self.expires),
            "progress": tuple(self.progress.get(name) for name in PROGRESS),
            "counts": (len(done), len(failed), len(failed), total if known else None),
            "results": [(index, *outcome) for index, outcome in sorted({**done, **left}.items())],
            "error": (failed or [SILENT.type_uri()])[0] if status == "failed" else None,
        }


def facts(job: WholeJob) -> dict[str, object]:
    """What a reader does see."""
    times = (job.created_at, job.started_at, job.finished_at, job.expires_at)
    return {
        "state": (job.status.value, job.attempt, job.queue_position),
        "times": tuple(time and time.timestamp() for time in times),
        "progress": tuple(getattr(job.progress, name) for name in PROGRESS),
        "counts": (job.progress.completed, job.progress.failed, job.failed_items, job.progress.total),
        "results": [(each.index, each.status, each.seconds, each.error and each.error.type) for each in job.results],
        "error": job.error and job.error.type,
    }


@dataclass(eq=False)
class Part:
    """A slice as it must be."""

    name: str
    work: Work
    items: list[Item]
    queued_at: float
    sent_at: float
    status: str = "queued"
    token: str = ""
    attempt: int = 0
    deaths: tuple[int, int] = (0, 0)  # alone, in company
    worker: str = ""
    lease: float = 0.0
    resolved: bool = False
    claims: list[Claim] = field(default_factory=list)
    bucket: str = ""
    tolerated: float = inf  # deaths in company

    def wait(self, now: float) -> None:
        """It is queued, apart where it is suspected."""
        suspected = self.deaths[0] > 0 or self.deaths[1] >= self.tolerated
        self.status, self.queued_at = "queued", now
        self.bucket = self.work.needs + (SUSPECTED if suspected else "")

    @property
    def left(self) -> list[Item]:
        """The items that have no result and are not skipped."""
        return [item for item in self.items if item.index not in self.work.results]

    def suspected(self, most: int) -> bool:
        """Whether it may be what its workers died of."""
        return self.deaths[0] > 0 or self.deaths[1] >= max(1, most - 1)

    def has(self, status: str, claim: Claim) -> bool:
        """Whether it is in this state, and nobody has claimed it since that claim."""
        return (self.status, self.token) == (status, claim.token)

    def begin(self, token: str, now: float, worker: str = "") -> None:
        """Queued → running."""
        self.status, self.token, self.lease, self.worker = "running", token, now + LEASE, worker or self.name
        self.attempt += 1
        self.work.attempt = max(self.work.attempt, self.attempt)
        self.work.started = now if self.work.started is None else self.work.started

    def end(self, now: float, error: str = "") -> None:
        """Running → done, what is left failed."""
        self.status, self.resolved = "done", self.resolved or bool(error)
        for item in self.left:
            self.work.commit(item.index, ("failed", None, error))
        if all(part.status == "done" for part in self.work.parts):
            self.work.finished, self.work.progress = now, {}


@dataclass
class Turns:
    """Who is served next, from one queue."""

    served: dict[str, float] = field(default_factory=dict)  # owner → the turn in which they were served last

    def next(self, parts: Iterable[Part], buckets: Collection[str]) -> Part | None:
        """Of the owner who was served longest ago, the slice that waits longest."""
        waiting = [part for part in parts if part.status == "queued" and part.bucket in buckets]
        if not waiting:
            return None
        owner = min({part.work.owner for part in waiting}, key=lambda name: (self.served.get(name, 0), name))
        self.served[owner] = max(self.served.values(), default=0) + 1
        return min((part for part in waiting if part.work.owner == owner), key=lambda part: (part.queued_at, part.name))

    def places(self, queue: Queue, waiting: Iterable[Part]) -> dict[str, dict[str, float]]:
        """The sorted sets in which these wait, and those of whose they are."""
        found: dict[str, dict[str, float]] = {}
        for part in waiting:
            place, owner = f"{queue}:{part.bucket}", part.work.owner
            found.setdefault(f"waiting:{place}:{owner}", {})[part.name] = part.queued_at
            found.setdefault(f"turns:{place}", {})[owner] = self.served.get(owner, 0)
        return found


def line_of(work: Work) -> str:
    """What its owner's list says of an archived job."""
    failed = all(result and result[0] == "failed" for result in work.results.values() if result)
    status = "cancelled" if work.cancelled else "failed" if failed else "succeeded"
    return f"{work.name} {status} {work.request.model} {work.request.layer}"


def readers_were_told(records: Records, job: WholeJob, work: Work) -> None:
    """Each state once and in order, again for each retry; each result once; of the progress at most the latest."""
    kept = records.log_of(job.id) if work.archived else records.redis.lrange(f"ks:job:{job.id}:log", 0, -1)
    events = [entry.partition(" ") for entry in kept or ()]
    states = [what for kind, _, what in events if kind == "status"]
    rounds = " ".join(states).split("queued")[1:]
    assert all(not round_.strip() or END.fullmatch(round_) for round_ in rounds), states
    assert (states[-1], len(rounds)) == (job.status, work.rounds)
    reported = [int(what) for kind, _, what in events if kind == "result"]
    assert sorted(reported) == sorted(work.reported)
    assert events[-1][0] == "status" or not job.status.terminal


def contents(redis: Redis) -> dict[str, Any]:
    """Everything in the database but plain strings, which run out by the real time."""
    zset = partial(redis.zrange, start=0, end=-1, withscores=True)
    readers = {"hash": redis.hgetall, "set": redis.smembers, "zset": zset}
    kinds = {key: redis.type(key) for key in redis.keys("ks:*")}
    return {key: readers[kind](key) for key, kind in kinds.items() if kind in readers}
