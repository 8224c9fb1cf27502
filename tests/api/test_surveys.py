"""`/surveys` and `/kernels`: creating, reading, isolating, deleting; with a device that computes nothing."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from httpx import Client
from PIL import Image
from redis import Redis

from shared import workers
from shared.catalogue import networks
from shared.datasets import DataSets
from shared.errors import InvalidRequest, NetworkChanged, SilentKernel
from shared.images import Frame
from shared.jobs import Transitions
from shared.keys import ApiKeys
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
PART = 4


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a survey have several parts of few images."""
    monkeypatch.setattr("shared.surveys.store.PART_IMAGES", PART)


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


def test_from_a_data_set_to_a_kernel_s_page(client: Client, inline_worker: InlineWorker) -> None:
    """The images that activate a kernel most, with crops."""
    survey = surveyed(client, inline_worker, ["conv1_1", LAYER])
    assert survey["layers"] == ["conv1_1", LAYER]
    assert survey["weights"]["source"] == "dummy"
    job = client.get(survey["links"]["job"]).raise_for_status().json()
    assert (job["progress"]["completed"], job["progress"]["fraction"]) == (3, 1)
    assert {one["artifacts"] != {} for one in job["results"]} == {False}
    assert client.get(f"{job['links']['self']}/consistency").status_code == 404

    for kernel in (0, 1, 2):
        page = client.get(f"/kernels/vgg_mini/{LAYER}/{kernel}").raise_for_status().json()
        values = {f"{number}.png": _value(number, kernel) for number in range(COUNT)}
        expected = sorted((name for name in values if values[name]), key=lambda name: -values[name])
        assert [one["name"] for one in page["top"]] == expected[:16]
        assert [one["activation"] for one in page["top"]] == pytest.approx(
            [values[name] for name in expected], rel=1e-6
        )
        assert page["max"] == pytest.approx(max(values.values()))
        assert page["active_images"] == len(expected) / COUNT
        assert sum(one["images"] for one in page["histogram"]) == COUNT
        assert page["histogram"][0]["images"] == COUNT - len(expected)
        others = [one["kernel"] for one in page["similar"]]
        assert others
        assert {other % 3 for other in others[:4]} == {kernel % 3}  # of the same channel
        assert kernel not in others
        first = page["top"][0]
        crop = client.get(first["crop"]).raise_for_status()
        assert crop.headers["content-type"] == "image/webp"
        assert "immutable" in crop.headers["cache-control"]
        shown = np.asarray(Image.open(BytesIO(crop.content)).convert("RGB"), float).mean(axis=(0, 1))
        number = int(first["name"].removesuffix(".png"))
        assert shown == pytest.approx([20 * number, 255 - 20 * number, 10 * ((7 * number) % COUNT)], abs=4)
        left, top, right, bottom = first["box"]
        assert 0 <= left < right <= 96
        assert 0 <= top < bottom <= 96


def _value(number: int, kernel: int) -> float:
    channels = [20 * number, 255 - 20 * number, 10 * ((7 * number) % COUNT)]
    return channels[kernel % 3] / 255


def test_a_silent_kernel_has_a_page_that_says_so(client: Client, inline_worker: InlineWorker) -> None:
    """And it cannot be explained."""
    survey = surveyed(client, inline_worker)
    page = client.get(f"/kernels/vgg_mini/{LAYER}/9").raise_for_status().json()
    assert (page["top"], page["similar"], page["max"], page["active_images"]) == ([], [], 0, 0)
    assert page["histogram"] == [{"start": 0, "end": 0, "images": COUNT}]
    body = {"layer": LAYER, "kernels": [9]}
    refused(client.post(f"{survey['links']['self']}/explanations", json=body), 422, "silent-kernel", "kernel 9")


def test_a_layer_s_page_and_the_table(client: Client, inline_worker: InlineWorker) -> None:
    """Both have all kernels, with the same numbers."""
    survey = surveyed(client, inline_worker)
    found = client.get(f"/kernels/vgg_mini/{LAYER}").raise_for_status().json()
    kernels = networks()["vgg_mini"].layer(LAYER).kernels
    assert [one["kernel"] for one in found["kernels"]] == list(range(kernels))
    assert found["kernels"][9]["crop"] is None
    answer = client.get(survey["links"]["csv"]).raise_for_status()
    rows = list(csv.DictReader(StringIO(answer.text)))
    assert len(rows) == kernels
    for row, one in zip(rows, found["kernels"], strict=True):
        assert (row["layer"], int(row["kernel"])) == (LAYER, one["kernel"])
        assert float(row["max"]) == pytest.approx(one["max"], rel=1e-5)
    assert rows[0]["top_1_image"] == "10.png"
    assert rows[9]["top_1_image"] == ""


