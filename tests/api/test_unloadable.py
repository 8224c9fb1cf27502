"""Requests for networks whose weights a worker could not load, and jobs that failed because of it."""

from __future__ import annotations

from typing import Any

import pytest
from httpx import Client
from redis import Redis

from shared.errors import KernelscopeError, ModelUnavailable, SilentKernel
from shared.workers import NetworkState, WorkerState, publish
from tests.api.conftest import InlineWorker
from tests.api.test_explain import post, refused
from tests.api.test_surveys import LAYER, surveyed

FAILED = "no weights for alexnet: the download failed"


@pytest.mark.parametrize("layers", [[], ["conv1"]], ids=["none has it", "another has a part of it"])
def test_a_network_that_is_being_loaded_again_may_be_asked_for(
    client: Client, redis: Redis, worker: WorkerState, layers: list[str]
) -> None:
    """`GET /models` has the reason until it is loaded. Once it is given up, requests are refused."""
    states = [worker]
    if layers:
        part = NetworkState(available=True, reason="in the folder", source="alexnet-part.pth", layers=layers)
        states.append(worker.model_copy(update={"id": "w2", "networks": {"alexnet": part}}))
    worker.networks["alexnet"] = NetworkState(available=False, reason=FAILED, failure="temporary")
    for state in states:
        publish(redis, state)
    assert post(client, model="alexnet", layer="conv2").status_code == 202
    shown = client.get("/models/alexnet").json()
    assert (shown["available"], shown["reason"]) == ((True, "in the folder") if layers else (False, FAILED))
    worker.networks["alexnet"].failure = "final"
    publish(redis, worker)
    slug, word = ("layer-not-covered", "conv2") if layers else ("model-unavailable", FAILED)
    refused(post(client, model="alexnet", layer="conv2"), 422, slug, word)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(("error", "anew"), [(ModelUnavailable("no weights"), True), (SilentKernel("silent"), False)])
def test_an_explanation_whose_network_could_not_be_loaded_is_made_anew(
    client: Client, inline_worker: InlineWorker, error: KernelscopeError, *, anew: bool
) -> None:
    """With the job of its rivals; a job that failed for another reason is not: it would fail again."""
    survey = surveyed(client, inline_worker)
    place = f"{survey['links']['self']}/explanations"
    body = {"layer": LAYER, "kernels": [0], "images": 3, "rivals": True}

    def asked() -> list[Any]:
        return [job["id"] for job in client.post(place, json=body).raise_for_status().json()]

    first, transitions = asked(), inline_worker.transitions
    for slice_id in transitions.queued():
        claim = transitions.claim(slice_id)
        assert claim
        transitions.fail(claim, error)
    assert [client.get(f"/jobs/{job}").json()["status"] for job in first] == ["failed", "failed"]
    second = asked()
    assert (set(first).isdisjoint(second), first == second) == (anew, not anew)
    inline_worker.work()
    assert [client.get(f"/jobs/{job}").json()["status"] for job in second] == ["succeeded" if anew else "failed"] * 2
    assert asked() == second
