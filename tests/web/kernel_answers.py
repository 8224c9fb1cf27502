"""What an API answers about kernels, made up for a browser that is to show it."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import cache
from io import BytesIO
from itertools import pairwise

from playwright.sync_api import Page, Request, Route
from pydantic import BaseModel

from shared.catalogue import Layer
from shared.drawings import scene
from shared.schemas import (
    Bin,
    Explanation,
    KernelPage,
    KernelSummary,
    LayerKernels,
    Score,
    Similar,
    Survey,
    TopImage,
)
from shared.surveys.tally import EDGES, TOP
from tests import surveyed
from tests.web.conftest import Visitor

JOB, OTHER_JOB, SURVEY, OTHER = "e" * 32, "d" * 32, "5" * 32, "6" * 32
AT = "/kernels/vgg16/conv5_3"
LAYER = Layer(name="conv5_3", node="features.29", kernels=512, height=14, width=14, receptive_field=196, stride=16)
STREAMS = """
window.streams = [];
const fetched = window.fetch;
window.fetch = async (path, options) => {
  if (!/jobs\\/[^/]+\\/events/.test(path)) return fetched(path, options);
  let stream;
  const body = new ReadableStream({ start(controller) { stream = controller; } });
  window.streams.push(stream);
  options.signal.addEventListener('abort', () => { stream.error(new Error('aborted')); close(stream); });
  return new Response(body);
};
const close = (stream) => { window.streams = window.streams.filter((one) => one !== stream); };
window.send = (kind, data) => {
  const text = new TextEncoder().encode(`event: ${kind}\\ndata: ${JSON.stringify(data)}\\n\\n`);
  for (const stream of window.streams) {
    stream.enqueue(text);
    if (!['queued', 'running'].includes(data.status ?? 'running')) {
      close(stream);
      stream.close();
    }
  }
};
"""
FITS = "document.scrollingElement.scrollWidth <= innerWidth"


@cache
def webp(seed: int) -> bytes:
    """A picture as the API has them."""
    file = BytesIO()
    scene(seed, LAYER.receptive_field).image.save(file, "WEBP", quality=90)
    return file.getvalue()


def survey(survey_id: str = SURVEY, **changes: object) -> Survey:
    """One of 5,000 images, all of them done."""
    own = {"dataset_name": "birds and cats", "model": "vgg16", "layers": ["conv5_3"], "images": 5000, "surveyed": 5000}
    made = {"created_at": datetime(2026, 5, 3, tzinfo=UTC), "public": True}
    return surveyed.survey(survey_id, **{**own, **made, **changes})


def crop(kernel: int, rank: int = 0) -> str:
    """Its URL."""
    return f"/surveys/{SURVEY}/layers/conv5_3/crops/{16 * kernel + rank}/4/{rank % 14}"


def picture(kernel: int, rank: int = 0) -> str:
    """Its URL."""
    return f"/surveys/{SURVEY}/layers/conv5_3/pictures/{kernel:032x}/{rank}/4/{rank % 14}"


def top(kernel: int, rank: int, *, made: bool, error: str | None = None) -> TopImage:
    """A top image with its X̂, or without."""
    one = TopImage(
        rank=rank,
        image="b" * 64,
        name=f"n0153{rank}/a photograph of a bird {rank}.jpg",
        activation=40 / (rank + 1),
        row=4,
        column=rank % 14,
        box=(0, 0, 196, 170),
        crop=crop(kernel, rank),
        error=error,
    )
    if not made:
        return one
    made_of = {
        "picture": picture(kernel, rank),
        "whole": f"/jobs/{JOB}/artifacts/{rank}/panel.png",
    }
    return one.model_copy(update={**made_of, "ssim": 0.97})


def explanation(made: int, status: str = "succeeded", **changes: object) -> Explanation:
    """Of nine X̂."""
    score = Score(value=0.91, error=0.02) if made > 1 else None
    own = {"made": made, "of": 9, "status": status, "consistency": score, "colour": score}
    return surveyed.explanation(JOB, **{**own, **changes})


def histogram(silent: int) -> list[Bin]:
    """Most images in the middle of it."""
    middle = len(EDGES) // 2
    edges = [float(edge) for edge in EDGES]
    bins = [Bin(start=0, end=0, images=silent), Bin(start=0, end=edges[0], images=0)]
    bins += [
        Bin(start=low, end=high, images=max(0, 600 - 40 * (at - middle) ** 2))
        for at, (low, high) in enumerate(pairwise(edges))
    ]
    return [*bins, Bin(start=edges[-1], end=None, images=0)]


def kernel_page(kernel: int = 12, made: int = 0, explained: Explanation | None = None, **changes: object) -> KernelPage:
    """Of an active kernel, with so many X̂."""
    own = {
        "mean": 0.0312,
        "max": 40.0,
        "active": 0.0004,
        "active_images": 0.62,
        "histogram": histogram(1900),
        "top": [top(kernel, rank, made=rank < made) for rank in range(TOP)],
        "similar": [Similar(kernel=40 + at, correlation=0.8 - at / 10, crop=crop(40 + at)) for at in range(4)],
        "explanation": explained,
    }
    return surveyed.kernel_page(survey(), LAYER, kernel, **own).model_copy(update=changes)


def silent_page() -> KernelPage:
    """Of a kernel that no image activates."""
    still = {"mean": 0.0, "max": 0.0, "active": 0.0, "active_images": 0.0, "top": [], "similar": []}
    return kernel_page(histogram=histogram(5000)[:1]).model_copy(update=still)


def layer_page(kernels: int) -> LayerKernels:
    """Of so many; every tenth is silent."""

    def summary(kernel: int) -> KernelSummary:
        silent = kernel % 10 == 9
        activity = 0.0 if silent else (kernel * 37 % 101 + 1) / 100
        shares = {"active": activity / 9, "active_images": min(1.0, activity)}
        seen = None if silent else crop(kernel)
        score = round(activity, 2) if kernel % 3 == 0 and not silent else None
        made = None if score is None else picture(kernel)
        return KernelSummary.model_validate(
            {"kernel": kernel, "mean": activity, "max": 9 * activity, **shares, "crop": seen, "picture": made}
            | {"consistency": score, "colour": score}
        )

    layer = LAYER.model_copy(update={"kernels": kernels})
    return LayerKernels(survey=survey(), surveys=[survey()], layer=layer, kernels=[*map(summary, range(kernels))])


class Answers:
    """What the API says of kernels, in one browser; the pages and their files are the real API's."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.response: BaseModel | dict[str, object] = {}
        self.asked: list[tuple[str, object]] = []  # what was posted, in order
        self.job: dict[str, object] = {"status": "succeeded", "error": None, "failed_items": 0, "progress": {}}
        page.add_init_script(STREAMS)
        page.route("**/models", lambda route: route.fulfill(json=[{"name": "vgg16", "title": "VGG-16"}]))
        page.route("**/kernels/**", self._kernels)
        page.route("**/surveys/**", self._surveys)
        page.route("**/jobs/**", self._jobs)

    def _kernels(self, route: Route, request: Request) -> None:
        if "text/html" in request.headers["accept"]:
            route.fallback()
        else:
            self._json(route, self.response)

    def _json(self, route: Route, content: BaseModel | dict[str, object]) -> None:
        if isinstance(content, BaseModel):
            route.fulfill(body=content.model_dump_json(), content_type="application/json")
        else:
            status = int(str(content.get("status", 404)))
            route.fulfill(status=status, json=content, content_type="application/problem+json")

    def _surveys(self, route: Route, request: Request) -> None:
        if request.method == "GET":
            seed = sum(map(int, re.findall(r"\d+", request.url.partition("conv5_3")[2]))) % 16
            route.fulfill(body=webp(seed), content_type="image/webp")
            return
        self.asked.append((request.url.partition("/surveys/")[2], request.post_data_json))
        route.fulfill(status=202, json=[{"id": JOB}])

    def _jobs(self, route: Route, request: Request) -> None:
        if request.method == "POST":
            self.asked.append((request.url.partition("/jobs/")[2], None))
            route.fulfill(status=202, json={"id": JOB})
        elif "/artifacts/" in request.url:
            route.fulfill(body=webp(3), content_type="image/webp")
        else:
            route.fulfill(json=self.job)

    def send(self, kind: str, **data: object) -> None:
        """An event of the jobs that the page follows, once it does."""
        self.page.wait_for_function("() => window.streams.length > 0")
        self.page.evaluate("([kind, data]) => window.send(kind, data)", [kind, data])

    def ends(self, status: str = "succeeded", **job: object) -> None:
        """The jobs that the page follows end."""
        self.job = {**self.job, **job, "status": status}
        self.send("status", status=status)


def at(visitor: Visitor, response: BaseModel | dict[str, object], path: str = f"{AT}/12") -> Answers:
    """The page at this path, for which the API has this response."""
    answers = Answers(visitor.page)
    answers.response = response
    visitor.page.goto(visitor.url + path)
    return answers


def decoded(page: Page) -> None:
    """Waits for all pictures, also of what is not in the window yet."""
    for image in page.locator("main img").all():
        image.scroll_into_view_if_needed()
        image.evaluate("image => image.decode()")
    page.evaluate("scrollTo(0, 0)")
