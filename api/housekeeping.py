"""All periodic work, in a small process of its own: `python -m api.housekeeping`.

Slices whose worker went silent are queued again, or failed after the last attempt; those that wait beyond their
deadline are failed; messages that were lost are sent again; webhooks are delivered; jobs whose time is over are removed
with the blobs that nobody else refers to. Several of these processes may run: a lock in Redis lets one work.
"""

from __future__ import annotations

import logging
import signal
from threading import Event

from redis.exceptions import LockError
from redis.lock import Lock

from api.services import Services
from api.webhooks import Postman
from shared import logs
from shared.errors import StoreUnavailable
from shared.jobs.record import redis_errors
from shared.queue import announce, backlog
from shared.settings import settings

log = logging.getLogger(__name__)

TICK_SECONDS = 1.0
MOST_ORPHANS = 200  # blobs that are removed in one round
LOCK_SECONDS = 30.0
FORGOTTEN_AFTER_SECONDS = 30.0  # a message that is in no queue and was not begun for this long is a dead worker's
LOST_AFTER_SECONDS = 15.0  # a message that nobody took for this long, while the broker holds too few, is lost


def tick(services: Services) -> None:
    """One round."""
    requeued = services.transitions.lapsed(services.settings.max_attempts)
    for slice_id in services.transitions.overdue():
        log.warning("%s: its deadline passed in the queue", slice_id)
    for slice_id in requeued + _lost(services):
        if queue := services.transitions.sent(slice_id):
            log.warning("%s: announced again", slice_id)
            announce(services.queue, slice_id, queue)
    services.retention.expire()
    services.retention.discard(services.store, services.retention.orphans(MOST_ORPHANS))


def _lost(services: Services) -> list[str]:
    """Queued slices that no message speaks of any more (the broker was wiped, say). A rare double is harmless."""
    waiting = services.transitions.queued()
    queued, handed_out = backlog(services.redis)
    if queued + handed_out < len(waiting):
        return services.transitions.unsent(waiting, LOST_AFTER_SECONDS)
    # What is handed out counts, but that of a worker that was killed is never begun, and hides what was lost with it.
    return services.transitions.unsent(waiting, FORGOTTEN_AFTER_SECONDS) if not queued else []


class Housekeeper:
    """Rounds, as long as this process holds the lock."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.postman = Postman(services.webhooks, private=services.settings.webhook_private)
        self.lock = Lock(services.redis, "ks:housekeeping", timeout=LOCK_SECONDS)

    def round(self) -> None:
        """One round, if it is ours to do; Redis being away is no reason to stop."""
        try:
            with redis_errors():
                if self._mine():
                    tick(self.services)
                    self.postman.round()
        except (StoreUnavailable, LockError) as error:
            log.warning("no housekeeping now: %s", error)

    def release(self) -> None:
        """Let another process take over at once."""
        self.postman.close()
        try:
            with redis_errors():
                if self.lock.owned():
                    self.lock.release()
        except (StoreUnavailable, LockError):
            log.warning("Redis does not answer; the lock runs out by itself")

    def _mine(self) -> bool:
        if self.lock.owned():
            return bool(self.lock.reacquire())
        return bool(self.lock.acquire(blocking=False))


def main() -> None:
    """Until SIGTERM or SIGINT."""
    logs.configure(settings().log_level, settings().log_format)
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    housekeeper = Housekeeper(Services.open(settings()))
    log.info("housekeeping begins")
    while not stop.is_set():
        housekeeper.round()
        stop.wait(TICK_SECONDS)
    housekeeper.release()


if __name__ == "__main__":
    main()
