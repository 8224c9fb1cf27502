"""Hostile bodies, JSON and multipart: the response is always short, fast and not a 500."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice

import httpx
import pytest

from tests.conftest import FULL
from tests.contract.bodies import Body, forms, json_bodies
from tests.contract.conftest import Memory, Plant, alive

pytestmark = pytest.mark.contract

COUNT = 5000 if FULL else 300  # of each kind
SEED = 2026
LONGEST = 5.0  # seconds
MOST_ANSWER = 16_000  # bytes
MOST_MB = 400
PATHS = ("/explain", "/explain", "/activations")


@pytest.mark.parametrize("bodies", [json_bodies, forms])
def test_no_body_breaks_the_api(
    service: Plant, record_property: Callable[[str, object], None], bodies: Callable[[int], Iterator[Body]]
) -> None:
    """300 of each kind (5,000 in full): other values, names, lengths, encodings, boundaries, bytes."""
    memory = Memory(service)
    statuses: Counter[int] = Counter()
    worst, longest = 0.0, 0
    with httpx.Client(base_url=service.url, timeout=4 * LONGEST) as client:
        for number, (data, headers) in enumerate(islice(bodies(SEED), COUNT)):
            begin = time.monotonic()
            raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
            answer = client.post(PATHS[number % len(PATHS)], content=data, headers=raw)
            worst = max(worst, time.monotonic() - begin)
            assert answer.status_code < 500, f"body {number} of seed {SEED}: {answer.text}"
            if answer.status_code >= 400:
                longest = max(longest, len(answer.content))
                assert answer.json()["status"] == answer.status_code
            statuses[answer.status_code] += 1
    record_property("bodies", statuses.total())
    record_property("answers", dict(statuses))
    record_property("worst_seconds", round(worst, 2))
    record_property("longest_refusal_bytes", longest)
    record_property("memory_mb", {"start": round(memory.start), "peak": round(memory.peak), "end": round(memory.now)})
    assert alive(service)
    assert set(statuses) <= {200, 202, 400, 413, 415, 422}
    assert statuses[202]
    assert worst < LONGEST
    assert longest <= MOST_ANSWER
    assert memory.peak < MOST_MB
