"""Traces without a receiver, and without tracing."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from kernelscope.stack import free_port
from shared import telemetry

GIVEN = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def made() -> Iterator[InMemorySpanExporter]:
    """The spans that are created; their receiver does not respond."""
    provider = telemetry.start(f"http://127.0.0.1:{free_port()}", "test")
    assert provider
    spans = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    yield spans
    telemetry.stop()


def test_work_without_a_request_has_no_span(made: InMemorySpanExporter) -> None:
    """Housekeeping reads blobs every second."""
    with telemetry.span("outer"), telemetry.span("inner"):
        telemetry.past("past", time.time() - 1)
    assert made.get_finished_spans() == ()
    assert telemetry.traceparent() == ""


def test_spans_are_children_of_the_current_one(made: InMemorySpanExporter) -> None:
    """And the current one is a child of the request's; past spans have their own times."""
    with telemetry.span("slice", GIVEN):
        telemetry.past("solve", time.time() - 2, kernel=3)
        telemetry.note(outcome="done")
        inside = telemetry.traceparent()
    solve, part = made.get_finished_spans()
    assert solve.parent
    assert part.parent
    assert part.context
    assert part.attributes
    assert (solve.parent.span_id, f"{part.parent.span_id:016x}") == (part.context.span_id, GIVEN.split("-")[2])
    assert solve.start_time
    assert solve.end_time
    assert 2 <= (solve.end_time - solve.start_time) / 1e9 < 60
    assert part.attributes["outcome"] == "done"
    assert inside.split("-")[1:3] == [GIVEN.split("-")[1], f"{part.context.span_id:016x}"]


def test_an_unavailable_receiver_does_not_delay_the_end() -> None:
    """Unsent spans are dropped; afterwards the caller's `traceparent` is passed on again."""
    telemetry.start(f"http://127.0.0.1:{free_port()}", "test")
    with telemetry.span("slice", GIVEN):
        pass
    begin = time.monotonic()
    telemetry.stop()
    assert time.monotonic() - begin < 3 * telemetry.TIMEOUT_SECONDS
    with telemetry.received(GIVEN), telemetry.span("slice", GIVEN):
        assert telemetry.traceparent() == GIVEN