def test_the_pictures_of_a_kernel_are_made_once(client: Client, inline_worker: InlineWorker) -> None:
    """A repeated request returns the same job, one of more effort another; then the page has X̂ and scores."""
    survey = surveyed(client, inline_worker)
    place, body = f"{survey['links']['self']}/explanations", {"layer": "relu2_1", "kernels": [0, 1], "images": 3}
    jobs = client.post(place, json=body).raise_for_status().json()
    assert [(job["request"]["kernels"], job["request"]["methods"]) for job in jobs] == [
        ([0], ["evidence"]),
        ([1], ["evidence"]),
    ]
    assert [job["id"] for job in client.post(place, json=body).json()] == [job["id"] for job in jobs]
    waiting = client.get(f"/kernels/vgg_mini/{LAYER}/0").json()["explanation"]
    assert (waiting["status"], waiting["made"], waiting["of"], waiting["consistency"]) == ("queued", 0, 3, None)
    inline_worker.work()
    page = client.get(f"/kernels/vgg_mini/{LAYER}/0").json()
    assert (page["explanation"]["status"], page["explanation"]["made"]) == ("succeeded", 3)
    assert page["explanation"]["consistency"]["value"] == pytest.approx(1, abs=0.2)
    assert page["explanation"]["consistency"]["error"] is not None
    assert page["explanation"]["discrimination"] is None
    assert [one["picture"] is not None for one in page["top"]] == [True] * 3 + [False] * (len(page["top"]) - 3)
    part = client.get(page["top"][0]["picture"]).raise_for_status()
    whole = client.get(f"/jobs/{jobs[0]['id']}/artifacts/0/contrast.png").raise_for_status()
    expected, shown = (
        np.asarray(picture.convert("RGB"), float).mean(axis=(0, 1))
        for picture in (
            Image.open(BytesIO(whole.content)).crop(page["top"][0]["box"]),
            Image.open(BytesIO(part.content)),
        )
    )
    assert shown == pytest.approx(expected, abs=4)
    assert client.get(page["top"][0]["whole"]).headers["content-type"] == "image/png"
    summary = client.get(f"/kernels/vgg_mini/{LAYER}").json()["kernels"][0]
    assert summary["picture"] == page["top"][0]["picture"]
    assert summary["consistency"] == page["explanation"]["consistency"]["value"]

    better = client.post(place, json={**body, "effort": "standard"}).json()
    assert {job["id"] for job in better}.isdisjoint(job["id"] for job in jobs)
    quick_again = client.post(place, json=body).json()
    assert [job["id"] for job in quick_again] == [job["id"] for job in better]


def test_rivals_are_explained_for_the_discrimination(client: Client, inline_worker: InlineWorker) -> None:
    """The job of the kernel is reused; another one is created."""
    survey = surveyed(client, inline_worker)
    place, body = f"{survey['links']['self']}/explanations", {"layer": LAYER, "kernels": [4]}
    (own,) = client.post(place, json=body).json()
    first, second = client.post(place, json={**body, "rivals": True}).json()
    assert first["id"] == own["id"]
    assert second["request"]["kernels"] == "top:2"
    assert [one["id"] for one in client.post(place, json={**body, "rivals": True}).json()] == [own["id"], second["id"]]
    inline_worker.work()
    explanation = client.get(f"/kernels/vgg_mini/{LAYER}/4").json()["explanation"]
    assert explanation["rivals"] == second["id"]
    assert 0 <= explanation["discrimination"]["value"] <= 1
    client.delete(f"/jobs/{own['id']}").raise_for_status()
    assert client.get(f"/kernels/vgg_mini/{LAYER}/4").json()["explanation"] is None
    assert client.post(place, json=body).json()[0]["id"] != own["id"]


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
    assert "deleted while it was surveyed" in failed["error"]["detail"]
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


@pytest.fixture
def two(settings: Settings, redis: Redis) -> Iterator[tuple[Client, dict[str, Any], dict[str, Any]]]:
    """A client, and the headers of two keys."""
    keys = [ApiKeys(redis).add(name) for name in ("ada", "bob")]
    ada, bob = ({"headers": {"Authorization": f"Bearer {key}"}} for key in keys)
    with serving(settings) as client:
        yield client, ada, bob


