"""Creating, describing and deleting surveys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from api.jobs.accept import PlannedJob, enqueue, find_existing
from api.services import Services
from shared import collection, workers
from shared.catalogue import Layer
from shared.collection import READERS
from shared.errors import (
    IdempotencyConflict,
    InvalidRequest,
    JobExpired,
    JobNotFound,
    KernelscopeError,
    QueueFull,
    QuotaExceeded,
)
from shared.jobs import Caller, new_id
from shared.schemas import ExplainRequest, Job, NewSurvey, Status, Survey, plan
from shared.surveys.store import Images, SurveyFacts, cut, listed


def create(services: Services, caller: Caller, body: NewSurvey, idempotency_key: str | None) -> tuple[Job, bool]:
    """The job of a survey, and whether an earlier request created it.

    Raises:
        DataSetNotFound, UnknownModel, UnknownLayer, InvalidRequest, ModelUnavailable, LayerNotCovered, QuotaExceeded,
        QueueFull, IdempotencyConflict, DataSetFull, StoreUnavailable.
    """
    images = services.datasets.images(body.dataset, caller.owner)
    if not images:
        raise InvalidRequest(
            f"dataset: {body.dataset} has no image; add some with POST /datasets/{body.dataset}/images"
        )
    parts = cut(images)
    planned = _plan(services, body, parts)
    if existing := find_existing(services, caller, planned, idempotency_key):
        return existing, True
    facts = SurveyFacts(
        owner=caller.owner,
        created_at=collection.now(),
        dataset=body.dataset,
        dataset_name=services.datasets.collection.facts(body.dataset, caller.owner).name,
        model=body.model,
        layers=planned.request.layers,
        images=len(images),
    )
    survey_id = new_id()
    try:
        services.surveys.create(survey_id, facts, parts)
        job, replayed = enqueue(services, caller, survey_id, planned, idempotency_key)
    except (QueueFull, QuotaExceeded, IdempotencyConflict):  # after other errors it may be queued nevertheless
        _discard(services, survey_id, caller.owner)
        raise
    if job.id != survey_id:  # the same request arrived twice at the same time
        _discard(services, survey_id, caller.owner)
    return job, replayed


def _plan(services: Services, body: NewSurvey, parts: Sequence[Images]) -> PlannedJob:
    """The job of a survey, with an item for each part of the data set."""
    layers = _layers(services, body)
    request = ExplainRequest(
        model=body.model,
        layer=layers[-1],
        layers=layers,
        kernels=[],
        methods=["survey"],
        images=[services.store.digest(listed(part)) for part in parts],
        webhook_url=body.webhook_url,
    )
    return PlannedJob(request, plan(request, services.settings.max_items))


def readable(services: Services, owner: str) -> list[Survey]:
    """The surveys that an owner may read, newest first."""
    return describe_all(services, services.surveys.collection.all(owner), owner)


def describe_all(services: Services, surveys: Mapping[str, SurveyFacts], owner: str) -> list[Survey]:
    """The current state of several surveys."""
    with ThreadPoolExecutor(READERS) as readers:
        return list(readers.map(lambda one: describe(services, one[0], one[1], owner), surveys.items()))


def describe(services: Services, survey_id: str, facts: SurveyFacts, owner: str) -> Survey:
    """The current state of a survey."""
    status, parts = _status(services, survey_id, facts)
    used, here = services.surveys.used(survey_id), f"/surveys/{survey_id}"
    return Survey(
        id=survey_id,
        dataset=facts.dataset,
        dataset_name=facts.dataset_name,
        model=facts.model,
        layers=facts.layers,
        images=facts.images,
        surveyed=facts.surveyed(parts),
        status=status,
        created_at=facts.made,
        public=facts.public,
        mine=facts.owner == owner,
        weights=used.weights if used else None,
        links={
            "self": here,
            "csv": f"{here}/kernels.csv",
            **({"job": f"/jobs/{survey_id}"} if facts.owner == owner else {}),
        },
    )


def delete(services: Services, survey_id: str, owner: str) -> None:
    """Delete a survey, and cancel it if it is running.

    Raises:
        SurveyNotFound.
    """
    services.surveys.collection.own(survey_id, owner, "delete")
    with suppress(JobNotFound, JobExpired):
        if not services.records.job(survey_id, owner).status.terminal:
            services.transitions.cancel(survey_id)
    dataset = services.surveys.collection.facts(survey_id, owner).dataset
    services.surveys.collection.remove(survey_id, owner)
    services.store.remove_folder(f"datasets/{dataset}/crops/{survey_id}/")


def _status(services: Services, survey_id: str, facts: SurveyFacts) -> tuple[Status, list[int]]:
    """The status and the finished parts. The status is its job's, except that it is `succeeded` exactly if complete."""
    try:
        status = services.records.job(survey_id).status
    except (JobNotFound, JobExpired):
        status = Status.CANCELLED
    parts = services.surveys.parts(survey_id)  # after the job was read: the last part may be finished in between
    if len(parts) == facts.parts:
        return Status.SUCCEEDED, parts
    return Status.FAILED if status is Status.SUCCEEDED else status, parts


def _layers(services: Services, body: NewSurvey) -> list[str]:
    """The names of the survey's layers, in the order of the network."""
    network = workers.network(services.redis, body.model)
    if body.layers is None:
        states = [one.networks[body.model] for one in workers.living(services.redis) if body.model in one.networks]
        usable = [state for state in states if state.available]
        known = [one.name for one in network.layers]
        return [name for name in known if not usable or any(state.covers(name) for state in usable)] or known
    wanted = {network.layer(name).name for name in body.layers}
    every: list[Layer] = [*network.layers, *network.nodes]
    return [one.name for one in every if one.name in wanted]


def _discard(services: Services, survey_id: str, owner: str) -> None:
    with suppress(KernelscopeError):  # what remains is small, and the owner sees it in the list
        services.surveys.collection.remove(survey_id, owner)
