"""Webhooks: signed, tried again, logged, guarded."""

from __future__ import annotations

import json
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit

import pytest
from httpx import Client
from redis import Redis
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from api.jobs.deliveries import WebhookSender
from shared.keys import WEBHOOK_SECRETS, ApiKeys, rotate_webhook_secret, webhook_secrets
from shared.schemas import Job
from shared.settings import Settings
from shared.webhooks import DELAYS, DUE, HOST_SHARE, MESSAGES, OUTCOMES, OWNER_SHARE, TRIED, Webhooks
from tests.api.conftest import Hands, serving
from tests.api.test_explain import post, refused
from tests.api.test_operation import metrics


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
    sender = WebhookSender(webhooks, private=True)
    sender.round()
    sender.close(30)


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
    told = Webhook(webhook_secrets(redis, "").secret).verify(body, headers)
    assert told == json.loads(body)
    assert told["type"] == "job.succeeded"
    assert told["data"] == {"id": job["id"], "status": "succeeded"}
    assert told["timestamp"] == client.get(job["links"]["self"]).json()["finished_at"]
    assert headers["webhook-id"] == f"job_{job['id']}"
    with pytest.raises(WebhookVerificationError):
        Webhook(webhook_secrets(redis, "ada").secret).verify(body, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(webhook_secrets(redis, "").secret).verify(body.replace(b"succeeded", b"cancelled"), headers)
    found = client.get(delivery).json()
    assert found["state"] == "delivered"
    assert [(each["status"], each["error"]) for each in found["attempts"]] == [(204, None)]


def test_the_webhook_belongs_to_the_caller_s_trace(
    client: Client, redis: Redis, hands: Hands, receiver: Receiver
) -> None:
    """It is handed on as it came where nothing is traced here; without one there is none."""
    given = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    for headers in ({"traceparent": given}, {}):
        post(client, webhook_url=receiver.url, headers=headers)
        hands.work()
        deliver(Webhooks(redis))
    assert [headers.get("traceparent") for headers, _ in receiver.calls] == [given, None]


def test_attempts_are_counted_by_how_they_ended(client: Client, redis: Redis, hands: Hands, receiver: Receiver) -> None:
    """And how late the oldest is that is due."""
    receiver.answers = [500, 204]
    post(client, webhook_url=receiver.url)
    hands.work()
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
    assert errors == [
        "the receiver responded with 500",
        "the receiver responded with 302; redirects are not followed",
        None,
    ]
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


@pytest.mark.parametrize("ended", [False, True])
def test_a_job_that_is_deleted_is_told_of_all_the_same(
    client: Client, redis: Redis, hands: Hands, receiver: Receiver, *, ended: bool
) -> None:
    """It ended: by being cancelled, if it had not before. Nothing is left of it afterwards."""
    receiver.answers = [500, 204]
    given = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    job = post(client, webhook_url=receiver.url, headers={"traceparent": given}).json()
    if ended:
        hands.work()
    client.delete(job["links"]["self"]).raise_for_status()
    clock = Clock()
    for _ in range(2):
        deliver(Webhooks(redis, clock))
        clock.now += DELAYS[0]
    status = "succeeded" if ended else "cancelled"
    for headers, body in receiver.calls:
        told = Webhook(webhook_secrets(redis, "").secret).verify(body, headers)
        assert told["type"] == f"job.{status}"
        assert told["data"] == {"id": job["id"], "status": status}
        assert headers["traceparent"] == given
    assert len(receiver.calls) == 2
    assert not [key for key in redis.keys("ks:*") if job["id"] in key and not key.startswith("ks:gone:")]
    Webhooks(redis, clock).take(1)  # whose line is empty is forgotten
    assert set(redis.keys("ks:webhooks*")) == {TRIED}


def test_a_webhook_of_before_messages_were_kept_apart_is_delivered(
    client: Client, redis: Redis, hands: Hands, receiver: Receiver
) -> None:
    """After an upgrade: all that there is of it is its place on the timetable, and the job's record."""
    receiver.answers = [500, 204]
    job = post(client, webhook_url=receiver.url).json()
    hands.work()
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


def left(redis: Redis, count: int, owner: str, url: str, since: float = 0.0) -> None:
    """Messages of jobs that ended so many seconds ago."""
    for number in range(count):
        job_id, at = f"{owner}-{urlsplit(url).hostname}-{number}", time.time() - since
        message = {"url": url, "owner": owner, "status": "succeeded", "at": str(at)}
        redis.hset(MESSAGES, job_id, json.dumps(message))
        redis.zadd(DUE, {job_id: at})


class SlowReceivers:
    """In place of the network: those whose host is `slow…` answer when the test ends."""

    def __init__(self) -> None:
        self.called: list[str] = []
        self.end = threading.Event()

    def __call__(self, url: str, *_: object, **__: object) -> int:
        """What a receiver answers."""
        self.called.append(url)
        if "slow" in url:
            self.end.wait(30)
        return 204


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowReceivers]:
    """Receivers that are called by name."""
    receivers = SlowReceivers()
    monkeypatch.setattr("api.jobs.deliveries.post", receivers)
    yield receivers
    receivers.end.set()


