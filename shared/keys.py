"""API keys: who may call, how often, and with how much unfinished work. Only a key's SHA-256 is kept.

A key belongs to a name. Jobs, images and cached results belong to the name too, so a second key of the same name takes
over from the first (rotation), and nobody else sees any of it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from pydantic import BaseModel, Field
from redis import Redis

from shared.connection import redis_errors

KEYS = "ks:keys"  # hash: SHA-256 of a key → its entry; revoked ones stay, so that a server with keys never falls open
WEBHOOK_SECRETS = "ks:webhook_secrets"  # hash: name → its `WebhookSecret`, once that was rotated
PREFIX = "ks_"
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class ApiKey(BaseModel):
    """A key, but for the key itself."""

    digest: str = Field(description="SHA-256 of the key")
    name: str = Field(pattern=NAME)
    created_at: datetime
    revoked_at: datetime | None = None
    rate: str | None = Field(None, description="requests that it may send, `100/second`; null: the server's default")
    max_open: int | None = Field(None, description="parts of jobs that it may have unfinished; null: the default")

    @property
    def id(self) -> str:
        """How people tell keys apart."""
        return self.digest[:8]


def digest_of(key: str) -> str:
    """SHA-256 of a key or a session's token, 64 hex digits.

    Keys have 256 random bits: no salt, and no slow hash, would make guessing one any harder.
    """
    return hashlib.sha256(key.encode()).hexdigest()


def entry(text: str | None, digest: str) -> ApiKey | None:
    """The key of this digest as `KEYS` holds it, unless it was revoked."""
    if text is None:
        return None
    found = ApiKey.model_validate_json(text)
    return found if hmac.compare_digest(found.digest, digest) and found.revoked_at is None else None


class ApiKeys:
    """The keys of an installation, in its Redis."""

    def __init__(self, redis: Redis, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.redis = redis
        self.clock = clock

    def add(self, name: str, rate: str | None = None, max_open: int | None = None) -> str:
        """Make a key and return it: nobody can read it again."""
        key = PREFIX + secrets.token_urlsafe(32)
        made = ApiKey(digest=digest_of(key), name=name, created_at=self.clock(), rate=rate, max_open=max_open)
        with redis_errors():
            self.redis.hset(KEYS, made.digest, made.model_dump_json())
        return key

    def all(self) -> list[ApiKey]:
        """Every key that was ever made, oldest first."""
        with redis_errors():
            texts = self.redis.hvals(KEYS)
        return sorted((ApiKey.model_validate_json(text) for text in texts), key=lambda key: key.created_at)

    def revoke(self, which: str) -> list[ApiKey]:
        """End the key of this id, or all keys of this name; they are refused from now on. Returns those that ended."""
        ended = [key for key in self.all() if which in (key.id, key.name) and key.revoked_at is None]
        now = self.clock()
        with redis_errors():
            for key in ended:
                self.redis.hset(KEYS, key.digest, key.model_copy(update={"revoked_at": now}).model_dump_json())
        return ended


class PreviousSecret(BaseModel):
    """One that was replaced, and signs beside its successor for a day."""

    secret: str
    until: datetime


class WebhookSecret(BaseModel):
    """What the webhooks of one name are signed with."""

    secret: str = Field(description="`whsec_…`, as Standard Webhooks writes it")
    previous: list[PreviousSecret] = Field([], description="those that it replaced, as long as they sign as well")


def webhook_secrets(redis: Redis, owner: str) -> WebhookSecret:
    """What signs this owner's webhooks: until it is rotated, made of a secret of the installation and the name."""
    with redis_errors():
        root, rotated = redis.get("ks:webhook_secret"), redis.hget(WEBHOOK_SECRETS, owner)
        if root is None:
            redis.set("ks:webhook_secret", secrets.token_hex(32), nx=True)
            root = redis.get("ks:webhook_secret")
    if rotated is None:
        return WebhookSecret(secret=_written(hmac.digest(bytes.fromhex(str(root)), owner.encode(), "sha256")))
    found = WebhookSecret.model_validate_json(rotated)
    now = datetime.now(UTC)
    found.previous = [each for each in found.previous if each.until > now]
    return found


def rotate_webhook_secret(redis: Redis, owner: str) -> WebhookSecret:
    """Give this owner's webhooks a new secret; the old one signs as well for a day."""
    before = webhook_secrets(redis, owner)
    replaced = PreviousSecret(secret=before.secret, until=datetime.now(UTC) + timedelta(days=1))
    made = WebhookSecret(secret=_written(secrets.token_bytes(32)), previous=[replaced, *before.previous])
    with redis_errors():
        redis.hset(WEBHOOK_SECRETS, owner, made.model_dump_json())
    return made


def _written(secret: bytes) -> str:
    return "whsec_" + base64.b64encode(secret).decode()
