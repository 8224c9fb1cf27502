"""From a checked body to a queued job; news of jobs; webhooks."""
