"""Delivery of webhooks: a part of housekeeping. Each attempt is stored in the job's record."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from datetime import UTC, datetime
from threading import Condition, Thread

import httpcore

from api.jobs.outbound import post
from shared import logs, telemetry
from shared.errors import StoreUnavailable
from shared.webhooks import Attempt, Message, Webhooks

log = logging.getLogger(__name__)

AT_ONCE = 16  # deliveries
USER_AGENT = "Kernelscope-Webhooks/1"


class WebhookSender:
    """Delivers the messages that are due, each in a thread of its own.

    Args:
        private: whether private and loopback addresses are allowed.
    """

    def __init__(self, webhooks: Webhooks, *, private: bool) -> None:
        self.webhooks = webhooks
        self.private = private
        self._sending: dict[str, Message] = {}
        self._changed = Condition()
        self._closed = False

    def round(self) -> None:
        """Start to deliver messages that are due, up to `AT_ONCE`; a thread that finishes starts the next ones.

        Raises:
            StoreUnavailable.
        """
        with self._changed:
            free = AT_ONCE - len(self._sending)
            if self._closed or not free:
                return
            for message in self.webhooks.take(free, self._sending.values()):
                if message.job_id not in self._sending:  # otherwise an attempt of a minute ago is still running
                    self._sending[message.job_id] = message
                    Thread(target=self._deliver, args=(message,), name="webhook", daemon=True).start()

    def close(self, seconds: float = 5.0) -> None:
        """Start no more deliveries, and wait this long for those that run: the next process retries the others."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not self._sending, seconds)

    def _deliver(self, message: Message) -> None:
        try:
            with logs.bound(job_id=message.job_id):
                self._try(message)
        except StoreUnavailable as error:
            log.warning("%s; the webhook of job %s will be retried", error, message.job_id)
        except Exception:  # a bug: the message is retried in a minute
            log.exception("the webhook of job %s could not be processed", message.job_id)
        with self._changed:
            del self._sending[message.job_id]
            self._changed.notify_all()
        with suppress(StoreUnavailable):  # the loop calls again in a second
            self.round()

    def _try(self, message: Message) -> None:
        body, headers = self.webhooks.request(message)
        begin, at, job_id = time.perf_counter(), datetime.now(UTC), message.job_id
        with telemetry.received(message.traceparent), telemetry.span("webhook", message.traceparent, job_id=job_id):
            status, error = self._post(message.url, body, headers)
            telemetry.note(outcome=error or "delivered")
        seconds = round(time.perf_counter() - begin, 3)
        self.webhooks.note(message, Attempt(at=at, seconds=seconds, status=status, error=error))
        log.info("webhook: %s in %.1f s", error or "delivered", seconds)

    def _post(self, url: str, body: bytes, signature: dict[str, str]) -> tuple[int | None, str | None]:
        """The status of the response, if there is one, and the error, if there is one."""
        headers = {**signature, "Content-Type": "application/json", "User-Agent": USER_AGENT}
        if traceparent := telemetry.traceparent():
            headers["traceparent"] = traceparent
        try:
            status = post(url, body, headers, private=self.private)
        except (OSError, ValueError, httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError) as error:
            return None, str(error) or type(error).__name__
        except Exception as error:  # a bug: stored like a receiver's error, so that retries end
            log.exception("the webhook could not be sent")
            return None, f"internal error ({type(error).__name__})"
        if 200 <= status < 300:
            return status, None
        return status, f"the receiver responded with {status}" + (
            "; redirects are not followed" if 300 <= status < 400 else ""
        )
