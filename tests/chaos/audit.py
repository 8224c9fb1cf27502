"""A complete audit of Redis and the store of a stopped plant: nothing is lost, duplicated or left over."""

from __future__ import annotations

import re
from collections.abc import Iterator

from redis import Redis

from shared.jobs.archive import NAME, SEPARATOR
from shared.schemas import Status
from shared.store import SHARDS, BlobStore

OF_A_JOB = re.compile(r"ks:(?:job|slice|watched|preview):([^:]+)")
QUEUES = ("interactive", "bulk")
WITHOUT_RECORD = "has files and no record"


def faults(redis: Redis, store: BlobStore) -> list[str]:
    """Inconsistencies of keys, lists and files, in words."""
    return [*_keys(redis), *_slices(redis), *_lists(redis, store), *_files(redis, store)]


def _live(redis: Redis) -> set[str]:
    return {key.split(":")[2] for key in redis.scan_iter("ks:job:*") if key.count(":") == 2}


def _keys(redis: Redis) -> Iterator[str]:
    live = _live(redis)
    for key in redis.scan_iter("ks:*"):
        match = OF_A_JOB.match(key)
        if match and match[1] not in live and redis.ttl(key) < 0:
            yield f"{key} is of no job"
    for job_id in redis.zrange("ks:expiry", 0, -1):
        if job_id not in live:
            yield f"{job_id} expires, and is not there"


def _slices(redis: Redis) -> Iterator[str]:
    expected: dict[str, set[str]] = {"ks:leases": set(), **{f"ks:queued:{queue}": set() for queue in QUEUES}}
    opened: set[str] = set()
    for key in redis.scan_iter("ks:slice:*"):
        name, (status, queue) = key.removeprefix("ks:slice:"), redis.hmget(key, "status", "queue")
        if status == "running":
            expected["ks:leases"].add(name)
        if status == "queued":
            expected[f"ks:queued:{queue}"].add(name)
        opened |= {name} if status != "done" else set()
    for key, names in expected.items():
        if set(redis.zrange(key, 0, -1)) != names:
            yield f"{key} is not what slices say: {sorted(set(redis.zrange(key, 0, -1)) ^ names)}"
    found = {name for key in redis.scan_iter("ks:open:*") for name in redis.smembers(key)}
    if found != opened:
        yield f"open slices are not what slices say: {sorted(found ^ opened)}"


def _lists(redis: Redis, store: BlobStore) -> Iterator[str]:
    live, seen = _live(redis), set[str]()
    for key in redis.scan_iter("ks:jobs:*"):
        for line in redis.zrange(key, 0, -1):
            job_id, archived, _ = line.partition(SEPARATOR)
            if job_id in seen:
                yield f"{job_id} is listed twice"
            seen.add(job_id)
            if bool(archived) == (job_id in live):
                yield f"{line!r} is listed, and in Redis it is {'' if archived else 'not '}there"
            if archived and not store.has(job_id, NAME):
                yield f"{job_id} is listed as archived, and has no record"
    if live - seen:
        yield f"jobs that no list has: {sorted(live - seen)}"
    states = {job_id: redis.hget(f"ks:job:{job_id}", "status") for job_id in live}  # one may be archived meanwhile
    ended = {job_id for job_id, status in states.items() if status and Status(status).terminal}
    if ended != set(redis.zrange("ks:finished", 0, -1)):
        yield f"what waits to be archived is not what has ended: {ended ^ set(redis.zrange('ks:finished', 0, -1))}"


def _files(redis: Redis, store: BlobStore) -> Iterator[str]:
    lines = {line.partition(SEPARATOR)[0] for key in redis.scan_iter("ks:jobs:*") for line in redis.zrange(key, 0, -1)}
    known = lines | set(redis.zrange("ks:removed", 0, -1)) | set(redis.zrange("ks:late", 0, -1))
    for shard in SHARDS:
        for job_id, names in store.jobs(shard):
            if job_id not in known:
                yield f"{job_id} {WITHOUT_RECORD}: {names}"
