"""The settings: which values are accepted, refusals without secrets in them, and warnings of likely mistakes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import SecretStr, ValidationError

from shared import advice
from shared.jobs import connect
from shared.queue import make_celery
from shared.settings import Settings
from tests.conftest import own_redis

PASSWORD = "a/b#c?d%2b@e:f[g ü"


def test_any_password_of_redis_works(tmp_path: Path) -> None:
    """For the record and for the queue; one in the URL has precedence."""
    with own_redis(tmp_path, password=PASSWORD) as url:
        bare = f"redis://127.0.0.1:{url.rpartition(':')[2]}"
        settings = Settings(_env_file=None, redis_url=SecretStr(bare), redis_password=SecretStr(PASSWORD))
        with connect(settings.redis) as redis:
            assert redis.ping()
        with make_celery(settings.redis).connection() as connection:
            connection.ensure_connection(max_retries=1)
        both = Settings(_env_file=None, redis_url=SecretStr(url), redis_password=SecretStr("another"))
        assert both.redis == url
    assert PASSWORD not in repr(settings)


@pytest.mark.parametrize(
    ("given", "filled"),
    [
        ("redis://h:1/2", "redis://:p%2Fw@h:1/2"),
        ("rediss://u@[::1]:1/0?a=b", "rediss://u:p%2Fw@[::1]:1/0?a=b"),
        ("redis://u:own@h", "redis://u:own@h"),
    ],
)
def test_the_password_is_filled_in(given: str, filled: str) -> None:
    """With the user's name, for an IPv6 address; not where there is one."""
    settings = Settings(_env_file=None, redis_url=SecretStr(given), redis_password=SecretStr("p/w"))
    assert settings.redis == filled


@pytest.mark.parametrize("password", ["secret/cd", "secret#b", "secret?b", "12/secret", "12#secret", "secret[b"])
def test_a_url_that_its_password_breaks_is_refused(password: str) -> None:
    """At the start, with what to write instead; the message does not contain the password."""
    with pytest.raises(ValidationError, match="KERNELSCOPE_REDIS_PASSWORD") as refused:
        Settings(_env_file=None, redis_url=f"redis://:{password}@127.0.0.1:7000/0")
    assert "secret" not in str(refused.value)


def test_origins_are_as_browsers_send_them() -> None:
    """Without the slash at the end, in small letters; anything else is refused."""
    given = "https://Lab.example/, http://localhost:3000,*"
    settings = Settings(_env_file=None, cors_origins=given)
    assert settings.cors_origins == ("https://lab.example", "http://localhost:3000", "*")
    for wrong in ("https://lab.example/page", "lab.example", "https://"):
        with pytest.raises(ValidationError, match="is not an origin"):
            Settings(_env_file=None, cors_origins=wrong)


def test_a_misspelt_setting_is_reported_with_the_one_that_was_meant(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """From the environment and from `.env`; settings of other programs are not reported."""
    file = tmp_path / ".env"
    file.write_text("KERNELSCOPE_RETENTIONDAYS=3\nKERNELSCOPE_S3_PASSWORD=x\nOTHER=1\n")
    monkeypatch.setattr(advice, "ENV_FILE", file)
    environment = {
        "KERNELSCOPE_ACESS": "keys",
        "KERNELSCOPE_PORT": "80",
        "KERNELSCOPE_TEST_IMAGES": "x",
        "KERNELSCOPE_ENV_FILE": "x",
    }
    monkeypatch.setattr(advice, "os", SimpleNamespace(environ=environment))
    first, second = advice.advice(settings)
    assert first == "KERNELSCOPE_ACESS is not a setting and has no effect: did you mean KERNELSCOPE_ACCESS?"
    assert "did you mean KERNELSCOPE_RETENTION_DAYS?" in second


def test_an_env_file_that_is_not_read_is_reported(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where it has settings of ours; not that of a project which has nothing to do with us."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(advice, "os", SimpleNamespace(environ={}))
    file = tmp_path / ".env"
    file.write_text("OTHER=1\n")
    assert advice.advice(settings) == []
    file.write_text("KERNELSCOPE_ACCESS=open\n")
    (sentence,) = advice.advice(settings)
    assert f"KERNELSCOPE_ENV_FILE={file}" in sentence
    monkeypatch.setattr(advice, "ENV_FILE", file)
    assert advice.advice(settings) == []


def test_a_default_password_is_reported(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose's, of Redis and of the store."""
    monkeypatch.setattr(advice, "os", SimpleNamespace(environ={"AWS_SECRET_ACCESS_KEY": "kernelscope"}))
    assert advice.advice(settings) == []
    own = {"redis_url": SecretStr("redis://redis"), "redis_password": SecretStr("kernelscope"), "store_url": "s3://b"}
    redis, store = advice.advice(settings.model_copy(update=own))
    assert "KERNELSCOPE_REDIS_PASSWORD" in redis
    assert "KERNELSCOPE_S3_PASSWORD" in store
