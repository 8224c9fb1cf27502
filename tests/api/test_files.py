"""The files of a job: caching, ranges, the bundle, the thumbnails of `POST /activations`."""

from __future__ import annotations

import base64
import json
import re
from hashlib import sha256
from io import BytesIO
from zipfile import ZipFile

import numpy as np
import pytest
from httpx import Client
from PIL import Image
from redis import Redis

from tests.api.conftest import InlineWorker
from tests.api.test_explain import post, refused
from tests.conftest import noise, png


@pytest.fixture
def done(client: Client, inline_worker: InlineWorker) -> str:
    """The path of an ended job on kernels 3 and 16."""
    path: str = post(client).json()["links"]["self"]
    inline_worker.work()
    return path


def test_a_file_can_be_cached_for_ever(client: Client, done: str) -> None:
    """Its ETag is its SHA-256; all forms of a conditional request return 304."""
    answer = client.get(f"{done}/artifacts/0/optimized.png")
    etag = answer.headers["etag"]
    assert etag == f'"{sha256(answer.content).hexdigest()}"'
    assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"
    assert answer.headers["accept-ranges"] == "bytes"
    for condition in (etag, f'"other", W/{etag}', "*"):
        again = client.get(f"{done}/artifacts/0/optimized.png", headers={"If-None-Match": condition})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert client.get(f"{done}/artifacts/0/optimized.png", headers={"If-None-Match": '"x"'}).status_code == 200


@pytest.mark.parametrize(
    ("asked", "part"),
    [
        ("bytes=0-9", slice(0, 10)),
        ("bytes=10-", slice(10, None)),
        ("bytes=-7", slice(-7, None)),
        ("bytes=-999999999", slice(0, None)),
        ("bytes=5-999999999", slice(5, None)),
    ],
)
def test_a_part_of_a_file(client: Client, done: str, asked: str, part: slice) -> None:
    """206 with the requested bytes and their range."""
    path = f"{done}/artifacts/0/optimized.npy"
    whole = client.get(path).content
    answer = client.get(path, headers={"Range": asked})
    assert answer.status_code == 206
    assert answer.content == whole[part]
    start, stop, _ = part.indices(len(whole))
    assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(whole)}"


def test_invalid_ranges(client: Client, done: str) -> None:
    """After the end: 416 with the size. Several, invalid, or of another version of the file: the whole file."""
    path = f"{done}/artifacts/0/optimized.npy"
    whole = client.get(path)
    size = len(whole.content)
    for asked in (f"bytes={size}-", "bytes=-0"):
        answer = client.get(path, headers={"Range": asked})
        refused(answer, 416, "range-not-satisfiable", str(size))
        assert answer.headers["content-range"] == f"bytes */{size}"
    for asked in ("bytes=0-1,5-6", "bytes=9-3", "bytes=-", "lines=1-2", "bytes=a-b"):
        assert client.get(path, headers={"Range": asked}).status_code == 200
    some = {"Range": "bytes=0-9"}
    assert client.get(path, headers={**some, "If-Range": whole.headers["etag"]}).status_code == 206
    assert client.get(path, headers={**some, "If-Range": '"older"'}).content == whole.content


def test_json_is_always_sent_whole(client: Client, done: str) -> None:
    """A part of it would not be valid `application/json`."""
    path = f"{done}/artifacts/0/history.json"
    answer = client.get(path, headers={"Range": "bytes=-9"})
    assert (answer.status_code, answer.headers["accept-ranges"]) == (200, "none")
    assert answer.json() == client.get(path).json()


def test_the_bundle_has_all_files(client: Client, done: str) -> None:
    """The job, the image, and each result's files, byte for byte; streamed without a length."""
    answer = client.get(f"{done}/bundle.zip")
    assert answer.headers["content-type"] == "application/zip"
    assert re.search(r'filename="kernelscope-[0-9a-f]{32}\.zip"', answer.headers["content-disposition"])
    with ZipFile(BytesIO(answer.content)) as bundle:
        assert bundle.testzip() is None
        job = json.loads(bundle.read("job.json"))
        assert job == client.get(done).json()
        (digest,) = job["request"]["images"]
        assert sha256(bundle.read("images/00-x.png")).hexdigest() == digest
        folders = {"0000-conv2_2-kernel3": 0, "0001-conv2_2-kernel16": 1}
        files = {
            f"{name}/{file}": url for name, n in folders.items() for file, url in job["results"][n]["artifacts"].items()
        }
        assert set(bundle.namelist()) == {"job.json", "images/00-x.png", *files}
        for name, url in files.items():
            assert bundle.read(name) == client.get(url).content, name


def test_the_bundle_of_a_job_without_results(client: Client) -> None:
    """It has the job and its image."""
    answer = client.get(f"{post(client).json()['links']['self']}/bundle.zip")
    with ZipFile(BytesIO(answer.content)) as bundle:
        assert [name.split("/")[0] for name in bundle.namelist()] == ["job.json", "images"]


