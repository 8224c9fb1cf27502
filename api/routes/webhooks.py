"""`/webhook-secret`: the secret that signs the caller's webhooks."""

from __future__ import annotations

from fastapi import APIRouter, Response

from api.edge.access import CallerDep
from api.openapi import example, refusals
from api.services import ServicesDep
from shared.keys import WebhookSecret, webhook_secrets

router = APIRouter(tags=["webhooks"])

SECRET = {"secret": "whsec_" + "A" * 43 + "=", "previous": []}


@router.get("/webhook-secret", responses={**example(200, SECRET), **refusals()})
def get_webhook_secret(response: Response, services: ServicesDep, caller: CallerDep) -> WebhookSecret:
    """The secret of your key's name, with which you verify webhooks (Standard Webhooks)."""
    response.headers["Cache-Control"] = "no-store"
    return webhook_secrets(services.redis, caller.owner)
