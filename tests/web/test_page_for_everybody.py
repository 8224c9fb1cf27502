"""The page by keyboard, on small and large screens, for screen readers; and with its own scripts only."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect

from tests.chaos.conftest import Plant
from tests.web.conftest import Arriving, Visitor

pytestmark = [pytest.mark.web, pytest.mark.timeout(300)]


def test_by_keyboard_alone(visitor: Visitor) -> None:
    """From the first Tab to the result; focus is always on something that is there."""
    page = visitor.open()

    def tab_to(wanted: str, most: int = 60) -> None:
        for _ in range(most):
            page.keyboard.press("Tab")
            if page.evaluate("wanted => document.activeElement.matches(wanted)", wanted):
                return
        raise AssertionError(f"Tab never came to {wanted}")

    tab_to("[aria-label='Sample: drawn shapes']")
    page.keyboard.press("Enter")
    tab_to("#model")
    page.keyboard.type("VGG-mini")
    expect(page.get_by_label("Network")).to_have_value("vgg_mini")
    tab_to("#layers input")
    page.keyboard.press("ArrowRight")
    visitor.ranked()
    page.wait_for_function("() => !document.querySelector('#kernels').hidden")
    tab_to("#kernels input")
    page.keyboard.press("Space")
    tab_to("summary")
    page.keyboard.press("Enter")
    tab_to("#effort")
    page.keyboard.type("quick")
    tab_to("#run")
    page.keyboard.press("Enter")
    assert visitor.done().startswith("Done")
    assert page.evaluate("document.activeElement.id") == "outcome"
    tab_to(".frame")
    tab_to("input[type=range]")
    page.keyboard.press("End")
    assert page.locator(".stack img").nth(1).evaluate("image => image.style.clipPath") == "inset(0px 0px 0px 100%)"


@pytest.mark.parametrize(("width", "height"), [(360, 740), (3840, 2160)])
def test_from_a_phone_to_a_wall(arriving: Arriving, service: Plant, picture: Path, width: int, height: int) -> None:
    """Nothing is cut off, and nothing scrolls sideways but what is meant to."""
    visitor = arriving(service.url, viewport={"width": width, "height": height})
    page = visitor.open()
    fits = "document.scrollingElement.scrollWidth <= innerWidth"
    assert page.evaluate(fits)
    visitor.shoot(f"start-{width}")
    visitor.choose(picture)
    visitor.effort("quick")
    page.get_by_label("LRP").check()
    assert page.evaluate(fits)
    visitor.explain()
    visitor.done()
    page.wait_for_selector(".uplot")
    assert page.evaluate(fits)
    visitor.shoot(f"result-{width}")
    page.get_by_role("button", name="Your jobs").click()
    page.wait_for_selector("#jobs > p")
    assert page.evaluate(fits)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(arriving: Arriving, service: Plant, picture: Path, scheme: str) -> None:
    """At the start, with kernels to choose from, with an error, with a result, in the history."""
    visitor = arriving(service.url, color_scheme=scheme)
    page = visitor.open()
    expect(page.get_by_role("button", name="Explain a sample")).to_be_visible()
    visitor.shoot(f"start-{scheme}")
    visitor.accessible()
    page.get_by_role("button", name="Explain", exact=True).click()
    visitor.accessible()
    visitor.choose(picture)
    visitor.shoot(f"ranked-{scheme}")
    visitor.accessible()
    visitor.effort("quick")
    page.get_by_label("LRP").check()
    visitor.accessible()
    visitor.explain()
    visitor.done()
    page.wait_for_selector(".uplot")
    visitor.shoot(f"result-{scheme}")
    visitor.accessible()
    page.get_by_role("button", name="Your jobs").click()
    page.wait_for_selector("#jobs > p")
    visitor.accessible()


def test_the_policy_lets_nothing_else_run(visitor: Visitor) -> None:
    """A script that is injected into the page does not run."""
    page = visitor.open()
    policy = httpx.get(visitor.url).headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), { textContent: 'window.smuggled = 1' }))"
    )
    assert page.evaluate("window.smuggled") is None
    assert any("Content Security Policy" in text for text in visitor.complaints)
    visitor.complaints.clear()
