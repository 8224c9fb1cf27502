"""The job record in plain Python: jobs and slices as they must be."""

from __future__ import annotations

from dataclasses import dataclass, field

from shared.errors import SilentKernel
from shared.jobs import Claim
from shared.jobs.claims import Queue
from shared.schemas import ExplainRequest, Item, Job

LEASE = 20.0
PROGRESS = {"iteration": 4, "budget": 10, "loss": 0.5}
SILENT = SilentKernel("silent")


@dataclass(eq=False)
class Work:
    """A job as it must be."""

    name: str
    request: ExplainRequest
    queue: Queue
    created: float
    expires: float
    deadline: float | None
    parts: list[Part] = field(default_factory=list)
    results: dict[int, tuple[str, float | None, str | None] | None] = field(default_factory=dict)  # None: skipped
    progress: dict[str, float] = field(default_factory=dict)
    attempt: int = 0
    started: float | None = None
    finished: float | None = None
    cancelled: bool = False
    removed: bool = False

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


def facts(job: Job) -> dict[str, object]:
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

    @property
    def left(self) -> list[Item]:
        """The items that have no result and are not skipped."""
        return [item for item in self.items if item.index not in self.work.results]

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
        self.work.results |= {item.index: ("failed", None, error) for item in self.left}
        if all(part.status == "done" for part in self.work.parts):
            self.work.finished, self.work.progress = now, {}
