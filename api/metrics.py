"""Prometheus metrics of the API and of the queue; docs/metrics.md lists them.

What this process does is counted here. What everybody does (jobs by state, ages) is read from the record when asked.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from redis import Redis

from shared import workers
from shared.errors import StoreUnavailable
from shared.jobs.record import redis_errors
from shared.queue import QUEUES
from shared.schemas import Status
from shared.settings import address

SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60)


class Metrics:
    """The registry of one API process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ["method", "route", "status"]
        self._requests = Counter(
            "kernelscope_http_requests", "Requests that were answered.", labels, registry=self.registry
        )
        self._seconds = Histogram(
            "kernelscope_http_request_seconds",
            "Time until the last byte of an answer.",
            ["method", "route"],
            buckets=SECONDS,
            registry=self.registry,
        )

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        known = method if method in ("GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH") else "other"
        self._requests.labels(known, route, str(status)).inc()
        self._seconds.labels(known, route).observe(seconds)

    def watch(self, redis: Redis) -> None:
        """From now on, tell of the queue as well."""
        self.registry.register(_Queue(redis))

    def text(self) -> bytes:
        """In Prometheus's format."""
        return generate_latest(self.registry)

    def serve(self, bind: str) -> None:
        """On an address of their own, `127.0.0.1:9100`, in a thread."""
        host, port = address(bind)
        start_http_server(port, host, self.registry)


class _Queue(Collector):
    """Reads the record at each scrape; where Redis is away it says so and nothing else."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis

    def describe(self) -> list[Metric]:
        """Nothing is read when the collector is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        """One round of metrics."""
        try:
            found = list(self._collect())
        except StoreUnavailable:
            found = []
        yield GaugeMetricFamily("kernelscope_redis_up", "1: Redis answers.", value=int(bool(found)))
        yield from found

    def _collect(self) -> Iterator[Metric]:
        with redis_errors():
            with self.redis.pipeline(transaction=False) as pipe:
                for queue in QUEUES:
                    pipe.zcard(f"ks:queued:{queue}")
                    pipe.zrange(f"ks:queued:{queue}", 0, 0, withscores=True)
                pipe.zcard("ks:leases")
                pipe.hgetall("ks:ended")
                pipe.zcard("ks:webhooks")
                pipe.zcard("ks:expiry")
                *waiting, running, ended, webhooks, kept = pipe.execute()
            living = workers.living(self.redis)
        queued = GaugeMetricFamily("kernelscope_queued_slices", "Parts of jobs that wait.", labels=["queue"])
        age = GaugeMetricFamily(
            "kernelscope_oldest_queued_seconds", "How long the oldest of them waits.", labels=["queue"]
        )
        for queue, count, oldest in zip(QUEUES, waiting[::2], waiting[1::2], strict=True):
            queued.add_metric([queue], count)
            age.add_metric([queue], max(0.0, time.time() - oldest[0][1]) if oldest else 0)
        yield from (queued, age)
        yield GaugeMetricFamily("kernelscope_running_slices", "Parts of jobs that run.", value=running)
        jobs = CounterMetricFamily("kernelscope_jobs_ended", "Jobs that ended, by how.", labels=["status"])
        for status in (status for status in Status if status.terminal):
            jobs.add_metric([status], float(ended.get(status, 0)))
        yield jobs
        yield GaugeMetricFamily("kernelscope_kept_jobs", "Jobs whose record is kept.", value=kept)
        yield GaugeMetricFamily("kernelscope_pending_webhooks", "Webhooks to be delivered.", value=webhooks)
        ready = GaugeMetricFamily("kernelscope_workers", "Workers that live.", labels=["ready"])
        for state in (True, False):
            ready.add_metric([str(state).lower()], sum(worker.ready is state for worker in living))
        yield ready
