"""The tasks of housekeeping. A new one is a line in `loops`."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

from api.housekeeping.scheduler import GRACE, Loop
from api.jobs.deliveries import WebhookSender
from api.services import Services
from shared import redis_state, workers
from shared.connection import redis_errors
from shared.errors import StoreUnavailable
from shared.jobs.repair import Repair
from shared.queue import QUEUES, announce
from shared.store import SHARDS

log = logging.getLogger(__name__)

LOST_AFTER_SECONDS = 15.0  # a slice has waited this long in a queue with too few messages: one was lost
AGAIN_AFTER_SECONDS = 60.0  # a slice that has waited this long is announced again in any case
MOST_AGAIN, MOST_EXTRA = 10, 100  # slices per queue announced again at once; messages beyond its waiting slices
MOST_MESSAGES = 1000  # sent in one round
MOST_JOBS = 100  # archived, expired or cleaned up in one batch
ROUND_SECONDS = 5.0  # after which the rest is left to the next round
REPAIR_SECONDS = 30.0
DELETED_SECONDS = 600.0
SCAN_SECONDS = 24 * 3600 / len(SHARDS)


def loops(services: Services, sender: WebhookSender) -> list[Loop]:
    """All loops of housekeeping."""
    cleaner = Cleaner(services)
    return [
        Loop("reaper", 1.0, Reaper(services).round),
        Loop("announcer", 1.0, Announcer(services).round),
        Loop("waiting", 2.0, lambda: check_needs(services)),
        Loop("archiver", 1.0, cleaner.archive),
        Loop("expiry", 1.0, cleaner.expire),
        Loop("sweeper", 1.0, cleaner.remove_files),
        Loop("walker", SCAN_SECONDS, cleaner.scan_store),
        Loop("collections", DELETED_SECONDS, cleaner.remove_deleted),
        Loop("beat", REPAIR_SECONDS, cleaner.repair),
        Loop("webhooks", 1.0, sender.round),
        Loop("redis", 600.0, lambda: log_redis_warnings(services)),
    ]


def check_needs(services: Services) -> None:
    """Note which networks and layers jobs wait for in vain; fail the jobs whose network cannot be loaded."""
    living = workers.living(services.redis)
    for slice_id in services.transitions.fail_unloadable(living):
        log.warning("%s: its network cannot be loaded", slice_id)
    services.transitions.note_unmet_needs(living)


class Reaper:
    """Requeues slices whose worker was lost, and fails slices that waited beyond their deadline."""

    def __init__(self, services: Services) -> None:
        self.services = services

    def round(self) -> None:
        """Handle all expired leases and deadlines."""
        transitions = self.services.transitions
        if self._leases_are_valid():
            for slice_id in transitions.expire_leases(self.services.settings.max_attempts):
                if queue := transitions.sent(slice_id):
                    log.warning("%s: the lease of its worker expired; announced again", slice_id)
                    announce(self.services.queue, slice_id, queue)
        for slice_id in transitions.fail_overdue():
            log.warning("%s: its deadline passed in the queue", slice_id)

    def _leases_are_valid(self) -> bool:
        """Whether an expired lease means a lost worker.

        After a start or an outage of Redis workers get the time of a lease to renew theirs.
        """
        with redis_errors():
            grace = self.services.redis.exists(GRACE)
            uptime = float(self.services.redis.info("server")["uptime_in_seconds"])
        return not grace and uptime >= self.services.settings.lease_seconds


class Announcer:
    """Resends lost messages, queue by queue.

    A message permits a worker to run any slice of its queue, so only the number of messages matters, not the slices
    that they name.
    """

    def __init__(self, services: Services) -> None:
        self.services = services
        self._quiet_until = dict.fromkeys(QUEUES, -math.inf)
        self._again_at = dict.fromkeys(QUEUES, -math.inf)

    def round(self) -> None:
        """Check every queue."""
        for queue in QUEUES:
            if lost := self.lost(queue):
                log.warning("%s: %d slices announced again, the first is %s", queue, len(lost), lost[0])
            for slice_id in lost:
                announce(self.services.queue, slice_id, queue)

    def lost(self, queue: str) -> list[str]:
        """The slices of a queue to announce: one for each missing message, and once a minute a few that wait long."""
        redis, now = self.services.redis, time.monotonic()
        key = f"ks:queued:{queue}"
        with redis_errors(), redis.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.zcard(key)
            pipe.llen(queue)
            (seconds, _), waiting, messages = pipe.execute()
        if messages < waiting and now >= self._quiet_until[queue]:
            found = self._oldest(key, seconds - LOST_AFTER_SECONDS, waiting - messages, messages)
            if 0 < len(found) < MOST_MESSAGES:  # otherwise the next round continues at once
                self._quiet_until[queue] = now + LOST_AFTER_SECONDS
            return found
        if messages < waiting + MOST_EXTRA and now >= self._again_at[queue]:
            self._again_at[queue] = now + AGAIN_AFTER_SECONDS
            return self._oldest(key, seconds - AGAIN_AFTER_SECONDS, MOST_AGAIN, 0)
        return []

    def _oldest(self, key: str, before: float, most: int, skip: int) -> list[str]:
        """At most this many slices queued before this time, skipping the oldest: messages probably name those."""
        redis, most = self.services.redis, min(most, MOST_MESSAGES)
        with redis_errors():
            old = redis.zcount(key, "-inf", before)
            start = max(0, min(skip, old - most))
            found: list[str] = redis.zrangebyscore(key, "-inf", before, start, most)
        return found


class Cleaner:
    """Archives ended jobs, deletes expired ones, and removes the files that no job has any more."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.retention = services.retention
        self._repair = Repair(services.redis, services.store, services.records.archive)
        self._migrated = False

    def archive(self) -> None:
        """Archive ended jobs in batches; the first time also migrate the archives of an earlier version."""
        if not self._migrated:
            self.services.records.archive.migration.begin()
            self._migrated = True
        _in_batches(self.retention.archive_ended)

    def expire(self) -> None:
        """Delete expired jobs."""
        _in_batches(self.retention.expire)

    def remove_files(self) -> None:
        """Remove the files of deleted jobs."""
        _in_batches(self.retention.remove_files)

    def remove_deleted(self) -> None:
        """Remove the files of deleted data sets and surveys."""
        for collection in (self.services.datasets.collection, self.services.surveys.collection):
            collection.remove_deleted()

    def repair(self) -> None:
        """Repair what restoring a backup has undone, then write the next number to both Redis and the store."""
        self._repair.round(ROUND_SECONDS)

    def scan_store(self) -> None:
        """Scan one of the store's shards for files of no job; all of them take a day."""
        with redis_errors():
            number = int(self.services.redis.incr("ks:walked"))
        self.retention.remove_orphans(SHARDS[number % len(SHARDS)])


def _in_batches(task: Callable[[int], int]) -> None:
    """Repeat a task until nothing is left, for `ROUND_SECONDS` at most; the next round does the rest."""
    end = time.monotonic() + ROUND_SECONDS
    while task(MOST_JOBS) == MOST_JOBS and time.monotonic() < end:
        pass


def log_redis_warnings(services: Services) -> None:
    """Log a warning if Redis may lose data or is nearly full."""
    try:
        found = redis_state.check(services.redis)
    except StoreUnavailable as error:
        found = [error.detail]
    for sentence in found:
        log.warning("%s", sentence)
