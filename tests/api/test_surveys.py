"""`/surveys` and `/kernels`: creating, reading, isolating, deleting; with a device that computes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from httpx import Client
from PIL import Image
from redis import Redis

from shared import workers
from shared.datasets import DataSets
from shared.errors import NetworkChanged, SilentKernel
from shared.images import Frame
from shared.jobs import Transitions
from shared.schemas import ItemResult, Preprocessing, WeightsUsed
from shared.settings import Settings
from shared.store import BlobStore
from shared.surveys.store import Surveys
from shared.workers import WorkerState
from tests.api.conftest import InlineWorker, serving
from tests.api.test_datasets import made, sent
from tests.api.test_explain import refused
from tests.conftest import png

LAYER = "conv2_1"
COUNT = 11
PART = 4  # images, by the fixture `small_parts`

pytestmark = pytest.mark.usefixtures("small_parts")


def picture(number: int) -> bytes:
    """An image of its own colour: the activation of the dummy's kernel k is the mean of channel k mod 3."""
    colour = np.array([20 * number, 255 - 20 * number, 10 * ((7 * number) % COUNT)], np.uint8)
    return png(Image.fromarray(np.broadcast_to(colour, (96, 96, 3)).copy()))


def filled(client: Client, count: int = COUNT, **options: Any) -> str:
    """Create a data set with some images; returns its id."""
    path = made(client, **options)
    sent(client, path, {f"{number}.png": picture(number) for number in range(count)}, **options).raise_for_status()
    return path.rpartition("/")[2]


def surveyed(
    client: Client, inline_worker: InlineWorker, layers: list[str] | None = None, **options: Any
) -> dict[str, Any]:
    """A finished survey."""
    body = {"dataset": filled(client, **options), "model": "vgg_mini", "layers": layers or [LAYER]}
    answer = client.post("/surveys", json=body, **options)
    assert answer.status_code == 202, answer.text
    job = answer.json()
    inline_worker.work()
    found: dict[str, Any] = client.get(job["links"]["survey"], **options).raise_for_status().json()
    assert (found["status"], found["surveyed"]) == ("succeeded", COUNT), client.get(job["links"]["self"]).text
    return found


