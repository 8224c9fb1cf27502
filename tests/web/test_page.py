"""What a person does at the page, against a real service with `vgg_mini`."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import httpx
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from shared.drawings import scene
from tests.chaos.conftest import Plant
from tests.web.conftest import Arriving, Visitor

pytestmark = [pytest.mark.web, pytest.mark.timeout(300)]


def number(page: Page, name: str) -> str:
    """What the table of numbers says."""
    return page.get_by_role("row", name=name).get_by_role("cell").first.inner_text()


def test_every_node_can_be_found(visitor: Visitor, picture: Path) -> None:
    """The layers by block; then every node, by a part of its name; one that is not after a ReLU is ranked too."""
    page = visitor.open()
    visitor.choose(picture)
    assert page.locator("#layers .block").count() == 4
    assert page.locator("#layers input").count() == 8
    expect(page.get_by_role("group", name="block 3")).to_contain_text("conv3_1")
    page.get_by_role("button", name="Show every node").click()
    expect(page.get_by_label("Find")).to_be_visible()
    assert page.locator("#layers input").count() == 19
    page.get_by_label("Find").fill("features.1")
    assert 1 < page.locator("#layers input").count() < 19
    expect(page.locator("#layers :checked")).to_have_count(1)
    page.locator('input[value="features.10"]').check()
    expect(page.locator("#kernels-hint")).to_contain_text("respond to this image")
    visitor.shoot("every-node")


def test_from_an_upload_to_a_link_that_opens_the_same_tomorrow(
    visitor: Visitor, arriving: Arriving, picture: Path, tmp_path: Path
) -> None:
    """Choose, rank, explain, compare, download; the link shows the same later."""
    page = visitor.open()
    visitor.choose(picture)
    visitor.shoot("ranked-light")
    visitor.effort("quick")
    page.get_by_label("LRP").check()
    page.get_by_label("evidence", exact=True).check()
    visitor.explain()
    assert "2 kernels" not in visitor.done()
    assert page.locator("#overview .tile").count() == 2
    expect(page.locator("#detail h3").first).to_contain_text("in my figures.png, by evidence")
    ssim = number(page, "Map kept (SSIM)")
    assert 0.5 < float(ssim) <= 1
    invented = number(page, "Invented")
    page.locator(".methods .tile").nth(1).click()
    expect(page.locator("#detail h3").first).to_contain_text("by suppression")
    assert float(number(page, "Invented").rstrip(" %")) > float(invented.rstrip(" %"))
    page.locator(".methods .tile").nth(0).click()

    stacked = page.locator(".stack img").nth(1)
    before = stacked.evaluate("image => image.style.clipPath")
    page.get_by_label("How much of the original is shown").press("ArrowRight")
    assert stacked.evaluate("image => image.style.clipPath") != before
    page.get_by_label("stretch the contrast").check()
    assert stacked.evaluate("image => image.src").endswith("contrast.png")
    page.get_by_label("zoom").select_option("4")
    assert page.locator(".stack").evaluate("stack => stack.clientWidth") > 3 * page.locator(".frame").evaluate(
        "frame => frame.clientWidth"
    )
    page.get_by_label("zoom").select_option("1")
    page.wait_for_selector(".uplot")
    for image in page.locator("#detail img").all():
        image.scroll_into_view_if_needed()
        image.evaluate("image => image.decode()")
    visitor.shoot("result-light")

    page.locator(".methods .tile").nth(2).click()
    expect(page.locator("#detail h3").first).to_contain_text("by LRP")
    page.locator(".methods .tile").nth(0).click()
    with page.expect_download() as download:
        page.get_by_role("link", name="X̂ (PNG)").click()
    with Image.open(download.value.path()) as optimized:
        assert optimized.size == (96, 96)
    with page.expect_download() as download:
        page.get_by_role("link", name="Download everything (ZIP)").click()
    with zipfile.ZipFile(download.value.path()) as bundle:
        assert any(name.endswith("optimized.npy") for name in bundle.namelist())

    later = arriving(visitor.url)
    again = later.open(page.url.removeprefix(visitor.url))
    assert later.done() == "Done: 6 explained."
    assert number(again, "Map kept (SSIM)") == ssim


def test_the_curl_that_is_shown_reproduces_the_job(visitor: Visitor, service: Plant, picture: Path) -> None:
    """It names the file, the kernels and every option."""
    page = visitor.open()
    visitor.choose(picture, "conv1_2")
    visitor.effort("quick")
    page.get_by_label("β, the weight of emptiness").fill("0.5, 2")
    visitor.explain()
    visitor.done()
    shown = page.locator("#whole pre").inner_text()
    fields = dict(re.findall(r"-F (\w+)=(\S+)", shown))
    assert "-F 'image=@my figures.png'" in shown
    assert shown.endswith(f"{service.url}/explain")
    with picture.open("rb") as image:
        job = httpx.post(f"{service.url}/explain", files={"image": image}, data=fields).raise_for_status().json()
    made = httpx.get(f"{service.url}/jobs/{page.url.rpartition('=')[2]}").json()
    assert {**job["request"]} == {**made["request"]}
    expect(page.get_by_alt_text("X̂ and its map for each α and β")).to_have_count(1)


def test_the_picture_is_seen_to_form(visitor: Visitor, picture: Path) -> None:
    """While the job runs its tiles show X̂ as it is then."""
    page = visitor.open()
    visitor.choose(picture, "conv3_1")
    visitor.effort("thorough")
    visitor.explain()
    forming = page.locator(".tile.forming img").first
    forming.wait_for(timeout=20_000)
    first = forming.get_attribute("src")
    assert first
    page.wait_for_function(
        "first => document.querySelector('.tile.forming img')?.getAttribute('src') !== first", arg=first
    )
    expect(page.locator("#status")).to_contain_text("Running")
    visitor.shoot("forming-light")
    page.get_by_role("button", name="Cancel", exact=True).click()
    assert visitor.done(20).startswith("Cancelled")


def test_a_cancelled_job_says_so_and_keeps_what_is_finished(visitor: Visitor, picture: Path) -> None:
    """Also when its link is opened again."""
    page = visitor.open()
    visitor.choose(picture, "conv3_2")
    visitor.effort("thorough")
    page.get_by_label("LRP").check()
    visitor.explain()
    page.wait_for_function("() => document.querySelector('#progress').value > 0", timeout=60_000)
    page.get_by_role("button", name="Cancel", exact=True).click()
    said = visitor.done(20)
    assert re.fullmatch(r"Cancelled: \d+ were finished\.", said)
    page.reload()
    assert visitor.done(20) == said
    assert page.locator("#cancel").is_hidden()


def test_what_is_no_image_is_refused_in_words(visitor: Visitor, tmp_path: Path) -> None:
    """A text file at once; a damaged picture once the server has decoded it."""
    visitor.expected = ("422", "415")
    page = visitor.open()
    notes, broken = tmp_path / "notes.txt", tmp_path / "broken.png"
    notes.write_text("no picture")
    broken.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    page.locator("#files").set_input_files(notes)
    expect(page.locator("#notice")).to_contain_text("notes.txt")
    expect(page.locator("#notice")).to_contain_text("PNG, JPEG or WebP")
    page.locator("#files").set_input_files(broken)
    expect(page.locator("#kernels-hint")).to_contain_text("image", ignore_case=True, timeout=20_000)
    expect(page.locator("#kernels-hint")).to_have_class(re.compile("error"))
    page.get_by_role("button", name="Explain", exact=True).click()
    expect(page.locator("#notice")).to_be_visible()


def test_wrong_numbers_are_named(visitor: Visitor, picture: Path) -> None:
    """Before anything is sent, and by the server where only that can know."""
    visitor.expected = ("422",)
    page = visitor.open()
    page.get_by_role("button", name="Explain", exact=True).click()
    expect(page.locator("#notice")).to_contain_text("Choose an image first")
    visitor.choose(picture)
    page.get_by_label("β, the weight of emptiness").fill("1; much")
    page.get_by_role("button", name="Explain", exact=True).click()
    expect(page.locator("#notice")).to_contain_text("“much” is not a number")
    page.get_by_label("β, the weight of emptiness").fill("1")
    page.get_by_label("Others by number").fill("4711")
    page.get_by_role("button", name="Explain", exact=True).click()
    expect(page.locator("#notice")).to_contain_text("4711")


def test_several_images_side_by_side_and_the_history(visitor: Visitor, tmp_path: Path) -> None:
    """A contact sheet; the job is listed, opened, run again with a change, and deleted."""
    paths = [tmp_path / "one.png", tmp_path / "two.png"]
    for seed, path in enumerate(paths):
        scene(20 + seed, 96).image.save(path)
    page = visitor.open()
    visitor.choose(paths[0])
    page.locator("#files").set_input_files(paths[1])
    visitor.ranked()
    page.wait_for_function("() => !document.querySelector('#kernels').hidden")
    visitor.effort("quick")
    visitor.explain()
    assert visitor.done() == "Done: 4 explained."
    sheet = page.get_by_alt_text(re.compile("contact sheet"))
    sheet.scroll_into_view_if_needed()
    sheet.evaluate("image => image.decode()")
    expect(page.locator("#overview")).to_contain_text("two.png")
    visitor.shoot("several-light")

    page.get_by_role("button", name="Change and run again").click()
    page.wait_for_function("() => !document.querySelector('#kernels').hidden")
    page.get_by_label("guided backpropagation").check()
    visitor.explain()
    assert visitor.done() == "Done: 8 explained."

    page.get_by_role("button", name="Your jobs").click()
    jobs = page.locator("#jobs > p")
    expect(jobs.first).to_contain_text("2 images, 2 methods")
    visitor.shoot("history-light")
    count = jobs.count()
    page.on("dialog", lambda dialog: dialog.accept())
    jobs.first.get_by_role("button").click()
    expect(jobs).to_have_count(count - 1)
    jobs.first.get_by_role("link").click()
    expect(page.locator("#history")).to_be_hidden()
    assert visitor.done() == "Done: 4 explained."


def test_images_can_be_dropped_and_pasted(visitor: Visitor) -> None:
    """As files from anywhere."""
    page = visitor.open()
    made = """async (kind) => {
      const canvas = Object.assign(document.createElement('canvas'), { width: 64, height: 64 });
      canvas.getContext('2d').fillRect(8, 8, 30, 30);
      const blob = await new Promise((done) => canvas.toBlob(done));
      const data = new DataTransfer();
      data.items.add(new File([blob], `${kind}.png`, { type: 'image/png' }));
      const event = kind === 'drop' ? new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true })
        : new ClipboardEvent('paste', { clipboardData: data, bubbles: true });
      document.querySelector('#drop').dispatchEvent(event);
    }"""
    for kind in ("drop", "paste"):
        page.evaluate(made, kind)
        expect(page.get_by_role("button", name=f"{kind}.png", exact=True)).to_be_visible()
    page.get_by_role("button", name="Remove drop.png").click()
    expect(page.locator("#images li")).to_have_count(1)
