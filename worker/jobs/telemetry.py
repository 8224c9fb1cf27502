"""Prometheus metrics of a worker; docs/metrics.md lists them."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    start_http_server,
)

from shared.addresses import address
from shared.schemas import ItemResult
from shared.version import REVISION, VERSION

SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
EVALUATIONS = (10, 25, 50, 100, 200, 400, 800, 1600, 3200, 10_000)


class Telemetry:
    """The registry of one worker process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        Info("kernelscope_build", "What runs.", registry=self.registry).info({"version": VERSION, "revision": REVISION})
        where = ["model", "layer"]
        self._items = Counter(
            "kernelscope_items", "Items that were committed.", [*where, "status", "reused"], registry=self.registry
        )
        self._seconds = Histogram(
            "kernelscope_solver_seconds",
            "Time that the solver took for an item.",
            where,
            buckets=SECONDS,
            registry=self.registry,
        )
        self._evaluations = Histogram(
            "kernelscope_solver_evaluations",
            "Gradient evaluations of an item.",
            where,
            buckets=EVALUATIONS,
            registry=self.registry,
        )
        self._stops = Counter("kernelscope_solver_stops", "Why the solver ended.", ["stopped"], registry=self.registry)

    def committed(self, model: str, layer: str, result: ItemResult) -> None:
        """Count an item."""
        self._items.labels(model, layer, result.status, str(result.reused).lower()).inc()
        if result.reused or result.seconds is None or result.iterations is None:
            return
        self._seconds.labels(model, layer).observe(result.seconds)
        self._evaluations.labels(model, layer).observe(result.iterations)
        self._stops.labels(result.stopped).inc()

    def watch(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Add a gauge whose value is read at each scrape."""
        Gauge(name, text, registry=self.registry).set_function(read)

    def serve(self, bind: str) -> None:
        """Serve the metrics at an address such as `127.0.0.1:9101`, in a thread."""
        host, port = address(bind)
        start_http_server(port, host, self.registry)
