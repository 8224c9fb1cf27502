"""An exported layer, opened from disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect
from typer.testing import CliRunner

from kernelscope.cli import app
from tests.local import local
from tests.surveyed import KERNELS, SILENT, SurveyServer
from tests.web.conftest import Arriving

pytestmark = [pytest.mark.web, pytest.mark.timeout(120)]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layer with its X̂."""
    folder = tmp_path_factory.mktemp("export") / "a site"
    with local(SurveyServer(explained=True)) as url:
        ran = CliRunner().invoke(app, ["export", "vgg_mini", "conv2_2", "-o", str(folder), "--url", url])
    assert ran.exit_code == 0, ran.output
    return folder


def loaded(page: Page) -> int:
    """How many images the page has, all of them there."""
    for image in page.locator("img").all():
        image.scroll_into_view_if_needed()
        expect(image).to_have_js_property("complete", value=True)
    sizes = page.eval_on_selector_all("img", "images => images.map((image) => image.naturalWidth)")
    assert all(sizes)
    return len(sizes)


def accessible(page: Page) -> None:
    """No violation that axe finds. It must not fetch the style sheet: a browser forbids that for files."""
    found = Axe().run(page, options={"preload": False}).response["violations"]
    assert not found, "\n".join(f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in found)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_an_export_opens_from_disk(arriving: Arriving, site: Path, scheme: str) -> None:
    """No server, nothing from elsewhere, no complaint of the browser; by keyboard; each kernel a click away."""
    page, asked = arriving("", color_scheme=scheme).page, list[str]()
    page.on("request", lambda request: asked.append(request.url))
    page.goto((site / "index.html").as_uri())
    assert loaded(page) == 2 * (KERNELS - 1)
    accessible(page)

    page.get_by_label("In the order of their").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    expect(page.get_by_label("In the order of their")).to_have_value("max")
    expect(page.locator(".kernels li").last).to_contain_text(f"Kernel {SILENT}")
    page.get_by_label("In the order of their").select_option("")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")

    expect(page.get_by_role("heading", level=1)).to_have_text("Kernel 0 of conv2_2 of vgg_mini")
    page.get_by_role("link", name="Kernel 1 ›").press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Kernel 1 of conv2_2 of vgg_mini")
    assert loaded(page) == 4
    expect(page.get_by_role("row", name="consistency")).to_contain_text("0.620 ± 0.030")
    page.get_by_text("the numbers").click()
    expect(page.get_by_role("row", name="0.5 to 4")).to_contain_text("400")
    accessible(page)
    page.get_by_role("link", name="Kernel 2", exact=False).last.click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Kernel 2 of conv2_2 of vgg_mini")
    page.get_by_role("link", name="All kernels").click()
    expect(page.locator(".kernels li")).to_have_count(KERNELS)
    assert {address.partition("://")[0] for address in asked} == {"file"}


def test_an_export_fits_a_telephone(arriving: Arriving, site: Path) -> None:
    """Nothing is wider than the screen."""
    page = arriving("", viewport={"width": 360, "height": 740}).page
    for name in ("index.html", "kernel-3.html", f"kernel-{SILENT}.html"):
        page.goto((site / name).as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, name
