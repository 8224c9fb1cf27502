"""`kernelscope keys`: with and without a running stack."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from redis import Redis

from kernelscope.stack import Stack, free_port
from shared.keys import ApiKeys, digest_of
from shared.settings import Settings
from tests.api.test_access import bearer


def kernelscope(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command, and what it printed."""
    command = [sys.executable, "-m", "kernelscope", *words]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("KERNELSCOPE_")}
    own = {**clean, "KERNELSCOPE_ENGINE": "dummy", "KERNELSCOPE_PRELOAD": "", "COLUMNS": "120", **environment}
    return subprocess.run(command, env=own, capture_output=True, text=True, check=False, timeout=120)


def test_keys_are_stored_before_a_stack_runs(tmp_path: Path) -> None:
    """Its Redis is started for the moment, so that a public server can have a key before its first start."""
    where = ("--data-dir", str(tmp_path))
    assert "no keys" in kernelscope("keys", "list", *where).stdout
    made = kernelscope("keys", "add", "lab", "--rate", "5/second", *where)
    key = made.stdout.strip()
    assert re.fullmatch(r"ks_[\w-]{43}", key)
    assert "cannot be shown again" in made.stderr
    assert "jobs that were made without a key are not shown" in made.stderr
    assert "first key" not in kernelscope("keys", "add", "another", *where).stderr
    listed = kernelscope("keys", "list", *where).stdout
    assert digest_of(key)[:8] in listed
    assert "5/second" in listed
    assert key not in listed
    assert kernelscope("keys", "revoke", "lab", *where).stdout == f"revoked {digest_of(key)[:8]} (lab)\n"
    again = kernelscope("keys", "revoke", "lab", *where)
    assert again.returncode == 1
    assert "keys list" in again.stderr
    secrets = {kernelscope("keys", "secret", *name, *where).stdout for name in ([], ["lab"], ["lab"])}
    assert len(secrets) == 2
    assert all(secret.startswith("whsec_") for secret in secrets)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("add", "a b"), "letters, digits"),
        (("add", "lab", "--rate", "many"), "100/second"),
        (("add",), "Missing argument"),
    ],
)
def test_invalid_arguments_are_refused(tmp_path: Path, words: tuple[str, ...], complaint: str) -> None:
    """Named, with what would be right."""
    ran = kernelscope("keys", *words, "--data-dir", str(tmp_path))
    assert ran.returncode == 2
    assert complaint in ran.stderr


def test_the_redis_of_the_settings_comes_first(redis: Redis, redis_url: str) -> None:
    """Of a stack in containers, say."""
    key = kernelscope("keys", "add", "lab", KERNELSCOPE_REDIS_URL=redis_url).stdout.strip()
    assert [made.digest for made in ApiKeys(redis).all()] == [digest_of(key)]


def test_keys_apply_to_a_running_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A public one starts only once there is a key; a key that is made or revoked while it runs counts at once."""
    monkeypatch.setenv("KERNELSCOPE_ENGINE", "dummy")
    port = str(free_port())
    refused = kernelscope("up", "--host", "0.0.0.0", "--port", port, "--data-dir", str(tmp_path))  # noqa: S104
    assert refused.returncode == 1
    assert "kernelscope keys add" in refused.stderr
    where = ("--data-dir", str(tmp_path))
    first = kernelscope("keys", "add", "lab", *where).stdout.strip()
    public = Settings(_env_file=None, data_dir=tmp_path, host="0.0.0.0", port=int(port), preload=())  # noqa: S104
    with Stack(public, print).running() as stack:
        assert httpx.get(f"{stack.url}/jobs").status_code == 401
        assert httpx.get(f"{stack.url}/jobs", headers=bearer(first)).status_code == 200
        second = kernelscope("keys", "add", "lab", *where).stdout.strip()
        assert httpx.get(f"{stack.url}/jobs", headers=bearer(second)).status_code == 200
        kernelscope("keys", "revoke", digest_of(first)[:8], *where)
        assert httpx.get(f"{stack.url}/jobs", headers=bearer(first)).status_code == 401
