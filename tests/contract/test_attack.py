"""Load of all kinds at once: the largest bodies, images and figures, thousands of errors, polling of a big job."""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from PIL import Image

from shared.jobs import connect
from shared.keys import ApiKeys
from tests.chaos.conftest import picture
from tests.conftest import FULL, png
from tests.contract.conftest import Memory, Plant, alive, until

pytestmark = [pytest.mark.contract, pytest.mark.timeout(900)]

SECONDS = 60 if FULL else 20
CALLERS = 64  # of each kind of large request
POLLERS = 100
MOST_MB = 600
SWEEP = 20  # values of α, and of β
ITEMS = 2048

Record = Callable[[str, object], None]
MINI = {"model": "vgg_mini", "layer": "conv2_1", "effort": "quick"}
LARGE = png(Image.new("L", (7071, 7071)))  # 50 megapixels in some kilobytes
JUNK = {"image": ("x.png", b"\x89PNG\r\n\x1a\n" + bytes(31_900_000))}
BOMB = json.dumps({**MINI, "kernels": [1], "images": [], "alpha": [-1] * 700_000}).encode()
UNKNOWN = json.dumps({**MINI, "images": []} | {f"field{number}": 1 for number in range(100_000)}).encode()
JSON = {"Content-Type": "application/json"}


@dataclass
class Crowd:
    """Clients that send continuously, and the responses that they received."""

    client: httpx.AsyncClient
    until: float = 0.0
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    largest: Counter[str] = field(default_factory=Counter)

    async def one(self, name: str, method: str, url: str, **options: Any) -> None:
        """Send one request repeatedly."""
        while time.monotonic() < self.until:
            with suppress(httpx.TransportError):  # a connection closed during a body is allowed
                answer = await self.client.request(method, url, **options)
                self.statuses[name, answer.status_code] += 1
                self.largest[name] = max(self.largest[name], len(answer.content))
                if answer.status_code in (429, 503):
                    await asyncio.sleep(min(1.0, float(answer.headers.get("Retry-After", 1))))


async def _seconds(client: httpx.AsyncClient, until: float) -> dict[str, list[float]]:
    """Response times of others meanwhile: of the liveness check, and of submitting a small job."""
    took: dict[str, list[float]] = {"healthz": [], "submit": []}
    while time.monotonic() < until:
        for name, seconds in took.items():
            begin = time.monotonic()
            if name == "healthz":
                answer = await client.get("/healthz")
            else:
                answer = await client.post("/explain", files={"image": ("x", picture())}, data={**MINI, "kernels": "1"})
            assert answer.status_code in (200, 202, 503), answer.text
            if answer.status_code != 503:
                seconds.append(time.monotonic() - begin)
        await asyncio.sleep(0.1)
    return took


async def _made(client: httpx.AsyncClient, key: dict[str, str], **fields: Any) -> str:
    """The id of an ended job."""
    image = {"data": b64encode(picture()).decode()}
    answer = await client.post(
        "/explain", json={**MINI, "images": [image], **fields}, headers=key | {"Prefer": "wait=60"}
    )
    assert answer.status_code in (200, 202), answer.text
    job: dict[str, Any] = answer.json()
    while job["status"] in ("queued", "running"):
        job = (await client.get(f"/jobs/{job['id']}", headers=key | {"Prefer": "wait=60"})).json()
    assert job["status"] == "succeeded", job["error"]
    return str(job["id"])


def _attack(crowd: Crowd, keys: list[dict[str, str]], sweep: str, big: str) -> list[Coroutine[Any, Any, None]]:
    panels = itertools.cycle(range(0, SWEEP * SWEEP, 7))
    attack = [crowd.one("pollers", "GET", f"/jobs/{big}", headers=keys[0]) for _ in range(POLLERS)]
    for number in range(CALLERS):
        key = keys[number % len(keys)]
        large = {"image": (f"{number}.png", LARGE)}
        panel = f"/jobs/{sweep}/artifacts/{next(panels)}/{('panel', 'sweep')[number % 2]}.png"
        attack += [
            crowd.one("32 MB", "POST", "/explain", files=JUNK, data=MINI | {"kernels": "1"}, headers=key),
            crowd.one("50 MP", "POST", "/explain", files=large, data=MINI | {"kernels": "1"}, headers=key),
            crowd.one("panels", "GET", panel, headers=keys[0]),
            crowd.one("errors", "POST", "/explain", content=(BOMB, UNKNOWN)[number % 2], headers=JSON | key),
        ]
    return attack


def test_the_api_under_attack(service: Plant, record_property: Record) -> None:
    """Bounded memory, no 500, no huge response, and others are still served."""
    service.start_worker("worker")
    with connect(service.redis_url) as redis:
        keys = [ApiKeys(redis).add(name, rate="100000/minute", max_open=10_000) for name in ("ada", *"bcdefghi")]
    until(lambda: httpx.get(f"{service.url}/jobs").status_code == 401, 5)
    mine, *theirs = [{"Authorization": f"Bearer {key}"} for key in keys]

    async def play() -> tuple[Crowd, dict[str, list[float]], dict[str, list[float]], Memory]:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        options = {"base_url": service.url, "timeout": 120, "limits": limits, "trust_env": False}
        async with httpx.AsyncClient(headers=mine, **options) as client, httpx.AsyncClient(**options) as foe:  # type: ignore[arg-type]
            values = [0.5 + number / 8 for number in range(SWEEP)]
            sweep = await _made(foe, theirs[0], kernels=[1], alpha=values, beta=values)
            big = await _made(foe, theirs[0], kernels=list(range(32)), alpha=[n / 8 for n in range(8)], beta=values[:8])
            memory = Memory(service)
            quiet = await _seconds(client, time.monotonic() + SECONDS / 4)
            crowd = Crowd(foe, time.monotonic() + SECONDS)
            attack = [asyncio.create_task(one) for one in _attack(crowd, theirs, sweep, big)]
            loud = await _seconds(client, crowd.until)
            await asyncio.gather(*attack)
            return crowd, quiet, loud, memory

    crowd, quiet, loud, memory = asyncio.run(play())
    reported: dict[str, dict[int, int]] = {}
    for (name, status), count in sorted(crowd.statuses.items()):
        reported.setdefault(name, {})[status] = count
    record_property("answers", reported)
    record_property("largest_answer", dict(crowd.largest))
    record_property("memory_mb", {"start": round(memory.start), "peak": round(memory.peak), "end": round(memory.now)})
    for name, seconds in loud.items():
        before, during = statistics.median(quiet[name]), statistics.median(seconds)
        ratio = round(during / before, 1)
        record_property(name, {"quiet_ms": round(1e3 * before, 1), "loud_ms": round(1e3 * during, 1), "ratio": ratio})
    assert not [status for _, status in crowd.statuses if status == 500 or status in (501, 502, 504)]
    assert {name for name, _ in crowd.statuses} == {"pollers", "32 MB", "50 MP", "panels", "errors"}
    assert crowd.largest["errors"] < 20_000
    assert alive(service)
    assert memory.peak < MOST_MB
