"""The notes in results."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.conftest import encoded, noise
from tests.unit.job_bench import JobBench
from worker.engine.dummy import _answer
from worker.engine.questions import Question
from worker.jobs import slices
from worker.jobs.artifacts import note


def test_what_was_ignored_of_an_image_is_noted_in_its_results(bench: JobBench) -> None:
    """The note is in explanations and rankings, but not in those of a file with the same pixels."""
    odd = encoded(noise(), "WEBP", lossless=True, exif=b"garbage-garbage!")
    plain = encoded(noise(), "WEBP", lossless=True)
    said = "The EXIF data of the image's file was ignored: it is damaged."
    bench.submit("odd", images=[odd])
    assert [result.note for result in bench.run("odd:0").results] == [said] * 3
    bench.submit("plain", images=[plain])
    assert [(result.note, result.reused) for result in bench.run("plain:0").results] == [(None, False)] * 3
    bench.submit("again", images=[odd])
    assert [(result.note, result.reused) for result in bench.run("again:0").results] == [(said, True)] * 3
    bench.submit("ranks", images=[odd], kernels=[], methods=["activations"])
    assert bench.run("ranks:0").results[0].note == said


def test_one_note_does_not_replace_another(bench: JobBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A question with this picture and these notes."""
    monkeypatch.setattr(slices, "note", lambda *_: "This is the blank picture.")
    bench.submit(images=[encoded(noise(), "WEBP", exif=b"garbage-garbage!")])
    assert bench.run().results[0].note == (
        "This is the blank picture. The EXIF data of the image's file was ignored: it is damaged."
    )


def test_a_picture_that_invents_says_so(bench: JobBench) -> None:
    """The note advises what to change; there is none for a small invention."""
    with bench.runner() as runner:
        bench.submit("little", methods=["suppression"], kernels=[1])
        runner.run("interactive", "little:0")
    (result,) = bench.records.whole("little").results
    assert result.note is None
    question = Question("vgg_mini", "conv2_1", np.zeros((48, 48, 3), np.uint8), 1, 1.0, 1.0)
    answer = _answer(question, 1, "budget")
    loud = replace(
        answer, metrics=answer.metrics.model_copy(update={"invention": 0.42, "invention_beyond_blank": 0.42})
    )
    for method, advice in (
        ("suppression", "methods=evidence"),
        ("evidence", "max_invention"),
        ("lrp", "methods=evidence"),
    ):
        reported = note(loud, replace(question, method=method))
        assert reported is not None
        assert "42%" in reported
        assert "conv2_1" in reported
        assert advice in reported
