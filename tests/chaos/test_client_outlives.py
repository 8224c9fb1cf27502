"""The Python client survives a restart of the server."""

from __future__ import annotations

import asyncio
import time
from threading import Thread

import pytest

from kernelscope import AsyncClient
from kernelscope.client import Client, Event, ProgressEvent, ResultEvent, StatusEvent
from shared.schemas import Status
from tests.chaos.conftest import Plant, picture

pytestmark = pytest.mark.chaos


def restart(plant: Plant, after: float = 2) -> Thread:
    """The API is killed after so many seconds, and is away for three."""

    def do() -> None:
        time.sleep(after)
        plant.kill("api")
        time.sleep(3)
        plant.start("api", *plant.commands["api"])

    thread = Thread(target=do)
    thread.start()
    return thread


def whole(story: list[Event]) -> None:
    """Each state once, each result once, and some progress."""
    assert [event.status for event in story if isinstance(event, StatusEvent)] == ["queued", "running", "succeeded"]
    assert sorted(event.result.index for event in story if isinstance(event, ResultEvent)) == [0, 1, 2]
    assert any(isinstance(event, ProgressEvent) for event in story)


def test_wait_and_events_continue_after_a_restart_of_the_server(plant: Plant) -> None:
    """No event is missed or repeated; a job submitted during the restart is created once."""
    plant.start_worker("worker", KERNELSCOPE_ENGINE="dummy")
    with Client(plant.url, patience=30) as client:
        fields = {"layer": "conv1_1", "kernels": "1,2,3", "iterations": 2500}
        job = client.explain([picture()], **fields)  # type: ignore[arg-type]
        restarting = restart(plant)
        whole(list(job.events()))
        restarting.join()
        second = client.explain([picture()], beta=2, **fields)  # type: ignore[arg-type]
        restarting = restart(plant)
        assert second.wait().status is Status.SUCCEEDED
        restarting.join()
        restarting = restart(plant, after=0)
        time.sleep(0.5)
        third = client.explain([picture()], beta=3, iterations=5, layer="conv1_1", kernels="1")
        restarting.join()
        assert third.wait().status is Status.SUCCEEDED
        assert len(list(client.jobs())) == 3


def test_the_asynchronous_client_survives_too(plant: Plant) -> None:
    """The asynchronous client."""
    plant.start_worker("worker", KERNELSCOPE_ENGINE="dummy")

    async def story() -> list[Event]:
        async with AsyncClient(plant.url) as client:
            job = await client.explain([picture()], layer="conv1_1", kernels="1,2,3", iterations=2500)
            reported, ended = await asyncio.gather(_all(job.events()), job.wait())
            assert ended.status is Status.SUCCEEDED
            return reported

    async def _all(events: object) -> list[Event]:
        return [event async for event in events]  # type: ignore[attr-defined]

    restarting = restart(plant)
    whole(asyncio.run(story()))
    restarting.join()
