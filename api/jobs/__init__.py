"""From a request to a queued job; long polls and event streams; delivery of webhooks."""
