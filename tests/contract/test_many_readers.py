"""A thousand event streams from one API process: nothing is missed, repeated or late."""

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
from tests.contract.readers import ONCE, Hand, Heard, Key, Reader, connected, figures

pytestmark = pytest.mark.contract

READERS = 1000 if FULL else 300
JOBS = READERS // 10
RESUMING = 60 if FULL else 15
CUTS = 1000 if FULL else 100  # that there must be at least
LATEST = 2.0  # seconds; the bar is 0.2
OWN_FILES = 20  # connections to Redis that the API keeps, and the like
PACE = 0.25  # seconds between two items of a worker

Record = Callable[[str, object], None]


@pytest.fixture
def hand(service: Plant) -> Iterator[Hand]:
    """A worker without a process."""
    with connect(service.redis_url, persistent=True) as redis:
        yield Hand(Transitions(redis))


def test_many_readers_of_one_job(service: Plant, hand: Hand, record_property: Record) -> None:
    """300 readers (1,000 in full): each is told everything once, in order, and soon; then nothing of them is left."""
    before, memory = open_files(service), Memory(service)
    job_id = hand.submit(16)
    readers, slow, fast = asyncio.run(_one_job(service, hand, job_id))
    for reader in readers:
        assert reader.once() == hand.events(job_id)
        assert reader.ended
    paced, burst = hand.delays(readers, slow), hand.delays(readers, fast)
    record_property("readers", len(readers))
    record_property("paced_delay_ms", figures(paced))
    record_property("burst_delay_ms", figures(burst))
    record_property("memory_mb", {"start": round(memory.start), "peak": round(memory.peak)})
    assert max(*paced, *burst) < LATEST
    until(lambda: open_files(service) <= before + OWN_FILES, 10)
    assert alive(service)


async def _one_job(plant: Plant, hand: Hand, job_id: str) -> tuple[list[Reader], list[Key], list[Key]]:
    """The readers, what they were told while a worker worked, and what came in one burst at the end."""
    readers = [Reader(job_id) for _ in range(READERS)]
    await connected(plant, readers)
    claim = await asyncio.to_thread(_work, hand, job_id)
    slow = hand.events(job_id)[1:]
    await asyncio.to_thread(_rest, hand, claim)
    await asyncio.wait_for(asyncio.gather(*(reader.closed for reader in readers)), 30)
    return readers, slow, hand.events(job_id)[1 + len(slow) :]


def _work(hand: Hand, job_id: str) -> Claim:
    claim = hand.claim(job_id)
    for number in range(8):
        time.sleep(PACE)
        hand.commit(claim, number)
    time.sleep(LATEST)
    return claim


def _rest(hand: Hand, claim: Claim) -> None:
    for number in range(8, 16):
        hand.commit(claim, number)
    hand.finish(claim)


def test_many_readers_of_many_jobs(service: Plant, hand: Hand, record_property: Record) -> None:
    """The same of ten readers for each job, while others are still answered promptly."""
    before, memory = open_files(service), Memory(service)
    jobs = [hand.submit(2) for _ in range(JOBS)]
    readers, answers = asyncio.run(_many_jobs(service, hand, jobs))
    for reader in readers:
        assert reader.once() == hand.events(reader.job_id)
        assert reader.ended
    delays = hand.delays(readers, [key for key in hand.began if key[2] != "queued"])
    record_property("readers", len(readers))
    record_property("jobs", len(jobs))
    record_property("delay_ms", figures(delays))
    record_property("other_requests_ms", figures(answers))
    record_property("memory_mb", {"start": round(memory.start), "peak": round(memory.peak)})
    assert max(delays) < LATEST
    assert statistics.median(answers) < 0.2
    until(lambda: open_files(service) <= before + OWN_FILES, 10)
    assert alive(service)


async def _many_jobs(plant: Plant, hand: Hand, jobs: list[str]) -> tuple[list[Reader], list[float]]:
    """The readers, and how long other requests took meanwhile."""
    readers = [Reader(job_id) for job_id in jobs * (READERS // JOBS)]
    await connected(plant, readers)
    work = asyncio.create_task(asyncio.to_thread(_all, hand, jobs))
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


def _all(hand: Hand, jobs: list[str]) -> None:
    """As of several workers: each step of every job before the next step."""
    claims = []
    for job_id in jobs:
        claims.append(hand.claim(job_id))
        time.sleep(0.01)
    for number in range(2):
        for claim in claims:
            hand.commit(claim, number)
            time.sleep(0.01)
    for claim in claims:
        hand.finish(claim)
        time.sleep(0.01)


def test_a_reader_that_comes_back_misses_and_repeats_nothing(
    service: Plant, hand: Hand, record_property: Record
) -> None:
    """Cut at random moments, at times with what came last lost on the way, and resumed with `Last-Event-ID`."""
    job_id = hand.submit(320)
    told, cuts = asyncio.run(_cut_often(service, hand, job_id))
    for heard in told:
        assert [event.key(job_id) for event in heard if event.kind in ONCE] == hand.events(job_id)
    record_property("readers", len(told))
    record_property("cuts", cuts)
    record_property("events", len(hand.events(job_id)))
    assert cuts >= CUTS
    assert alive(service)


async def _cut_often(plant: Plant, hand: Hand, job_id: str) -> tuple[list[list[Heard]], int]:
    chance = random.Random(0)
    cuts = 0

    async def follow() -> list[Heard]:
        nonlocal cuts
        heard: list[Heard] = []
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
    await asyncio.to_thread(_at_random, hand, job_id)
    return await asyncio.wait_for(asyncio.gather(*readers), 60), cuts


def _at_random(hand: Hand, job_id: str) -> None:
    chance = random.Random(1)
    for part in range(20):
        claim = hand.claim(job_id, part)
        for number in range(len(claim.items)):
            time.sleep(chance.choice((0, 0, 0.005, 0.05)))
            hand.commit(claim, number)
        hand.finish(claim)


@pytest.mark.parametrize("after", ["last", "9999999999999999999-0"])
def test_a_reader_that_comes_back_after_the_end_is_not_kept(service: Plant, hand: Hand, after: str) -> None:
    """As a browser's EventSource does by itself when a stream has ended."""
    job_id = hand.submit(1)
    claim = hand.claim(job_id)
    hand.commit(claim, 0)
    hand.finish(claim)

    async def read(last: str) -> Reader:
        reader = Reader(job_id, last)
        await asyncio.get_running_loop().create_connection(lambda: reader, "127.0.0.1", service.api_port)
        await asyncio.wait([reader.closed], timeout=LATEST)
        reader.cut()
        return reader

    first = asyncio.run(read(""))
    assert first.once() == hand.events(job_id)
    again = asyncio.run(read(first.heard[-1].id if after == "last" else after))
    assert not again.once()
    assert again.ended or again.status == 204, "the stream of a job that has ended stays open"


def test_readers_of_a_job_that_is_deleted_are_let_go(service: Plant, hand: Hand) -> None:
    """Their streams end."""
    job_id = hand.submit(1)

    async def read() -> list[Reader]:
        readers = [Reader(job_id) for _ in range(20)]
        await connected(service, readers)
        await asyncio.to_thread(Retention(hand.transitions, service.records(hand.transitions.redis)).remove, job_id)
        await asyncio.wait_for(asyncio.gather(*(reader.closed for reader in readers)), LATEST)
        return readers

    assert all(reader.ended for reader in asyncio.run(read()))