def test_an_incomplete_survey_is_shown(
    client: Client, inline_worker: InlineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one with a failed part."""
    dataset = filled(client)
    job = client.post("/surveys", json={"dataset": dataset, "model": "vgg_mini", "layers": [LAYER]}).json()
    before = client.get(f"/kernels/vgg_mini/{LAYER}/0").raise_for_status().json()
    assert (before["survey"]["status"], before["survey"]["surveyed"], before["top"]) == ("queued", 0, [])
    assert client.get(f"/kernels/vgg_mini/{LAYER}").json()["kernels"][0]["crop"] is None
    body = {"layer": LAYER, "kernels": [0]}
    refused(client.post(f"/surveys/{job['id']}/explanations", json=body), 422, "invalid-request", "no image yet")
    whole = inline_worker.engine.device.survey

    calls = iter(range(COUNT))

    def failing(model: str, layers: Any, pictures: Any) -> Any:
        if next(calls) == 1:  # of the second part
            raise MemoryError
        return whole(model, layers, pictures)

    monkeypatch.setattr(inline_worker.engine.device, "survey", failing)
    inline_worker.work()
    found = client.get(f"/kernels/vgg_mini/{LAYER}/0").json()
    assert (found["survey"]["status"], found["survey"]["surveyed"]) == ("failed", COUNT - PART)
    assert not {one["name"] for one in found["top"]} & {f"{number}.png" for number in range(PART, 2 * PART)}
    monkeypatch.setattr(inline_worker.engine.device, "survey", whole)
    client.post(f"/jobs/{job['id']}/retry").raise_for_status()
    inline_worker.work()
    found = client.get(f"/kernels/vgg_mini/{LAYER}/0").json()
    assert (found["survey"]["status"], found["survey"]["surveyed"]) == ("succeeded", COUNT)
    assert found["top"][0]["name"] == "10.png"


def test_a_survey_outlives_its_job(client: Client, inline_worker: InlineWorker) -> None:
    """Until it is deleted, with its crops; the data set remains."""
    survey = surveyed(client, inline_worker)
    client.delete(survey["links"]["job"]).raise_for_status()
    page = client.get(f"/kernels/vgg_mini/{LAYER}/0").raise_for_status().json()
    assert page["survey"]["status"] == "succeeded"
    assert client.delete(survey["links"]["self"]).status_code == 204
    refused(client.get(survey["links"]["self"]), 404, "survey-not-found")
    refused(client.get(f"/kernels/vgg_mini/{LAYER}/0"), 404, "survey-not-found", "kernelscope surveys make")
    refused(client.get(page["top"][0]["crop"]), 404, "survey-not-found")
    assert client.get("/surveys").json() == []
    assert len(client.get("/datasets").json()) == 1


def test_a_survey_that_is_deleted_while_it_runs_leaves_nothing(
    client: Client, inline_worker: InlineWorker, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even what the worker writes afterwards."""
    job = client.post("/surveys", json={"dataset": filled(client), "model": "vgg_mini", "layers": [LAYER]}).json()
    whole = inline_worker.engine.device.survey

    def late(*arguments: Any) -> Any:
        found = whole(*arguments)
        client.delete(f"/surveys/{job['id']}")
        return found

    monkeypatch.setattr(inline_worker.engine.device, "survey", late)
    inline_worker.work()
    assert client.get(f"/jobs/{job['id']}").json()["status"] == "cancelled"
    there = [file for file in Path(settings.data_dir, "store", "surveys").rglob("*") if file.is_file()]
    assert [file.parent.name for file in there] == ["removed"]


def test_the_data_set_of_a_survey_is_deleted(client: Client, inline_worker: InlineWorker) -> None:
    """A running survey fails with this reason; a complete one keeps its numbers, but not the crops."""
    complete = surveyed(client, inline_worker)
    crop = client.get(f"/kernels/vgg_mini/{LAYER}/0").json()["top"][0]["crop"]
    client.get(crop).raise_for_status()
    job = client.post("/surveys", json={"dataset": complete["dataset"], "model": "vgg_mini"}).json()
    client.delete(f"/datasets/{complete['dataset']}").raise_for_status()
    inline_worker.work()
    failed = client.get(f"/jobs/{job['id']}").json()
    assert failed["status"] == "failed"
    assert "deleted during the survey" in failed["error"]["detail"]
    page = client.get(f"/kernels/vgg_mini/{LAYER}/0?survey={complete['id']}").raise_for_status().json()
    assert page["top"]
    refused(client.get(crop), 404, "data-set-not-found")
    body = {"layer": LAYER, "kernels": [0]}
    refused(client.post(f"{complete['links']['self']}/explanations", json=body), 404, "data-set-not-found")


def test_a_network_that_changes_during_a_survey_is_an_error(
    client: Client, inline_worker: InlineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A survey is never of two networks."""
    job = client.post("/surveys", json={"dataset": filled(client), "model": "vgg_mini", "layers": [LAYER]}).json()
    whole, device = inline_worker.engine.device.survey, inline_worker.engine.device

    calls = iter(range(COUNT))

    def changed(model: str, layers: Any, pictures: Any) -> Any:
        if next(calls) == 1:  # in the second part
            monkeypatch.setattr(device, "weights", lambda _: WeightsUsed(source="other", sha256="1" * 64))
        return whole(model, layers, pictures)

    monkeypatch.setattr(device, "survey", changed)
    inline_worker.work()
    found = client.get(f"/jobs/{job['id']}").json()
    assert [one["status"] for one in found["results"]] == ["succeeded", "succeeded", "failed"]
    assert found["results"][-1]["error"]["type"].endswith("network-changed")


@pytest.mark.parametrize(
    ("body", "status", "slug", "word"),
    [
        ({}, 422, "invalid-request", "dataset"),
        ({"dataset": "x"}, 422, "invalid-request", "dataset"),
        ({"dataset": "0" * 32}, 404, "data-set-not-found", "0" * 32),
        ({"layers": []}, 422, "invalid-request", "layers"),
        ({"layers": ["conv9_9"]}, 422, "unknown-layer", "conv9_9"),
        ({"model": "nonesuch"}, 422, "unknown-model", "nonesuch"),
        ({"kernels": [1]}, 422, "invalid-request", "kernels"),
    ],
)
def test_invalid_surveys_are_refused(client: Client, body: dict[str, Any], status: int, slug: str, word: str) -> None:
    """With the reason."""
    whole = body if not body or "dataset" in body else {"dataset": filled(client, 1), "model": "vgg_mini", **body}
    refused(client.post("/surveys", json=whole), status, slug, word)
    assert client.get("/surveys").json() == []


def test_an_empty_data_set_and_one_of_one_image(client: Client, inline_worker: InlineWorker) -> None:
    """The first is refused, the second surveyed."""
    empty = made(client).rpartition("/")[2]
    refused(client.post("/surveys", json={"dataset": empty}), 422, "invalid-request", "no image")
    job = client.post("/surveys", json={"dataset": filled(client, 1), "model": "vgg_mini", "layers": [LAYER]}).json()
    inline_worker.work()
    assert client.get(f"/jobs/{job['id']}").json()["status"] == "succeeded"
    page = client.get(f"/kernels/vgg_mini/{LAYER}/1").raise_for_status().json()
    assert [one["name"] for one in page["top"]] == ["0.png"]
    assert page["similar"] == []


def test_layers_that_the_weights_do_not_cover(client: Client, worker: WorkerState) -> None:
    """Refused by name, left out if no layers are given."""
    assert worker.ready
    dataset = filled(client, 1)
    job = client.post("/surveys", json={"dataset": dataset, "model": "vgg16"}).raise_for_status().json()
    assert job["request"]["layers"] == ["conv1_1", "conv1_2", "conv2_1", "conv2_2"]
    answer = client.post("/surveys", json={"dataset": dataset, "model": "vgg16", "layers": ["conv5_3"]})
    refused(answer, 422, "layer-not-covered", "conv5_3")


def test_requests_with_the_same_key_create_one_survey(client: Client) -> None:
    """However often the request is sent. Small jobs run before a survey."""
    body, headers = {"dataset": filled(client), "model": "vgg_mini"}, {"Idempotency-Key": "one"}
    first, second = (client.post("/surveys", json=body, headers=headers) for _ in range(2))
    assert (first.status_code, second.status_code) == (202, 200)
    assert first.json()["id"] == second.json()["id"]
    assert len(client.get("/surveys").json()) == 1


def test_a_survey_refused_by_a_full_queue_is_not_stored(settings: Settings, redis: Redis) -> None:
    """It is not listed."""
    with serving(settings.model_copy(update={"max_queued": 1})) as client:
        body = {"dataset": filled(client), "model": "vgg_mini"}
        first = client.post("/surveys", json=body).raise_for_status().json()
        refused(client.post("/surveys", json=body), 503, "queue-full")
        assert [one["id"] for one in client.get("/surveys").json()] == [first["id"]]
    assert redis.ping()


def test_repeated_parts_change_nothing(client: Client, inline_worker: InlineWorker, settings: Settings) -> None:
    """As after a worker that died between writing and committing a part."""
    survey = surveyed(client, inline_worker)
    surveys = Surveys(BlobStore(settings.store), DataSets(BlobStore(settings.store), 100))
    files = {file: file.read_bytes() for file in Path(settings.data_dir, "store", "surveys").rglob("*.npz")}
    assert len(files) == 4  # three parts and the layer
    surveys.join(survey["id"], [0, 1, 2], [LAYER])
    used = surveys.used(survey["id"])
    assert used is not None
    surveys.begin(survey["id"], used)
    weights = WeightsUsed(source="other", sha256="1" * 64)
    fed = used.weights.model_copy(update={"preprocessing": Preprocessing(mean=(0, 0, 0), std=(1, 1, 1))})
    for other in ({"weights": weights}, {"weights": fed}, {"frame": Frame(48, 48)}):
        with pytest.raises(NetworkChanged, match="create a new survey"):
            surveys.begin(survey["id"], used.model_copy(update=other))
    assert files == {file: file.read_bytes() for file in files}
    assert workers.living(inline_worker.runner.records.redis) == []


def test_scores_after_a_retry_include_all_results(
    client: Client, inline_worker: InlineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retried items count; deleted pictures are not shown."""
    survey = surveyed(client, inline_worker)
    put, refusing = Transitions.commit, [0, 2]

    def failing(self: Transitions, claim: Any, result: ItemResult, *more: Any) -> None:
        if result.index in refusing:
            refusing.remove(result.index)
            result = result.failed(SilentKernel("not now"))
        put(self, claim, result, *more)

    monkeypatch.setattr(Transitions, "commit", failing)
    place, body = f"{survey['links']['self']}/explanations", {"layer": LAYER, "kernels": [0], "images": 4}
    (job,) = client.post(place, json=body).json()
    inline_worker.work()
    page = client.get(f"/kernels/vgg_mini/{LAYER}/0").json()
    assert (page["explanation"]["made"], page["top"][0]["picture"], page["top"][0]["error"]) == (2, None, "not now")
    assert client.get(f"/kernels/vgg_mini/{LAYER}").json()["kernels"][0]["picture"] is None
    client.post(page["explanation"]["links"]["retry"]).raise_for_status()
    inline_worker.work()
    again = client.get(f"/kernels/vgg_mini/{LAYER}/0").json()
    assert again["explanation"]["made"] == 4
    assert again["explanation"]["consistency"] != page["explanation"]["consistency"]
    assert client.get(f"/kernels/vgg_mini/{LAYER}").json()["kernels"][0]["picture"] == again["top"][0]["picture"]
    client.delete(f"/jobs/{job['id']}").raise_for_status()
    assert client.get(f"/kernels/vgg_mini/{LAYER}/0").json()["explanation"] is None
    summary = client.get(f"/kernels/vgg_mini/{LAYER}").json()["kernels"][0]
    assert (summary["picture"], summary["consistency"]) == (None, None)


def test_leftovers_of_deleted_data_are_removed(client: Client, inline_worker: InlineWorker, settings: Settings) -> None:
    """Files left by an interrupted deletion, or written after it."""
    survey = surveyed(client, inline_worker)
    client.delete(survey["links"]["self"]).raise_for_status()
    client.delete(f"/datasets/{survey['dataset']}").raise_for_status()
    store = BlobStore(settings.store)
    late = [f"surveys/{survey['id']}/parts/0.npz", f"datasets/{survey['dataset']}/crops/x/0-0-0-9-9.webp"]
    for place in late:
        store.put_at(place, b"late")
    datasets = DataSets(store, 10)
    assert (datasets.collection.remove_deleted(), Surveys(store, datasets).collection.remove_deleted()) == (1, 1)
    assert [store.get_at(place) for place in late] == [None, None]
