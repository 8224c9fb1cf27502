"""The pages of kernels and layers, with a real survey by `vgg_mini` behind them."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from playwright.sync_api import expect

from kernelscope.client import Client
from shared.drawings import all_colours, scene
from shared.jobs import connect
from shared.keys import ApiKeys
from tests.chaos.conftest import Plant
from tests.conftest import png
from tests.web.conftest import Arriving
from tests.web.kernel_answers import FITS, decoded

pytestmark = [pytest.mark.web, pytest.mark.timeout(300)]


def surveyed_at(url: str, key: str | None = None) -> str:
    """A survey of drawn scenes by `vgg_mini`; its id."""
    with Client(url, key) as client:
        dataset = client.create_dataset("drawn scenes")
        drawn = {f"scene {seed}.png": png(scene(seed, 96).image) for seed in range(20)}
        client.add_images(dataset.id, {**drawn, "all colours.png": png(all_colours(96))})
        job = client.survey(dataset.id, model="vgg_mini", layers=["conv2_2"]).wait()
    assert job.status == "succeeded"
    return job.id


@pytest.fixture(scope="session")
def surveyed(service: Plant) -> str:
    """Of the shared service."""
    return surveyed_at(service.url)


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 360)])
def test_the_pages_of_a_real_kernel(arriving: Arriving, service: Plant, surveyed: str, scheme: str, width: int) -> None:
    """Crops at once, X̂ as they are made; then the next kernel by a key, and the layer with its pictures."""
    with Client(service.url) as client:
        order = sorted(client.layer_kernels("vgg_mini", "conv2_2").kernels, key=lambda one: -one.mean)
        kernel = next(one.kernel for one in order[0 if width > 360 else 4 :] if one.kernel < len(order) - 1)
    visitor = arriving(service.url, color_scheme=scheme, viewport={"width": width, "height": 900})
    page = visitor.page
    begin = time.monotonic()
    page.goto(f"{visitor.url}/kernels/vgg_mini/conv2_2/{kernel}?survey={surveyed}")
    page.locator("#top img").first.evaluate("image => image.decode()")
    seconds = time.monotonic() - begin
    print(f"kernel {kernel}: crops after {seconds:.2f} s")
    expect(page.locator(".card").first).to_contain_text("being made")
    expect(page.locator("#status")).to_contain_text("9 X̂ made, by evidence with quick effort", timeout=120_000)
    print(f"X̂ after {time.monotonic() - begin:.1f} s")
    assert page.locator(".card button img").count() == 9
    expect(page.get_by_role("row", name="Consistency")).to_contain_text(" ± ")
    expect(page.get_by_role("row", name="Colour")).to_contain_text(" ± ")
    assert page.evaluate(FITS)
    visitor.accessible()
    decoded(page)
    visitor.shoot(f"kernel-real-{scheme}")
    page.get_by_role("button", name="Compare with other kernels").click()
    expect(page.get_by_role("row", name="Discrimination")).to_contain_text(re.compile(r"[01]\.\d\d"), timeout=120_000)
    expect(page.locator("#progress")).to_be_hidden(timeout=120_000)
    page.locator(".card button").first.click()
    whole = page.get_by_alt_text(re.compile("and its X̂ for kernel"))
    whole.evaluate("image => image.decode()")
    visitor.shoot(f"kernel-real-whole-{scheme}")
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowRight")
    page.wait_for_url(f"**/{kernel + 1}?survey={surveyed}")
    expect(page.get_by_role("heading", level=1)).to_contain_text(f"Kernel {kernel + 1} of conv2_2, VGG-mini")

    page.get_by_role("link", name=re.compile("^conv2_2")).click()
    page.wait_for_url(f"**/conv2_2?survey={surveyed}")
    page.get_by_label("Sort by").select_option("consistency")
    first = page.locator("#kernels-of-layer > li").first
    expect(first).to_contain_text(re.compile(r"consistency (0\.\d\d|1\.00)"))
    assert "/pictures/" in (first.locator("img").get_attribute("src") or "")
    assert page.evaluate(FITS)
    visitor.accessible()
    decoded(page)
    visitor.shoot(f"layer-real-{scheme}")


def test_below_a_path_with_a_key(arriving: Arriving, tmp_path: Path) -> None:
    """The page needs no key; its data do."""
    plant = Plant(tmp_path)
    url = f"{plant.url}/kernelscope"
    plant.environment["KERNELSCOPE_PUBLIC_URL"] = url
    try:
        plant.start_redis()
        with connect(plant.redis_url) as redis:
            key = ApiKeys(redis).add("lab")
        plant.start_service()
        plant.start_worker("worker")
        surveyed_at(url, key)
        visitor = arriving(url)
        visitor.expected = ("401",)
        page = visitor.page
        page.goto(f"{url}/kernels/vgg_mini/conv2_2/5")
        page.get_by_label("Key", exact=True).fill(key)
        page.get_by_role("button", name="Sign in", exact=True).click()
        expect(page.locator("#status")).to_contain_text("9 X̂ made", timeout=120_000)
        decoded(page)
        page.keyboard.press("ArrowRight")
        page.wait_for_url(f"{url}/kernels/vgg_mini/conv2_2/6")
        page.get_by_role("link", name=re.compile("^conv2_2")).click()
        page.wait_for_url(f"{url}/kernels/vgg_mini/conv2_2")
        decoded(page)
        page.get_by_label("Number", exact=True).fill("5")
        page.get_by_label("Number", exact=True).press("Enter")
        page.wait_for_url(f"{url}/kernels/vgg_mini/conv2_2/5")
        page.get_by_role("button", name="Sign out").click()
        page.get_by_role("dialog", name="This server needs an API key").wait_for()
    finally:
        plant.close()
