"""Webhooks: signatures, retries, records of attempts, allowed addresses."""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit

import pytest
from httpx import Client
from redis import Redis
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from api.jobs.deliveries import WebhookSender
from shared.keys import WEBHOOK_SECRETS, rotate_webhook_secret, webhook_secrets
from shared.schemas import Job
from shared.settings import Settings
from shared.webhooks import DELAYS, DUE, MESSAGES, OUTCOMES, TRIED, Webhooks
from tests.api.conftest import InlineWorker, Receiver, serving
from tests.api.test_explain import post, refused
from tests.api.test_operation import metrics


@dataclass
class Clock:
    """A clock that the test sets."""

    now: float = field(default_factory=time.time)

    def __call__(self) -> float:
        """Seconds since 1970."""
        return self.now


@pytest.fixture
def client(settings: Settings, redis: Redis) -> Iterator[Client]:
    """A client of an API that also calls private addresses."""
    with serving(settings.model_copy(update={"webhook_private": True})) as client:
        yield client


def deliver(webhooks: Webhooks) -> None:
    """Run one round of deliveries to its end."""
    sender = WebhookSender(webhooks, private=True)
    sender.round()
    sender.close(30)


def test_a_job_s_end_sends_a_signed_webhook(
    client: Client, redis: Redis, inline_worker: InlineWorker, receiver: Receiver
) -> None:
    """The library of Standard Webhooks verifies it, with this owner's secret only; it is sent once."""
    job = post(client, webhook_url=receiver.url).json()
    delivery = f"{job['links']['self']}/webhook"
    assert client.get(delivery).json() == {"url": receiver.url, "state": "waiting", "attempts": [], "next_at": None}
    webhooks = Webhooks(redis)
    deliver(webhooks)
    assert receiver.calls == []
    inline_worker.work()
    assert client.get(delivery).json()["state"] == "pending"
    deliver(webhooks)
    deliver(webhooks)
    ((headers, body),) = receiver.calls
    reported = Webhook(webhook_secrets(redis, "").secret).verify(body, headers)
    assert reported == json.loads(body)
    assert reported["type"] == "job.succeeded"
    assert reported["data"] == {"id": job["id"], "status": "succeeded"}
    assert reported["timestamp"] == client.get(job["links"]["self"]).json()["finished_at"]
    assert headers["webhook-id"] == f"job_{job['id']}"
    with pytest.raises(WebhookVerificationError):
        Webhook(webhook_secrets(redis, "ada").secret).verify(body, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(webhook_secrets(redis, "").secret).verify(body.replace(b"succeeded", b"cancelled"), headers)
    found = client.get(delivery).json()
    assert found["state"] == "delivered"
    assert [(each["status"], each["error"]) for each in found["attempts"]] == [(204, None)]


def test_a_webhook_has_the_trace_of_its_request(
    client: Client, redis: Redis, inline_worker: InlineWorker, receiver: Receiver
) -> None:
    """Passed on unchanged if this server sends no traces; none if the request had none."""
    given = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    for headers in ({"traceparent": given}, {}):
        post(client, webhook_url=receiver.url, headers=headers)
        inline_worker.work()
        deliver(Webhooks(redis))
    assert [headers.get("traceparent") for headers, _ in receiver.calls] == [given, None]


def test_attempts_are_counted_by_outcome(
    client: Client, redis: Redis, inline_worker: InlineWorker, receiver: Receiver
) -> None:
    """With the delay of the oldest one that is due."""
    receiver.answers = [500, 204]
    post(client, webhook_url=receiver.url)
    inline_worker.work()
    for name in redis.zrange(DUE, 0, -1):
        redis.zadd(DUE, {name: time.time() - 100})
    found = metrics(client.get("/metrics").text)
    assert 100 <= found["kernelscope_oldest_due_webhook_seconds{}"] < 200
    clock = Clock()
    for _ in range(2):
        deliver(Webhooks(redis, clock))
        clock.now += DELAYS[0]
    found = metrics(client.get("/metrics").text)
    outcomes = {name: found[f'kernelscope_webhook_attempts_total{{"outcome": "{name}"}}'] for name in OUTCOMES}
    assert outcomes == {"delivered": 1, "failed": 1, "given_up": 0}
    assert found["kernelscope_oldest_due_webhook_seconds{}"] == 0


@pytest.mark.parametrize("end", ["cancel", "fail"])
def test_every_end_sends_a_webhook(
    client: Client, redis: Redis, inline_worker: InlineWorker, receiver: Receiver, end: str
) -> None:
    """Also cancellation and failure."""
    links = post(client, kernels="9", webhook_url=receiver.url).json()["links"]
    if end == "cancel":
        client.post(links["cancel"]).raise_for_status()
    inline_worker.work()
    deliver(Webhooks(redis))
    assert json.loads(receiver.calls[0][1])["type"] == ("job.cancelled" if end == "cancel" else "job.failed")


def test_failed_deliveries_are_retried(
    client: Client, redis: Redis, inline_worker: InlineWorker, receiver: Receiver
) -> None:
    """With growing delays, by any process, until one succeeds."""
    receiver.answers = [500, 302, 204]
    path = post(client, webhook_url=receiver.url).json()["links"]["self"] + "/webhook"
    inline_worker.work()
    clock = Clock()
    for attempt in range(3):
        deliver(Webhooks(redis, clock))
        deliver(Webhooks(redis, clock))
        assert len(receiver.calls) == attempt + 1
        clock.now += DELAYS[attempt]
    found = client.get(path).json()
    assert found["state"] == "delivered"
    assert [each["status"] for each in found["attempts"]] == [500, 302, 204]
    errors = [each["error"] for each in found["attempts"]]
    assert errors == [
        "the receiver responded with 500",
        "the receiver responded with 302; redirects are not followed",
        None,
    ]
    identifiers = {headers["webhook-id"] for headers, _ in receiver.calls}
    assert len(identifiers) == 1


def test_retries_end_after_the_last_attempt(client: Client, redis: Redis, inline_worker: InlineWorker) -> None:
    """Each attempt is stored with its error."""
    path = post(client, webhook_url="http://127.0.0.1:9/").json()["links"]["self"] + "/webhook"
    inline_worker.work()
    clock = Clock()
    for delay in (*DELAYS, 1e6):
        deliver(Webhooks(redis, clock))
        clock.now += delay
    found = client.get(path).json()
    assert found["state"] == "given_up"
    assert len(found["attempts"]) == len(DELAYS) + 1
    assert all("refused" in each["error"].lower() for each in found["attempts"])
    assert redis.zcard(DUE) == 0


def test_an_attempt_whose_process_dies_is_repeated(
    client: Client, redis: Redis, inline_worker: InlineWorker, receiver: Receiver
) -> None:
    """The message is due again after some time."""
    post(client, webhook_url=receiver.url)
    inline_worker.work()
    clock = Clock()
    assert len(Webhooks(redis, clock).take(10)) == 1
    deliver(Webhooks(redis, clock))
    assert receiver.calls == []
    clock.now += 61
    deliver(Webhooks(redis, clock))
    assert len(receiver.calls) == 1


@pytest.mark.parametrize("ended", [False, True])
def test_a_deleted_job_sends_its_webhook(
    client: Client, redis: Redis, inline_worker: InlineWorker, receiver: Receiver, *, ended: bool
) -> None:
    """Deletion cancels it if it has not ended. Afterwards nothing of the message remains."""
    receiver.answers = [500, 204]
    given = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    job = post(client, webhook_url=receiver.url, headers={"traceparent": given}).json()
    if ended:
        inline_worker.work()
    client.delete(job["links"]["self"]).raise_for_status()
    clock = Clock()
    for _ in range(2):
        deliver(Webhooks(redis, clock))
        clock.now += DELAYS[0]
    status = "succeeded" if ended else "cancelled"
    for headers, body in receiver.calls:
        reported = Webhook(webhook_secrets(redis, "").secret).verify(body, headers)
        assert reported["type"] == f"job.{status}"
        assert reported["data"] == {"id": job["id"], "status": status}
        assert headers["traceparent"] == given
    assert len(receiver.calls) == 2
    assert not [key for key in redis.keys("ks:*") if job["id"] in key and not key.startswith("ks:gone:")]
    Webhooks(redis, clock).take(1)  # removes owners with an empty queue
    assert set(redis.keys("ks:webhooks*")) == {TRIED}


def test_a_webhook_stored_by_an_earlier_version_is_delivered(
    client: Client, redis: Redis, inline_worker: InlineWorker, receiver: Receiver
) -> None:
    """After an upgrade there is only its entry in the schedule, and the job's record."""
    receiver.answers = [500, 204]
    job = post(client, webhook_url=receiver.url).json()
    inline_worker.work()
    redis.delete(MESSAGES)
    redis.zadd(DUE, {"0" * 32: 0})  # and one whose job is gone
    clock = Clock()
    for _ in range(2):
        deliver(Webhooks(redis, clock))
        clock.now += DELAYS[0]
    assert [json.loads(body)["data"]["id"] for _, body in receiver.calls] == [job["id"]] * 2
    found = client.get(f"{job['links']['self']}/webhook").json()
    assert (found["state"], len(found["attempts"])) == ("delivered", 2)
    assert not redis.exists(DUE, MESSAGES)


def test_a_secret_is_rotated_for_one_name(
    client: Client, redis: Redis, inline_worker: InlineWorker, receiver: Receiver
) -> None:
    """Messages verify with the old and the new secret for a day, then with the new one only."""
    before, other = webhook_secrets(redis, "").secret, webhook_secrets(redis, "ada")
    made = rotate_webhook_secret(redis, "")
    post(client, webhook_url=receiver.url)
    inline_worker.work()
    deliver(Webhooks(redis))
    ((headers, body),) = receiver.calls
    for secret in (before, made.secret):
        Webhook(secret).verify(body, headers)
    assert webhook_secrets(redis, "ada") == other
    assert [each.secret for each in rotate_webhook_secret(redis, "").previous] == [made.secret, before]
    ended = made.model_copy(deep=True)
    ended.previous[0].until = datetime.now(UTC) - timedelta(seconds=1)
    redis.hset(WEBHOOK_SECRETS, "", ended.model_dump_json())
    assert webhook_secrets(redis, "").previous == []


def test_a_bundle_has_only_the_host_of_the_webhook(
    client: Client, inline_worker: InlineWorker, receiver: Receiver
) -> None:
    """Bundles are passed on, and the path of a webhook's URL is often a password."""
    job = post(client, webhook_url=f"{receiver.url}?token=private").json()
    inline_worker.work()
    with zipfile.ZipFile(BytesIO(client.get(f"{job['links']['self']}/bundle.zip").content)) as bundle:
        found = bundle.read("job.json").decode()
    assert "private" not in found
    host = urlsplit(receiver.url).netloc
    assert Job.model_validate_json(found).request.webhook_url == f"http://{host}/***"


def test_private_addresses_are_refused(
    settings: Settings, redis: Redis, inline_worker: InlineWorker, receiver: Receiver
) -> None:
    """By the URL, and by the address to which its name resolves when it is called."""
    with serving(settings) as client:
        refused(post(client, webhook_url=receiver.url), 422, "webhook-refused", "127.0.0.1", "public")
        refused(post(client, webhook_url="https://u:p@example.com/"), 422, "webhook-refused", "password")
        refused(post(client, webhook_url="https://bücher.example/"), 422, "webhook-refused", "punycode")
        refused(post(client, webhook_url="gopher://example.com/"), 422, "invalid-request", "webhook_url")
        job = post(client).json()
        redis.hset(f"ks:job:{job['id']}", "webhook", receiver.url.replace("127.0.0.1", "localhost"))
        inline_worker.work()
        sender = WebhookSender(Webhooks(redis), private=False)
        sender.round()
        sender.close(30)
        found: dict[str, Any] = client.get(f"{job['links']['self']}/webhook").json()
    assert receiver.calls == []
    assert "not public" in found["attempts"][0]["error"]


def test_a_job_without_a_webhook(client: Client) -> None:
    """The error says so."""
    path = post(client).json()["links"]["self"]
    assert client.get(f"{path}/webhook").json() == {"url": None, "state": "none", "attempts": [], "next_at": None}