def test_one_key_never_sees_another_s(
    two: tuple[Client, dict[str, Any], dict[str, Any]], inline_worker: InlineWorker, settings: Settings
) -> None:
    """Neither a survey nor a crop nor an X̂; of a public survey everything but the X̂ of others."""
    client, ada, bob = two
    survey = surveyed(client, inline_worker, **ada)
    place, wanted = f"{survey['links']['self']}/explanations", {"layer": LAYER, "kernels": [0]}
    client.post(place, json=wanted, **ada).raise_for_status()
    inline_worker.work()
    page = client.get(f"/kernels/vgg_mini/{LAYER}/0", **ada).json()
    crop, made_of_it = page["top"][0]["crop"], page["top"][0]["picture"]
    for path in (survey["links"]["self"], survey["links"]["csv"], crop, made_of_it, f"/kernels/vgg_mini/{LAYER}/0"):
        assert client.get(path).status_code == 401
        client.get(path, **ada).raise_for_status()
        refused(client.get(path, **bob), 404, "survey-not-found")
    refused(client.post(place, json=wanted, **bob), 404, "survey-not-found")
    refused(client.delete(survey["links"]["self"], **bob), 404, "survey-not-found")
    refused(client.post("/surveys", json={"dataset": survey["dataset"]}, **bob), 404, "data-set-not-found")
    assert client.get("/surveys", **bob).json() == []

    datasets = DataSets(BlobStore(settings.store), 10)
    surveys = Surveys(BlobStore(settings.store), datasets)
    with pytest.raises(InvalidRequest, match="not public"):
        surveys.publish(survey["id"])
    datasets.publish(survey["dataset"])
    surveys.publish(survey["id"])
    theirs = client.get(f"/kernels/vgg_mini/{LAYER}/0", **bob).raise_for_status().json()
    assert (theirs["survey"]["mine"], theirs["explanation"]) == (False, None)
    assert "job" not in theirs["survey"]["links"]
    client.get(crop, **bob).raise_for_status()
    refused(client.get(made_of_it, **bob), 404, "job-not-found")
    client.post(place, json=wanted, **bob).raise_for_status()
    refused(client.delete(survey["links"]["self"], **bob), 404, "survey-not-found")
    client.delete(f"/datasets/{survey['dataset']}", **ada).raise_for_status()
    refused(client.get(crop, **bob), 404, "data-set-not-found")


def test_a_browser_receives_the_page_without_a_key(two: tuple[Client, dict[str, Any], dict[str, Any]]) -> None:
    """A program is refused, whatever it accepts."""
    client, _, _ = two
    browser = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    for path in (f"/kernels/vgg_mini/{LAYER}/0", f"/kernels/vgg_mini/{LAYER}", "/kernels/no/such/1"):
        answer = client.get(path, headers=browser)
        assert answer.headers["content-type"].startswith("text/html"), path
        assert "Accept" in answer.headers["vary"]
        assert client.get(path).status_code == 401
    twice = [("Accept", "text/html"), ("Accept", "application/json")]
    assert client.get(f"/kernels/vgg_mini/{LAYER}/0", headers=twice).headers["content-type"].startswith("text/html")
    assert client.get(f"/kernels/vgg_mini/{LAYER}/0", headers=twice[::-1]).status_code == 401


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


def test_crops_that_do_not_exist(client: Client, inline_worker: InlineWorker) -> None:
    """Outside the maps, the images or the layers; and of a result without X̂."""
    here = f"{surveyed(client, inline_worker)['links']['self']}/layers"
    for path in (f"{LAYER}/crops/{COUNT}/0/0", f"{LAYER}/crops/0/-1/0", f"{LAYER}/crops/0/0/99"):
        refused(client.get(f"{here}/{path}"), 404, "artifact-not-found")
    refused(client.get(f"{here}/conv9_9/crops/0/0/0"), 422, "unknown-layer")
    refused(client.get(f"{here}/{LAYER}/pictures/{'0' * 32}/0/0/0"), 404, "job-not-found")


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
        with pytest.raises(NetworkChanged, match="make a new survey"):
            surveys.begin(survey["id"], used.model_copy(update=other))
    assert files == {file: file.read_bytes() for file in files}
    assert workers.living(inline_worker.runner.records.redis) == []


