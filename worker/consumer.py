"""Celery's consumer with a pause of a second after a refused connection to the broker."""

from __future__ import annotations

import time

from celery.worker import consumer

PAUSE_SECONDS = 1.0


class Consumer(consumer.Consumer):  # type: ignore[misc]
    """The default consumer with the pause."""

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        """Handle the error as the default does, then wait."""
        super().on_connection_error_before_connected(exc)
        time.sleep(PAUSE_SECONDS)
