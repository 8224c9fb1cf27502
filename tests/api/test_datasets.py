"""`/datasets`: creating, filling, listing, isolating and deleting data sets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from httpx import Client, Response
from redis import Redis

from shared.datasets import DataSets
from shared.errors import DataSetNotFound
from shared.keys import ApiKeys
from shared.settings import Settings
from shared.store import BlobStore
from tests.api.conftest import serving
from tests.api.test_explain import refused
from tests.conftest import noise, png


def made(client: Client, name: str = "birds", **options: Any) -> str:
    """Create a data set; returns its path."""
    answer = client.post("/datasets", json={"name": name}, **options)
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == answer.json()["links"]["self"]
    return str(answer.json()["links"]["self"])


def image(seed: int) -> bytes:
    """An image file."""
    return png(noise(seed=seed))


def sent(client: Client, path: str, files: dict[str, bytes], **options: Any) -> Response:
    """Upload files; returns the response."""
    return client.post(f"{path}/images", files=[("image", one) for one in files.items()], **options)


def files_of(settings: Settings) -> set[Path]:
    """All files of data sets in the store, without the marks of deleted ones."""
    folder = Path(settings.data_dir, "store", "datasets")
    return {file for file in folder.rglob("*") if file.is_file() and file.parent != folder / "removed"}


def test_images_are_stored_once_and_other_files_are_listed(client: Client, settings: Settings) -> None:
    """In their order; repeating the request changes nothing."""
    path, first, second = made(client), image(1), image(2)
    files = {"b/two.png": second, "a/one.png": first, "again.png": first, "text": b"hello", "cut.png": first[:200]}
    answer = sent(client, path, files).raise_for_status().json()
    assert [one["name"] for one in answer["added"]] == ["b/two.png", "a/one.png", "again.png"]
    assert [one["name"] for one in answer["odd"]] == ["text", "cut.png"]
    assert all(len(one["reason"]) > 10 for one in answer["odd"])
    assert (answer["dataset"]["images"], answer["dataset"]["refused"]) == (2, 2)

    there = files_of(settings)
    assert sent(client, path, files).raise_for_status().json() == answer
    assert files_of(settings) == there

    assert sent(client, path, {"c.png": image(3)}).raise_for_status().json()["dataset"]["images"] == 3
    page = client.get(f"{path}/images", params={"limit": 2}).json()
    assert [one["name"] for one in page["images"]] == ["b/two.png", "a/one.png"]
    rest = client.get(f"{path}/images", params={"cursor": page["next_cursor"]}).json()
    assert ([one["name"] for one in rest["images"]], rest["next_cursor"]) == (["c.png"], None)
    assert client.get(path).json()["odd"] == answer["odd"]


def test_a_data_set_is_listed_and_deleted_with_its_files(client: Client, settings: Settings) -> None:
    """None of its files remain in the store."""
    before = files_of(settings)
    paths = [made(client, name) for name in ("one", "two")]
    sent(client, paths[0], {"a": image(1)}).raise_for_status()
    assert {one["name"]: one["images"] for one in client.get("/datasets").json()} == {"one": 1, "two": 0}
    for path in paths:
        assert client.delete(path).status_code == 204
        assert client.delete(path).status_code == 404
    assert client.get("/datasets").json() == []
    assert files_of(settings) == before


@pytest.mark.parametrize(
    ("options", "status", "slug", "words"),
    [
        ({"content": b"PK", "headers": {"Content-Type": "application/zip"}}, 415, "unsupported-content-type", "zip"),
        ({"content": b"hello"}, 415, "unsupported-content-type", "missing"),
        ({"files": {"file": b"x"}}, 422, "invalid-request", "'file' is not known"),
        ({"data": {"name": "x"}, "files": {"image": b""}}, 422, "invalid-request", "'name' is not known"),
    ],
)
def test_invalid_uploads_are_refused(
    client: Client, options: dict[str, Any], status: int, slug: str, words: str
) -> None:
    """The data set does not change."""
    path = made(client)
    refused(client.post(f"{path}/images", **options), status, slug, words)
    assert client.get(path).json()["refused"] == 0


@pytest.mark.parametrize("body", [{}, {"name": ""}, {"name": "a\nb"}, {"name": "a", "x": 1}, ["a"]])
def test_a_data_set_needs_a_name(client: Client, body: Any) -> None:
    """Of a valid length and type."""
    refused(client.post("/datasets", json=body), 422, "invalid-request")


def test_the_number_of_images_is_limited(settings: Settings, redis: Redis) -> None:
    """Repeated images count once; images accepted before remain."""
    assert redis.ping()
    with serving(settings.model_copy(update={"max_dataset_images": 2})) as client:
        path, images = made(client), {str(number): image(number) for number in range(3)}
        refused(sent(client, path, images), 409, "data-set-full")
        del images["2"]
        for _ in range(2):
            sent(client, path, images).raise_for_status()
        refused(sent(client, path, {"a": image(9)}), 409, "data-set-full")
        assert client.get(path).json()["images"] == 2


@pytest.fixture
def two(settings: Settings, redis: Redis) -> Iterator[tuple[Client, dict[str, str], dict[str, str]]]:
    """A client, and the headers of two keys."""
    keys = [ApiKeys(redis).add(name) for name in ("ada", "bob")]
    ada, bob = ({"Authorization": f"Bearer {key}"} for key in keys)
    with serving(settings) as client:
        yield client, ada, bob


def test_another_key_s_data_set_does_not_exist(
    two: tuple[Client, dict[str, str], dict[str, str]], settings: Settings
) -> None:
    """Unless it is public: then it can be read, but only its owner can change it."""
    client, ada, bob = two
    path = made(client, headers=ada)
    sent(client, path, {"a": image(1)}, headers=ada).raise_for_status()
    for answer in (client.get(path, headers=bob), client.get(f"{path}/images", headers=bob)):
        refused(answer, 404, "data-set-not-found")
    assert client.get("/datasets", headers=bob).json() == []

    DataSets(BlobStore(settings.store), 10).publish(path.rpartition("/")[2])
    assert client.get(f"{path}/images", headers=bob).json()["images"][0]["name"] == "a"
    assert [(one["public"], one["mine"]) for one in client.get("/datasets", headers=bob).json()] == [(True, False)]
    refused(sent(client, path, {"b": image(2)}, headers=bob), 404, "data-set-not-found")
    refused(client.delete(path, headers=bob), 404, "data-set-not-found")
    assert client.delete(path, headers=ada).status_code == 204
    assert client.get("/datasets", headers=bob).json() == []


@pytest.mark.parametrize("name", ["0" * 32, "of", "..%2fjobs", "%2e%2e"])
def test_an_unknown_data_set_is_not_found(client: Client, name: str) -> None:
    """Invalid ids never become paths of the store."""
    for answer in (client.get(f"/datasets/{name}"), client.delete(f"/datasets/{name}")):
        assert answer.status_code in (404, 405)


def test_a_data_set_that_is_deleted_during_an_upload_leaves_nothing(client: Client, settings: Settings) -> None:
    """The upload fails."""
    path, sets = made(client), DataSets(BlobStore(settings.store), 10)
    upload = sets.open(path.rpartition("/")[2], "")
    upload.take("a", image(1))
    client.delete(path).raise_for_status()
    upload.take("b", image(2))
    assert files_of(settings)
    with pytest.raises(DataSetNotFound):
        upload.close()
    assert not files_of(settings)


def test_incomplete_files_after_a_crash_are_ignored(client: Client, settings: Settings) -> None:
    """A part whose process was killed while writing it."""
    path = made(client)
    sent(client, path, {"a": image(1)}).raise_for_status()
    (part,) = (file for file in files_of(settings) if file.parent.name == "parts")
    part.with_name(f"{part.name}.1234.part").write_text('{"images": [["b"')
    assert client.get(path).json()["images"] == 1


def test_a_store_that_cannot_be_listed_is_an_error(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a data set would look empty."""
    monkeypatch.setattr(BlobStore, "names", lambda *_: [])
    refused(client.post("/datasets", json={"name": "birds"}), 503, "store-unavailable", "s3:ListBucket")


def test_the_list_of_refused_files_is_limited(
    client: Client, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The response to an upload lists all of its own; the same file counts once."""
    monkeypatch.setattr("shared.datasets.MOST_ODD", 3)
    path = made(client)
    for _ in range(2):
        answer = sent(client, path, {f"{number}.txt": b"x" for number in range(5)}).raise_for_status().json()
        assert len(answer["odd"]) == 5
        assert answer["dataset"]["refused"] == 3
    parts = [json.loads(file.read_text()) for file in files_of(settings) if file.parent.name == "parts"]
    assert [len(part["odd"]) for part in parts] == [3]