def test_urls_include_the_path_of_the_proxy(settings: Settings, redis: Redis, inline_worker: InlineWorker) -> None:
    """Every URL in a response can be requested unchanged and has the path once; names are not changed."""
    own = settings.model_copy(update={"public_url": "http://127.0.0.1/lens"})
    key = ApiKeys(redis).add("ada")
    with serving(own) as client:
        client.headers["Authorization"] = f"Bearer {key}"
        dataset = made(client).removeprefix("/lens").rpartition("/")[2]
        sent(client, f"/datasets/{dataset}", {"/odd.png": picture(3), "b.png": picture(7)}).raise_for_status()
        body = {"dataset": dataset, "model": "vgg_mini", "layers": [LAYER]}
        job = client.post("/surveys", json=body).raise_for_status().json()
        inline_worker.work()
        (told,) = client.post(f"/surveys/{job['id']}/explanations", json={"layer": LAYER, "kernels": [0]}).json()
        inline_worker.work()
        page = client.get(f"/kernels/vgg_mini/{LAYER}/0").json()
        first = page["top"][0]
        urls = [first["crop"], first["picture"], first["whole"], *job["links"].values(), *told["links"].values()]
        urls += [*page["survey"]["links"].values(), *page["explanation"]["links"].values(), page["similar"][0]["crop"]]
        assert {url.count("/lens/") for url in urls} == {1}, urls
        for url in (first["crop"], first["picture"], first["whole"], page["survey"]["links"]["csv"]):
            client.get(url.removeprefix("/lens")).raise_for_status()
        assert {one["name"] for one in page["top"]} == {"/odd.png", "b.png"}


def test_a_large_layer_is_compressed_if_accepted(
    client: Client, inline_worker: InlineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The content is the same."""
    monkeypatch.setattr("api.routes.kernels.COMPRESSED_BYTES", 1000)
    surveyed(client, inline_worker)
    plain, packed = (
        client.get(f"/kernels/vgg_mini/{LAYER}", headers={"Accept-Encoding": coding}) for coding in ("identity", "gzip")
    )
    assert packed.json() == plain.json()
    assert ("content-encoding" in plain.headers, packed.headers["content-encoding"]) == (False, "gzip")
    assert int(packed.headers["content-length"]) < int(plain.headers["content-length"]) / 3
    assert "Accept-Encoding" in packed.headers["vary"]


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
    assert (datasets.shelf.sweep_removed(), Surveys(store, datasets).shelf.sweep_removed()) == (1, 1)
    assert [store.get_at(place) for place in late] == [None, None]


def test_incomplete_notes_are_ignored(client: Client, inline_worker: InlineWorker, settings: Settings) -> None:
    """A file whose process was killed while writing it."""
    survey = surveyed(client, inline_worker)
    place = f"{survey['links']['self']}/explanations"
    client.post(place, json={"layer": LAYER, "kernels": [0], "images": 1}).raise_for_status()
    (note,) = Path(settings.data_dir, "store", "surveys", survey["id"], "explained").rglob("0.json")
    note.with_name("1.json.0123abcd.part").write_bytes(b"{")
    assert client.get(f"/kernels/vgg_mini/{LAYER}").status_code == 200


def test_a_network_that_was_replaced_is_an_error(
    client: Client, inline_worker: InlineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its maps have another shape, so the survey's positions would be wrong."""
    surveyed(client, inline_worker)
    network = networks()["vgg_mini"]
    layers = [one.model_copy(update={"width": 1, "height": 2}) if one.name == LAYER else one for one in network.layers]
    changed = network.model_copy(update={"layers": layers})
    monkeypatch.setattr("shared.workers.network", lambda *_: changed)
    refused(client.get(f"/kernels/vgg_mini/{LAYER}/0"), 409, "network-changed", "another network")


def test_only_crops_of_top_images_are_stored(client: Client, inline_worker: InlineWorker, settings: Settings) -> None:
    """Requesting every position must not fill the store."""
    survey = surveyed(client, inline_worker)
    page = client.get(f"/kernels/vgg_mini/{LAYER}/0").json()
    folder = Path(settings.data_dir, "store", "datasets", survey["dataset"], "crops")
    client.get(page["top"][0]["crop"]).raise_for_status()
    client.get(f"/surveys/{survey['id']}/layers/{LAYER}/crops/0/0/0").raise_for_status()
    assert len(list(folder.rglob("*.webp"))) == 1
    client.delete(survey["links"]["self"]).raise_for_status()
    assert not list(folder.rglob("*.webp"))
