"""`/kernels`: the pages of a survey's layers and kernels, their crops and explanations."""

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

from shared.catalogue import networks
from shared.datasets import DataSets
from shared.errors import InvalidRequest
from shared.keys import ApiKeys
from shared.settings import Settings
from shared.store import BlobStore
from shared.surveys.store import Surveys
from tests.api.conftest import InlineWorker, serving
from tests.api.test_datasets import made, sent
from tests.api.test_explain import refused
from tests.api.test_surveys import COUNT, LAYER, picture, surveyed

pytestmark = pytest.mark.usefixtures("small_parts")


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


def test_crops_that_do_not_exist(client: Client, inline_worker: InlineWorker) -> None:
    """Outside the maps, the images or the layers; and of a result without X̂."""
    here = f"{surveyed(client, inline_worker)['links']['self']}/layers"
    for path in (f"{LAYER}/crops/{COUNT}/0/0", f"{LAYER}/crops/0/-1/0", f"{LAYER}/crops/0/0/99"):
        refused(client.get(f"{here}/{path}"), 404, "artifact-not-found")
    refused(client.get(f"{here}/conv9_9/crops/0/0/0"), 422, "unknown-layer")
    refused(client.get(f"{here}/{LAYER}/pictures/{'0' * 32}/0/0/0"), 404, "job-not-found")


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
        (reported,) = client.post(f"/surveys/{job['id']}/explanations", json={"layer": LAYER, "kernels": [0]}).json()
        inline_worker.work()
        page = client.get(f"/kernels/vgg_mini/{LAYER}/0").json()
        first = page["top"][0]
        urls = [first["crop"], first["picture"], first["whole"], *job["links"].values(), *reported["links"].values()]
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
    refused(client.get(f"/kernels/vgg_mini/{LAYER}/0"), 409, "network-changed", "has changed")


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
