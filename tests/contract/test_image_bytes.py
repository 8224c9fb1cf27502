"""Hostile image bytes: the API always responds soon and stays within its memory."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice

import httpx
import pytest

from tests.conftest import FULL
from tests.contract.conftest import Memory, Plant, alive
from tests.contract.pictures import bombs, seeds, variations

pytestmark = pytest.mark.contract

COUNT = 5000 if FULL else 1000
SEED = 2021
LONGEST = 20.0  # seconds
MOST_MB = 1500
KEPT_MB = 150  # at the end
AT_ONCE = 6
FIELDS = {"model": "vgg_mini", "layer": "conv2_2", "kernels": "3"}

Record = Callable[[str, object], None]


def _sent(client: httpx.Client, data: bytes) -> tuple[int, float]:
    """The status of the response, and its time in seconds."""
    begin = time.monotonic()
    answer = client.post("/explain", files={"image": data}, data=FIELDS)
    return answer.status_code, time.monotonic() - begin


def test_every_kind_of_image_is_accepted(service: Plant) -> None:
    """The fuzzer's seeds are valid."""
    with httpx.Client(base_url=service.url, timeout=LONGEST) as client:
        assert {_sent(client, data)[0] for data in seeds()} == {202}


def test_no_image_breaks_the_api(service: Plant, record_property: Record) -> None:
    """1,000 files (5,000 in full): bits, lengths, sides, chunks, ends, and decompression bombs."""
    memory = Memory(service)
    statuses: Counter[int] = Counter()
    worst = 0.0
    with httpx.Client(base_url=service.url, timeout=LONGEST) as client:
        for number, data in enumerate(islice(chain(bombs(), variations(SEED)), COUNT)):
            status, seconds = _sent(client, data)
            assert status < 500, f"file {number} of seed {SEED}"
            statuses[status] += 1
            worst = max(worst, seconds)
    record_property("files", statuses.total())
    record_property("answers", dict(statuses))
    record_property("worst_seconds", round(worst, 2))
    record_property("memory_mb", {"start": round(memory.start), "peak": round(memory.peak), "end": round(memory.now)})
    assert alive(service)
    assert set(statuses) <= {202, 413, 415, 422}
    assert statuses[202]
    assert memory.peak < MOST_MB


def test_the_largest_images_at_once_fit_into_memory(service: Plant, record_property: Record) -> None:
    """Six clients send the largest accepted images at the same time, and others are still served."""
    memory = Memory(service)
    files = bombs()[:8]
    others = []
    with httpx.Client(base_url=service.url, timeout=60) as client, ThreadPoolExecutor(AT_ONCE) as callers:
        answers = [callers.submit(_sent, client, data) for data in files * 2]
        while not all(answer.done() for answer in answers):
            begin = time.monotonic()
            assert client.get("/healthz").status_code == 200
            others.append(time.monotonic() - begin)
            time.sleep(0.02)
    record_property("files", len(answers))
    record_property("worst_seconds", round(max(answer.result()[1] for answer in answers), 2))
    record_property("worst_other_request_ms", round(1e3 * max(others), 1))
    record_property("memory_mb", {"start": round(memory.start), "peak": round(memory.peak), "end": round(memory.now)})
    assert all(answer.result()[0] == 202 for answer in answers)
    assert alive(service)
    assert memory.peak < MOST_MB
    assert memory.now < memory.start + KEPT_MB
