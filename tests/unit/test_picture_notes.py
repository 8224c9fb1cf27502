"""What a result's note says of its picture, for each method and whatever else the job asked for."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from redis import Redis

from shared.store import BlobStore
from tests.unit.job_bench import JobBench
from worker.engine.dummy import DummyBatch, DummyDevice, _answer
from worker.engine.questions import Answer, Batch, Question
from worker.jobs.artifacts import INVENTIVE, KEPT, note

QUESTION = Question("vgg_mini", "conv2_1", np.zeros((48, 48, 3), np.uint8), 1, 1.0, 1.0)
LOST = "X̂ does not keep the kernel's map: its SSIM is only 0.42. To demand that the map is kept, use target_ssim=0.95."
INVENTED = "This picture activates the layers below conv2_1 beyond the image, by 42% of the image's own activation"


def answer(**metrics: float | None) -> Answer:
    """An answer with these metrics; the rest is as it should be."""
    usual = _answer(QUESTION, 1, "budget")
    return replace(usual, metrics=usual.metrics.model_copy(update=metrics))


@pytest.mark.parametrize(
    ("method", "methods", "advice"),
    [
        ("suppression", ["suppression"], "Use methods=evidence, which keeps this small."),
        ("lrp", ["suppression", "lrp"], "Use methods=evidence, which keeps this small."),
        ("suppression", ["evidence", "suppression"], "Compare it with the picture by evidence, "),
        ("lrp", ["lrp", "evidence"], "Compare it with the picture by evidence, "),
        ("evidence", ["evidence", "suppression"], "Use a larger gamma, or a smaller max_invention."),
    ],
)
def test_a_picture_that_invents_gets_advice_that_is_not_followed_yet(
    method: str, methods: list[str], advice: str
) -> None:
    """Evidence is not advised where it was the method, or was asked for in the same job."""
    found = note(answer(invention=0.42, invention_beyond_blank=0.42), replace(QUESTION, method=method), methods)
    assert found
    assert found.startswith(INVENTED)
    assert advice in found
    assert ("methods=evidence" in found) == ("evidence" not in methods)
    assert note(answer(invention=INVENTIVE, invention_beyond_blank=INVENTIVE), replace(QUESTION, method=method)) is None


@pytest.mark.parametrize("method", ["suppression", "evidence"])
def test_a_picture_that_does_not_keep_the_map_says_so(method: str) -> None:
    """With what to do. Not at the threshold, not where a target was given, and not for a map without an SSIM."""
    question = replace(QUESTION, method=method)
    assert note(answer(ssim=0.42), question) == LOST
    assert note(answer(ssim=0.42), replace(question, max_preservation=0.9)) == LOST
    assert note(answer(ssim=KEPT), question) is None
    assert note(answer(ssim=None), question) is None
    assert note(answer(ssim=0.42), replace(question, target_ssim=0.95)) is None


def test_the_solver_that_keeps_a_bound_is_named_where_it_was_not_used() -> None:
    """A bound is refused with `solver=reference`."""
    question = replace(QUESTION, solver="reference")
    fast = " with solver=fast."
    assert note(answer(ssim=0.42), question) == LOST.removesuffix(".") + fast
    blank = note(answer(ssim=0.0, sparsity=1), question)
    assert blank
    assert blank.endswith(f"Use a smaller beta, or a target_ssim{fast}")
    better = replace(answer(), loss_blank=0.0)
    for one, end in ((question, fast), (QUESTION, ".")):
        text = note(better, one)
        assert text
        assert text.startswith("The blank picture has a lower loss (0.00)")
        assert text.endswith(f"Use a smaller beta, or a target_ssim{end}")


@pytest.mark.parametrize("method", ["guided_backprop", "deconvnet", "lrp"])
def test_a_baseline_is_not_expected_to_keep_the_map(method: str) -> None:
    """It does not try to, and has no target."""
    assert note(answer(ssim=0.1), replace(QUESTION, method=method)) is None


def test_a_picture_with_two_faults_has_both_notes() -> None:
    """But a blank one is only called blank."""
    both = note(answer(ssim=0.42, invention=0.42), QUESTION)
    assert both
    assert both.startswith(f"{LOST} {INVENTED}")
    blank = note(answer(ssim=0.0, sparsity=1), QUESTION)
    assert blank
    assert blank.startswith("This is the blank picture")
    assert "does not keep" not in blank


class InventiveBatch(DummyBatch):
    """A batch whose pictures invent."""

    def _end(self, reason: object) -> list[object]:  # type: ignore[override]
        (ticket, found) = super()._end(reason)[0]  # type: ignore[arg-type]
        assert isinstance(found, Answer)
        return [(ticket, replace(found, metrics=found.metrics.model_copy(update={"invention": 0.42})))]


class Inventive(DummyDevice):
    """A device whose pictures invent."""

    def batch(self, question: Question) -> Batch:  # noqa: ARG002
        """Such a batch."""
        return InventiveBatch()


def test_a_reused_result_has_the_note_of_its_own_job(redis: Redis, tmp_path: Path) -> None:
    """The first job did not ask for evidence, the second did."""
    bench = JobBench(redis, BlobStore(tmp_path.as_uri()), tmp_path, device=Inventive())
    bench.submit("first", kernels=[1])
    bench.submit("second", kernels=[1], methods=["suppression", "evidence"])
    (first,) = bench.run("first:0").results
    second = bench.run("second:0").results[0]
    assert (first.reused, second.reused) == (False, True)
    assert first.note
    assert "methods=evidence" in first.note
    assert second.note
    assert "Compare it with the picture by evidence" in second.note


def test_the_documentation_has_the_thresholds() -> None:
    """Both pages that describe the note."""
    docs = Path(__file__).parents[2] / "docs"
    for page in ("method.md", "http-api.md"):
        text = (docs / page).read_text()
        assert re.search(rf"`ssim`( is)? below {KEPT}\b", text), page
        assert re.search(rf"`invention`( is)? above {INVENTIVE}\b", text), page
