"""The page when something is missing or goes away."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect

from shared.jobs import connect
from shared.keys import ApiKeys
from tests.chaos.conftest import Plant
from tests.web.conftest import Arriving

pytestmark = [pytest.mark.web, pytest.mark.timeout(300)]


def test_without_a_worker_the_page_says_so_and_goes_on_once_there_is_one(
    plant: Plant, arriving: Arriving, picture: Path
) -> None:
    """Kernels by number; the job waits, and ends by itself when a worker comes."""
    visitor = arriving(plant.url)
    page = visitor.open()
    expect(page.locator("#weights")).to_contain_text("No worker is connected")
    page.get_by_label("Network").select_option("vgg_mini")
    page.locator("#files").set_input_files(picture)
    page.get_by_label("Others by number").fill("3")
    visitor.effort("quick")
    visitor.explain()
    expect(page.locator("#status")).to_contain_text("no worker is connected", timeout=20_000)
    visitor.shoot("no-worker-light")
    visitor.accessible()
    page.wait_for_timeout(11_000)  # the page looks for a worker each 5 s, and asks for nothing twice meanwhile
    assert len(httpx.get(f"{plant.url}/jobs").json()["jobs"]) == 2
    plant.start_worker("worker")
    assert visitor.done() == "Done: 1 explained."
    expect(page.locator("#weights")).to_contain_text("weights: vgg_mini", timeout=20_000)


def test_the_page_outlives_a_restart_of_the_server(plant: Plant, arriving: Arriving, picture: Path) -> None:
    """In mid-job: it says that the connection is lost, and shows the result all the same."""
    plant.start_worker("worker")
    visitor = arriving(plant.url)
    visitor.expected = ("ERR_",)
    page = visitor.open()
    visitor.choose(picture, "conv3_1")
    visitor.effort("thorough")
    visitor.explain()
    page.wait_for_selector(".tile.forming img", timeout=60_000)
    plant.kill("api")
    expect(page.locator("#status")).to_contain_text("connection was lost", timeout=20_000)
    plant.start("api", *plant.commands["api"])
    assert visitor.done(240) == "Done: 2 explained."
    assert page.locator(".stack img").count() == 2


def test_a_key_is_asked_for_where_one_is_needed(plant: Plant, arriving: Arriving, picture: Path) -> None:
    """A wrong one is refused in words; pictures, events and downloads work with the right one; signing out ends it."""
    plant.start_worker("worker")
    with connect(plant.redis_url) as redis:
        key = ApiKeys(redis).add("lab")
    visitor = arriving(plant.url)
    visitor.expected = ("401",)
    page = visitor.page
    page.goto(plant.url)
    dialog = page.get_by_role("dialog", name="This server needs an API key")
    dialog.wait_for()
    visitor.shoot("key-light")
    visitor.accessible()
    page.get_by_label("Key", exact=True).fill("ks_wrong")
    page.get_by_role("button", name="Sign in", exact=True).click()
    expect(page.locator("#sign-in-problem")).to_contain_text("not known")
    page.get_by_label("Key", exact=True).fill(key)
    page.get_by_role("button", name="Sign in", exact=True).click()
    page.wait_for_selector(".layer")
    visitor.choose(picture)
    visitor.effort("quick")
    visitor.explain()
    assert visitor.done() == "Done: 2 explained."
    assert page.locator(".stack img").first.evaluate("image => image.decode().then(() => image.naturalWidth)") == 96
    assert "Authorization: Bearer YOUR-KEY" in page.locator("#whole pre").inner_text()
    page.get_by_role("button", name="Sign out").click()
    dialog.wait_for()


def test_a_job_that_is_gone_is_told_in_words(plant: Plant, arriving: Arriving) -> None:
    """A link to a job that never was."""
    visitor = arriving(plant.url)
    visitor.expected = ("404",)
    page = visitor.open(f"/#job={'0' * 32}")
    expect(page.locator("#notice")).to_contain_text("there is no job")
