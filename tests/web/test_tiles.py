"""The tiles of explanations: their texts fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.web.conftest import Visitor

pytestmark = [pytest.mark.web, pytest.mark.timeout(300)]

LINES = """span => {
  const words = document.createRange();
  words.selectNodeContents(span);
  const lines = new Map();
  for (let at = 0; at < span.textContent.length; at += 1) {
    words.setStart(span.firstChild, at);
    words.setEnd(span.firstChild, at + 1);
    const line = Math.round(words.getBoundingClientRect().top);
    lines.set(line, (lines.get(line) ?? "") + span.textContent[at]);
  }
  return [...lines.values()];
}"""


def test_the_numbers_of_a_tile_stay_together(visitor: Visitor, picture: Path) -> None:
    """Side by side they take one line; in the narrower overview they break between the two numbers only."""
    page = visitor.open()
    visitor.choose(picture)
    visitor.effort("quick")
    page.get_by_label("LRP").check()
    visitor.explain()
    visitor.done()
    for width in (1280, 1024, 800):
        page.set_viewport_size({"width": width, "height": 900})
        for tile in page.locator(".methods .tile").all():
            (line,) = tile.locator("span").nth(1).evaluate(LINES)
            assert line.startswith("SSIM")
            assert line.endswith("%")
    overview = page.locator("#overview .tile").first
    overview.locator("span").nth(1).evaluate("(span, text) => { span.textContent = text; }", line)
    first, second = overview.locator("span").nth(1).evaluate(LINES)
    assert first.strip().endswith(",")
    assert second.startswith("others")
    assert second.endswith("%")
