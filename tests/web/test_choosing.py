"""What a person chooses, and that it is what the page requests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, Request, expect

from kernelscope.client import Client
from shared.drawings import scene
from tests.chaos.conftest import Plant
from tests.chaos.conftest import picture as new_picture
from tests.web.conftest import Visitor
from tests.web.kernel_answers import survey

pytestmark = [pytest.mark.web, pytest.mark.timeout(300)]

DROP = """async ([where, kind, what]) => {
  const data = new DataTransfer();
  if (kind === 'file') {
    const canvas = Object.assign(document.createElement('canvas'), { width: 64, height: 64 });
    canvas.getContext('2d').fillRect(8, 8, 30, 30);
    data.items.add(new File([await new Promise((done) => canvas.toBlob(done))], what));
  } else data.setData(kind, what);
  const event = new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true });
  document.querySelector(where).dispatchEvent(event);
  return event.defaultPrevented;
}"""
SIZES = "(all) => all.map((one) => one.getBoundingClientRect()).map((box) => [box.width, box.height].map(Math.round))"


def ranking(kernels: int) -> dict[str, object]:
    """A job that has ranked so many kernels."""
    ranked = [{"kernel": kernel, "mean": 1 / (kernel + 1), "max": 1.0, "active": 0.5} for kernel in range(kernels)]
    sheet = {"thumbnails": {"columns": 23}, "artifacts": {"thumbnails.png": "web/colours.png"}}
    return {
        "id": "a" * 32,
        "status": "succeeded",
        "request": {"images": ["b" * 64]},
        "results": [{"ranking": ranked, **sheet}],
    }


def submitted(page: Page) -> dict[str, Any]:
    """The request that “Explain” sends."""
    with page.expect_request(lambda request: request.url.endswith("/explain")) as sent:
        page.get_by_role("button", name="Explain", exact=True).click()
    found: dict[str, Any] = json.loads(sent.value.post_data or "")
    return found


def test_a_result_by_one_click(visitor: Visitor) -> None:
    """On the first visit; the result is at the top of the window, and the next job's time is estimated by it."""
    page = visitor.open()
    page.get_by_role("button", name="Explain a sample").click()
    assert visitor.done() == "Done: 2 explained."
    expect(page.locator("#welcome")).to_be_hidden()
    assert abs(page.locator("#outcome").bounding_box()["y"]) < 100  # type: ignore[index]
    visitor.ranked()
    page.reload()
    visitor.done()
    page.get_by_role("button", name="Change and run again").click()
    visitor.ranked()
    expect(page.locator("#plan")).to_contain_text("2 explanations (1 image × 2 kernels × 1 variant), about ")


def test_a_decimal_comma_is_never_two_numbers(visitor: Visitor, picture: Path) -> None:
    """It is asked about, or read as it is meant."""
    page = visitor.open()
    visitor.choose(picture)
    page.get_by_label("β, the weight").fill("0,5")
    page.get_by_role("button", name="Explain", exact=True).click()
    expect(page.locator("#notice")).to_contain_text("β: does “0,5” mean 0.5, or 0 and 5?")
    page.get_by_label("β, the weight").fill("0,5; 2")
    visitor.effort("quick")
    page.get_by_label("Keep the map with an SSIM").fill("0,9")
    body = submitted(page)
    assert (body["beta"], body["target_ssim"]) == ([0.5, 2], 0.9)
    visitor.done()


def test_drops_beside_the_box_and_from_other_pages(visitor: Visitor) -> None:
    """A file without an extension; links of this site; of others there is advice."""
    page = visitor.open()
    assert page.evaluate(DROP, ["footer", "file", "no extension"])
    expect(page.get_by_role("button", name="no extension", exact=True)).to_be_visible()
    assert page.evaluate(DROP, ["body", "text/uri-list", f"{visitor.url}/web/shapes.png"])
    expect(page.get_by_role("button", name="shapes.png", exact=True)).to_be_visible()
    assert page.evaluate(DROP, ["#drop", "text/uri-list", "https://example.com/cat.jpg"])
    expect(page.locator("#notice")).to_contain_text("Copy image")
    assert page.evaluate(DROP, ["#drop", "text/plain", "a word"])
    expect(page.locator("#notice")).to_contain_text("is not an image")
    expect(page.locator("#images li")).to_have_count(2)


def test_a_photograph_of_a_kind_that_is_not_taken(visitor: Visitor, tmp_path: Path) -> None:
    """Is named, whatever the file is called."""
    page = visitor.open()
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    page.locator("#files").set_input_files(photo)
    expect(page.locator("#notice")).to_have_text(
        "“photo.jpg” is a HEIC file. Save it as PNG, JPEG or WebP and choose that."
    )


