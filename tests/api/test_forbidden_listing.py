"""An S3 bucket that may be read and written but not listed: it answers 403, not 404, for what is not there."""

from __future__ import annotations

from redis import Redis

from shared.settings import Settings
from tests.api.conftest import serving
from tests.api.test_explain import post
from tests.unit.test_store import Bucket, bucket

__all__ = ["bucket"]  # the fixture


def test_the_api_is_ready_and_accepts_jobs(settings: Settings, redis: Redis, bucket: type[Bucket]) -> None:
    """Their images are stored, and served."""
    with serving(settings.model_copy(update={"store_url": "s3://b"})) as client:
        assert client.get("/readyz").json()["status"] == "ready"
        answer = post(client)
        assert answer.status_code == 202, answer.text
        assert client.get(answer.json()["links"]["self"]).status_code == 200
        assert len(bucket.blobs) == 2  # the store's identity and the image
