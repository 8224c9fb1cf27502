"""The speed of the page: `python -m benchmarks.page [--json] [--repeat N]`.

In the system's Chromium, with a private stack and `vgg_mini`: bytes and time to the first paint, and seconds from a
job's start to its first preview on the page. Each measurement is a new visit.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from playwright.sync_api import Browser, Page, Response, sync_playwright

from kernelscope.client import Client
from kernelscope.stack import Stack, free_port
from shared.settings import Settings

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PAINT = "() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
STARTED = """() => new Promise((resolve) => {
  if (document.querySelector('.tile.forming img')) resolve(Date.now());
  new MutationObserver((_, observer) => {
    if (!document.querySelector('.tile.forming img')) return;
    observer.disconnect();
    resolve(Date.now());
  }).observe(document.querySelector('#overview'), { childList: true, subtree: true });
})"""


def visit(browser: Browser, url: str, client: Client) -> dict[str, float]:
    """One visit with an explanation."""
    page = browser.new_page()
    weighed: list[Response] = []
    page.on("response", lambda response: weighed.append(response))  # noqa: PLW0108 - playwright marks its handlers
    page.goto(url, wait_until="networkidle")
    paint = page.wait_for_function(PAINT).json_value()
    weight = sum(len(response.body()) for response in weighed if "/web/" in response.url or response.url == f"{url}/")
    begun, picture = _explained(page, client)
    page.wait_for_selector("#running.ended", timeout=120_000)
    page.close()
    return {"first_paint_ms": paint, "page_kb": weight / 1000, "first_picture_s": picture - begun}


def _explained(page: Page, client: Client) -> tuple[float, float]:
    """The job's start by its record, and the time of its first preview on the page, in seconds."""
    page.get_by_label("Network").select_option("vgg_mini")
    page.get_by_role("radio", name="conv3_1").check()
    page.get_by_role("button", name="sample: drawn shapes").click()
    page.wait_for_selector(".kernel", timeout=60_000)
    page.get_by_role("button", name="Explain", exact=True).click()
    page.wait_for_url("**/#job=*")
    seen = page.evaluate(STARTED) / 1000
    begun = client.job(page.url.rpartition("=")[2]).started_at
    assert begun
    return begun.timestamp(), seen


def measure(repeat: int) -> dict[str, Any]:
    """The median and the worst of this many visits."""
    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        own = {"data_dir": Path(folder), "port": free_port(), "preload": ("vgg_mini",), "download_weights": False}
        settings = Settings(_env_file=None).model_copy(update=own)
        path = next(filter(None, map(shutil.which, NAMES)), None)
        options = ["--no-sandbox", "--disable-background-networking"]
        with Stack(settings, lambda _: None).running() as stack, Client(stack.url) as client:
            browser = playwright.chromium.launch(executable_path=path, args=options)
            visits = []
            for _ in range(repeat + 1):
                visits.append(visit(browser, stack.url, client))
                for job in client.jobs():  # otherwise the next one would be answered from the cache
                    client.job(job.id).delete()
            browser.close()
    del visits[0]  # it included the measurement of the layer's speed
    return {
        name: {"median": statistics.median(values), "worst": max(values)}
        for name in visits[0]
        if (values := [one[name] for one in visits])
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options.repeat)
    if options.json:
        print(json.dumps(found, indent=1))
        return
    for name, figures in found.items():
        print(f"{name}: median {figures['median']:.2f}, worst {figures['worst']:.2f}")


if __name__ == "__main__":
    main()
