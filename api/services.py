"""The API's connections to Redis, the object store and the queue. Opened once; FastAPI passes them to the routes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated

from celery import Celery
from fastapi import Depends, Request
from redis import Redis

from api.edge.access import Access
from api.edge.cached import Cached
from api.edge.capacity import Capacity
from api.jobs.feeds import Feeds
from api.jobs.updates import JobUpdates
from api.pictures.service import Pictures
from shared import housekeeping, redis_state, workers
from shared.datasets import DataSets
from shared.jobs import Polling, Records, Retention, Transitions, connect
from shared.queue import make_celery
from shared.settings import Settings
from shared.store import BlobStore
from shared.surveys.store import Surveys
from shared.webhooks import Webhooks
from shared.workers import WorkerState

STORE_TIMEOUT = 10.0  # seconds that reading or writing one object may take
REDIS_TIMEOUT = 0.8  # seconds: a caller learns within one second that Redis is unavailable
READINESS_SECONDS = 1.0  # for which the readiness is cached


@dataclass(frozen=True)
class Readiness:
    """The state of Redis, the object store and the workers."""

    workers: list[WorkerState]
    warnings: list[str]

    @classmethod
    def check(cls, redis: Redis, store: BlobStore) -> Readiness:
        """Their current state.

        Raises:
            StoreUnavailable: jobs cannot be accepted.
        """
        warnings = [*redis_state.check(redis), *housekeeping.warnings(housekeeping.states(redis))]
        living = workers.living(redis)
        return cls(living, warnings + workers.outdated(living) + workers.elsewhere(living, store.identity()))


@dataclass(frozen=True)
class Services:
    """The API's connections."""

    settings: Settings
    max_pixels: int  # of an image
    redis: Redis
    records: Records
    polling: Polling
    transitions: Transitions
    retention: Retention
    store: BlobStore
    datasets: DataSets
    surveys: Surveys
    queue: Celery
    access: Access
    updates: JobUpdates
    feeds: Feeds
    webhooks: Webhooks
    capacity: Capacity
    pictures: Pictures
    readiness: Cached[Readiness]

    @classmethod
    def open(cls, settings: Settings) -> Services:
        """Connections are made on first use: an API that starts before Redis responds 503 until Redis is available."""
        url = settings.redis
        redis = connect(url, patience=REDIS_TIMEOUT)
        store = BlobStore(settings.store, STORE_TIMEOUT)
        records = Records(redis, store, settings.root)
        polling = Polling(url, records, patience=REDIS_TIMEOUT)
        transitions = Transitions(redis, settings.lease_seconds)
        retention = Retention(transitions, records)
        updates = JobUpdates(polling)
        max_pixels = int(settings.max_megapixels * 1e6)
        datasets = DataSets(store, settings.max_dataset_images)
        return cls(
            settings=settings,
            max_pixels=max_pixels,
            redis=redis,
            records=records,
            polling=polling,
            transitions=transitions,
            retention=retention,
            store=store,
            datasets=datasets,
            surveys=Surveys(store, datasets),
            queue=make_celery(url),
            access=Access(settings, polling.redis),
            updates=updates,
            feeds=Feeds(polling, updates),
            webhooks=Webhooks(redis),
            capacity=Capacity(settings.max_body_mb * 10**6, max_pixels),
            pictures=Pictures(records, store, max_pixels),
            readiness=Cached(partial(Readiness.check, redis, store), READINESS_SECONDS),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self.pictures.close()
        await self.updates.close()
        await self.polling.close()
        self.capacity.close()
        self.queue.close()
        self.redis.close()


async def _services(request: Request) -> Services:  # FastAPI would call a plain `def` in a thread
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(_services)]