def test_a_caller_with_a_slow_receiver_delays_nobody_else(redis: Redis, slow: SlowReceivers) -> None:
    """A thousand of one caller's are due, for days; another's is told at once."""
    left(redis, 1000, "ada", "http://slow.example/", since=100_000)
    left(redis, 100, "bob", "http://quick.example/", since=10)
    sender = WebhookSender(Webhooks(redis), private=True)
    begin = time.monotonic()
    while slow.called.count("http://quick.example/") < 100:
        sender.round()
        time.sleep(0.05)
        assert time.monotonic() - begin < 5
    assert slow.called.count("http://slow.example/") == HOST_SHARE
    slow.end.set()
    sender.close(30)


def test_callers_are_served_in_turn(redis: Redis) -> None:
    """Whoever has the fewest attempts in hand is next, and none has all hands."""
    for number in range(4):
        left(redis, 50, "ada", f"http://a{number}.example/", since=500)
    left(redis, 2, "bob", "http://b.example/")
    webhooks = Webhooks(redis)
    first = webhooks.take(4)
    assert sorted(each.owner for each in first) == ["ada", "ada", "bob", "bob"]
    more = webhooks.take(12, first)
    assert [each.owner for each in more] == ["ada"] * (OWNER_SHARE - 2)
    assert webhooks.take(4, [*first, *more]) == []


def test_a_slow_receiver_does_not_delay_its_caller_s_others(redis: Redis, slow: SlowReceivers) -> None:
    """Where there are no keys, all jobs are one caller's."""
    left(redis, 1000, "", "http://slow.example/", since=1000)
    left(redis, 1, "", "http://quick.example/")
    sender = WebhookSender(Webhooks(redis), private=True)
    begin = time.monotonic()
    while "http://quick.example/" not in slow.called:
        sender.round()
        time.sleep(0.05)
        assert time.monotonic() - begin < 5
    slow.end.set()
    sender.close(30)


def test_a_hand_that_gets_free_takes_the_next(redis: Redis, slow: SlowReceivers) -> None:
    """A round a second does not mean sixteen webhooks a second."""
    left(redis, 100, "", "http://quick.example/")
    sender = WebhookSender(Webhooks(redis), private=True)
    sender.round()
    begin = time.monotonic()
    while len(slow.called) < 100:
        time.sleep(0.01)
        assert time.monotonic() - begin < 5
    sender.close(30)
    assert not redis.exists(DUE, MESSAGES)


def test_a_secret_is_rotated_for_one_name(client: Client, redis: Redis, hands: Hands, receiver: Receiver) -> None:
    """Messages verify with the old one and the new one for a day, then with the new one alone."""
    before, other = webhook_secrets(redis, "").secret, webhook_secrets(redis, "ada")
    made = rotate_webhook_secret(redis, "")
    post(client, webhook_url=receiver.url)
    hands.work()
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


def test_who_calls_reads_their_own_secret(settings: Settings, client: Client, redis: Redis) -> None:
    """With their key, or without one where there are none; nobody else's."""
    answer = client.get("/webhook-secret")
    assert answer.json() == {"secret": webhook_secrets(redis, "").secret, "previous": []}
    assert answer.headers["cache-control"] == "no-store"
    key = ApiKeys(redis).add("ada")
    with serving(settings) as guarded:
        refused(guarded.get("/webhook-secret"), 401, "unauthorized")
        told = guarded.get("/webhook-secret", headers={"Authorization": f"Bearer {key}"}).json()
    assert told["secret"] == webhook_secrets(redis, "ada").secret


def test_a_bundle_says_where_the_webhook_went_and_not_how_it_got_in(
    client: Client, hands: Hands, receiver: Receiver
) -> None:
    """A bundle is passed on; the end of a webhook's address is often a password."""
    job = post(client, webhook_url=f"{receiver.url}?token=private").json()
    hands.work()
    with zipfile.ZipFile(BytesIO(client.get(f"{job['links']['self']}/bundle.zip").content)) as bundle:
        found = bundle.read("job.json").decode()
    assert "private" not in found
    host = urlsplit(receiver.url).netloc
    assert Job.model_validate_json(found).request.webhook_url == f"http://{host}/***"


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
        sender = WebhookSender(Webhooks(redis), private=False)
        sender.round()
        sender.close(30)
        found: dict[str, Any] = client.get(f"{job['links']['self']}/webhook").json()
    assert receiver.calls == []
    assert "not a public address" in found["attempts"][0]["error"]


def test_a_job_without_a_webhook(client: Client) -> None:
    """Says so."""
    path = post(client).json()["links"]["self"]
    assert client.get(f"{path}/webhook").json() == {"url": None, "state": "none", "attempts": [], "next_at": None}
