"""The loops of housekeeping: each in one process at a time, none held up by another, none silent about its trouble."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from threading import Event

import pytest
from redis import Redis

from api.housekeeping import Loop, Scheduler, loops, tasks
from api.housekeeping import scheduler as scheduler_module
from api.housekeeping.tasks import Announcer, Cleaner, Reaper, log_redis_warnings
from api.jobs.deliveries import WebhookSender
from api.services import Services
from shared.housekeeping import FAILURES, SUCCESS, states, warnings
from shared.settings import Settings
from tests.conftest import refusing
from tests.integration.test_worker_life import submit, until

LEASE = 1.5


@pytest.fixture
def services(settings: Settings, redis: Redis) -> Iterator[Services]:
    """The API's side, with leases short enough to wait for."""
    services = Services.open(settings.model_copy(update={"lease_seconds": LEASE}))
    yield services
    asyncio.run(services.close())


def test_a_loop_runs_in_one_process_at_a_time(redis: Redis) -> None:
    """The second waits until the first lets go; each loop has a lock of its own."""
    ran: list[str] = []
    first, second = (
        Scheduler(redis, [Loop(name, 0.0, lambda name=name, who=who: ran.append(f"{name} {who}")) for name in "ab"])  # type: ignore[misc]
        for who in (1, 2)
    )
    for scheduler in (first, second, first):
        scheduler.round()
    assert ran == ["a 1", "b 1", "a 1", "b 1"]
    redis.delete("ks:housekeeping:lock:a")
    second.round()
    assert ran[4:] == ["a 2"]
    first.stop()
    second.round()
    assert ran[5:] == ["a 2", "b 2"]
    second.stop()
    assert not redis.keys("ks:housekeeping:lock:*")


