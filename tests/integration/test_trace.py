"""One job's trace, as a receiver of OpenTelemetry's protocol gets it from the project's own processes.

Their engine is the dummy: everything else (HTTP, record, queue, slices, store, webhooks) is what serves people.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from shared.telemetry import TRACEPARENT
from tests.chaos.conftest import picture, running, until

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


REQUEST, QUEUE, SLICE = ("api", "POST /explain"), ("worker", "queue"), ("worker", "slice")
SOLVE, WEBHOOK = ("worker", "solve"), ("housekeeping", "webhook")
WANTED = {REQUEST, QUEUE, SLICE, SOLVE, WEBHOOK, ("api", "store put"), ("worker", "store put")}


@dataclass
class Receiver:
    """A collector, and the receiver of a webhook."""

    url: str
    spans: list[tuple[str, Span]] = field(default_factory=list)  # each with its process's name
    webhooks: list[dict[str, str]] = field(default_factory=list)  # the headers of each

    def took(self, path: str, headers: dict[str, str], body: bytes) -> None:
        """One request."""
        if path == "/hook":
            self.webhooks.append(headers)
            return
        assert path == "/v1/traces"
        for one in ExportTraceServiceRequest.FromString(body).resource_spans:
            (service,) = (each.value.string_value for each in one.resource.attributes if each.key == "service.name")
            self.spans += [(service, span) for scope in one.scope_spans for span in scope.spans]

    def of(self, trace: str) -> dict[tuple[str, str], Span]:
        """The spans of a trace by their process and name; of several with one name the last."""
        own = [(service, span) for service, span in self.spans if span.trace_id.hex() == trace]
        return {(service.removeprefix("kernelscope-"), span.name): span for service, span in own}


@contextmanager
def receiving() -> Iterator[Receiver]:
    """On loopback."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            receiver.took(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver = Receiver(f"http://127.0.0.1:{server.server_address[1]}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield receiver
        server.shutdown()


def test_a_job_is_one_trace_from_its_request_to_its_webhook(tmp_path: Path) -> None:
    """The caller's own: request, queue, slice, solver, store and webhook hang together and follow each other."""
    with receiving() as receiver:
        settings = {
            "KERNELSCOPE_ENGINE": "dummy",
            "KERNELSCOPE_OTLP_ENDPOINT": receiver.url,
            "KERNELSCOPE_WEBHOOK_PRIVATE": "true",
            "KERNELSCOPE_LOG_FORMAT": "json",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }
        with running(tmp_path, "worker", **settings) as plant:
            form = {"model": "vgg_mini", "layer": "conv2_1", "kernels": "1", "webhook_url": f"{receiver.url}/hook"}
            headers = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
            files = {"image": picture()}
            httpx.post(f"{plant.url}/explain", files=files, data=form, headers=headers).raise_for_status()
            until(lambda: set(receiver.of(TRACE)) >= WANTED and receiver.webhooks, 30)
            log = (plant.folder / "api.log").read_text().splitlines()
    spans = receiver.of(TRACE)
    request, part, called = (spans[name] for name in (REQUEST, SLICE, WEBHOOK))
    assert request.parent_span_id.hex() == CALLER
    assert {spans[name].parent_span_id for name in (QUEUE, SLICE, WEBHOOK, ("api", "store put"))} == {request.span_id}
    assert {spans[name].parent_span_id for name in (SOLVE, ("worker", "store put"))} == {part.span_id}
    assert spans[QUEUE].end_time_unix_nano <= part.start_time_unix_nano
    assert part.start_time_unix_nano <= called.start_time_unix_nano
    match = TRACEPARENT.fullmatch(receiver.webhooks[0]["traceparent"])
    assert match
    assert match[1] == TRACE
    assert called.span_id.hex() in receiver.webhooks[0]["traceparent"]
    assert [json.loads(line)["trace_id"] for line in log if "POST /explain" in line] == [TRACE]
    assert not {span.name for _, span in receiver.spans} & {"GET /readyz", "GET /metrics"}
