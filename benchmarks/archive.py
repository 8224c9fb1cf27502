"""A million finished jobs: `python -m benchmarks.archive [--json] [--jobs N]`.

Measures the memory in Redis per archived and per running job, and the time of a page of the list: the newest, one in
the middle, and one with a filter that few jobs match. Redis is private; records are in a folder.
"""

from __future__ import annotations

import argparse
import json
import secrets
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import DEVNULL, Popen
from tempfile import TemporaryDirectory
from typing import Any

from redis import Redis

from kernelscope import stack
from kernelscope.stack import free_port, redis_server
from shared.jobs import Caller, JobFilter, Place, Records, Transitions, connect, new_id
from shared.jobs.archive import NAME, SEPARATOR, Dump
from shared.schemas import ExplainRequest, Status, plan
from shared.store import BlobStore

OWNER = "lab"
LIVE = 2000
PAGE = 20
COMPACT = ("--" + stack.COMPACT).split()  # as the stack and Docker Compose configure theirs
RARE = 1000  # one of this many jobs is on another layer
IMAGE = "0" * 64


def measure(jobs: int, folder: Path) -> dict[str, Any]:
    """Measure on a private Redis."""
    port = free_port()
    options = ["--port", str(port), *COMPACT, "--save", "", "--dir", str(folder)]
    with Popen([redis_server(), *options], stdout=DEVNULL) as process:
        try:
            redis = connect(f"redis://127.0.0.1:{port}", patience=30.0, persistent=True)
            redis.ping()
            return _measured(redis, BlobStore((folder / "store").as_uri()), jobs)
        finally:
            process.terminate()


def _measured(redis: Redis, store: BlobStore, jobs: int) -> dict[str, Any]:
    begin = time.time() - jobs
    before = _used(redis)
    found: dict[str, Any] = {"live_job_bytes": round(_live(redis) / LIVE)}
    redis.flushall()
    for start in range(0, jobs, 10_000):
        _archived(redis, begin, range(start, min(jobs, start + 10_000)))
    found |= {"jobs": jobs, "redis_mb": round((_used(redis) - before) / 1e6, 1)}
    found["bytes_per_finished_job"] = round((_used(redis) - before) / jobs, 1)
    records = Records(redis, store)
    found["newest_page_ms"] = _timed(records, store, lambda: None)
    found["page_in_the_middle_ms"] = _timed(records, store, lambda: Place(begin + jobs / 2, "f" * 32))
    rare = JobFilter(layer="conv1_1")
    at = time.perf_counter()
    _, after = records.page(OWNER, rare, PAGE)
    found["page_of_a_rare_layer_ms"] = round(1000 * (time.perf_counter() - at), 1)
    found["which_has_a_next_one"] = after is not None
    return found


def _used(redis: Redis) -> int:
    return int(redis.info("memory")["used_memory"])


def _live(redis: Redis) -> int:
    """Bytes of running jobs with one item and a progress report."""
    transitions, before = Transitions(redis), _used(redis)
    for _ in range(LIVE):
        job_id = new_id()
        request = ExplainRequest(images=[secrets.token_hex(32)], names=["cat.jpg"], layer="conv3_3", kernels=[12])
        transitions.submit(job_id, request, plan(request, 10), 86400, None, Caller(OWNER))
    for _ in range(LIVE):
        claim = transitions.next("interactive", "host-1234").claim
        if claim:
            step = {"iteration": 3, "budget": 100, "loss": 0.5, "share": 0.03, "items": [{"index": 0, "iteration": 3}]}
            transitions.renew(claim, step)
    return _used(redis) - before


def _line(job_id: str, number: int) -> str:
    layer = "conv1_1" if number % RARE == 0 else "conv3_3"
    return SEPARATOR.join((job_id, Status.SUCCEEDED, "vgg16", layer))


def _archived(redis: Redis, begin: float, numbers: range) -> None:
    with redis.pipeline(transaction=False) as pipe:
        for number in numbers:
            job_id, created = new_id(), begin + number + 0.123456
            pipe.zadd(f"ks:jobs:{OWNER}", {_line(job_id, number): created})
            hour = int((created + 30 * 86400) // 3600)
            pipe.rpush(f"ks:expiring:{hour}", SEPARATOR.join((job_id, repr(created), OWNER)))
        pipe.execute()


def _timed(records: Records, store: BlobStore, after: Callable[[], Place | None]) -> float:
    """The median time of consecutive pages, whose records exist, in ms."""
    place, seconds = after(), []
    for _ in range(10):
        _write(records, store, place)
        at = time.perf_counter()
        page, place = records.page(OWNER, JobFilter(), PAGE, place)
        seconds.append(time.perf_counter() - at)
        if len(page) != PAGE:
            raise RuntimeError(f"a page of {len(page)} jobs")
    return round(1000 * statistics.median(seconds), 1)


def _write(records: Records, store: BlobStore, after: Place | None) -> None:
    most = after.created if after else "+inf"
    for line, created in records.redis.zrevrangebyscore(f"ks:jobs:{OWNER}", most, "-inf", 0, PAGE + 2, withscores=True):
        job_id = line.split(SEPARATOR)[0]
        request = ExplainRequest(images=[IMAGE], layer="conv3_3", kernels=[12]).model_dump_json()
        own = {"owner": OWNER, "status": "succeeded", "request": request, "unresolved": "0", "attempt": "1"}
        times = {"created_at": repr(created), "expires_at": repr(created + 60 * 86400)}
        counts = dict.fromkeys(("planned", "completed"), "1") | {"failed": "0"}
        store.put(job_id, Dump({**own, **times, **counts}).packed(), NAME)


def main() -> int:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--jobs", type=int, default=1_000_000)
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        found = measure(options.jobs, Path(folder))
    print(
        json.dumps(found, indent=1) if options.json else "\n".join(f"{key:26} {value}" for key, value in found.items())
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
