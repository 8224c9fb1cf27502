"""The page with a job of 2,048 items, in the queue, and with what has failed; a dummy engine explains."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from kernelscope.client import Client
from shared.drawings import scene
from tests.chaos.conftest import Plant, picture
from tests.conftest import png
from tests.web.conftest import Arriving

pytestmark = [pytest.mark.web, pytest.mark.timeout(300)]

MOST_TILES = 150  # in the document, of 1,024
PAGES = 21  # of 100 results
LONGEST_MS = 500  # that the page may be busy with one thing, on a machine that the service keeps busy
WATCH = """
window.bar = [];
window.longest = 0;
setInterval(() => {
  const bar = document.querySelector('#progress');
  if (bar && !bar.hidden) window.bar.push(bar.value);
}, 20);
new PerformanceObserver((list) => {
  for (const { duration } of list.getEntries()) window.longest = Math.max(window.longest, duration);
}).observe({ type: 'longtask', buffered: true });
"""


def test_a_job_of_2048_items_is_followed_and_opened_again(plant: Plant, arriving: Arriving) -> None:
    """The bar never goes back, few tiles are in the document; afterwards the results are read page by page."""
    plant.start_worker("worker", KERNELSCOPE_ENGINE="dummy")
    images = [png(scene(seed, 96).image) for seed in range(16)]
    with Client(plant.url) as client:
        asked = {"layer": "conv3_1", "model": "vgg_mini", "beta": [1, 2], "iterations": 1}
        job = client.explain(images, kernels=range(64), **asked)  # type: ignore[arg-type]
    visitor = arriving(plant.url)
    visitor.page.add_init_script(WATCH)
    page = visitor.open(f"/#job={job.id}")
    expect(page.locator("#status")).to_contain_text(re.compile("Running|Waiting"))
    assert page.locator("#overview .tile").count() < MOST_TILES
    page.evaluate("document.querySelector('#overview [data-at=\"7\"]').marked = true")
    page.wait_for_function("() => document.querySelector('#progress').value > 0.1", timeout=120_000)
    expect(page.locator("#status")).to_contain_text(re.compile(r"of 2048 done.*, about \d+ (s|min) left"))
    ended = "Done: 1856 explained, 192 failed."  # of every ten kernels one is silent
    assert visitor.done(150) == ended
    bar = page.evaluate("window.bar")
    assert bar == sorted(bar)
    assert len(set(bar)) > 10
    assert page.evaluate("document.querySelector('#overview [data-at=\"7\"]').marked")
    assert page.locator("#overview .tile:disabled").count() == 0
    followed = page.evaluate("window.longest")

    asked_for: list[str] = []
    later = arriving(plant.url)
    later.page.on("request", lambda request: asked_for.append(request.url.removeprefix(plant.url)))
    later.page.add_init_script(WATCH)
    again = later.open(f"/#job={job.id}")
    assert later.done(20) == ended
    again.locator("#overview").evaluate("(box) => box.scrollTo(0, box.scrollHeight)")
    again.locator("#overview [data-at='1023']:enabled").wait_for(timeout=30_000)
    again.locator("#overview").evaluate("(box) => box.scrollTo(0, 0)")
    again.locator("#overview [data-at='0']").wait_for()
    assert sum(path.startswith(f"/jobs/{job.id}/results") for path in asked_for) == PAGES
    assert not [path for path in asked_for if path.endswith("/events?previews=true")]
    again.locator("#overview [data-at='0']").focus()
    again.keyboard.press("End")
    expect(again.locator("#overview [data-at='1023']")).to_be_focused()
    assert again.locator("#overview .tile").count() < MOST_TILES
    again.keyboard.press("Enter")
    expect(again.locator("#detail h3").first).to_contain_text("Kernel 63 of conv3_1 (vgg_mini) in image")
    opened = again.evaluate("window.longest")
    print(f"longest task: {followed} ms while it was followed, {opened} ms when it was opened")
    assert max(followed, opened) < LONGEST_MS
    later.shoot("many-light")

    again.get_by_role("button", name="Your jobs").click()
    expect(again.locator("#jobs > p")).to_contain_text("kernels 0, 1, 2, 3, 4, 5, 6, 7, … (64) of conv3_1")


def test_the_place_in_the_queue_changes_while_a_job_waits(plant: Plant, arriving: Arriving) -> None:
    """The one before it is cancelled, for which it gets no event."""
    plant.start_worker("worker", KERNELSCOPE_ENGINE="dummy", KERNELSCOPE_SLICES="1")
    busy = plant.submit(iterations="100000")
    with Client(plant.url) as client:
        for _ in client.job(busy).events():
            if client.job(busy).status == "running":
                break
        before, job_id = plant.submit(), plant.submit()
        visitor = arriving(plant.url)
        page = visitor.open(f"/#job={job_id}")
        expect(page.locator("#status")).to_contain_text("Waiting, place 2 in the queue")
        client.job(before).cancel()
        expect(page.locator("#status")).to_contain_text("Waiting, place 1 in the queue", timeout=10_000)
        client.job(busy).cancel()
    assert visitor.done() == "Done: 1 explained."


def test_what_failed_can_be_run_again(plant: Plant, arriving: Arriving) -> None:
    """By a button of a job that has ended; other results are kept."""
    plant.start_worker("worker", KERNELSCOPE_ENGINE="dummy")
    with Client(plant.url) as client:
        job = client.explain([picture()], layer="conv2_1", model="vgg_mini", kernels=[1, 9], iterations=1000).wait()
    visitor = arriving(plant.url)
    page = visitor.open(f"/#job={job.id}")
    assert visitor.done() == "Done: 1 explained, 1 failed."
    button = page.get_by_role("button", name="Run the failed ones again")
    visitor.accessible()
    with page.expect_response(f"**/jobs/{job.id}/retry") as answer:
        button.click()
    assert answer.value.ok
    assert visitor.done() == "Done: 1 explained, 1 failed."
    expect(page.locator("#overview .tile").nth(0)).to_contain_text("SSIM")
    expect(page.locator("#overview .tile").nth(1)).to_contain_text("Silent kernel")
    with Client(plant.url) as client:
        events = list(client.job(job.id).events())
    assert [event.status for event in events if hasattr(event, "status")].count("queued") == 2
