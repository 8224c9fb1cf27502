"""Drawing of figures: the pool, files read, sizes."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from threading import Event
from zipfile import ZipFile

import pytest
from httpx import Client
from PIL import Image
from redis import Redis

from api.app import create_app
from api.pictures.pool import Pool
from api.pictures.service import File, Pictures
from shared.errors import DrawingQueueFull
from shared.jobs import DRAWN_ARTIFACTS, Records, Retention, Transitions
from shared.settings import Settings
from shared.store import BlobStore
from tests.api.conftest import InlineWorker, serving
from tests.api.test_explain import post, refused

OF_MAPS = ("feature_map.png", "optimized_feature_map.png", "difference.png", "others.png", "panel.png")
LARGEST_FIGURE = 20e6  # bytes


class Gated(BlobStore):
    """A store that delays reading some files until the test continues."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.held: set[str] = set()
        self.open = Event()
        self.reads: Counter[str] = Counter()

    def get(self, job_id: str, name: str) -> bytes | None:
        """Read a file, after the delay."""
        self.reads[name] += 1
        if name in self.held:
            assert self.open.wait(30)
        return super().get(job_id, name)


@dataclass
class Desk:
    """An API whose drawing can be delayed."""

    client: Client
    pictures: Pictures
    store: Gated


@contextmanager
def desk(settings: Settings, pool: Pool | None = None) -> Iterator[Desk]:
    """Such an API; at the end everything is drawn."""
    app = create_app(settings)
    with serving(settings, app) as client:
        services, store = app.state.services, Gated(settings.store)
        pictures = Pictures(services.records, store, services.max_pixels, pool)
        app.state.services = replace(services, pictures=pictures)
        try:
            yield Desk(client, pictures, store)
        finally:
            store.open.set()
            pictures.pool.close()


def blobs(redis: Redis, here: str, index: int = 0) -> dict[str, str]:
    """The stored files of a job's result: digests by name."""
    text = redis.hget(f"ks:job:{here.removeprefix('/jobs/')}:results", str(index))
    found: dict[str, str] = json.loads(text)["blobs"]
    return found


def unlink(settings: Settings, client: Client, here: str) -> None:
    """Delete the image of a job from the store."""
    (image,) = client.get(here).json()["request"]["images"]
    (settings.data_dir / "store" / "jobs" / here[-2:] / here.removeprefix("/jobs/") / image).unlink()


def until(true: Callable[[], bool]) -> None:
    """Wait until a condition is true."""
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def explained(client: Client, inline_worker: InlineWorker, **fields: str) -> str:
    """The path of an ended job."""
    here: str = post(client, None, None, **fields).json()["links"]["self"]
    inline_worker.work()
    return here


def test_waiting_pictures_delay_nothing_else(settings: Settings, redis: Redis, inline_worker: InlineWorker) -> None:
    """Forty of them: the API is alive and ready, accepts a job, and returns stored files."""
    with desk(settings) as at, ThreadPoolExecutor(40) as crowd:
        here = explained(at.client, inline_worker, kernels="0,1,2,3,4,5,6,7")
        at.store.held = {blobs(redis, here, index)["maps.npz"] for index in range(8)}
        wanted = [f"{here}/artifacts/{index}/{name}" for index in range(8) for name in OF_MAPS]
        answers = [crowd.submit(at.client.get, path) for path in wanted]
        try:
            until(lambda: at.pictures.pool.waiting == 38)
            for path in (
                "/healthz",
                "/readyz",
                f"{here}/artifacts/0/optimized.png",
                f"{here}/artifacts/0/original.png",
            ):
                assert at.client.get(path).status_code == 200, path
            assert post(at.client).status_code == 202
            assert not any(answer.done() for answer in answers)
        finally:
            at.store.open.set()
        assert {answer.result().status_code for answer in answers} == {200}
        assert at.pictures.pool.waiting == 0


def test_too_many_waiting_pictures_are_refused(settings: Settings, redis: Redis, inline_worker: InlineWorker) -> None:
    """503 with `Retry-After`. Those in the queue are drawn."""
    with desk(settings, Pool(threads=1, most_of_one=1)) as at, ThreadPoolExecutor(2) as crowd:
        here = explained(at.client, inline_worker)
        at.store.held = {blobs(redis, here)["maps.npz"]}
        first, second, third = (f"{here}/artifacts/0/{name}" for name in OF_MAPS[:3])
        answers = [crowd.submit(at.client.get, first)]
        until(lambda: at.store.reads[blobs(redis, here)["maps.npz"]] > 0)
        answers.append(crowd.submit(at.client.get, second))
        until(lambda: at.pictures.pool.waiting == 1)
        answer = at.client.get(third)
        problem = refused(answer, 503, "drawing-queue-full", "1 of your pictures")
        assert int(answer.headers["retry-after"]) == problem["retry_after"] > 0
        at.store.open.set()
        assert [answer.result().status_code for answer in answers] == [200, 200]
        assert at.client.get(third).status_code == 200


def test_a_bundle_waits_when_a_picture_would_be_refused(settings: Settings, inline_worker: InlineWorker) -> None:
    """Its response has begun."""
    with desk(settings, Pool(threads=1, most_waiting=0)) as at, ThreadPoolExecutor(4) as crowd:
        here = explained(at.client, inline_worker)
        answers = list(crowd.map(lambda _: at.client.get(f"{here}/bundle.zip").content, range(4)))
        assert {len(ZipFile(BytesIO(answer)).namelist()) for answer in answers} == {len(DRAWN_ARTIFACTS) * 2 + 10}