def test_a_loop_that_raises_continues_and_is_counted(redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    """With what it raised in the log; the other loop does not notice."""
    rounds: list[int] = []
    scheduler = Scheduler(redis, [Loop("bad", 0.0, lambda: 1 // 0), Loop("good", 0.0, lambda: rounds.append(1))])
    for _ in range(3):
        scheduler.round()
    assert len(rounds) == 3
    assert {loop.name: loop.failures for loop in states(redis)} == {"bad": 3, "good": 0}
    assert "ZeroDivisionError" in caplog.text
    scheduler.stop()


def test_a_slow_loop_holds_up_no_other(redis: Redis) -> None:
    """Nor does it lose its lock, though its round lasts longer than that."""
    release, rounds = Event(), []
    first = Scheduler(
        redis, [Loop("slow", 1.0, lambda: release.wait(20)), Loop("quick", 0.1, lambda: rounds.append(1))]
    )
    second = Scheduler(redis, [Loop("slow", 1.0, lambda: rounds.append(2))])
    first.renew_locks()
    first.start()
    begin = time.monotonic()
    while time.monotonic() - begin < scheduler_module.LOCK_SECONDS + 1:
        first.renew_locks()
        second.round()
        time.sleep(0.2)
    assert set(rounds) == {1}
    assert len(rounds) > 20
    release.set()
    first.stop()


def test_a_loop_that_hangs_loses_its_lock_and_the_process_is_not_alive(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process does the work; its supervisor restarts this one."""
    monkeypatch.setattr(scheduler_module, "ROUND_SECONDS", 0.3)
    monkeypatch.setattr(scheduler_module, "LOCK_SECONDS", 0.5)
    release, rounds = Event(), []
    first = Scheduler(redis, [Loop("slow", 0.1, lambda: release.wait(20))])
    second = Scheduler(redis, [Loop("slow", 0.1, lambda: rounds.append(2))])
    first.renew_locks()
    first.start()
    begin = time.monotonic()
    while not rounds:
        first.renew_locks()
        second.round()
        time.sleep(0.05)
        assert time.monotonic() - begin < 5
    assert not first.alive
    assert second.alive
    release.set()
    first.stop()
    second.stop()


def test_loops_of_another_release_are_not_missed(redis: Redis) -> None:
    """The owner of a lock deletes those that it does not know."""
    old = Scheduler(redis, [Loop("work", 1.0, list), Loop("of-old", 1.0, list)])
    old.round()
    old.stop()
    Scheduler(redis, [Loop("work", 1.0, list)]).round()
    assert [loop.name for loop in states(redis)] == ["work"]


def test_a_loop_of_the_previous_release_is_forgotten_after_a_rolling_upgrade(redis: Redis) -> None:
    """It still runs beside the new release and records a success and a failure; nobody reports them later."""
    old = Scheduler(redis, [Loop("shelves", 0.0, lambda: 1 // 0), Loop("old", 0.0, list), Loop("work", 0.0, list)])
    new = Scheduler(redis, [Loop("collections", 1.0, list), Loop("work", 0.0, list)])
    for scheduler in (old, new, old):
        scheduler.round()
    assert {loop.name for loop in states(redis)} >= {"shelves", "old"}
    old.stop()
    new.renew_locks()
    assert {loop.name: loop.failures for loop in states(redis)} == {"collections": 0, "work": 0}
    assert redis.hkeys(FAILURES) == []
    new.stop()


def test_loops_that_do_not_run_are_reported(redis: Redis) -> None:
    """Nothing ever ran; all of it stands still; one loop does."""
    assert "has never run" in next(warnings(states(redis)))
    Scheduler(redis, [Loop("work", 1.0, list), Loop("other", 1.0, list), Loop("rare", 600.0, list)]).round()
    assert list(warnings(states(redis))) == []
    redis.hset(SUCCESS, "work", f"{redis.time()[0] - 30} 1.0")
    (reported,) = warnings(states(redis))
    assert reported.startswith("housekeeping: loop work has not succeeded for 3")
    redis.hset(SUCCESS, "other", f"{redis.time()[0] - 20} 1.0")
    (reported,) = warnings(states(redis))
    assert reported.startswith("housekeeping has not run for 2")
    assert "start `python -m api.housekeeping`" in reported


def test_all_loops_succeed_where_there_is_nothing_to_do(services: Services) -> None:
    """Each is on record."""
    every = loops(services, WebhookSender(services.webhooks, private=False))
    scheduler = Scheduler(services.redis, every)
    scheduler.round()
    assert {loop.name: loop.failures for loop in states(services.redis)} == {loop.name: 0 for loop in every}
    scheduler.stop()


def reaped(services: Services, monkeypatch: pytest.MonkeyPatch) -> tuple[Scheduler, Callable[[], bool]]:
    """A scheduler that reaps, and whether its next round takes silence for death."""
    rounds: list[int] = []

    def lapsed(most: int) -> list[str]:
        rounds.append(most)
        return []

    monkeypatch.setattr(services.transitions, "expire_leases", lapsed)
    scheduler = Scheduler(services.redis, [Loop("reaper", 0.0, Reaper(services).round)], LEASE)

    def reaps() -> bool:
        before = len(rounds)
        scheduler.round()
        return len(rounds) > before

    return scheduler, reaps


def test_a_worker_that_could_not_send_heartbeats_is_not_regarded_as_dead(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Redis that refuses writes hears no worker: housekeeping waits afterwards, as after an outage."""
    scheduler, reaps = reaped(services, monkeypatch)
    until(reaps)  # this Redis has just been started, perhaps
    with refusing(services.redis):
        time.sleep(3.2)
        scheduler.round()
    assert not reaps()
    begin = time.monotonic()
    until(reaps)
    assert LEASE - 0.3 < time.monotonic() - begin < LEASE + 1
    scheduler.stop()


def test_after_an_outage_no_worker_is_regarded_as_dead_at_once(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever process worked before; the same after a start of Redis."""
    scheduler, reaps = reaped(services, monkeypatch)
    until(reaps)
    services.redis.set("ks:housekeeping:heard", services.redis.time()[0] - 60)
    assert not reaps()
    scheduler.stop()
    _, another_reaps = reaped(services, monkeypatch)
    assert not another_reaps()
    services.redis.delete(scheduler_module.GRACE)
    assert another_reaps()
    monkeypatch.setattr(services.settings, "lease_seconds", 1e9)  # longer than this Redis is up
    assert not another_reaps()


def test_messages_of_one_queue_hide_no_lost_one_of_the_other(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five hundred of cancelled big jobs lie about while the places of big jobs are taken."""
    monkeypatch.setattr(tasks, "LOST_AFTER_SECONDS", -1.0)
    submit(services, kernels=2)
    services.redis.delete("interactive")
    services.redis.lpush("bulk", *["stale"] * 500)
    Announcer(services).round()
    assert services.redis.llen("interactive") == 1
    assert services.redis.llen("bulk") == 500


def test_messages_of_a_dead_worker_hide_no_lost_one(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its messages stay with the broker for an hour."""
    job_id = submit(services, kernels=2)
    services.redis.delete("interactive")
    services.redis.hset("unacked", "tag-of-a-dead-worker", "[]")
    announcer = Announcer(services)
    assert announcer.lost("interactive") == []
    monkeypatch.setattr(tasks, "LOST_AFTER_SECONDS", -1.0)
    assert announcer.lost("interactive") == [f"{job_id}:0"]
    services.redis.lpush("interactive", "a message")
    assert announcer.lost("interactive") == []
    services.redis.delete("unacked")


def test_as_many_messages_are_sent_as_there_are_too_few(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a long queue: not all again, and not all at once; what no message can name comes first."""
    redis, announcer, old = services.redis, Announcer(services), time.time() - 100
    redis.zadd("ks:queued:bulk", {f"job:{number:04}": old + number / 1000 for number in range(2500)})
    redis.lpush("bulk", *["a message"] * 300)
    first = announcer.lost("bulk")
    assert first == [f"job:{number:04}" for number in range(300, 1300)]
    redis.lpush("bulk", *["a message"] * 1000)
    assert announcer.lost("bulk") == [f"job:{number:04}" for number in range(1300, 2300)]
    redis.lpush("bulk", *["a message"] * 1000)
    assert announcer.lost("bulk") == [f"job:{number:04}" for number in range(2300, 2500)]
    assert announcer._quiet_until["bulk"] > time.monotonic()


def test_what_waits_long_is_announced_again_at_a_bounded_rate(services: Services) -> None:
    """In case its message is lost; messages do not accumulate."""
    redis, announcer = services.redis, Announcer(services)
    redis.zadd("ks:queued:bulk", {f"job:{number:04}": time.time() - 100 for number in range(50)})
    redis.lpush("bulk", *["stale"] * 50)
    assert len(announcer.lost("bulk")) == tasks.MOST_AGAIN
    assert announcer.lost("bulk") == []
    redis.lpush("bulk", *["stale"] * tasks.MOST_EXTRA)
    assert Announcer(services).lost("bulk") == []


def test_removing_is_done_in_portions(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest is left to the next round."""
    monkeypatch.setattr(tasks, "MOST_JOBS", 2)
    monkeypatch.setattr(tasks, "ROUND_SECONDS", -1.0)
    cleaner = Cleaner(services)
    for _ in range(3):
        services.redis.zadd("ks:expiry", {submit(services): 1})
    for left in (1, 0, 0):
        cleaner.expire()
        assert services.redis.zcard("ks:expiry") == left
    services.redis.zadd("ks:removed", dict.fromkeys(services.redis.zrange("ks:removed", 0, -1), 1))
    for left in (1, 0, 0):
        cleaner.remove_files()
        assert services.redis.zcard("ks:removed") == left


def test_each_chore_of_the_archivist_can_be_done(services: Services) -> None:
    """On an empty installation, and twice."""
    cleaner = Cleaner(services)
    for chore in (cleaner.archive, cleaner.expire, cleaner.remove_files, cleaner.repair, cleaner.scan_store) * 2:
        chore()
    assert services.redis.get("ks:beat") == services.store.noted("state/beat") == "2"


def test_housekeeping_warns_of_a_redis_that_may_evict(
    services: Services, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In its log, now and then; it goes on."""
    reported = {"uptime_in_seconds": 1e6, "used_memory": 1, "maxmemory": 100, "maxmemory_policy": "allkeys-lru"}
    monkeypatch.setattr(services.redis, "info", lambda _: reported)
    scheduler = Scheduler(services.redis, [Loop("redis", 600.0, lambda: log_redis_warnings(services))])
    with caplog.at_level(logging.WARNING):
        scheduler.round()
        scheduler.round()
    scheduler.stop()
    assert sum("allkeys-lru" in record.getMessage() for record in caplog.records) == 1
