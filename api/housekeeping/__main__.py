"""`python -m api.housekeeping`."""

from __future__ import annotations

import signal
from threading import Event

from api.housekeeping import Keeper, loops
from api.housekeeping.runners import HOLD_SECONDS
from api.jobs.webhooks import Postman
from api.services import Services
from shared import logs, telemetry
from shared.advice import begin
from shared.alive import beat
from shared.settings import settings


def main() -> None:
    """Until SIGTERM or SIGINT."""
    logs.configure(settings().log_level, settings().log_format)
    telemetry.start(settings().otlp_endpoint, "kernelscope-housekeeping")
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    services = Services.open(settings())
    postman = Postman(services.webhooks, private=services.settings.webhook_private)
    keeper = Keeper(services.redis, loops(services, postman), services.settings.lease_seconds)
    begin(settings(), "housekeeping")
    keeper.start()
    while not stop.is_set():
        keeper.hold()
        if keeper.alive:
            beat("housekeeping")
        stop.wait(HOLD_SECONDS)
    postman.close()
    keeper.stop()
    telemetry.stop()


if __name__ == "__main__":
    main()
