"""The load generator of `benchmarks/service.py`, in its own process: `python -m benchmarks.load < plan > requests`.

Requests are sent at a constant rate by many users in turn, whether or not earlier ones have been answered. Each request
is written out, since Locust's own statistics are rounded.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from io import BytesIO
from itertools import count, cycle
from typing import Any

import numpy as np
from PIL import Image

from shared.drawings import scene

SIDE = 224
CHANGED_PIXELS = 64
FIELDS = {"model": "vgg_mini", "layer": "conv2_2", "kernels": "3"}


@dataclass(frozen=True)
class LoadPlan:
    """The requests of a measurement."""

    url: str
    rate: float  # per second
    seconds: float
    users: int
    paths: list[str]  # of GET requests, in turn; empty: POST jobs instead
    warm_up: float = 4.0  # seconds whose requests are not counted

    def command(self) -> str:
        """The plan as JSON, for standard input."""
        return json.dumps(asdict(self))


def pictures(seed: int) -> Iterator[bytes]:
    """224 × 224 JPEGs, all different: a drawing with some changed pixels."""
    rng = np.random.default_rng(seed)
    base = np.asarray(scene(seed, SIDE).image)
    while True:
        pixels = base.copy()
        rows, columns = rng.integers(0, SIDE, (2, CHANGED_PIXELS))
        pixels[rows, columns] = rng.integers(0, 256, (CHANGED_PIXELS, 3))
        file = BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=90)
        yield file.getvalue()


def _form(picture: bytes) -> tuple[bytes, str]:
    """A multipart body and its content type."""
    from urllib3 import encode_multipart_formdata

    return encode_multipart_formdata({**FIELDS, "image": ("image.jpg", picture, "image/jpeg")})


def _sender(plan: LoadPlan) -> Callable[[Any], None]:
    """Returns a function that sends the next request. All bodies are created in advance."""
    if plan.paths:
        paths = cycle(plan.paths)
        return lambda client: client.get(next(paths))
    total = int(plan.rate * (plan.seconds + plan.warm_up + 2)) + plan.users
    bodies = iter([_form(picture) for picture, _ in zip(pictures(time.time_ns()), range(total), strict=False)])

    def post(client: Any) -> None:
        body, content_type = next(bodies)
        client.post("/explain", data=body, headers={"Content-Type": content_type})

    return post


def run(plan: LoadPlan) -> list[tuple[float, float, str]]:
    """(seconds since the start of the measurement, response time in ms, error or "") of each request."""
    from locust import FastHttpUser, constant_throughput, task  # imported here, since it replaces Python's sockets
    from locust.env import Environment

    send, numbers = _sender(plan), count()
    rows: list[tuple[float, float, str]] = []

    class User(FastHttpUser):
        wait_time = constant_throughput(plan.rate / plan.users)

        def on_start(self) -> None:
            """Start the users one after the other, so that their requests are spread evenly."""
            time.sleep(next(numbers) / plan.rate)
            self._cp_last_run = time.perf_counter()  # otherwise Locust would make up for the sleep

        @task
        def ask(self) -> None:
            """One request."""
            send(self.client)

    def record(start_time: float, response_time: float, exception: Exception | None, **_: Any) -> None:
        rows.append((start_time, response_time, "" if exception is None else repr(exception)))

    environment = Environment(user_classes=[User], host=plan.url)
    environment.events.request.add_listener(record)  # type: ignore[no-untyped-call]
    runner = environment.create_local_runner()
    begin = time.time() + plan.warm_up
    runner.start(plan.users, spawn_rate=100)
    time.sleep(plan.warm_up + plan.seconds)
    end = time.time()
    time.sleep(1.0)  # for the last answers
    runner.quit()
    return [(start - begin, taken, error) for start, taken, error in rows if begin <= start < end]


def main() -> None:
    """Read a plan from standard input, and write the requests to standard output, as JSON."""
    json.dump(run(LoadPlan(**json.load(sys.stdin))), sys.stdout)


if __name__ == "__main__":
    main()
