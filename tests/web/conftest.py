"""A real Chromium, and a real service with `vgg_mini` behind it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Error, Page, Playwright, sync_playwright

from shared.drawings import scene
from tests.chaos.conftest import Plant, running

ROOT = Path(__file__).parents[2]
SCREENSHOTS = ROOT / "evidence" / "screenshots"
OPTIONS = ["--no-sandbox", "--disable-background-networking"]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def launched(playwright: Playwright) -> Browser:
    """The system's Chromium, else the one that `playwright install` has put in place."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    return playwright.chromium.launch(executable_path=found, args=OPTIONS)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One for all tests."""
    with sync_playwright() as playwright:
        browser = launched(playwright)
        yield browser
        browser.close()


@dataclass
class Visitor:
    """A person who uses the page, and what the browser reports meanwhile."""

    context: BrowserContext
    url: str
    page: Page
    complaints: list[str] = field(default_factory=list)
    expected: tuple[str, ...] = ()  # what the browser itself says of an answer that the test is about

    def reported(self, message: ConsoleMessage) -> None:
        """The browser's console."""
        if message.type in ("error", "warning") and not any(text in message.text for text in self.expected):
            self.complaints.append(message.text)

    def failed(self, error: Error) -> None:
        """An error that the page does not catch."""
        self.complaints.append(str(error))

    def open(self, path: str = "/") -> Page:
        """The page, with its networks there."""
        self.page.goto(self.url + path)
        self.page.wait_for_selector(".layer", timeout=20_000)
        return self.page

    def choose(self, path: Path, layer: str = "conv2_2", network: str = "vgg_mini") -> None:
        """An image by its file, a network and a layer; until the kernels are ranked."""
        self.page.get_by_label("Network").select_option(network)
        self.page.get_by_role("radio", name=layer).check()
        self.page.locator("#files").set_input_files(path)
        self.ranked()

    def ranked(self) -> None:
        """Waits for the kernels."""
        self.page.wait_for_selector(".kernel", timeout=60_000)

    def effort(self, name: str) -> None:
        """How long the solver tries."""
        if not self.page.get_by_label("Effort").is_visible():
            self.page.get_by_text("More options", exact=True).click()
        self.page.get_by_label("Effort").select_option(name)

    def explain(self) -> None:
        """Have it explained."""
        before = self.page.url
        self.page.get_by_role("button", name="Explain", exact=True).click()
        self.page.wait_for_url(lambda url: url != before, timeout=20_000)
        self.page.wait_for_selector(".tile")

    def done(self, seconds: float = 120) -> str:
        """What the page says once the job has ended."""
        self.page.wait_for_selector("#running.ended", timeout=1000 * seconds)
        return self.page.locator("#status").inner_text()

    def shoot(self, name: str) -> None:
        """Keep what it looks like."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)

    def accessible(self) -> None:
        """No violation of what axe knows."""
        found = Axe().run(self.page).response["violations"]
        violations = [
            f"{one['id']}: {one['nodes'][0]['html'][:200]} ({one['nodes'][0].get('failureSummary')})" for one in found
        ]
        assert not found, "\n".join(violations)


Arriving = Callable[..., Visitor]


@pytest.fixture
def arriving(browser: Browser) -> Iterator[Arriving]:
    """Makes visitors of an address; in the end none may have seen a complaint of the browser."""
    visitors: list[Visitor] = []

    def arrive(url: str, **options: object) -> Visitor:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})  # type: ignore[arg-type]
        visitor = Visitor(context, url, context.new_page())
        visitor.page.on("console", visitor.reported)
        visitor.page.on("pageerror", visitor.failed)
        visitors.append(visitor)
        return visitor

    yield arrive
    for visitor in visitors:
        visitor.context.close()
    assert [visitor.complaints for visitor in visitors if visitor.complaints] == []


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    """A service with a worker, for the tests that do not break it."""
    with running(tmp_path_factory.mktemp("web"), "worker") as plant:
        yield plant


@pytest.fixture
def plant(tmp_path: Path) -> Iterator[Plant]:
    """One to break, with nothing but Redis and the API."""
    with running(tmp_path / "plant") as plant:
        yield plant


@pytest.fixture
def visitor(arriving: Arriving, service: Plant) -> Visitor:
    """A visitor of the shared service."""
    return arriving(service.url)


@pytest.fixture(scope="session")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    """A service without a worker."""
    with running(tmp_path_factory.mktemp("pages")) as plant:
        yield plant


@pytest.fixture
def guest(arriving: Arriving, api: Plant) -> Visitor:
    """A visitor of it."""
    return arriving(api.url)


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PNG file with drawn figures."""
    path = tmp_path_factory.mktemp("picture") / "my figures.png"
    scene(7, 160).image.save(path)
    return path
