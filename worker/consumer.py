"""Celery's consumer, more patient: a broker that refuses at once is asked again in a second, not as fast as it can."""

from __future__ import annotations

import time

from celery.worker import consumer

REFUSED_SECONDS = 1.0


class Consumer(consumer.Consumer):  # type: ignore[misc]
    """The default one, but for the pause."""

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        """As it is told, then wait."""
        super().on_connection_error_before_connected(exc)
        time.sleep(REFUSED_SECONDS)
