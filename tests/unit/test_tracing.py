"""A network is traced while other threads run theirs, as in a worker that learns of a new one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import torch
from torch import Tensor, nn

from worker.networks.tracing import traced


def small() -> nn.Sequential:
    """A network of thirty modules."""
    return nn.Sequential(*(layer for _ in range(15) for layer in (nn.Conv2d(3, 3, 1), nn.ReLU())))


def until(over: Event, run: Callable[[], object]) -> int:
    """Counts its runs meanwhile."""
    count = 0
    while not over.is_set():
        run()
        count += 1
    return count


def test_other_threads_compute_what_they_always_do() -> None:
    """Other threads neither fail nor are traced; two networks can be traced at once; nothing remains replaced."""
    before = nn.Module.__call__, nn.Module.__getattr__
    network, image, over = small(), torch.ones(1, 3, 4, 4), Event()
    expected = network(image)

    def same() -> None:
        found: Tensor = network(image)
        assert torch.equal(found, expected)

    with ThreadPoolExecutor(3) as threads:
        running = threads.submit(until, over, same)
        tracing = [threads.submit(lambda: [traced(small()) for _ in range(30)]) for _ in range(2)]
        try:
            graphs = [graph for one in tracing for graph in one.result()]
        finally:
            over.set()
        assert running.result() > 0
    assert {len(graph.graph.nodes) for graph in graphs} == {32}
    assert (nn.Module.__call__, nn.Module.__getattr__) == before
