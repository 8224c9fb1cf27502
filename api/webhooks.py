"""Delivers webhooks: part of housekeeping, a few at once, each attempt logged in the job's record."""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import httpcore

from api.outbound import post
from shared import logs
from shared.errors import StoreUnavailable
from shared.webhooks import Attempt, Message, Webhooks

log = logging.getLogger(__name__)

AT_ONCE = 16
USER_AGENT = "Kernelscope-Webhooks/1"


class Postman:
    """Takes what is due and carries it out.

    Args:
        private: whether private and loopback addresses are called too.
    """

    def __init__(self, webhooks: Webhooks, *, private: bool) -> None:
        self.webhooks = webhooks
        self.private = private
        self._threads = ThreadPoolExecutor(AT_ONCE, "webhook")
        self._in_hand: set[str] = set()

    def round(self) -> None:
        """Begin to deliver what is due, as far as hands are free; a slow receiver holds up nobody else."""
        for job_id in self.webhooks.take(max(0, AT_ONCE - len(self._in_hand))):
            if job_id not in self._in_hand:  # else the attempt of a minute ago is still being made
                self._in_hand.add(job_id)
                self._threads.submit(self._deliver, job_id)

    def close(self) -> None:
        """Wait for nobody: what is not delivered is tried again by the next process."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _deliver(self, job_id: str) -> None:
        try:
            with logs.bound(job_id=job_id):
                self._try(job_id)
        except StoreUnavailable as error:
            log.warning("%s; the webhook of job %s is tried again", error, job_id)
        except Exception:  # a bug must not cost the thread its place
            log.exception("the webhook of job %s could not be tried", job_id)
        finally:
            self._in_hand.discard(job_id)

    def _try(self, job_id: str) -> None:
        message = self.webhooks.message(job_id)
        if message is None:
            self.webhooks.forget(job_id)
            return
        begin, at = time.perf_counter(), datetime.now(UTC)
        status, error = self._post(message)
        seconds = round(time.perf_counter() - begin, 3)
        self.webhooks.note(job_id, Attempt(at=at, seconds=seconds, status=status, error=error))
        log.info("webhook: %s in %.1f s", error or "delivered", seconds)

    def _post(self, message: Message) -> tuple[int | None, str | None]:
        """The answer's status, and what is wrong with it."""
        headers = {**message.headers, "Content-Type": "application/json", "User-Agent": USER_AGENT}
        try:
            status = post(message.url, message.body, headers, private=self.private)
        except (OSError, ValueError, httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError) as error:
            return None, str(error) or type(error).__name__
        except Exception as error:  # a bug: noted like a receiver's fault, so that it is not tried for ever
            log.exception("the webhook could not be sent")
            return None, f"internal error ({type(error).__name__})"
        if 200 <= status < 300:
            return status, None
        return status, f"the receiver answered {status}" + (
            "; redirects are not followed" if 300 <= status < 400 else ""
        )
