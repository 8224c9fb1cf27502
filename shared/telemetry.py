"""Traces with OpenTelemetry. Unless the setting for the endpoint is set, nothing is traced or imported.

A trace begins with a request. Its `traceparent` (W3C Trace Context) is stored with the job, so all work on the job, in
any process, is part of that trace. Work that belongs to no request has no spans.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from threading import Thread
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.util.types import AttributeValue

TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
TIMEOUT_SECONDS = 2.0  # for sending spans, also when a process ends

_provider: TracerProvider | None = None
_received: ContextVar[str] = ContextVar("received", default="")


def start(endpoint: str, service: str) -> TracerProvider | None:
    """Start sending spans to an OTLP receiver, in batches, in a background thread. Returns None without an endpoint.

    OpenTelemetry's own variables apply: OTEL_EXPORTER_OTLP_HEADERS, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER.

    Args:
        endpoint: such as `http://collector:4318`; empty: no tracing.
        service: name of the process in traces.
    """
    global _provider  # noqa: PLW0603 - one per process, like logging
    if not endpoint:
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", timeout=TIMEOUT_SECONDS)
    _provider = TracerProvider(resource=Resource.create({"service.name": service}), shutdown_on_exit=False)
    _provider.add_span_processor(BatchSpanProcessor(exporter))
    return _provider


def stop() -> None:
    """Stop tracing. Remaining spans are sent, within a time limit."""
    global _provider
    ending, _provider = _provider, None
    if ending:
        thread = Thread(target=ending.shutdown, daemon=True)
        thread.start()
        thread.join(TIMEOUT_SECONDS)


@contextmanager
def received(traceparent: str) -> Iterator[None]:
    """The context of a request with this `traceparent`; an invalid one is ignored."""
    token = _received.set(traceparent if TRACEPARENT.fullmatch(traceparent) else "")
    try:
        yield
    finally:
        _received.reset(token)


def traceparent() -> str:
    """The `traceparent` of the current span; without tracing that of the request, so that it is passed on; or empty."""
    if _provider is not None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier)
        if carrier:
            return carrier["traceparent"]
    return _received.get()


def fields(traceparent: str) -> dict[str, str]:
    """The fields that it adds to log lines: `trace_id`."""
    found = TRACEPARENT.fullmatch(traceparent)
    return {"trace_id": found[1]} if found else {}


def span(name: str, parent: str = "", **attributes: AttributeValue) -> AbstractContextManager[object]:
    """A span of the trace of `parent`, or else of the current one; without a trace there is no span."""
    if _provider is None or (context := _context(parent)) is None:
        return nullcontext()
    return _provider.get_tracer(__name__).start_as_current_span(name, context, attributes=attributes)


def past(name: str, begin: float, parent: str = "", **attributes: AttributeValue) -> None:
    """Record a span that ends now and began at this time, in seconds since 1970."""
    if _provider is not None and (context := _context(parent)) is not None:
        tracer = _provider.get_tracer(__name__)
        tracer.start_span(name, context, attributes=attributes, start_time=int(begin * 1e9)).end()


def note(**attributes: AttributeValue) -> None:
    """Add attributes to the current span."""
    if _provider is not None:
        from opentelemetry import trace

        trace.get_current_span().set_attributes(attributes)


def _context(parent: str) -> Context | None:
    """The parent of a span: `parent`, or else the current span; None if there is neither."""
    from opentelemetry import context, trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = {"traceparent": parent}
    found = TraceContextTextMapPropagator().extract(carrier) if parent else context.get_current()
    return found if trace.get_current_span(found).get_span_context().is_valid else None
