"""Webhooks: signed, tried again, logged, guarded."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from httpx import Client
from redis import Redis
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from api.webhooks import Postman
from shared.keys import webhook_secret
from shared.settings import Settings
from shared.webhooks import DELAYS, DUE, Webhooks
from tests.api.conftest import Hands, serving
from tests.api.test_explain import post, refused


@dataclass
class Receiver:
    """A server that is called, and answers as it is told."""

    answers: list[int] = field(default_factory=list)
    calls: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """On loopback."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            receiver.calls.append(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(receiver.answers.pop(0) if receiver.answers else 204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver.url = f"http://127.0.0.1:{server.server_address[1]}/hook"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield receiver
        server.shutdown()


@dataclass
class Clock:
    """Time, as it is told."""

    now: float = field(default_factory=time.time)

    def __call__(self) -> float:
        """Seconds since 1970."""
        return self.now


@pytest.fixture
def client(settings: Settings, redis: Redis) -> Iterator[Client]:
    """Of an API that calls private addresses too."""
    with serving(settings.model_copy(update={"webhook_private": True})) as client:
        yield client


def deliver(webhooks: Webhooks) -> None:
    """One round of housekeeping, to its end."""
    postman = Postman(webhooks, private=True)
    postman.round()
    postman._threads.shutdown(wait=True)


def test_the_end_of_a_job_is_told_and_signed(client: Client, redis: Redis, hands: Hands, receiver: Receiver) -> None:
    """Standard Webhooks' own library verifies it, and only with this owner's secret; it is told once."""
    job = post(client, webhook_url=receiver.url).json()
    delivery = f"{job['links']['self']}/webhook"
    assert client.get(delivery).json() == {"url": receiver.url, "state": "waiting", "attempts": [], "next_at": None}
    webhooks = Webhooks(redis)
    deliver(webhooks)
    assert receiver.calls == []
    hands.work()
    assert client.get(delivery).json()["state"] == "pending"
    deliver(webhooks)
    deliver(webhooks)
    ((headers, body),) = receiver.calls
    told = Webhook(webhook_secret(redis, "")).verify(body, headers)
    assert told == json.loads(body)
    assert told["type"] == "job.succeeded"
    assert told["data"] == {"id": job["id"], "status": "succeeded"}
    assert told["timestamp"] == client.get(job["links"]["self"]).json()["finished_at"]
    assert headers["webhook-id"] == f"job_{job['id']}"
    with pytest.raises(WebhookVerificationError):
        Webhook(webhook_secret(redis, "ada")).verify(body, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(webhook_secret(redis, "")).verify(body.replace(b"succeeded", b"cancelled"), headers)
    found = client.get(delivery).json()
    assert found["state"] == "delivered"
    assert [(each["status"], each["error"]) for each in found["attempts"]] == [(204, None)]


@pytest.mark.parametrize("end", ["cancel", "fail"])
def test_every_end_is_told(client: Client, redis: Redis, hands: Hands, receiver: Receiver, end: str) -> None:
    """Cancelled and failed too."""
    links = post(client, kernels="9", webhook_url=receiver.url).json()["links"]
    if end == "cancel":
        client.post(links["cancel"]).raise_for_status()
    hands.work()
    deliver(Webhooks(redis))
    assert json.loads(receiver.calls[0][1])["type"] == ("job.cancelled" if end == "cancel" else "job.failed")


def test_what_is_not_taken_is_tried_again_later(client: Client, redis: Redis, hands: Hands, receiver: Receiver) -> None:
    """With growing delays, by any process, until it is taken."""
    receiver.answers = [500, 302, 204]
    path = post(client, webhook_url=receiver.url).json()["links"]["self"] + "/webhook"
    hands.work()
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
    assert errors == ["the receiver answered 500", "the receiver answered 302; redirects are not followed", None]
    identifiers = {headers["webhook-id"] for headers, _ in receiver.calls}
    assert len(identifiers) == 1


def test_it_is_given_up_after_the_last_attempt(client: Client, redis: Redis, hands: Hands) -> None:
    """Each attempt is on record, with what was wrong."""
    path = post(client, webhook_url="http://127.0.0.1:9/").json()["links"]["self"] + "/webhook"
    hands.work()
    clock = Clock()
    for delay in (*DELAYS, 1e6):
        deliver(Webhooks(redis, clock))
        clock.now += delay
    found = client.get(path).json()
    assert found["state"] == "given_up"
    assert len(found["attempts"]) == len(DELAYS) + 1
    assert all("refused" in each["error"].lower() for each in found["attempts"])
    assert redis.zcard(DUE) == 0


def test_an_attempt_whose_process_dies_is_made_again(
    client: Client, redis: Redis, hands: Hands, receiver: Receiver
) -> None:
    """It was taken from the list, and comes back to it."""
    post(client, webhook_url=receiver.url)
    hands.work()
    clock = Clock()
    assert len(Webhooks(redis, clock).take(10)) == 1
    deliver(Webhooks(redis, clock))
    assert receiver.calls == []
    clock.now += 61
    deliver(Webhooks(redis, clock))
    assert len(receiver.calls) == 1


def test_a_deleted_job_is_not_told_of(client: Client, redis: Redis, receiver: Receiver) -> None:
    """There would be nothing to fetch."""
    links = post(client, webhook_url=receiver.url).json()["links"]
    client.delete(links["self"]).raise_for_status()
    deliver(Webhooks(redis))
    assert receiver.calls == []
    assert redis.zcard(DUE) == 0


def test_private_addresses_are_refused(settings: Settings, redis: Redis, hands: Hands, receiver: Receiver) -> None:
    """By what the URL shows, and by what its name leads to when it is called."""
    with serving(settings) as client:
        refused(post(client, webhook_url=receiver.url), 422, "webhook-refused", "127.0.0.1", "public")
        refused(post(client, webhook_url="https://u:p@example.com/"), 422, "webhook-refused", "password")
        refused(post(client, webhook_url="https://bücher.example/"), 422, "webhook-refused", "punycode")
        refused(post(client, webhook_url="gopher://example.com/"), 422, "invalid-request", "webhook_url")
        job = post(client).json()
        redis.hset(f"ks:job:{job['id']}", "webhook", receiver.url.replace("127.0.0.1", "localhost"))
        hands.work()
        postman = Postman(Webhooks(redis), private=False)
        postman.round()
        postman._threads.shutdown(wait=True)
        found: dict[str, Any] = client.get(f"{job['links']['self']}/webhook").json()
    assert receiver.calls == []
    assert "not a public address" in found["attempts"][0]["error"]


def test_a_job_without_a_webhook(client: Client) -> None:
    """Says so."""
    path = post(client).json()["links"]["self"]
    assert client.get(f"{path}/webhook").json() == {"url": None, "state": "none", "attempts": [], "next_at": None}
