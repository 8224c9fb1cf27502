"""What the routes work with: the job record, the store, the queue. Opened once, passed in by FastAPI."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from threading import BoundedSemaphore
from typing import Annotated

from celery import Celery
from fastapi import Depends, Request
from redis import Redis

from api.access import Access
from api.news import Feeds, News
from shared.jobs import Polling, Records, Retention, Transitions, connect
from shared.queue import make_celery
from shared.settings import Settings
from shared.store import BlobStore
from shared.webhooks import Webhooks

STORE_PATIENCE = 10.0  # seconds that writing or reading one blob may take
PATIENCE = 0.8  # seconds that Redis may take: a caller is told within one that it is away


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
    queue: Celery
    access: Access
    news: News
    feeds: Feeds
    webhooks: Webhooks
    large_image: asyncio.Lock = field(default_factory=asyncio.Lock)  # who checks one
    drawing: BoundedSemaphore = field(default_factory=lambda: BoundedSemaphore(2))  # who draws figures

    @classmethod
    def open(cls, settings: Settings) -> Services:
        """Nothing is connected yet: an API that starts before Redis answers 503 until it is there."""
        url = settings.redis_url.get_secret_value()
        redis = connect(url, patience=PATIENCE)
        polling = Polling(url, patience=PATIENCE)
        transitions = Transitions(redis, settings.lease_seconds)
        news = News(polling)
        return cls(
            settings=settings,
            redis=redis,
            records=Records(redis),
            polling=polling,
            transitions=transitions,
            retention=Retention(transitions),
            store=BlobStore(settings.store, STORE_PATIENCE),
            queue=make_celery(url),
            access=Access(settings, polling.redis),
            news=news,
            feeds=Feeds(polling, news),
            webhooks=Webhooks(redis),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self.news.close()
        await self.polling.close()
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
