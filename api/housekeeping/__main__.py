"""The housekeeping process: `python -m api.housekeeping`."""

from __future__ import annotations

import signal
from threading import Event

from api.housekeeping import Scheduler, loops
from api.housekeeping.scheduler import RENEW_SECONDS
from api.jobs.deliveries import WebhookSender
from api.services import Services
from shared import logs, telemetry
from shared.advice import log_start
from shared.alive import beat
from shared.settings import settings


def main() -> None:
    """Run until SIGTERM or SIGINT."""
    logs.configure(settings().log_level, settings().log_format)
    telemetry.start(settings().otlp_endpoint, "kernelscope-housekeeping")
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    services = Services.open(settings())
    sender = WebhookSender(services.webhooks, private=services.settings.webhook_private)
    scheduler = Scheduler(services.redis, loops(services, sender), services.settings.lease_seconds)
    log_start(settings(), "housekeeping")
    scheduler.start()
    while not stop.is_set():
        scheduler.renew_locks()
        if scheduler.alive:
            beat("housekeeping")
        stop.wait(RENEW_SECONDS)
    sender.close()
    scheduler.stop()
    telemetry.stop()


if __name__ == "__main__":
    main()
