"""What the routes work with: the job record, the store, the queue. Opened once, passed in by FastAPI."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated

from celery import Celery
from fastapi import Depends, Request
from redis import Redis

from api.edge.access import Access
from api.edge.admission import Admission
from api.edge.glance import Glance
from api.jobs.feeds import Feeds
from api.jobs.news import News
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

STORE_PATIENCE = 10.0  # seconds that writing or reading one blob may take
GLANCE_SECONDS = 1.0  # for which readiness is told again without a look
PATIENCE = 0.8  # seconds that Redis may take: a caller is told within one that it is away


@dataclass(frozen=True)
class State:
    """How Redis, the object store and the workers fare."""

    workers: list[WorkerState]
    warnings: list[str]

    @classmethod
    def of(cls, redis: Redis, store: BlobStore) -> State:
        """As they are now.

        Raises:
            StoreUnavailable: jobs cannot be taken.
        """
        warnings = [*redis_state.check(redis), *housekeeping.warnings(housekeeping.states(redis))]
        living = workers.living(redis)
        return cls(living, warnings + workers.outdated(living) + workers.elsewhere(living, store.identity()))


@dataclass(frozen=True)
class Services:
    """The API's connections."""

    settings: Settings
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
    news: News
    feeds: Feeds
    webhooks: Webhooks
    admission: Admission
    pictures: Pictures
    state: Glance[State]

    @classmethod
    def open(cls, settings: Settings) -> Services:
        """Nothing is connected yet: an API that starts before Redis answers 503 until it is there."""
        url = settings.redis
        redis = connect(url, patience=PATIENCE)
        store = BlobStore(settings.store, STORE_PATIENCE)
        records = Records(redis, store, settings.root)
        polling = Polling(url, records, patience=PATIENCE)
        transitions = Transitions(redis, settings.lease_seconds)
        retention = Retention(transitions, records)
        news = News(polling)
        pixels = int(settings.max_megapixels * 1e6)
        datasets = DataSets(store, settings.max_dataset_images)
        return cls(
            settings=settings,
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
            news=news,
            feeds=Feeds(polling, news),
            webhooks=Webhooks(redis),
            admission=Admission(settings.max_body_mb * 10**6, pixels),
            pictures=Pictures(records, store, pixels),
            state=Glance(partial(State.of, redis, store), GLANCE_SECONDS),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self.pictures.close()
        await self.news.close()
        await self.polling.close()
        self.admission.close()
        self.queue.close()
        self.redis.close()

    @property
    def max_pixels(self) -> int:
        """The largest image, in pixels."""
        return int(self.settings.max_megapixels * 1e6)


async def _services(request: Request) -> Services:  # not `def`: FastAPI would call that in a thread
    services: Services = request.app.state.services
    return services


Opened = Annotated[Services, Depends(_services)]