def test_each_image_is_sent_once_by_itself(visitor: Visitor, tmp_path: Path) -> None:
    """With a ranking; the request for explanations names them by their SHA-256."""
    paths = [tmp_path / f"{seed}.png" for seed in range(3)]
    for seed, path in enumerate(paths):
        scene(400 + seed, 96).image.save(path)
    page = visitor.open()
    sent: list[Request] = []
    page.on("request", lambda request: sent.append(request) if request.method == "POST" else None)
    page.get_by_label("Network").select_option("vgg_mini")
    page.locator("#files").set_input_files(paths)
    visitor.ranked()
    visitor.effort("quick")
    body = submitted(page)
    assert [set(image) for image in body["images"]] == [{"sha256", "name"}] * 3
    forms = [request for request in sent if "multipart" in request.headers["content-type"]]
    assert [request.url.rpartition("/")[2] for request in forms] == ["activations"] * 3
    assert visitor.done() == "Done: 6 explained."


def test_512_kernels_of_the_same_size(visitor: Visitor, picture: Path) -> None:
    """Few of them are in the document; the last one is found by a key, and stays chosen."""
    page = visitor.open()
    page.route("**/activations", lambda route: route.fulfill(json=ranking(512)))
    page.locator("#files").set_input_files(picture)
    visitor.ranked()
    sizes = page.locator(".kernel .map").evaluate_all(SIZES)
    assert len(sizes) == 24
    assert all(size == [sizes[0][0]] * 2 for size in sizes)
    page.get_by_role("button", name="Show all 512 kernels").click()
    assert page.locator(".kernel").count() < 150
    page.keyboard.press("End")
    page.keyboard.press("Space")
    expect(page.get_by_label("kernel 511")).to_be_checked()
    page.keyboard.press("Home")
    expect(page.locator("[data-at='511']")).to_have_count(0)
    expect(page.locator("#plan")).to_contain_text("3 explanations (1 image × 3 kernels")
    page.keyboard.press("End")
    expect(page.get_by_label("kernel 511")).to_be_checked()
    visitor.shoot("kernels-512")


def test_layers_are_the_blocks_of_the_network(visitor: Visitor) -> None:
    """A row for each, with its size; layers have the same width, however long their names are."""
    page = visitor.open()
    blocks = page.locator("#layers .block")
    page.get_by_label("Network").select_option("squeezenet1_0")
    expect(blocks).to_have_count(9)
    assert len({width for width, _ in page.locator(".layer").evaluate_all(SIZES)}) == 1
    page.get_by_label("Network").select_option("vgg_mini")
    expect(blocks.nth(2).locator("p")).to_have_text("block 364 kernels, 24 × 24")


def test_change_and_run_again_carries_every_field(visitor: Visitor, service: Plant) -> None:
    """The request of the new job is that of the old one."""
    methods = {"methods": ["evidence", "lrp"], "rule": "gamma_epsilon", "scaling": "minmax", "max_invention": 0.5}
    weights = {"alpha": [0.5, 2], "beta": [0.25], "max_preservation": 0.5, "only_remove": True}
    others = {"effort": "thorough", "iterations": 7, "deadline_s": 600}
    asked: dict[str, Any] = {
        "layer": "conv2_2",
        "model": "vgg_mini",
        "kernels": "top:3",
        **methods,
        **weights,
        **others,
    }
    with Client(service.url) as client:
        old = client.explain([new_picture()], **asked).wait()
        page = visitor.open(f"/#job={old.id}")
        visitor.done()
        page.get_by_role("button", name="Change and run again").click()
        visitor.ranked()
        visitor.shoot("run-again")
        before = page.url
        page.get_by_role("button", name="Explain", exact=True).click()
        page.wait_for_url(lambda url: url != before)
        new = client.job(page.url.rpartition("=")[2])
    made, wanted = new.request.model_dump(), old.request.model_dump()
    ranked = {result.kernel for result in old.results}
    assert set(made.pop("kernels")) == ranked
    assert wanted.pop("kernels") == "top:3"
    made["names"] = wanted["names"]  # of an image without a name the page has one
    assert made == wanted
    visitor.done()


def test_options_of_methods_that_are_not_chosen_are_not_sent(visitor: Visitor, picture: Path) -> None:
    """Each method is explained where it is chosen."""
    page = visitor.open()
    for box in page.locator("#methods input").all():
        about = box.get_attribute("aria-describedby")
        assert len(page.locator(f"#{about}").inner_text()) > 40
    visitor.choose(picture)
    page.get_by_label("evidence", exact=True).check()
    visitor.effort("quick")
    page.get_by_label("γ, the weight").fill("0.2")
    page.get_by_label("evidence", exact=True).uncheck()
    expect(page.get_by_label("γ, the weight")).to_be_disabled()
    body = submitted(page)
    assert body["methods"] == ["suppression"]
    assert not {"gamma", "max_invention", "rule", "scaling"} & set(body)
    visitor.done()


def test_surveys_are_found_from_the_start_page(visitor: Visitor) -> None:
    """A link to each layer's kernels."""
    page = visitor.page
    page.route("**/surveys", lambda route: route.fulfill(json=[survey().model_dump(mode="json")]))
    visitor.open()
    expect(page.locator("#surveys")).to_contain_text("birds and cats (5,000 images), vgg16")
    link = page.locator("#surveys").get_by_role("link", name="conv5_3")
    assert link.get_attribute("href") == f"kernels/vgg16/conv5_3?survey={'5' * 32}"
