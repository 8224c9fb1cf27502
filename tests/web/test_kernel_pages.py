"""The pages of kernels and layers, with answers made up for each case."""

from __future__ import annotations

import re
import time

import pytest
from playwright.sync_api import Page, expect

from shared.schemas import Score
from shared.surveys.tally import TOP
from tests.web.conftest import Visitor
from tests.web.kernel_answers import (
    AT,
    JOB,
    OTHER,
    OTHER_JOB,
    SURVEY,
    Answers,
    at,
    decoded,
    explanation,
    kernel_page,
    silent_page,
    survey,
    top,
)

pytestmark = [pytest.mark.web, pytest.mark.timeout(300)]

OPENS_SECONDS = 1.0
TRIES = 3  # of what another process on this machine may slow down


def opened(page: Page, url: str) -> float:
    """Seconds until a page that nobody has had explained shows its images; the best of some."""

    def once() -> float:
        begin = time.monotonic()
        page.goto(url)
        page.locator("#top img").first.evaluate("image => image.decode()")
        return time.monotonic() - begin

    return min(once() for _ in range(TRIES))


def test_crops_are_there_at_once_and_pictures_come(guest: Visitor) -> None:
    """They are requested once; scores come with them; the focus does not move."""
    answers = Answers(guest.page)
    answers.response = kernel_page()
    page = guest.page
    seconds = opened(page, f"{guest.url}{AT}/12")
    print(f"opened in {seconds:.2f} s")
    assert seconds <= OPENS_SECONDS
    expect(page.get_by_role("heading", level=1)).to_have_text("Kernel 12 of conv5_3, VGG-16")
    expect(page.locator("#survey")).to_contain_text("5,000 images of “birds and cats”")
    expect(page.locator(".card")).to_have_count(TOP)
    expect(page.locator(".card").first).to_contain_text("being made")
    expect(page.locator(".card").last).to_contain_text("not made")
    expect(page.get_by_alt_text(re.compile("the part of .* that activates kernel 12 most")).first).to_be_visible()
    answers.asked.clear()  # by earlier visits
    page.reload()
    answers.send("status", status="running")
    answers.send("progress", completed=4, total=9, fraction=0.4, seconds_left=12)
    expect(page.locator("#status")).to_contain_text("4 of 9 X̂ made, about 12 s left")
    assert answers.asked == [(f"{SURVEY}/explanations", {"layer": "conv5_3", "kernels": [12], "effort": "quick"})]
    guest.shoot("kernel-being-made")
    page.locator(".card").first.evaluate("card => { card.marked = true; }")
    page.get_by_role("link", name="kernel 13 →").focus()
    answers.response = kernel_page(made=9, explained=explanation(9))
    answers.send("result")
    expect(page.get_by_alt_text(re.compile("X̂: what kernel 12 responds to in"))).to_have_count(9)
    answers.ends()
    expect(page.locator("#status")).to_have_text("9 X̂ made, by evidence with quick effort.")
    assert page.locator(".card").first.evaluate("card => card.marked")
    assert page.evaluate("document.activeElement.rel") == "next"
    expect(page.get_by_role("row", name="Consistency")).to_contain_text("0.91 ± 0.02")
    expect(page.get_by_role("row", name="Discrimination")).to_contain_text("compared with other kernels")
    expect(page.get_by_role("row", name="Positions <")).to_contain_text("< 0.1 %")
    assert len(answers.asked) == 1
    decoded(page)
    guest.shoot("kernel-light")


def test_better_pictures_and_a_comparison_can_be_requested(guest: Visitor) -> None:
    """By buttons that disappear when there is nothing more to request."""
    answers = at(guest, kernel_page(made=9, explained=explanation(9)))
    page = guest.page
    page.get_by_role("button", name="Compare with other kernels").click()
    answers.ends()
    expect(page.locator("#status")).to_contain_text("9 X̂ made, by evidence")
    answers.response = kernel_page(
        made=9, explained=explanation(9, effort="thorough", discrimination=Score(value=0.84, error=None))
    )
    page.get_by_role("button", name="Better pictures (standard effort").click()
    answers.ends()
    expect(page.get_by_role("row", name="Discrimination")).to_contain_text("0.84")
    expect(page.get_by_role("button", name="Better pictures")).to_be_hidden()
    expect(page.get_by_role("button", name="Compare")).to_be_hidden()
    page.get_by_role("button", name=f"Explain all {TOP} images").click()
    answers.ends()
    own = {"layer": "conv5_3", "kernels": [12]}
    page.wait_for_function("() => document.querySelector('#status').textContent.includes('thorough')")
    assert [asked for _, asked in answers.asked] == [
        {**own, "effort": "quick", "rivals": True},
        {**own, "effort": "standard"},
        {**own, "effort": "thorough", "images": TOP},
    ]


