"""The compose files, as far as they can be checked without containers (deploy/verify.sh starts some)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from shared.jobs import connect
from shared.settings import Settings
from tests.structure.deployment import COMPOSE, DOCKERFILES, FILES, OURS, ROOT, SERVICES, command, instructions


def test_the_services_are_those_of_the_house() -> None:
    """One of each, all of which start by themselves; the worker is on the CPU, without CUDA in its image."""
    assert set(SERVICES) == {"redis", "api", "housekeeping", "worker"}
    assert not any("profiles" in service for service in SERVICES.values())
    assert SERVICES["worker"]["build"] == {"context": ".", "dockerfile": "Dockerfile.worker", "args": {"TORCH": "cpu"}}
    assert SERVICES["worker"]["image"] == "kernelscope-worker:cpu"
    assert "deploy" not in SERVICES["worker"]


@pytest.mark.parametrize("name", OURS)
def test_our_services_are_confined_and_wait_for_redis(name: str) -> None:
    """Non-root (by the image), read-only root, no capabilities, an init, a grace period, restarted."""
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["tmpfs"] == ["/tmp"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["init"] is True
    assert service["restart"] == "unless-stopped"
    assert service["stop_grace_period"]
    assert service["depends_on"]["redis"]["condition"] == "service_healthy"


def test_the_compose_files_are_what_the_specification_wants() -> None:
    """By the Compose Specification's own schema."""
    checker = Path(sys.executable).with_name("check-jsonschema")
    files = [ROOT / name for name in FILES]
    done = subprocess.run(
        [checker, "--builtin-schema", "vendor.compose-spec", *files], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def composed(folder: Path, *names: str, root: Path = ROOT, **variables: str) -> dict[str, dict[str, Any]]:
    """The services that podman-compose's parser makes of the compose files, without a profile."""
    podman = folder / "podman"  # which is asked for its version, and nothing else
    podman.write_text("#!/bin/sh\necho podman version 5.0.0\n")
    podman.chmod(0o755)
    files = [word for name in names for word in ("-f", str(root / name))]
    command = [str(Path(sys.executable).with_name("podman-compose")), *files, "config"]
    own = {"PATH": f"{folder}:{os.environ['PATH']}", **variables}
    done = subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    services: dict[str, dict[str, Any]] = yaml.safe_load(done.stdout)["services"]
    return services


def test_compose_puts_in_what_the_environment_says(tmp_path: Path) -> None:
    """Passwords and the port; defaults without."""
    plain = composed(tmp_path, "docker-compose.yml")
    assert set(plain) == set(SERVICES)
    assert plain["api"]["ports"] == ["127.0.0.1:8000:8000"]
    assert plain["redis"]["environment"]["REDISCLI_AUTH"] == "kernelscope"
    password = "a/b#c?d%2b@e:f&'\"\\"
    own = composed(tmp_path, "docker-compose.yml", KERNELSCOPE_REDIS_PASSWORD=password, KERNELSCOPE_PORT="8080")
    assert own["api"]["ports"] == ["127.0.0.1:8080:8000"]
    assert own["redis"]["environment"]["REDISCLI_AUTH"] == password
    assert own["redis"]["command"] == plain["redis"]["command"]
    for name in OURS:
        environment = own[name]["environment"]
        given = {key.removeprefix("KERNELSCOPE_").lower(): value for key, value in environment.items()}
        with connect(Settings.model_validate(given).redis) as redis:
            options = redis.connection_pool.connection_kwargs
            assert (options["host"], options["password"]) == ("redis", password)


def test_with_the_gpu_file_the_worker_is_on_a_card(tmp_path: Path) -> None:
    """The one worker, which is otherwise what it was; the files by -f and as .env.example names them are the same."""
    plain = composed(tmp_path, "docker-compose.yml")
    services = composed(tmp_path, "docker-compose.yml", "compose.gpu.yml")
    assert {name for name in services if name.startswith("worker")} == {"worker"}
    assert {name: services[name] for name in services if name != "worker"} == {
        name: plain[name] for name in plain if name != "worker"
    }
    worker = services["worker"]
    (device,) = worker["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert dict(word.split("=") for word in worker["build"]["args"]) == {"TORCH": "cuda"}  # the last one counts
    assert worker["build"]["dockerfile"] == "Dockerfile.worker"
    assert worker["image"] == "kernelscope-worker:cuda"
    assert worker["environment"] == {**plain["worker"]["environment"], "CUDA_VISIBLE_DEVICES": "0"}
    changed = {key for key in worker if worker[key] != plain["worker"].get(key)}
    assert changed == {"build", "image", "environment", "deploy"}
    (names,) = re.findall(r"^#COMPOSE_FILE=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE)
    by_name = ":".join(str(ROOT / name) for name in names.split(":"))
    assert composed(tmp_path, COMPOSE_FILE=by_name) == services


def test_with_the_s3_file_everything_is_stored_there(tmp_path: Path) -> None:
    """Every service of ours has the store and its password, and waits until it is healthy."""
    services = composed(tmp_path, *FILES, KERNELSCOPE_S3_PASSWORD="other")
    assert services["s3"]["environment"]["AWS_SECRET_ACCESS_KEY"] == "other"
    assert "ports" not in services["s3"]
    assert services["s3"]["user"] != "0"
    assert services["s3"]["read_only"] is True
    assert services["s3"]["cap_drop"] == ["ALL"]
    for name in OURS:
        environment = services[name]["environment"]
        assert environment["KERNELSCOPE_STORE_URL"] == "s3://kernelscope"
        assert environment["AWS_ENDPOINT_URL"] == "http://s3:8333"
        assert environment["AWS_SECRET_ACCESS_KEY"] == "other"
        assert environment["KERNELSCOPE_REDIS_URL"]
        assert set(services[name]["depends_on"]) == {"redis", "s3"}
        assert services[name]["read_only"] is True


def test_the_operator_s_guide_adds_a_card(tmp_path: Path) -> None:
    """Its file makes a second worker of the same, with a card of its own."""
    guide = (ROOT / "docs" / "operations.md").read_text()
    (text,) = re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)
    (tmp_path / "compose.cards.yml").write_text(text)
    for name in FILES:
        (tmp_path / name).write_text((ROOT / name).read_text())
    services = composed(tmp_path, "docker-compose.yml", "compose.gpu.yml", "compose.cards.yml", root=tmp_path)
    assert set(services) == {*SERVICES, "worker-1"}
    second = yaml.safe_load(text)["services"]["worker-1"]
    assert second.pop("extends") == {"file": "docker-compose.yml", "service": "worker"}
    first = yaml.safe_load((ROOT / "compose.gpu.yml").read_text())["services"]["worker"]
    assert second == {**first, "environment": {"CUDA_VISIBLE_DEVICES": "1"}}


def test_the_compose_that_is_needed_is_named() -> None:
    """`required: false` of an `env_file` is refused before 2.24."""
    assert all("required" in one for service in OURS for one in SERVICES[service]["env_file"])
    for name in ("docker-compose.yml", "docs/operations.md"):
        assert "Docker Compose 2.24 or newer" in (ROOT / name).read_text()


def test_every_volume_and_setting_exists() -> None:
    """No volume that is not declared, no variable that the settings do not know."""
    known = {f"KERNELSCOPE_{name.upper()}" for name in Settings.model_fields}
    for name in OURS:
        assert {volume.split(":")[0] for volume in SERVICES[name]["volumes"]} <= set(COMPOSE["volumes"])
        assert set(SERVICES[name]["environment"]) <= known


def test_every_command_exists() -> None:
    """`python -m MODULE` of images and services can be found."""
    commands = [command(name) for name in DOCKERFILES]
    commands += [SERVICES[name]["command"] for name in OURS if "command" in SERVICES[name]]
    commands += [SERVICES["housekeeping"]["healthcheck"]["test"][1:]]
    health = next(arguments for word, arguments in instructions("Dockerfile.worker") if word == "HEALTHCHECK")
    commands.append(yaml.safe_load(health.split("CMD", 1)[1]))
    for words in commands:
        assert words[:2] == ["python", "-m"]
        assert find_spec(words[2]) is not None, words
