"""Prometheus metrics of the API and of the queue; docs/metrics.md lists them.

This process counts its own requests. The metrics of the whole service (jobs by state, ages) are read from Redis at each
scrape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    generate_latest,
    start_http_server,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from redis import Redis

from shared import housekeeping, workers
from shared.addresses import address
from shared.clock import now
from shared.connection import redis_errors
from shared.errors import StoreUnavailable
from shared.queue import QUEUES
from shared.redis_state import Memory
from shared.schemas import Status
from shared.version import REVISION, VERSION
from shared.webhooks import OUTCOMES, TRIED, Webhooks

SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60)


class ApiMetrics:
    """The metrics registry of one API process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        Info("kernelscope_build", "Version and revision of this process.", registry=self.registry).info(
            {"version": VERSION, "revision": REVISION}
        )
        labels = ["method", "route", "status"]
        self._requests = Counter("kernelscope_http_requests", "HTTP requests.", labels, registry=self.registry)
        self._seconds = Histogram(
            "kernelscope_http_request_seconds",
            "Time until the last byte of a response; requests that asked to wait are not included.",
            ["method", "route"],
            buckets=SECONDS,
            registry=self.registry,
        )

    def count_request(self, method: str, route: str, status: int, seconds: float | None) -> None:
        """Count a request; `seconds` is None if the client asked to wait."""
        known = method if method in ("GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH") else "other"
        self._requests.labels(known, route, str(status)).inc()
        if seconds is not None:
            self._seconds.labels(known, route).observe(seconds)

    def register(self, redis: Redis, *others: Collector) -> None:
        """Add the metrics of the queue, and other collectors."""
        for collector in (_QueueCollector(redis), *others):
            self.registry.register(collector)

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Add a gauge that is read at each scrape."""
        Gauge(name, text, registry=self.registry).set_function(read)

    def text(self) -> bytes:
        """The metrics in Prometheus's text format."""
        return generate_latest(self.registry)

    def serve(self, bind: str) -> None:
        """Serve the metrics on an address of their own, `127.0.0.1:9100`, in a thread."""
        host, port = address(bind)
        start_http_server(port, host, self.registry)


class _QueueCollector(Collector):
    """Reads Redis at each scrape; while Redis is unavailable, `kernelscope_redis_up` is its only metric."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.webhooks = Webhooks(redis)

    def describe(self) -> list[Metric]:
        """No metrics: registering the collector must not read Redis."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The metrics of one scrape."""
        try:
            found = list(self._collect())
        except StoreUnavailable:
            found = []
        yield GaugeMetricFamily("kernelscope_redis_up", "1: Redis responds.", value=int(bool(found)))
        yield from found

    def _collect(self) -> Iterator[Metric]:
        with redis_errors():
            with self.redis.pipeline(transaction=False) as pipe:
                for queue in QUEUES:
                    pipe.zcard(f"ks:queued:{queue}")
                    pipe.zrange(f"ks:queued:{queue}", 0, 0, withscores=True)
                pipe.zcard("ks:leases")
                pipe.hgetall("ks:ended")
                pipe.smembers("ks:owners")
                pipe.info("memory")
                pipe.info("stats")
                *waiting, running, ended, owners, used, stats = pipe.execute()
            living = workers.living(self.redis)
            stored = sum(self.redis.zcard(f"ks:jobs:{owner}") for owner in owners)
        at = now(self.redis)
        queued = GaugeMetricFamily("kernelscope_queued_slices", "Parts of jobs in the queue.", labels=["queue"])
        age = GaugeMetricFamily(
            "kernelscope_oldest_queued_seconds", "How long the oldest of them has waited.", labels=["queue"]
        )
        for queue, count, oldest in zip(QUEUES, waiting[::2], waiting[1::2], strict=True):
            queued.add_metric([queue], count)
            age.add_metric([queue], max(0.0, at - oldest[0][1]) if oldest else 0)
        yield from (queued, age)
        yield GaugeMetricFamily("kernelscope_running_slices", "Parts of jobs that are running.", value=running)
        jobs = CounterMetricFamily("kernelscope_jobs_ended", "Jobs that ended, by final status.", labels=["status"])
        for status in (status for status in Status if status.terminal):
            jobs.add_metric([status], float(ended.get(status, 0)))
        yield jobs
        yield GaugeMetricFamily("kernelscope_kept_jobs", "Jobs whose record is stored.", value=stored)
        yield from self._memory(Memory.of({**used, **stats}))
        yield from self._housekeeping()
        yield from self._webhooks()
        ready = GaugeMetricFamily("kernelscope_workers", "Connected workers.", labels=["ready"])
        for state in (True, False):
            ready.add_metric([str(state).lower()], sum(worker.ready is state for worker in living))
        yield ready

    @staticmethod
    def _memory(memory: Memory) -> Iterator[Metric]:
        yield GaugeMetricFamily("kernelscope_redis_memory_bytes", "Memory that Redis uses.", value=memory.used)
        limit = "Memory that Redis may use: its maxmemory, else the machine's."
        yield GaugeMetricFamily("kernelscope_redis_memory_limit_bytes", limit, value=memory.limit)
        evicts = "1: Redis evicts keys when it is full."
        yield GaugeMetricFamily("kernelscope_redis_evicts", evicts, value=int(memory.evicts))
        evicted = "Keys that Redis has evicted because it was full, since it started."
        yield CounterMetricFamily("kernelscope_redis_evicted_keys", evicted, value=memory.evicted)

    def _housekeeping(self) -> Iterator[Metric]:
        loops = housekeeping.states(self.redis)
        up = not list(housekeeping.warnings(loops))
        yield GaugeMetricFamily("kernelscope_housekeeping_up", "1: no housekeeping loop is late.", value=int(up))
        age = GaugeMetricFamily(
            "kernelscope_housekeeping_success_seconds", "Time since a round last succeeded.", labels=["loop"]
        )
        failures = CounterMetricFamily("kernelscope_housekeeping_failures", "Rounds that failed.", labels=["loop"])
        for loop in loops:
            age.add_metric([loop.name], loop.age)
            failures.add_metric([loop.name], loop.failures)
        yield from (age, failures)

    def _webhooks(self) -> Iterator[Metric]:
        queues = self.webhooks.lines()
        with redis_errors():
            tried = self.redis.hgetall(TRIED)
        pending = sum(count for count, _ in queues)
        yield GaugeMetricFamily("kernelscope_pending_webhooks", "Webhooks to be delivered.", value=pending)
        late = max(0.0, *(now(self.redis) - first for _, first in queues)) if queues else 0
        yield GaugeMetricFamily("kernelscope_oldest_due_webhook_seconds", "How late the oldest of them is.", value=late)
        attempts = CounterMetricFamily(
            "kernelscope_webhook_attempts", "Attempts to deliver a webhook.", labels=["outcome"]
        )
        for outcome in OUTCOMES:
            attempts.add_metric([outcome], float(tried.get(outcome, 0)))
        yield attempts
