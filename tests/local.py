"""Serves a function over HTTP on a local port, for clients whose transport cannot be replaced."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

Answering = Callable[[httpx.Request], httpx.Response]


@contextmanager
def local(answer: Answering) -> Iterator[str]:
    """The URL of the server."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _any(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            found = answer(
                httpx.Request(self.command, f"http://server{self.path}", headers=[*self.headers.items()], content=body)
            )
            self.send_response(found.status_code)
            self.send_header("Content-Length", str(len(found.content)))
            self.send_header("Content-Type", found.headers.get("content-type", "application/octet-stream"))
            self.end_headers()
            self.wfile.write(found.content)

        do_GET = do_POST = do_DELETE = _any  # noqa: N815 - the library's names

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
