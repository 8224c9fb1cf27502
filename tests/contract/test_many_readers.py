"""A thousand event streams from one API process: no event is missed, repeated or late."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from shared.jobs import Claim, Retention, Transitions, connect
from tests.conftest import FULL
from tests.contract.conftest import Memory, Plant, alive, open_files, until
from tests.contract.readers import ONCE, Key, Reader, ReceivedEvent, RecordWorker, connected, figures

pytestmark = pytest.mark.contract

READERS = 1000 if FULL else 300
JOBS = READERS // 10
RESUMING = 60 if FULL else 15
CUTS = 1000 if FULL else 100  # the least number
LATEST = 2.0  # seconds; the goal is 0.2
OWN_FILES = 20  # connections to Redis and other files of the API
PACE = 0.25  # seconds between two items of a worker

Record = Callable[[str, object], None]


@pytest.fixture
def worker(service: Plant) -> Iterator[RecordWorker]:
    """A worker without a process."""
    with connect(service.redis_url, persistent=True) as redis:
        yield RecordWorker(Transitions(redis))


def test_many_readers_of_one_job(service: Plant, worker: RecordWorker, record_property: Record) -> None:
    """300 clients (1,000 in full): each receives every event once, in order, soon; afterwards nothing remains open."""
    before, memory = open_files(service), Memory(service)
    job_id = worker.submit(16)
    readers, slow, fast = asyncio.run(_one_job(service, worker, job_id))
    for reader in readers:
        assert reader.once() == worker.events(job_id)
        assert reader.ended
    paced, burst = worker.delays(readers, slow), worker.delays(readers, fast)
    record_property("readers", len(readers))
    record_property("paced_delay_ms", figures(paced))
    record_property("burst_delay_ms", figures(burst))
    record_property("memory_mb", {"start": round(memory.start), "peak": round(memory.peak)})
    assert max(*paced, *burst) < LATEST
    until(lambda: open_files(service) <= before + OWN_FILES, 10)
    assert alive(service)


async def _one_job(plant: Plant, worker: RecordWorker, job_id: str) -> tuple[list[Reader], list[Key], list[Key]]:
    """The clients, the events while a worker ran, and the events in one burst at the end."""
    readers = [Reader(job_id) for _ in range(READERS)]
    await connected(plant, readers)
    claim = await asyncio.to_thread(_work, worker, job_id)
    slow = worker.events(job_id)[1:]
    await asyncio.to_thread(_rest, worker, claim)
    await asyncio.wait_for(asyncio.gather(*(reader.closed for reader in readers)), 30)
    return readers, slow, worker.events(job_id)[1 + len(slow) :]


def _work(worker: RecordWorker, job_id: str) -> Claim:
    claim = worker.claim(job_id)
    for number in range(8):
        time.sleep(PACE)
        worker.commit(claim, number)
    time.sleep(LATEST)
    return claim


def _rest(worker: RecordWorker, claim: Claim) -> None:
    for number in range(8, 16):
        worker.commit(claim, number)
    worker.finish(claim)


def test_many_readers_of_many_jobs(service: Plant, worker: RecordWorker, record_property: Record) -> None:
    """The same with ten clients for each job, while other requests are served promptly."""
    before, memory = open_files(service), Memory(service)
    jobs = [worker.submit(2) for _ in range(JOBS)]
    readers, answers = asyncio.run(_many_jobs(service, worker, jobs))
    for reader in readers:
        assert reader.once() == worker.events(reader.job_id)
        assert reader.ended
    delays = worker.delays(readers, [key for key in worker.began if key[2] != "queued"])
    record_property("readers", len(readers))
    record_property("jobs", len(jobs))
    record_property("delay_ms", figures(delays))
    record_property("other_requests_ms", figures(answers))
    record_property("memory_mb", {"start": round(memory.start), "peak": round(memory.peak)})
    assert max(delays) < LATEST
    assert statistics.median(answers) < 0.2
    until(lambda: open_files(service) <= before + OWN_FILES, 10)
    assert alive(service)


async def _many_jobs(plant: Plant, worker: RecordWorker, jobs: list[str]) -> tuple[list[Reader], list[float]]:
    """The clients, and the times of other requests meanwhile."""
    readers = [Reader(job_id) for job_id in jobs * (READERS // JOBS)]
    await connected(plant, readers)
    work = asyncio.create_task(asyncio.to_thread(_all, worker, jobs))
    answers = []
    async with httpx.AsyncClient(base_url=plant.url, timeout=30) as client:
        while not work.done():
            begin = time.monotonic()
            assert (await client.get(f"/jobs/{jobs[0]}")).status_code == 200
            answers.append(time.monotonic() - begin)
            await asyncio.sleep(0.05)
    await work
    await asyncio.wait_for(asyncio.gather(*(reader.closed for reader in readers)), 30)
    return readers, answers


def _all(worker: RecordWorker, jobs: list[str]) -> None:
    """Work like several workers: each step of every job before the next step."""
    claims = []
    for job_id in jobs:
        claims.append(worker.claim(job_id))
        time.sleep(0.01)
    for number in range(2):
        for claim in claims:
            worker.commit(claim, number)
            time.sleep(0.01)
    for claim in claims:
        worker.finish(claim)
        time.sleep(0.01)


def test_a_client_that_resumes_misses_and_repeats_nothing(
    service: Plant, worker: RecordWorker, record_property: Record
) -> None:
    """Disconnected at random times, sometimes losing the last events, and resumed with `Last-Event-ID`."""
    job_id = worker.submit(320)
    reported, cuts = asyncio.run(_cut_often(service, worker, job_id))
    for heard in reported:
        assert [event.key(job_id) for event in heard if event.kind in ONCE] == worker.events(job_id)
    record_property("readers", len(reported))
    record_property("cuts", cuts)
    record_property("events", len(worker.events(job_id)))
    assert cuts >= CUTS
    assert alive(service)


async def _cut_often(plant: Plant, worker: RecordWorker, job_id: str) -> tuple[list[list[ReceivedEvent]], int]:
    chance = random.Random(0)
    cuts = 0

    async def follow() -> list[ReceivedEvent]:
        nonlocal cuts
        heard: list[ReceivedEvent] = []
        while True:
            reader = Reader(job_id, heard[-1].id if heard else "")
            await asyncio.get_running_loop().create_connection(lambda: reader, "127.0.0.1", plant.api_port)  # noqa: B023
            await asyncio.wait([reader.closed], timeout=chance.uniform(0, 0.4))
            ended = reader.ended
            reader.cut()
            heard += reader.heard
            if ended:
                return heard
            cuts += 1
            if chance.random() < 0.3:
                del heard[len(heard) - chance.randint(0, min(3, len(heard))) :]

    readers = [asyncio.create_task(follow()) for _ in range(RESUMING)]
    await asyncio.to_thread(_at_random, worker, job_id)
    return await asyncio.wait_for(asyncio.gather(*readers), 60), cuts


def _at_random(worker: RecordWorker, job_id: str) -> None:
    chance = random.Random(1)
    for part in range(20):
        claim = worker.claim(job_id, part)
        for number in range(len(claim.items)):
            time.sleep(chance.choice((0, 0, 0.005, 0.05)))
            worker.commit(claim, number)
        worker.finish(claim)


@pytest.mark.parametrize("after", ["last", "9999999999999999999-0"])
def test_a_client_that_resumes_after_the_end_is_refused(service: Plant, worker: RecordWorker, after: str) -> None:
    """A browser's EventSource reconnects by itself after the end of a stream."""
    job_id = worker.submit(1)
    claim = worker.claim(job_id)
    worker.commit(claim, 0)
    worker.finish(claim)

    async def read(last: str) -> Reader:
        reader = Reader(job_id, last)
        await asyncio.get_running_loop().create_connection(lambda: reader, "127.0.0.1", service.api_port)
        await asyncio.wait([reader.closed], timeout=LATEST)
        reader.cut()
        return reader

    first = asyncio.run(read(""))
    assert first.once() == worker.events(job_id)
    again = asyncio.run(read(first.heard[-1].id if after == "last" else after))
    assert not again.once()
    assert again.ended or again.status == 204, "the stream of a job that has ended stays open"


def test_deleting_a_job_ends_its_streams(service: Plant, worker: RecordWorker) -> None:
    """All of them."""
    job_id = worker.submit(1)

    async def read() -> list[Reader]:
        readers = [Reader(job_id) for _ in range(20)]
        await connected(service, readers)
        await asyncio.to_thread(Retention(worker.transitions, service.records(worker.transitions.redis)).remove, job_id)
        await asyncio.wait_for(asyncio.gather(*(reader.closed for reader in readers)), LATEST)
        return readers

    assert all(reader.ended for reader in asyncio.run(read()))