def test_callers_take_turns() -> None:
    """One picture does not wait for all of another caller's; too many of all callers together are refused."""

    async def drawn() -> list[str]:
        pool = Pool(threads=1, most_waiting=4)
        done: list[str] = []
        wanted = [pool.run(name[0], partial(done.append, name)) for name in ("a1", "a2", "a3", "a4", "b1")]
        with pytest.raises(DrawingQueueFull, match="4 pictures are waiting"):
            await pool.run("c", list)
        await asyncio.gather(*wanted)
        await pool.run("c", partial(done.append, "c1"))
        pool.close()
        return done

    assert asyncio.run(drawn()) == ["a1", "a2", "b1", "a3", "a4", "c1"]


def test_concurrent_requests_of_a_picture_draw_it_once(
    client: Client, settings: Settings, redis: Redis, inline_worker: InlineWorker
) -> None:
    """All of them receive the same picture."""
    here = explained(client, inline_worker)
    store = Gated(settings.store)
    store.held = {blobs(redis, here)["maps.npz"]}
    pool = Pool(threads=5)

    async def asked() -> list[File]:
        pictures = Pictures(Records(redis, store), store, 10**8, pool)
        asyncio.get_running_loop().call_later(0.5, store.open.set)
        job_id = here.removeprefix("/jobs/")
        files = await asyncio.gather(*(pictures.result_file(job_id, 0, "panel.png") for _ in range(5)))
        await pictures.close()
        return files

    first, *others = asyncio.run(asked())
    assert all(other is first for other in others)
    assert store.reads[blobs(redis, here)["maps.npz"]] == 1


def test_figures_do_not_need_the_request_s_image(
    client: Client, settings: Settings, redis: Redis, inline_worker: InlineWorker
) -> None:
    """The worker has stored it at the network's input size, so that a large image is not decoded again."""
    here = explained(client, inline_worker)
    unlink(settings, client, here)
    for name in DRAWN_ARTIFACTS:
        assert client.get(f"{here}/artifacts/0/{name}").status_code == 200, name
    assert blobs(redis, here, 0)["original.png"] == blobs(redis, here, 1)["original.png"]
    size = Image.open(BytesIO(client.get(f"{here}/artifacts/0/original.png").content)).size
    assert size == Image.open(BytesIO(client.get(f"{here}/artifacts/0/optimized.png").content)).size


def test_results_without_a_stored_original_are_drawn(
    client: Client, settings: Settings, redis: Redis, inline_worker: InlineWorker
) -> None:
    """Figures that show the image read it from the request's."""
    here, new = explained(client, inline_worker), explained(client, inline_worker, kernels="4")
    place = f"ks:job:{here.removeprefix('/jobs/')}:results"
    for index in range(2):
        older = json.loads(redis.hget(place, str(index)))
        del older["blobs"]["original.png"]
        redis.hset(place, str(index), json.dumps(older))
    assert "original.png" in client.get(here).json()["results"][0]["artifacts"]
    original = client.get(f"{here}/artifacts/0/original.png").content
    assert original == client.get(f"{new}/artifacts/0/original.png").content
    unlink(settings, client, new)
    assert client.get(f"{here}/artifacts/1/contrast.png").status_code == 200


def test_the_figures_of_a_large_sweep_stay_small(client: Client, redis: Redis, inline_worker: InlineWorker) -> None:
    """20 × 20 α and β: of the first and the last result, with the same number shown."""
    values = ",".join(map(str, range(1, 21)))
    job = post(client, kernels="3", alpha=values, beta=values, iterations="1").json()
    inline_worker.runner.run("bulk")
    place = f"ks:job:{job['id']}:results"
    one = json.loads(redis.hget(place, "0"))
    more = {str(index): json.dumps({**one, "index": index, "alpha": index}) for index in range(16, 400)}
    redis.hset(place, mapping=more)
    for name in ("panel.png", "sweep.png"):
        first, last = (
            Image.open(BytesIO(client.get(f"/jobs/{job['id']}/artifacts/{index}/{name}").content)) for index in (0, 399)
        )
        assert first.size == last.size
        assert 3 * first.width * first.height < LARGEST_FIGURE


def test_a_bundle_reads_each_file_once_for_all_figures(
    settings: Settings, redis: Redis, inline_worker: InlineWorker
) -> None:
    """And once for the archive, whatever the number of figures."""
    with desk(settings) as at:
        here = explained(at.client, inline_worker, kernels="3", beta="1,2,3,4,5,6")
        assert at.client.get(f"{here}/bundle.zip").status_code == 200
        packed = Counter(digest for index in range(6) for digest in blobs(redis, here, index).values())
        assert all(at.store.reads[digest] <= times + 1 for digest, times in packed.items())


def test_a_picture_of_a_job_that_is_deleted_meanwhile_is_not_stored(
    settings: Settings, redis: Redis, inline_worker: InlineWorker
) -> None:
    """It would never be removed."""
    with desk(settings) as at, ThreadPoolExecutor(1) as crowd:
        here = explained(at.client, inline_worker)
        at.store.held = {blobs(redis, here)["maps.npz"]}
        answer = crowd.submit(at.client.get, f"{here}/artifacts/0/panel.png")
        until(lambda: at.store.reads.total() > 0)
        assert at.client.delete(here).status_code == 204
        at.store.open.set()
        assert answer.result().status_code == 200
        retention = Retention(Transitions(redis), Records(redis, at.store))
        retention.remove_files(10, 0)
        assert {path.name for path in settings.data_dir.rglob("*") if path.is_file()} <= {"identity"}
