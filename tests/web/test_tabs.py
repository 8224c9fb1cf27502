"""Several tabs of one browser: over HTTP/1.1 they share six connections."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, Request, expect

from kernelscope.client import Client
from tests.chaos.conftest import Plant, picture, running
from tests.web.conftest import Arriving, Visitor

pytestmark = [pytest.mark.web, pytest.mark.timeout(300)]

TABS = 7
STREAMS = 3  # at most, in all tabs of a browser
VISIBILITY = """
let visibility = 'visible';
Object.defineProperty(document, 'visibilityState', { get: () => visibility });
window.turn = (state) => { visibility = state; document.dispatchEvent(new Event('visibilitychange')); };
"""


@pytest.fixture(scope="module")
def dummy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    """A service whose worker takes as long as it is asked to."""
    with running(tmp_path_factory.mktemp("tabs")) as plant:
        plant.start_worker("worker", KERNELSCOPE_ENGINE="dummy")
        yield plant


@pytest.fixture
def long_job(dummy: Plant) -> Iterator[str]:
    """It runs until the test is over."""
    with Client(dummy.url) as client:
        job = client.explain([picture()], layer="conv2_1", model="vgg_mini", kernels=[1], iterations=100_000)
        yield job.id
        if not job.refresh().status.terminal:
            job.cancel()


@pytest.fixture
def tabs(arriving: Arriving, dummy: Plant) -> Visitor:
    """A browser at it."""
    return arriving(dummy.url)


def streams_of(page: Page) -> set[Request]:
    """The event streams that a tab has open, now and later."""
    found: set[Request] = set()

    def ended(request: Request) -> None:
        found.discard(request)

    page.on("request", lambda request: found.add(request) if "/events" in request.url else None)
    page.on("requestfinished", ended)
    page.on("requestfailed", ended)
    return found


def test_seven_tabs_follow_a_job(tabs: Visitor, long_job: str) -> None:
    """All of them load and see how it runs and ends; the server still answers."""
    pages = [tabs.page, *(tabs.context.new_page() for _ in range(TABS - 1))]
    streams = [streams_of(page) for page in pages]
    for page in pages:
        page.goto(f"{tabs.url}/#job={long_job}", timeout=15_000)
    for page in pages:
        expect(page.locator("#status")).to_contain_text("Running", timeout=20_000)
    assert sum(map(len, streams)) <= STREAMS
    assert (
        pages[0].evaluate("fetch('healthz', { signal: AbortSignal.timeout(10000) }).then((answer) => answer.status)")
        == 200
    )
    pages[-1].get_by_role("button", name="Cancel", exact=True).click()
    for page in pages:
        expect(page.locator("#status")).to_contain_text("Cancelled", timeout=20_000)


def test_a_hidden_tab_has_no_stream(tabs: Visitor, long_job: str) -> None:
    """It gets one when it is visible again, and continues where it was."""
    page = tabs.page
    page.add_init_script(VISIBILITY)
    streams = streams_of(page)
    page.goto(f"{tabs.url}/#job={long_job}")
    expect(page.locator("#status")).to_contain_text("Running", timeout=20_000)
    page.wait_for_timeout(1500)  # for events: that it runs was known before
    assert len(streams) == 1
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.evaluate("turn('hidden')")
    page.wait_for_timeout(4000)  # longer than the page waits between any two requests
    assert not streams
    assert requests == []
    with Client(tabs.url) as client:
        client.job(long_job).cancel()
    with page.expect_request("**/events?previews=true") as resumed:
        page.evaluate("turn('visible')")
    assert resumed.value.headers["last-event-id"]
    expect(page.locator("#status")).to_contain_text("Cancelled", timeout=20_000)
