"""The page of a layer, and both pages on a phone, with answers made up for each case."""

from __future__ import annotations

import gzip
import math

import pytest
from playwright.sync_api import Page, Response, expect

from tests.chaos.conftest import Plant
from tests.web.conftest import Arriving, Visitor
from tests.web.kernel_answers import (
    AT,
    FITS,
    LAYER,
    OTHER,
    SURVEY,
    at,
    decoded,
    explanation,
    kernel_page,
    layer_page,
    survey,
)

pytestmark = [pytest.mark.web, pytest.mark.timeout(300)]

LONGEST_MS = 50  # that the page may be busy with one thing while it is scrolled
MOST_BYTES = 1_000_000  # before anybody scrolls
TRIES = 3  # of what another process on this machine may slow down
TASKS = """
window.tasks = [];
new PerformanceObserver((list) => window.tasks.push(...list.getEntries().map((task) => task.duration)))
  .observe({ type: 'longtask' });
"""
BUSY = "setTimeout(() => { const end = performance.now() + 80; while (performance.now() < end); })"


def scrolled(page: Page) -> list[float]:
    """Long tasks of the page while it is scrolled to its end, in milliseconds."""
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(500)
    page.evaluate("window.tasks = []")
    page.mouse.move(600, 500)
    while not page.evaluate("scrollY + innerHeight >= document.scrollingElement.scrollHeight - 2"):
        page.mouse.wheel(0, 400)
        page.wait_for_timeout(30)
    page.wait_for_timeout(300)
    tasks: list[float] = page.evaluate("window.tasks")
    return tasks


@pytest.mark.parametrize("kernels", [512, 2048])
def test_a_layer_of_many_kernels_is_smooth(guest: Visitor, kernels: int) -> None:
    """Little is sent before the page is scrolled, and it is never busy for long meanwhile."""
    page = guest.page
    page.add_init_script(TASKS)
    answered: list[Response] = []
    page.on("response", lambda response: answered.append(response))  # noqa: PLW0108 - playwright marks its handlers
    at(guest, layer_page(kernels), f"{AT}?survey={SURVEY}")
    expect(page.locator("#kernels-of-layer > li")).to_have_count(kernels)
    page.wait_for_load_state("networkidle")
    content = next(
        response.body() for response in answered if "json" in response.headers["content-type"] and AT in response.url
    )
    sent = sum(len(response.body()) for response in answered)
    packed = sent - len(content) + len(gzip.compress(content))
    opening = page.evaluate("window.tasks")
    page.evaluate(BUSY)
    page.wait_for_function("() => window.tasks.some((one) => one >= 80)")  # they are seen
    longest: list[float] = []
    while len(longest) < TRIES and min(longest, default=math.inf) > LONGEST_MS:
        longest.append(max(scrolled(page), default=0))
    print(
        f"{kernels} kernels: {sent:,} bytes, {packed:,} with JSON compressed, tasks {opening} ms when opened, "
        f"longest {longest} ms when scrolled"
    )
    assert (sent if kernels == LAYER.kernels else packed) <= MOST_BYTES
    assert min(longest) <= LONGEST_MS
    assert page.locator("#kernels-of-layer img:not([src])").count() == 0
    page.evaluate("scrollTo(0, 0)")
    guest.shoot(f"layer-{kernels}")


def test_kernels_of_a_layer_are_sorted_found_and_chosen(guest: Visitor) -> None:
    """By keyboard as by mouse; the choice is still there when the page is opened again."""
    shown_layer = layer_page(100)
    answers = at(guest, shown_layer, f"{AT}?survey={SURVEY}")
    page = guest.page
    tiles = page.locator("#kernels-of-layer .tile")
    expect(tiles).to_have_count(100)
    expect(page.locator("#shown")).to_have_text("100 kernels, 10 of them silent.")
    expect(page.get_by_role("heading", level=1)).to_have_text("Kernels of conv5_3, VGG-16")
    assert page.get_by_role("link", name="CSV").get_attribute("href") == f"/surveys/{SURVEY}/kernels.csv"

    def shown() -> list[int]:
        return [int(text.split()[1]) for text in tiles.locator("span:has-text('kernel ')").all_text_contents()]

    for label, name in (
        ("activity (mean)", "mean"),
        ("highest", "max"),
        ("share", "active_images"),
        ("consist", "consistency"),
        ("colour", "colour"),
    ):
        option = page.locator("#sort option", has_text=label).get_attribute("value")
        page.get_by_label("Sort by").select_option(option)
        expect(tiles).to_have_count(100)
        worth = {one.kernel: getattr(one, name) for one in shown_layer.kernels}
        valued = [worth[kernel] for kernel in shown() if worth[kernel] is not None]
        assert valued == sorted(valued, reverse=True)
        assert all(worth[kernel] is None for kernel in shown()[len(valued) :])
    page.get_by_label("active on at least one image").check()
    expect(tiles).to_have_count(90)
    expect(page.locator("#shown")).to_have_text("90 of 100 kernels shown.")
    page.get_by_label("Number", exact=True).fill("7")
    expect(tiles).to_have_count(10)
    assert shown() == sorted(shown(), key=lambda kernel: (-(shown_layer.kernels[kernel].colour or -1), kernel))
    guest.shoot("layer-chosen")
    page.get_by_label("Number", exact=True).fill("71")
    answers.response = kernel_page(71, made=9, explained=explanation(9))
    page.get_by_label("Number", exact=True).press("Enter")
    page.wait_for_url(f"{guest.url}{AT}/71?survey={SURVEY}")
    answers.response = shown_layer
    page.go_back()
    expect(tiles).to_have_count(1)
    expect(page.get_by_label("Sort by")).to_have_value("colour")
    expect(page.get_by_label("Number", exact=True)).to_have_value("71")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_and_nothing_is_cut_off_on_a_phone(arriving: Arriving, api: Plant, scheme: str) -> None:
    """Both pages, with and without pictures."""
    visitor = arriving(api.url, color_scheme=scheme, viewport={"width": 360, "height": 740})
    page = visitor.page
    both = [survey(), survey(OTHER, dataset_name="a data set with quite a long name")]
    answers = at(visitor, kernel_page(made=9, explained=explanation(9), surveys=both))
    page.wait_for_selector(".card button")
    page.get_by_text("As a table").click()
    assert page.evaluate(FITS)
    visitor.accessible()
    decoded(page)
    visitor.shoot(f"kernel-360-{scheme}")
    answers.response = kernel_page(explained=explanation(0, "failed"))
    page.reload()
    page.wait_for_selector(".card")
    assert page.evaluate(FITS)
    visitor.accessible()
    answers.response = layer_page(64).model_copy(update={"surveys": both})
    page.goto(visitor.url + AT)
    expect(page.locator("#kernels-of-layer > li")).to_have_count(64)
    assert page.evaluate(FITS)
    visitor.accessible()
    decoded(page)
    visitor.shoot(f"layer-360-{scheme}")
