"""API keys, their limits, and the secrets that sign webhooks. Only the SHA-256 of a key is stored.

A key belongs to a name, and so do jobs, images and cached results. To rotate a key, add a second one with the
same name. No other name has access to them.
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

KEYS = "ks:keys"  # hash: SHA-256 of a key → `ApiKey`; revoked keys stay, as a server without keys would be open
WEBHOOK_SECRETS = "ks:webhook_secrets"  # hash: name → `WebhookSecret`, for names that have rotated it
PREFIX = "ks_"
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class ApiKey(BaseModel):
    """The stored data of a key, without the key itself."""

    digest: str = Field(description="SHA-256 of the key")
    name: str = Field(pattern=NAME)
    created_at: datetime
    revoked_at: datetime | None = None
    rate: str | None = Field(None, description="request rate, such as `100/second`; null: the server's default")
    max_open: int | None = Field(None, description="most unfinished parts of jobs; null: the server's default")

    @property
    def id(self) -> str:
        """A short id for people."""
        return self.digest[:8]


def digest_of(key: str) -> str:
    """SHA-256 of a key or a session's token, 64 hex digits.

    Keys have 256 random bits, so neither a salt nor a slow hash is needed.
    """
    return hashlib.sha256(key.encode()).hexdigest()


def entry(text: str | None, digest: str) -> ApiKey | None:
    """The key with this digest, from its text in `KEYS`; None if there is none, or it was revoked."""
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
        """Create a key and return it. It cannot be read again."""
        key = PREFIX + secrets.token_urlsafe(32)
        made = ApiKey(digest=digest_of(key), name=name, created_at=self.clock(), rate=rate, max_open=max_open)
        with redis_errors():
            self.redis.hset(KEYS, made.digest, made.model_dump_json())
        return key

    def all(self) -> list[ApiKey]:
        """Every key, also revoked ones, oldest first."""
        with redis_errors():
            texts = self.redis.hvals(KEYS)
        return sorted((ApiKey.model_validate_json(text) for text in texts), key=lambda key: key.created_at)

    def revoke(self, which: str) -> list[ApiKey]:
        """Revoke the key with this id, or all keys with this name. Returns the keys that were revoked."""
        ended = [key for key in self.all() if which in (key.id, key.name) and key.revoked_at is None]
        now = self.clock()
        with redis_errors():
            for key in ended:
                self.redis.hset(KEYS, key.digest, key.model_copy(update={"revoked_at": now}).model_dump_json())
        return ended


class PreviousSecret(BaseModel):
    """A replaced secret, which still signs, in addition to its successor, for a day."""

    secret: str
    until: datetime


class WebhookSecret(BaseModel):
    """The secret that signs the webhooks of one name."""

    secret: str = Field(description="`whsec_…`, as in Standard Webhooks")
    previous: list[PreviousSecret] = Field([], description="replaced secrets that still sign")


def webhook_secrets(redis: Redis, owner: str) -> WebhookSecret:
    """This owner's secret. Until it is rotated, it is derived from a secret of the installation and the name."""
    with redis_errors():
        root, rotated = redis.get("ks:webhook_secret"), redis.hget(WEBHOOK_SECRETS, owner)
        if root is None:
            redis.set("ks:webhook_secret", secrets.token_hex(32), nx=True)
            root = redis.get("ks:webhook_secret")
    if rotated is None:
        return WebhookSecret(secret=_encoded(hmac.digest(bytes.fromhex(str(root)), owner.encode(), "sha256")))
    found = WebhookSecret.model_validate_json(rotated)
    now = datetime.now(UTC)
    found.previous = [each for each in found.previous if each.until > now]
    return found


def rotate_webhook_secret(redis: Redis, owner: str) -> WebhookSecret:
    """Create a new secret for this owner's webhooks; the old one still signs for a day."""
    before = webhook_secrets(redis, owner)
    replaced = PreviousSecret(secret=before.secret, until=datetime.now(UTC) + timedelta(days=1))
    made = WebhookSecret(secret=_encoded(secrets.token_bytes(32)), previous=[replaced, *before.previous])
    with redis_errors():
        redis.hset(WEBHOOK_SECRETS, owner, made.model_dump_json())
    return made


def _encoded(secret: bytes) -> str:
    return "whsec_" + base64.b64encode(secret).decode()
