"""`/webhook-secret`: what the caller's webhooks are signed with."""

from __future__ import annotations

from fastapi import APIRouter, Response

from api.edge.access import Asking
from api.services import Opened
from shared.keys import WebhookSecret, webhook_secrets

router = APIRouter(tags=["webhooks"])


@router.get("/webhook-secret")
def get_webhook_secret(response: Response, services: Opened, caller: Asking) -> WebhookSecret:
    """The secret of your key's name, to verify webhooks with (Standard Webhooks)."""
    response.headers["Cache-Control"] = "no-store"
    return webhook_secrets(services.redis, caller.owner)
