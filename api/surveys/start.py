"""From a data set to a queued survey, and how far surveys are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from api.jobs.accept import Wanted, foreseen, queued
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
from shared.schemas import ExplainRequest, Job, Status, plan
from shared.surveys.forms import NewSurvey, Survey
from shared.surveys.store import Facts, Images, cut, listed


def started(services: Services, caller: Caller, body: NewSurvey, idempotency_key: str | None) -> tuple[Job, bool]:
    """The job of a survey, and whether it was there before.

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
    wanted = _wanted(services, body, parts)
    if known := foreseen(services, caller, wanted, idempotency_key):
        return known, True
    facts = Facts(
        owner=caller.owner,
        created_at=collection.now(),
        dataset=body.dataset,
        dataset_name=services.datasets.shelf.facts(body.dataset, caller.owner).name,
        model=body.model,
        layers=wanted.request.layers,
        images=len(images),
    )
    survey_id = new_id()
    try:
        services.surveys.create(survey_id, facts, parts)
        job, replayed = queued(services, caller, survey_id, wanted, idempotency_key)
    except (QueueFull, QuotaExceeded, IdempotencyConflict):  # after another error it may be queued all the same
        _forget(services, survey_id, caller.owner)
        raise
    if job.id != survey_id:  # the same request came twice at this moment
        _forget(services, survey_id, caller.owner)
    return job, replayed


def _wanted(services: Services, body: NewSurvey, parts: Sequence[Images]) -> Wanted:
    """The job: an item for each part."""
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
    return Wanted(request, plan(request, services.settings.max_items))


def surveys_of(services: Services, owner: str) -> list[Survey]:
    """Those that an owner may read, the newest first."""
    return all_described(services, services.surveys.shelf.all(owner), owner)


def all_described(services: Services, surveys: Mapping[str, Facts], owner: str) -> list[Survey]:
    """These, as they stand."""
    with ThreadPoolExecutor(READERS) as readers:
        return list(readers.map(lambda one: described(services, one[0], one[1], owner), surveys.items()))


def described(services: Services, survey_id: str, facts: Facts, owner: str) -> Survey:
    """A survey as it stands."""
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


def removed(services: Services, survey_id: str, owner: str) -> None:
    """Delete a survey; where it still runs it is cancelled.

    Raises:
        SurveyNotFound.
    """
    services.surveys.shelf.own(survey_id, owner, "delete")
    with suppress(JobNotFound, JobExpired):
        if not services.records.job(survey_id, owner).status.terminal:
            services.transitions.cancel(survey_id)
    dataset = services.surveys.shelf.facts(survey_id, owner).dataset
    services.surveys.shelf.remove(survey_id, owner)
    services.store.remove_folder(f"datasets/{dataset}/crops/{survey_id}/")


def _status(services: Services, survey_id: str, facts: Facts) -> tuple[Status, list[int]]:
    """Its job's, but that it has succeeded once it is complete, and not before; and the parts that there are."""
    try:
        status = services.records.job(survey_id).status
    except (JobNotFound, JobExpired):
        status = Status.CANCELLED
    parts = services.surveys.parts(survey_id)  # after the job was asked: the last may come in between
    if len(parts) == facts.parts:
        return Status.SUCCEEDED, parts
    return Status.FAILED if status is Status.SUCCEEDED else status, parts


def _layers(services: Services, body: NewSurvey) -> list[str]:
    """Their names, in the order of the network."""
    network = workers.network(services.redis, body.model)
    if body.layers is None:
        states = [one.networks[body.model] for one in workers.living(services.redis) if body.model in one.networks]
        usable = [state for state in states if state.available]
        known = [one.name for one in network.layers]
        return [name for name in known if not usable or any(state.covers(name) for state in usable)] or known
    wanted = {network.layer(name).name for name in body.layers}
    every: list[Layer] = [*network.layers, *network.nodes]
    return [one.name for one in every if one.name in wanted]


def _forget(services: Services, survey_id: str, owner: str) -> None:
    with suppress(KernelscopeError):  # what stays is small, and in the owner's list
        services.surveys.shelf.remove(survey_id, owner)