def test_activations_rank_the_kernels_of_a_layer(client: Client, inline_worker: InlineWorker) -> None:
    """All kernels with their mean activation, highest first, and a sheet of thumbnails in the same order."""
    files = [("image", ("a", png(noise(seed=seed)))) for seed in (1, 2)]
    answer = client.post("/activations", files=files, data={"model": "vgg_mini", "layer": "conv2_2"})
    assert answer.status_code == 202
    job = answer.json()
    assert job["request"]["methods"] == ["activations"]
    assert job["progress"]["total"] == 2
    inline_worker.work()
    job = client.get(answer.headers["location"]).json()
    assert job["status"] == "succeeded"
    for number, result in enumerate(job["results"]):
        assert result["image"] == job["request"]["images"][number]
        kernels = [one["kernel"] for one in result["ranking"]]
        assert sorted(kernels) == list(range(32))
        means = [one["mean"] for one in result["ranking"]]
        assert means == sorted(means, reverse=True)
        assert result["weights"]["source"] == "dummy"
        sheet = Image.open(BytesIO(client.get(result["artifacts"]["thumbnails.png"]).content))
        columns, tile = result["thumbnails"]["columns"], result["thumbnails"]["tile"]
        assert sheet.size == (columns * tile, 32 // columns * tile)
        pixels = np.asarray(sheet)
        assert pixels[5, 5].sum() > 600  # the most active: bright
        assert pixels[-5, -5].sum() < 60  # the last: silent
        refused(client.get(f"{job['links']['self']}/artifacts/{number}/panel.png"), 404, "artifact-not-found", "has no")


def test_activations_refuse_unknown_fields_and_layers(client: Client) -> None:
    """`kernels` is no field, and the layer must exist."""
    image = {"image": png(noise())}
    answer = client.post("/activations", files=image, data={"layer": "conv1_1", "kernels": "3"})
    refused(answer, 422, "invalid-request", "kernels: no such field")
    refused(client.post("/activations", files=image, data={"layer": "conv9_9"}), 422, "unknown-layer", "conv9_9")
    answer = client.post("/activations", json={"images": [], "layer": "conv1_1"})
    refused(answer, 422, "invalid-request", "images")


def test_explain_refuses_the_method_of_activations(client: Client) -> None:
    """`methods` of `POST /explain` has only methods of explanation."""
    refused(post(client, methods="activations"), 422, "invalid-request", "methods")


def test_several_methods_are_in_one_panel(client: Client, inline_worker: InlineWorker) -> None:
    """The panel of each result is final once all have ended; the bundle's folders contain the method's name."""
    methods = "suppression,guided_backprop,deconvnet,lrp"
    job = post(client, kernels="3", methods=methods, beta="1,2").json()
    here = job["links"]["self"]
    assert job["progress"]["total"] == 5
    inline_worker.work()
    panels = [client.get(f"{here}/artifacts/{index}/panel.png") for index in range(5)]
    assert len({Image.open(BytesIO(panel.content)).size for panel in panels}) == 1
    assert all("immutable" in panel.headers["cache-control"] for panel in panels)
    alone = post(client, kernels="3", methods="lrp").json()["links"]["self"]
    inline_worker.work()
    small, large = (
        Image.open(BytesIO(client.get(f"{path}/artifacts/0/panel.png").content)).height for path in (alone, here)
    )
    assert large > 2 * small
    with ZipFile(BytesIO(client.get(f"{here}/bundle.zip").content)) as bundle:
        folders = {name.split("/")[0] for name in bundle.namelist() if "kernel" in name}
    assert {"0000-conv2_2-kernel3", "0001-conv2_2-kernel3", "0004-conv2_2-kernel3-lrp"} <= folders


def test_an_incomplete_panel_is_not_stored(client: Client, inline_worker: InlineWorker, redis: Redis) -> None:
    """While results of other methods are missing, it is drawn again for each request."""
    job = post(client, kernels="3", methods="suppression,lrp").json()
    here = job["links"]["self"]
    inline_worker.work()
    second = redis.hget(f"ks:job:{job['id']}:results", "1")
    redis.hdel(f"ks:job:{job['id']}:results", "1")
    redis.hset(f"ks:job:{job['id']}", "status", "running")
    early = client.get(f"{here}/artifacts/0/panel.png")
    assert early.headers["cache-control"] == "no-store"
    redis.hset(f"ks:job:{job['id']}:results", "1", second)
    redis.hset(f"ks:job:{job['id']}", "status", "succeeded")
    late = client.get(f"{here}/artifacts/0/panel.png")
    assert "immutable" in late.headers["cache-control"]
    assert Image.open(BytesIO(late.content)).height > Image.open(BytesIO(early.content)).height


def several(client: Client, inline_worker: InlineWorker, **fields: str) -> str:
    """The path of an ended job on three images."""
    files = [("image", (f"{seed}.png", png(noise(seed=seed)))) for seed in (1, 2, 3)]
    data = {"model": "vgg_mini", "layer": "conv2_2", "kernels": "3,16", **fields}
    job = client.post("/explain", files=files, data=data).json()
    inline_worker.work()
    path: str = job["links"]["self"]
    return path


def test_several_images_are_compared(client: Client, inline_worker: InlineWorker) -> None:
    """Scores for each kernel, and a contact sheet. They are final once the job has ended, and in the bundle."""
    here = several(client, inline_worker)
    links = client.get(here).json()["links"]
    answer = client.get(links["consistency"])
    assert "immutable" in answer.headers["cache-control"]
    found = answer.json()
    assert found["final"]
    assert found["left_out"] == ""
    assert [(one["kernel"], one["images"]) for one in found["series"]] == [(3, 3), (16, 3)]
    for one in found["series"]:
        assert 0 <= one["consistency"] <= 1
        assert 0 <= one["discrimination"] <= 1
    assert 0 <= found["originals"] <= 1
    assert client.get(links["consistency"]).content == answer.content
    sheet = client.get(links["contact_sheet"])
    assert sheet.headers["content-type"] == "image/png"
    assert min(Image.open(BytesIO(sheet.content)).size) > 400
    with ZipFile(BytesIO(client.get(f"{here}/bundle.zip").content)) as bundle:
        assert bundle.read("consistency.json") == answer.content
        assert bundle.read("contact_sheet.png") == sheet.content


def test_the_same_image_under_two_names_is_two_in_all_files(client: Client, inline_worker: InlineWorker) -> None:
    """Both are compared and have a row in the sheet, and the bundle has both, under names valid on any file system."""
    data = base64.b64encode(png(noise())).decode()
    names = ["../../etc/passwd", "CON.jpg", "..", "a:b*c?.webp", "ü" * 128, None]
    body = {"model": "vgg_mini", "layer": "conv2_2", "kernels": "top:2"}
    images = [{"data": data, "name": name} for name in names]
    job = client.post("/explain", json={**body, "images": images}).json()
    inline_worker.work()
    found = client.get(job["links"]["consistency"]).json()
    assert [one["images"] for one in found["series"]] == [6, 6]
    assert found["originals"] == pytest.approx(1)
    rows = Image.open(BytesIO(client.get(job["links"]["contact_sheet"]).content)).height
    assert rows > 6 * 144
    with ZipFile(BytesIO(client.get(job["links"]["bundle"]).content)) as bundle:
        kept = [name for name in bundle.namelist() if name.startswith("images/")]
    digest = job["request"]["images"][0]
    stems = ["00-passwd", "01-CON", "02-_", "03-a_b_c_", f"04-{'ü' * 60}", digest]
    assert kept == [f"images/{stem}.png" for stem in stems]


def test_a_contact_sheet_has_names(client: Client, inline_worker: InlineWorker) -> None:
    """Below the number; long ones are cut, so the width does not change."""
    data = base64.b64encode(png(noise())).decode()
    body = {"model": "vgg_mini", "layer": "conv2_2", "kernels": [3]}
    sheets = []
    for names in ((None, None), ("a", "b"), ("a" * 128, "b")):
        images = [{"data": data, "name": name} for name in names]
        job = client.post("/explain", json={**body, "images": images}).json()
        inline_worker.work()
        sheets.append(Image.open(BytesIO(client.get(job["links"]["contact_sheet"]).content)))
    assert len({sheet.size for sheet in sheets}) == 1
    assert len({sheet.tobytes() for sheet in sheets}) == 3


def test_a_contact_sheet_has_a_column_for_each_method_up_to_a_limit(
    client: Client, inline_worker: InlineWorker
) -> None:
    """Each kernel's map is shown once; the number of omitted columns is stated."""
    one, four = (
        Image.open(
            BytesIO(client.get(f"{several(client, inline_worker, methods=methods)}/contact_sheet.png").content)
        ).width
        for methods in ("suppression", "suppression,lrp,deconvnet,guided_backprop")
    )
    assert four > 1.8 * one
    many = client.get(f"{several(client, inline_worker, kernels=','.join(map(str, range(20))))}/consistency").json()
    assert len(many["series"]) == 16
    assert re.match(r"[1-4] more", many["left_out"])


def test_comparisons_of_one_image_and_of_a_running_job(client: Client, inline_worker: InlineWorker) -> None:
    """One image: 404 and no link. A running job: of the results so far, not to be cached."""
    one = post(client).json()
    assert "consistency" not in one["links"]
    refused(client.get(f"{one['links']['self']}/consistency"), 404, "artifact-not-found", "fewer than two images")
    files = [("image", (f"{seed}.png", png(noise(seed=seed)))) for seed in (1, 2)]
    job = client.post("/explain", files=files, data={"model": "vgg_mini", "layer": "conv2_2", "kernels": "3"}).json()
    answer = client.get(job["links"]["consistency"])
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json() == {"final": False, "series": [], "originals": None, "left_out": ""}
    assert client.get(job["links"]["contact_sheet"]).headers["cache-control"] == "no-store"
