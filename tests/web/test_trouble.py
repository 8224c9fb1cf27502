"""The page when something is missing or goes away."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect
from redis import Redis

from kernelscope.client import Client
from shared.jobs import connect
from shared.keys import ApiKeys
from tests.chaos.conftest import Plant, until
from tests.chaos.conftest import picture as new_picture
from tests.web.conftest import Arriving, Visitor

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
    expect(page.locator("#weights")).to_contain_text("Weights: vgg_mini", timeout=20_000)


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


def test_the_page_asks_for_a_key_where_one_is_needed(plant: Plant, arriving: Arriving, picture: Path) -> None:
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
    expect(page.locator("#sign-in-problem")).to_contain_text("is unknown")
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


def test_a_job_that_is_gone_is_explained(plant: Plant, arriving: Arriving) -> None:
    """A link to a job that never was."""
    visitor = arriving(plant.url)
    visitor.expected = ("404",)
    page = visitor.open(f"/#job={'0' * 32}")
    expect(page.locator("#notice")).to_contain_text("there is no job")


def sign_in(page: Page, key: str) -> None:
    """Once the page asks for a key."""
    page.get_by_role("dialog", name="This server needs an API key").wait_for(timeout=30_000)
    page.get_by_label("Key", exact=True).fill(key)
    page.get_by_role("button", name="Sign in", exact=True).click()


@pytest.fixture
def redis(plant: Plant) -> Iterator[Redis]:
    """The plant's."""
    with connect(plant.redis_url) as redis:
        yield redis


@pytest.fixture
def locked(plant: Plant, redis: Redis, arriving: Arriving) -> tuple[Visitor, str]:
    """A visitor who follows a running job of a server with keys; their key."""
    plant.start_worker("worker", KERNELSCOPE_ENGINE="dummy")
    key = ApiKeys(redis).add("lab")
    until(lambda: httpx.get(f"{plant.url}/jobs").status_code == 401, 10)  # the API has noticed that there are keys
    with Client(plant.url, key) as client:
        job = client.explain([new_picture()], layer="conv2_1", model="vgg_mini", kernels=[1], iterations=100_000)
    visitor = arriving(plant.url)
    visitor.expected = ("401", "404", "409", "410")
    visitor.page.goto(f"{plant.url}/#job={job.id}")
    sign_in(visitor.page, key)
    expect(visitor.page.locator("#status")).to_contain_text("Running", timeout=20_000)
    return visitor, key


def test_the_page_asks_for_a_key_when_its_session_expires(locked: tuple[Visitor, str], redis: Redis) -> None:
    """While a job is followed, and when a picture of one that has ended cannot be loaded."""
    visitor, key = locked
    page = visitor.page
    redis.delete(*redis.keys("ks:session:*"))
    expect(page.locator("#sign-in-problem")).to_contain_text("session has expired", timeout=30_000)
    sign_in(page, key)
    expect(page.locator("#status")).to_contain_text("Running")
    with Client(visitor.url, key) as client:
        client.job(page.url.rpartition("=")[2]).cancel()
        done = client.explain([new_picture()], layer="conv2_1", model="vgg_mini", kernels=[1], iterations=10).wait()
    assert visitor.done(20).startswith("Cancelled")
    page.goto(f"{visitor.url}/#job={done.id}")
    assert visitor.done(20) == "Done: 1 explained."
    redis.delete(*redis.keys("ks:session:*"))
    page.get_by_label("stretch the contrast").dispatch_event("click")  # the dialog may be there already
    sign_in(page, key)
    page.wait_for_function("() => document.querySelectorAll('.stack img')[1].naturalWidth > 0", timeout=20_000)


def test_the_page_asks_for_a_key_when_its_key_is_revoked(locked: tuple[Visitor, str], redis: Redis) -> None:
    """Another key's caller does not see the job; the page says so."""
    visitor, _ = locked
    other = ApiKeys(redis).add("other")
    ApiKeys(redis).revoke("lab")
    sign_in(visitor.page, other)
    expect(visitor.page.locator("#notice")).to_contain_text(re.compile("there is no job", re.IGNORECASE))
    expect(visitor.page.locator("#outcome")).to_be_hidden()
