"""Redis and the store are brought to agree after one of them was restored from a backup."""

from __future__ import annotations

import time

from shared.jobs import JobFilter
from shared.jobs.repair import Repair
from tests.unit.ended_jobs import DAY, Desk


def test_a_redis_that_was_restored_alone_is_told_what_the_store_has(desk: Desk) -> None:
    """Even an empty one, portion by portion; then nothing more is done."""
    jobs = [desk.done() for _ in range(3)]
    repair = Repair(desk.redis, desk.store, desk.records.archive)
    assert repair.round() is repair.round() is None
    desk.retention.archive_ended(10, 0)
    desk.redis.flushdb()
    repair = Repair(desk.redis, desk.store, desk.records.archive)
    reported = [repair.round(-1.0) for _ in range(4)]
    assert reported == [None, None, None, "Redis is older than the object store: 3 finished jobs are listed again"]
    assert repair.round() is None
    assert Repair(desk.redis, desk.store, desk.records.archive).round() is None
    assert [job.id for job in desk.records.page("", JobFilter(), 10)[0]] == jobs[::-1]
    desk.redis.set("ks:clock", time.time() + 2 * DAY)
    assert desk.retention.expire(10) == 3
    assert desk.records.page("", JobFilter(), 10) == ([], None)


def test_a_store_that_was_restored_alone_is_told_of(desk: Desk) -> None:
    """What it lost is listed no more."""
    repair = Repair(desk.redis, desk.store, desk.records.archive)
    kept, lost = desk.done(), desk.done()
    desk.retention.archive_ended(10, 0)
    for _ in range(3):
        repair.round()
    desk.store.remove(lost)
    desk.store.note("state/beat", "1")
    repair = Repair(desk.redis, desk.store, desk.records.archive)
    assert repair.round() == "the object store is older than Redis: 1 finished jobs are lost with their files"
    assert desk.redis.zrange("ks:jobs:", 0, -1) == [f"{kept} succeeded vgg16 conv1_1"]
    assert Repair(desk.redis, desk.store, desk.records.archive).round() is None
