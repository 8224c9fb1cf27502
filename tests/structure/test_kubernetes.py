"""The Kubernetes manifests fit the published schemas and the program; the Dockerfiles please a linter."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from shared.settings import Settings

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
LISTED: list[str] = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
RESOURCES: list[dict[str, Any]] = [
    resource for name in LISTED for resource in yaml.safe_load_all((FOLDER / name).read_text())
]
DEPLOYMENTS = {one["metadata"]["name"]: one for one in RESOURCES if one["kind"] == "Deployment"}
VERSIONS = ("1.30.0", kubernetes_validate.latest_version())


@pytest.mark.parametrize("version", VERSIONS)
def test_manifests_fit_the_published_schemas(version: str) -> None:
    """Of an old Kubernetes and of the newest that is known, without a field that either does not know."""
    for resource in RESOURCES:
        kubernetes_validate.validate(resource, version, strict=True)


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_pods_are_confined(name: str) -> None:
    """Not root, by the images' own number; nothing to write but /tmp; no capabilities; limits; no account."""
    pod = DEPLOYMENTS[name]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert f"USER {pod['securityContext']['runAsUser']}:" in (ROOT / "Dockerfile.api").read_text()
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert {"memory", "cpu"} <= set(container["resources"]["limits"])
    assert ":latest" not in container["image"]
    assert "env" not in container  # secrets by reference, settings by the map


def test_settings_and_secrets_are_those_that_the_program_reads() -> None:
    """No name that nobody knows, and no secret in the map."""
    known = {f"KERNELSCOPE_{name.upper()}" for name in Settings.model_fields}
    (settings,) = [one["data"] for one in RESOURCES if one["kind"] == "ConfigMap"]
    assert {name for name in settings if name.startswith("KERNELSCOPE_")} <= known
    assert not {name for name in settings if "SECRET" in name or "PASSWORD" in name or name.endswith("REDIS_URL")}
    sources = [DEPLOYMENTS[name]["spec"]["template"]["spec"]["containers"][0]["envFrom"] for name in DEPLOYMENTS]
    assert all(one == sources[0] for one in sources)


def test_selectors_find_their_pods() -> None:
    """Of Deployments, Services, budgets and policies."""
    pods = [one["spec"]["template"]["metadata"]["labels"] for one in DEPLOYMENTS.values()]
    for resource in RESOURCES:
        spec = resource.get("spec", {})
        selector = spec.get("selector") or spec.get("podSelector") or {}
        wanted = selector.get("matchLabels", selector)
        assert any(wanted.items() <= labels.items() for labels in pods), resource["metadata"]


def test_the_worker_asks_for_one_gpu_and_is_what_is_scaled() -> None:
    """By the queue, from none."""
    limits = DEPLOYMENTS["worker"]["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == 1
    scaled = yaml.safe_load((FOLDER / "keda.yaml").read_text())
    assert scaled["spec"]["scaleTargetRef"]["name"] == "worker"
    assert scaled["spec"]["minReplicaCount"] == 0
    metrics = (ROOT / "docs" / "metrics.md").read_text()
    query = scaled["spec"]["triggers"][0]["metadata"]["query"]
    names = {word for word in query.replace("(", " ").replace(")", " ").split() if word.startswith("kernelscope_")}
    assert names
    assert all(f"`{name}`" in metrics for name in names)


def test_the_dockerfiles_please_a_linter() -> None:
    """hadolint, from its warnings up."""
    path = shutil.which("hadolint") or str(Path(sys.executable).with_name("hadolint"))
    files = ["Dockerfile.api", "Dockerfile.worker"]
    ran = subprocess.run(
        [path, "--failure-threshold", "warning", *files], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout
