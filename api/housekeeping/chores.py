"""What the loops do. A new one is a line in `loops`."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

from api.housekeeping.runners import GRACE, Loop
from api.jobs.webhooks import Postman
from api.services import Services
from shared import redis_state, workers
from shared.connection import redis_errors
from shared.errors import StoreUnavailable
from shared.jobs.repair import Repair
from shared.queue import QUEUES, announce
from shared.store import SHARDS

log = logging.getLogger(__name__)

LOST_AFTER_SECONDS = 15.0  # what waits this long, while its queue holds too few messages, has lost one
AGAIN_AFTER_SECONDS = 60.0  # what waits this long is announced again, in case its message helps nobody
MOST_AGAIN, MOST_DOUBLES = 10, 100  # a queue: in that time; above its waiting slices
MOST_MESSAGES = 1000  # in one round
MOST_JOBS = 100  # that are archived, removed or swept together
ROUND_SECONDS = 5.0  # after which the rest is left to the next round
BEAT_SECONDS = 30.0
SHELVES_SECONDS = 600.0
WALK_SECONDS = 24 * 3600 / len(SHARDS)


def loops(services: Services, postman: Postman) -> list[Loop]:
    """All of them."""
    archivist = Archivist(services)
    return [
        Loop("reaper", 1.0, Reaper(services).round),
        Loop("announcer", 1.0, Announcer(services).round),
        Loop("waiting", 2.0, lambda: services.transitions.note_lacking(workers.living(services.redis))),
        Loop("archiver", 1.0, archivist.archive),
        Loop("expiry", 1.0, archivist.expire),
        Loop("sweeper", 1.0, archivist.sweep),
        Loop("walker", WALK_SECONDS, archivist.walk),
        Loop("shelves", SHELVES_SECONDS, archivist.sweep_shelves),
        Loop("beat", BEAT_SECONDS, archivist.compare),
        Loop("webhooks", 1.0, postman.round),
        Loop("redis", 600.0, lambda: look(services)),
    ]


class Reaper:
    """Takes back slices whose worker went silent, and fails those that waited beyond their deadline."""

    def __init__(self, services: Services) -> None:
        self.services = services

    def round(self) -> None:
        """One look at all leases and deadlines that have run out."""
        transitions = self.services.transitions
        if self._silence_is_death():
            for slice_id in transitions.lapsed(self.services.settings.max_attempts):
                if queue := transitions.sent(slice_id):
                    log.warning("%s: its worker went silent; announced again", slice_id)
                    announce(self.services.queue, slice_id, queue)
        for slice_id in transitions.overdue():
            log.warning("%s: its deadline passed in the queue", slice_id)

    def _silence_is_death(self) -> bool:
        """Not for the time of a lease after an outage, or a start, of Redis: until then every worker may be heard."""
        with redis_errors():
            grace = self.services.redis.exists(GRACE)
            uptime = float(self.services.redis.info("server")["uptime_in_seconds"])
        return not grace and uptime >= self.services.settings.lease_seconds


class Announcer:
    """Sends messages again that were lost, queue by queue.

    A message is a permit to run a slice of its queue: how many there are matters, not which slices they name.
    """

    def __init__(self, services: Services) -> None:
        self.services = services
        self._quiet_until = dict.fromkeys(QUEUES, -math.inf)
        self._again_at = dict.fromkeys(QUEUES, -math.inf)

    def round(self) -> None:
        """One look at every queue."""
        for queue in QUEUES:
            if lost := self.lost(queue):
                log.warning("%s: %d slices announced again, %s first", queue, len(lost), lost[0])
            for slice_id in lost:
                announce(self.services.queue, slice_id, queue)

    def lost(self, queue: str) -> list[str]:
        """The slices of a queue to announce now: as many as it lacks messages; now and then a few that wait long."""
        redis, now = self.services.redis, time.monotonic()
        key = f"ks:queued:{queue}"
        with redis_errors(), redis.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.zcard(key)
            pipe.llen(queue)
            (seconds, _), waiting, messages = pipe.execute()
        if messages < waiting and now >= self._quiet_until[queue]:
            found = self._oldest(key, seconds - LOST_AFTER_SECONDS, waiting - messages, messages)
            if 0 < len(found) < MOST_MESSAGES:  # else the rest follows at once
                self._quiet_until[queue] = now + LOST_AFTER_SECONDS
            return found
        if messages < waiting + MOST_DOUBLES and now >= self._again_at[queue]:
            self._again_at[queue] = now + AGAIN_AFTER_SECONDS
            return self._oldest(key, seconds - AGAIN_AFTER_SECONDS, MOST_AGAIN, 0)
        return []

    def _oldest(self, key: str, before: float, most: int, behind: int) -> list[str]:
        """Up to so many slices that have waited since before then; those that messages are likely to name come last."""
        redis, most = self.services.redis, min(most, MOST_MESSAGES)
        with redis_errors():
            old = redis.zcount(key, "-inf", before)
            start = max(0, min(behind, old - most))
            found: list[str] = redis.zrangebyscore(key, "-inf", before, start, most)
        return found


class Archivist:
    """Jobs out of Redis, those whose time is over out of the record, and their files out of the store."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.retention = services.retention
        self.repair = Repair(services.redis, services.store, services.records.archive)
        self._migrated = False

    def archive(self) -> None:
        """Archive what has ended, a portion at a time; at first what is of an earlier form too."""
        if not self._migrated:
            self.services.records.archive.migration.begin()
            self._migrated = True
        _in_portions(self.retention.archive_ended)

    def expire(self) -> None:
        """Remove jobs whose time is over."""
        _in_portions(self.retention.expire)

    def sweep(self) -> None:
        """Remove the files of jobs that were removed."""
        _in_portions(self.retention.sweep)

    def sweep_shelves(self) -> None:
        """Remove what is left of data sets and surveys that were deleted."""
        for shelf in (self.services.datasets.shelf, self.services.surveys.shelf):
            shelf.sweep_removed()

    def compare(self) -> None:
        """Put right what a backup has undone; then give Redis and the store the next number."""
        self.repair.round(ROUND_SECONDS)

    def walk(self) -> None:
        """Look through one of the store's shards for files that are no job's: through all in a day."""
        with redis_errors():
            number = int(self.services.redis.incr("ks:walked"))
        self.retention.walk(SHARDS[number % len(SHARDS)])


def _in_portions(chore: Callable[[int], int]) -> None:
    """Until there is nothing more to do, or for so long; the rest is left to the next round."""
    end = time.monotonic() + ROUND_SECONDS
    while chore(MOST_JOBS) == MOST_JOBS and time.monotonic() < end:
        pass


def look(services: Services) -> None:
    """Tell of a Redis that may lose something, or is nearly full."""
    try:
        found = redis_state.check(services.redis)
    except StoreUnavailable as error:
        found = [error.detail]
    for sentence in found:
        log.warning("%s", sentence)