def test_a_comparison_that_runs_is_followed(guest: Visitor) -> None:
    """By a page that is opened meanwhile; it may find nothing, or fail."""
    compared = explanation(9, rivals=OTHER_JOB, note="The network has changed since the survey.")
    answers = at(guest, kernel_page(made=9, explained=compared))
    page = guest.page
    answers.send("status", status="running")
    answers.send("progress", completed=3, total=8, fraction=0.4)
    expect(page.locator("#status")).to_have_text("6 of 16 X̂ made")  # both jobs get the same events here
    expect(page.locator("#note")).to_have_text("The network has changed since the survey.")
    answers.ends()
    expect(page.get_by_role("row", name="Discrimination")).to_contain_text("too few X̂ of other kernels")
    expect(page.get_by_role("button", name="Compare")).to_be_hidden()
    page.reload()
    answers.ends("failed")
    expect(page.locator("#status")).to_contain_text("The comparison with other kernels failed.")
    page.get_by_role("button", name="Try again").click()
    answers.ends()
    expect(page.get_by_role("button", name="Try again")).to_be_hidden()


def test_failures_are_shown_and_can_be_retried(guest: Visitor) -> None:
    """One X̂, or all of them; a job that is deleted is requested again."""
    guest.expected = ("410",)
    some = kernel_page(made=8, explained=explanation(8))
    some.top[8] = top(12, 8, made=False, error="No solution was found: the map is too small.")
    answers = at(guest, some)
    page = guest.page
    expect(page.locator(".card").nth(8)).to_contain_text("the map is too small")
    expect(page.locator("#status")).to_have_text("8 X̂ made, by evidence with quick effort; 1 could not be made.")
    guest.shoot("kernel-partly-failed")
    answers.response = kernel_page(made=9, explained=explanation(9))
    page.get_by_role("button", name="Try again").click()
    answers.ends()
    expect(page.locator("#status")).to_have_text("9 X̂ made, by evidence with quick effort.")
    expect(page.get_by_role("button", name="Try again")).to_be_hidden()
    assert answers.asked == [(f"{JOB}/retry", None)]

    answers.job = {**answers.job, "status": "failed", "error": {"title": "Worker lost", "detail": "the worker died"}}
    answers.response = kernel_page(explained=explanation(0, "failed"))
    page.reload()
    expect(page.locator("#status")).to_have_text("The X̂ could not be made: the worker died")
    expect(page.locator(".card").first).to_contain_text("not made")
    page.route(f"**/jobs/{JOB}/retry", lambda route: route.fulfill(status=410, json={"title": "Gone", "status": 410}))
    page.get_by_role("button", name="Try again").click()
    answers.ends("failed")
    expect(page.locator("#status")).to_contain_text("the worker died")
    assert answers.asked[-1][0] == f"{SURVEY}/explanations"


def test_a_refusal_is_shown(guest: Visitor) -> None:
    """Of the request that the page makes by itself."""
    guest.expected = ("429",)
    page = guest.page
    refusal = {"title": "Too many jobs", "detail": "you have 100 jobs; wait for some to end", "status": 429}
    Answers(page).response = kernel_page()
    page.route("**/explanations", lambda route: route.fulfill(status=429, json=refusal))
    page.goto(f"{guest.url}{AT}/12")
    expect(page.locator("#status")).to_contain_text("you have 100 jobs")
    expect(page.locator(".card").first).to_contain_text("not made")
    page.unroute("**/explanations")
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("button", name="Try again")).to_be_hidden()


def test_a_silent_kernel(guest: Visitor) -> None:
    """No job is requested."""
    answers = at(guest, silent_page())
    page = guest.page
    expect(page.locator("#top-words")).to_contain_text("No image of “birds and cats” activates this kernel")
    expect(page.locator("#scores")).to_be_hidden()
    expect(page.locator("#similar-part")).to_be_hidden()
    expect(page.get_by_role("link", name="kernel 13 →")).to_be_visible()
    page.wait_for_timeout(1000)
    assert answers.asked == []
    guest.accessible()
    guest.shoot("kernel-silent")


