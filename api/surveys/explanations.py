"""X̂ of the images that activate a kernel most: made by ordinary jobs, with scores over all of the images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import sqrt
from statistics import fmean
from typing import Any, TypeVar

from api.jobs.accept import create_from_known_images
from api.pictures.consistency import Description, consistency, discrimination
from api.services import Services
from shared import catalogue, workers
from shared.errors import InvalidRequest, JobExpired, JobNotFound, ModelUnavailable, SilentKernel
from shared.jobs import Caller
from shared.schemas import (
    ExplainBody,
    ExplainKernels,
    Explanation,
    ImageSource,
    ItemResult,
    Job,
    Score,
    Status,
    WholeJob,
)
from shared.surveys.store import SurveyFacts

T = TypeVar("T")

METHOD = "evidence"
EFFORTS = ("quick", "standard", "thorough")
RIVALS = "top:2"  # at least one of the two is another kernel
GONE = "gone"
COMPARED = 4  # images on which rivals are also explained


@dataclass
class Note:
    """The stored state of a kernel's explanation, for one owner.

    Args:
        images: numbers of the images in the survey.
        scores: those of `Explanation`, computed when the jobs had ended.
        made: positions in `images` of the images that had an X̂ then.
        ended: when the jobs ended that `scores` and `made` are of; a retried job ends again.
        expires: when the pictures are deleted.
    """

    job: str
    effort: str
    images: list[int]
    rivals: str | None = None
    scores: dict[str, Any] | None = None
    made: list[int] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    expires: str = ""

    @property
    def pictured(self) -> list[int]:
        """`made`, until the pictures are deleted."""
        return self.made if self.expires > datetime.now(UTC).isoformat() else []

    @classmethod
    def read(cls, text: bytes) -> Note:
        """Parse a stored note."""
        return cls(**json.loads(text))

    def to_json(self) -> bytes:
        """The note as it is stored."""
        return json.dumps(vars(self)).encode()


def request_explanations(services: Services, caller: Caller, survey_id: str, body: ExplainKernels) -> list[Job]:
    """The jobs that explain these kernels, existing and new ones. Silent kernels have none.

    Raises:
        SurveyNotFound, DataSetNotFound, UnknownLayer, UnknownKernel, InvalidRequest, SilentKernel, QuotaExceeded,
        QueueFull, StoreUnavailable, and the errors of `POST /explain`.
    """
    facts = services.surveys.collection.facts(survey_id, caller.owner)
    layer = workers.network(services.redis, facts.model).layer(body.layer)
    catalogue.check_kernels(layer, body.kernels)
    whole = services.surveys.layer(survey_id, layer.name)
    if whole is None:
        state = (
            f"it has {', '.join(facts.layers)}" if layer.name not in facts.layers else "it has processed no image yet"
        )
        raise InvalidRequest(f"layer: survey {survey_id} has no data on {layer.name}: {state}")
    jobs: list[Job] = []
    for kernel in body.kernels:
        if top := [number for number, _, _ in whole.tally.kernel(kernel).top[: body.images]]:
            jobs += _KernelExplanation(services, caller, survey_id, facts, layer.name, kernel).jobs(top, body)
    if not jobs:
        raise SilentKernel(f"no image of the survey activates kernel {', '.join(map(str, body.kernels))}")
    return jobs


@dataclass(frozen=True)
class _KernelExplanation:
    """The jobs of one kernel."""

    services: Services
    caller: Caller
    survey_id: str
    facts: SurveyFacts
    layer: str
    kernel: int

    def jobs(self, numbers: list[int], body: ExplainKernels) -> list[Job]:
        surveys, place = self.services.surveys, (self.survey_id, self.caller.owner, self.layer, self.kernel)
        text = surveys.explained(*place)
        note = Note.read(text) if text else None
        found = self._reusable(note, numbers, body.effort)
        if note is None or found is None:
            found = self._create(numbers, [self.kernel], body.effort, note.job if note else "")
            note = Note(found.id, body.effort, numbers)
            surveys.note_explained(*place, note.to_json())
        if not body.rivals:
            return [found]
        rivals = self._existing(note.rivals)
        if rivals is None:
            rivals = self._create(numbers[:COMPARED], RIVALS, note.effort, note.rivals or note.job)
            note.rivals, note.ended = rivals.id, []
            surveys.note_explained(*place, note.to_json())
        return [found, rivals]

    def _reusable(self, note: Note | None, numbers: list[int], effort: str) -> Job | None:
        """The existing job, if it is of these images and of at least this effort."""
        if note is None or EFFORTS.index(note.effort) < EFFORTS.index(effort) or note.images != numbers:
            return None
        return self._existing(note.job)

    def _existing(self, job_id: str | None) -> Job | None:
        try:
            job = self.services.records.job(job_id, self.caller.owner) if job_id else None
        except (JobNotFound, JobExpired):
            return None
        return None if job is None or _never_ran(job) else job

    def _create(self, numbers: Sequence[int], kernels: list[int] | str, effort: str, former: str) -> Job:
        what = json.dumps([self.survey_id, self.layer, self.kernel, effort, list(numbers), kernels, former])
        named = [self.services.surveys.image(self.survey_id, number) for number in numbers]
        body = ExplainBody(
            model=self.facts.model,
            layer=self.layer,
            kernels=kernels,
            methods=[METHOD],
            effort=effort,
            images=[self._source(digest, name) for digest, name in named],
        )
        return create_from_known_images(self.services, self.caller, body, hashlib.sha256(what.encode()).hexdigest())[0]

    def _source(self, digest: str, name: str) -> ImageSource:
        data = self.services.datasets.image(self.facts.dataset, digest, self.caller.owner)
        return ImageSource.model_construct(data=data, sha256=None, name=name.rsplit("/", 1)[-1] or None)


def _never_ran(job: Job) -> bool:
    """Whether a job ended without a worker for it: it was cancelled, or its network could not be loaded."""
    errors = [result.error for result in job.results or []]
    unloadable = [error is not None and error.type.endswith(ModelUnavailable.type_uri()) for error in errors]
    return job.status is Status.CANCELLED or (job.status is Status.FAILED and bool(unloadable) and all(unloadable))


@dataclass(frozen=True)
class LoadedExplanation:
    """An explanation, and its results by the numbers of their images."""

    explanation: Explanation
    results: dict[int, ItemResult]


def load_explanation(
    services: Services, owner: str, place: tuple[str, str, int], note: Note
) -> LoadedExplanation | None:
    """The current state of an explanation; None if its job was deleted.

    Args:
        place: survey, layer, kernel.
    """
    kernel = place[2]
    try:
        job = services.records.whole(note.job, owner)
    except (JobNotFound, JobExpired):
        if not note.ended or note.made:
            note.scores, note.made, note.ended = {}, [], [GONE]
            _update_note(services, owner, place, note)
        return None
    rivals = _rivals(services, owner, note)
    both = [job, *([rivals] if rivals else [])]
    ended = [str(one.finished_at) for one in both] if all(one.status.terminal for one in both) else []
    if note.scores is None or not ended or note.ended != ended:
        found = _scores(services, job, rivals, kernel)
        if ended:
            note.scores = {name: one.model_dump() if one else None for name, one in found.items()}
            note.made = [one.index for one in job.results if one.status == "succeeded"]
            note.ended, note.expires = ended, job.expires_at.astimezone(UTC).isoformat()
            _update_note(services, owner, place, note)
    else:
        found = {name: Score.model_validate(one) if one else None for name, one in (note.scores or {}).items()}
    here = f"/jobs/{note.job}"
    explanation = Explanation(
        job=note.job,
        status=job.status,
        method=METHOD,
        effort=note.effort,
        made=sum(one.status == "succeeded" for one in job.results),
        of=len(note.images),
        rivals=note.rivals if rivals else None,
        **found,
        links={"self": here, "events": f"{here}/events", "retry": f"{here}/retry"},
    )
    return LoadedExplanation(explanation, {note.images[one.index]: one for one in job.results})


def _update_note(services: Services, owner: str, place: tuple[str, str, int], note: Note) -> None:
    """Store the note, unless it is about other jobs by now."""
    survey_id, layer, kernel = place
    text = services.surveys.explained(survey_id, owner, layer, kernel)
    known = Note.read(text) if text else None
    if known and (known.job, known.rivals) == (note.job, note.rivals):
        services.surveys.note_explained(survey_id, owner, layer, kernel, note.to_json())


def _rivals(services: Services, owner: str, note: Note) -> WholeJob | None:
    try:
        return services.records.whole(note.rivals, owner) if note.rivals else None
    except (JobNotFound, JobExpired):
        return None


def _scores(services: Services, job: WholeJob, rivals: WholeJob | None, kernel: int) -> dict[str, Score | None]:
    """The scores of the results so far."""
    own = _descriptions(services, job, lambda one: one.index)
    others: list[dict[int, Description]] = []
    if rivals:
        seen = _descriptions(services, rivals, lambda one: one.index)
        others += [
            {rivals.request.image_of(one.index): seen[one.index]}
            for one in rivals.results
            if one.kernel != kernel and one.index in seen
        ]
    lost = {
        one.index: 1 - one.metrics.ssim_grey
        for one in job.results
        if one.status == "succeeded" and one.metrics and one.metrics.ssim_grey is not None
    }
    return {
        "consistency": _score(consistency, own),
        "discrimination": _score(lambda pictures: discrimination(pictures, others), own) if others else None,
        "colour": _score(lambda fractions: fmean(fractions.values()) if fractions else None, lost),
    }


def _descriptions(services: Services, job: WholeJob, key: Callable[[ItemResult], int]) -> dict[int, Description]:
    made = [one.index for one in job.results if one.status == "succeeded"]
    if not made:
        return {}
    head = services.records.head(job.id)
    found = {}
    for result, blobs in services.records.results(job.id, made):
        described = services.pictures.files.description(head, (result, blobs))
        if described is not None:
            found[key(result)] = described
    return found


def _score(statistic: Callable[[Mapping[int, T]], float | None], own: dict[int, T]) -> Score | None:
    """A statistic over images, with its standard error by the jackknife: each image is left out once."""
    value = statistic(own)
    if value is None:
        return None
    without = [statistic({key: it for key, it in own.items() if key != left}) for left in own]
    known = [one for one in without if one is not None]
    if len(known) < len(own):
        return Score(value=value, error=None)
    middle, count = fmean(known), len(known)
    return Score(value=value, error=sqrt((count - 1) / count * sum((one - middle) ** 2 for one in known)))
