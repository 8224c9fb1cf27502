"""Redis as the compose file starts it."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import psutil
import pytest
from redis import Redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from kernelscope.stack import free_port, redis_server
from tests.structure.deployment import ROOT, SERVICES


@pytest.mark.parametrize("password", ["kernelscope", "a/b#c?d%2b@e:f", "it's \"quoted\\ $HOME `id`"])
def test_redis_has_the_password_and_nobody_else_sees_it(password: str, tmp_path: Path) -> None:
    """The compose file's own command, run here: any password works, and is on no command line."""
    port = free_port()
    shell, option, script = SERVICES["redis"]["command"]
    script = script.replace("$$", "$").replace("dir /data", f"dir {tmp_path}\nport {port}")
    environment = {**os.environ, "REDISCLI_AUTH": password}
    environment["PATH"] = f"{Path(redis_server()).parent}:{os.environ['PATH']}"
    with subprocess.Popen([shell, option, script], env=environment, stdout=subprocess.DEVNULL) as process:
        try:
            with Redis(port=port, password=password, retry=Retry(ConstantBackoff(0.1), 50)) as redis:
                assert redis.ping()
                assert redis.info("memory")["maxmemory_policy"] == "noeviction"
            assert password not in " ".join(psutil.Process(process.pid).cmdline())
            assert psutil.Process(process.pid).name() == "redis-server"  # gets the signal to stop itself
        finally:
            process.terminate()


def test_redis_keeps_every_write_and_is_not_published() -> None:
    """AOF at each write, a password, a health check, no port."""
    redis = SERVICES["redis"]
    script = redis["command"][2]
    assert "\nappendonly yes\nappendfsync always\n" in script
    assert "\nrequirepass " in script
    assert "ports" not in redis
    assert redis["healthcheck"]["test"] == ["CMD", "redis-cli", "ping"]
    assert all(port.startswith("127.0.0.1:") for port in SERVICES["api"]["ports"])


def test_redis_says_that_it_is_full_before_it_is_killed() -> None:
    """It refuses writes a quarter below its container's limit, which leaves room for the file to be rewritten."""
    redis = SERVICES["redis"]
    assert "\nmaxmemory 6gb\nmaxmemory-policy noeviction\n" in redis["command"][2]
    assert redis["mem_limit"] == "8g"


def test_the_images_are_tried_with_this_redis() -> None:
    """deploy/verify.sh starts it as Compose does."""
    (script,) = re.findall(
        r"^REDIS_SCRIPT='(.*?)'$", (ROOT / "deploy" / "verify.sh").read_text(), re.MULTILINE | re.DOTALL
    )
    command = ["sh", "-c", script.replace("'\\''", "'") + "\n"]
    assert command == [word.replace("$$", "$") for word in SERVICES["redis"]["command"]]