@pytest.mark.parametrize("path", [f"{AT}/12", AT])
def test_without_a_survey_the_page_says_how_to_make_one(guest: Visitor, path: str) -> None:
    """With the command lines."""
    guest.expected = ("404",)
    detail = "no survey that you may read has vgg16 conv5_3; make one:\n`kernelscope surveys make birds --model vgg16`"
    at(guest, {"title": "No survey", "detail": detail, "status": 404, "type": "/problems/survey-not-found"}, path)
    page = guest.page
    expect(page.get_by_role("heading", name="No survey")).to_be_visible()
    expect(page.locator("#missing code")).to_have_text("kernelscope surveys make birds --model vgg16")
    expect(page.get_by_role("heading", level=1)).to_contain_text("conv5_3, VGG-16")
    expect(page.locator("#content")).to_be_hidden()
    guest.accessible()
    guest.shoot("no-survey")


def test_a_survey_that_is_not_finished_is_followed(guest: Visitor) -> None:
    """How far it is; the page when it is done."""
    halfway = survey(status="running", surveyed=1000)
    answers = Answers(guest.page)
    answers.response = kernel_page(top=[], similar=[], survey=halfway, surveys=[halfway])
    page = guest.page
    page.goto(f"{guest.url}{AT}/12?survey={SURVEY}")
    answers.send("progress", completed=8, total=20, fraction=0.4, seconds_left=240)
    expect(page.locator("#survey-state")).to_contain_text("2,000 of 5,000 images done, about 4 min left")
    expect(page.locator("#content")).to_be_hidden()
    guest.accessible()
    guest.shoot("survey-running")
    answers.response = kernel_page()
    answers.ends()
    expect(page.locator("#survey-state")).to_be_hidden()
    expect(page.locator(".card")).to_have_count(TOP)
    expect(page.locator("#similar > li")).to_have_count(4)
    expect(page.locator("#top-words")).to_contain_text("the emptiest picture")
    answers.response = kernel_page(made=9, explained=explanation(9))
    answers.ends()
    expect(page.locator("#status")).to_contain_text("9 X̂ made")
    assert [path for path, _ in answers.asked] == [f"{SURVEY}/explanations"]


def test_a_survey_is_chosen(guest: Visitor) -> None:
    """Links to other kernels stay in it."""
    both = [survey(), survey(OTHER, dataset_name="ships", status="running")]
    at(guest, kernel_page(made=9, explained=explanation(9), surveys=both))
    page = guest.page
    assert page.get_by_role("link", name="kernel 13 →").get_attribute("href") == "kernels/vgg16/conv5_3/13"
    page.get_by_label("Survey").select_option(label="ships: 5,000 images, May 3, 2026, running")
    page.get_by_role("button", name="Show", exact=True).click()
    page.wait_for_url(f"{guest.url}{AT}/12?survey={OTHER}")
    page.get_by_role("link", name="kernel 13 →").click()
    page.wait_for_url(f"{guest.url}{AT}/13?survey={OTHER}")
    page.get_by_role("link", name="conv5_3, VGG-16").click()
    page.wait_for_url(f"{guest.url}{AT}?survey={OTHER}")


def test_by_keyboard_alone(guest: Visitor) -> None:
    """Neighbours by the arrows, but not while something is chosen; the whole X̂ by Enter, and back."""
    both = [survey(), survey(OTHER, dataset_name="ships")]
    at(guest, kernel_page(made=9, explained=explanation(9), surveys=both))
    page = guest.page
    page.wait_for_selector(".card button")
    page.get_by_label("Survey").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    page.wait_for_timeout(300)
    assert page.url.endswith(f"{AT}/12")
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('.card button')"):
            break
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_contain_text("X̂ of n01530/a photograph of a bird 0.jpg")
    page.get_by_alt_text(re.compile("and its X̂ for kernel")).evaluate("image => image.decode()")
    guest.accessible()
    guest.shoot("kernel-whole")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    assert page.evaluate("document.activeElement.matches('.card button')")
    page.keyboard.press("ArrowRight")
    page.wait_for_url(f"{guest.url}{AT}/13")
    page.wait_for_selector(".card button")
    page.keyboard.press("ArrowLeft")
    page.wait_for_url(f"{guest.url}{AT}/11")  # the response is still that of kernel 12
