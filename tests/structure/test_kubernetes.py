"""The Kubernetes manifests fit the published schemas and the program."""

from __future__ import annotations

from importlib.util import find_spec
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import yaml

from api.app import create_app
from shared.settings import Settings

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
LISTED: list[str] = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
RESOURCES: list[dict[str, Any]] = [
    resource for name in LISTED for resource in yaml.safe_load_all((FOLDER / name).read_text())
]
EXAMPLES: list[dict[str, Any]] = list(yaml.safe_load_all((FOLDER / "ingress.yaml").read_text()))
DEPLOYMENTS = {one["metadata"]["name"]: one for one in RESOURCES if one["kind"] == "Deployment"}
VERSIONS = ("1.30.0", kubernetes_validate.latest_version())


@pytest.mark.parametrize("version", VERSIONS)
def test_manifests_fit_the_published_schemas(version: str) -> None:
    """Of an old Kubernetes and of the newest that is known, without a field that either does not know."""
    for resource in RESOURCES + EXAMPLES:
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
    assert pod["enableServiceLinks"] is False


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_every_process_can_be_seen_to_live(name: str) -> None:
    """By a route that exists, or by a module that can be run."""
    (container,) = DEPLOYMENTS[name]["spec"]["template"]["spec"]["containers"]
    probe = container["livenessProbe"]
    if "httpGet" in probe:
        assert probe["httpGet"]["path"] in create_app().openapi()["paths"]
    else:
        python, option, module, *_ = probe["exec"]["command"]
        assert (python, option) == ("python", "-m")
        assert find_spec(module) is not None


def test_settings_and_secrets_are_those_that_the_program_reads() -> None:
    """No unknown name, and no secret in the map."""
    known = {f"KERNELSCOPE_{name.upper()}" for name in Settings.model_fields}
    (settings,) = [one["data"] for one in RESOURCES if one["kind"] == "ConfigMap"]
    assert {name for name in settings if name.startswith("KERNELSCOPE_")} <= known
    assert not {name for name in settings if "SECRET" in name or "PASSWORD" in name}
    assert urlsplit(settings["KERNELSCOPE_REDIS_URL"]).password is None
    sources = [DEPLOYMENTS[name]["spec"]["template"]["spec"]["containers"][0]["envFrom"] for name in DEPLOYMENTS]
    assert all(one == sources[0] for one in sources)
    assert all(one["secretRef"]["optional"] for one in sources[0] if "secretRef" in one)  # a role instead, no password


def test_selectors_find_their_pods() -> None:
    """Of Deployments, Services, budgets and policies."""
    pods = [one["spec"]["template"]["metadata"]["labels"] for one in DEPLOYMENTS.values()]
    for resource in RESOURCES:
        spec = resource.get("spec", {})
        selector = spec.get("selector") or spec.get("podSelector") or {}
        wanted = selector.get("matchLabels", selector)
        assert any(wanted.items() <= labels.items() for labels in pods), resource["metadata"]


def policies(component: str, kind: str) -> list[dict[str, Any]]:
    """The rules of one kind, `ingress` or `egress`, for this component's pods."""
    labels = DEPLOYMENTS[component]["spec"]["template"]["metadata"]["labels"]
    chosen = [one["spec"] for one in RESOURCES if one["kind"] == "NetworkPolicy"]
    chosen = [one for one in chosen if one["podSelector"]["matchLabels"].items() <= labels.items()]
    assert any(kind.capitalize() in one["policyTypes"] for one in chosen)  # what is not named is forbidden
    return [rule for one in chosen for rule in one.get(kind, [])]


def test_no_policy_is_about_other_pods() -> None:
    """A Redis and a store in the same namespace are not cut off."""
    own = [one for one in RESOURCES if one["kind"] == "NetworkPolicy"]
    selectors = [one["spec"]["podSelector"]["matchLabels"] for one in own]
    assert all(selector["app.kubernetes.io/name"] == "kernelscope" for selector in selectors)


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_every_process_may_call_redis_the_store_and_names(name: str) -> None:
    """Those that the settings name, in this namespace."""
    rules = policies(name, "egress")
    (settings,) = [one["data"] for one in RESOURCES if one["kind"] == "ConfigMap"]
    hosts = [urlsplit(settings[one]).hostname or "" for one in ("KERNELSCOPE_REDIS_URL", "AWS_ENDPOINT_URL")]
    peers = [
        peer["podSelector"]["matchExpressions"][0]
        for rule in rules
        for peer in rule.get("to", [])
        if "podSelector" in peer
    ]
    assert all(host.split(".")[0] in peer["values"] for host in hosts for peer in peers)
    assert peers
    assert {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]} in rules


def test_only_housekeeping_may_call_any_port_and_no_pod_private_addresses() -> None:
    """Webhooks have addresses that callers name; the others fetch by HTTPS."""
    for name in DEPLOYMENTS:
        rules = [rule for rule in policies(name, "egress") if any("ipBlock" in peer for peer in rule.get("to", []))]
        assert any("ports" not in rule for rule in rules) == (name == "housekeeping")
        blocks = [peer["ipBlock"] for rule in rules for peer in rule["to"]]
        refused = {address for block in blocks for address in PRIVATE if _covers(block["cidr"], address)}
        assert refused == set(PRIVATE)
        for block in blocks:
            inside = [address for address in PRIVATE if _covers(block["cidr"], address)]
            assert all(any(_covers(part, address) for part in block["except"]) for address in inside)


PRIVATE = (
    "10.0.0.1",
    "172.31.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "168.63.129.16",
    "100.64.0.1",
    "127.0.0.1",
    "fd00::1",
    "fe80::1",
    "::1",
    "::ffff:10.0.0.1",
)


def _covers(network: str, address: str) -> bool:
    return ip_address(address) in ip_network(network)


def test_only_the_api_is_called_from_outside() -> None:
    """And by the example of an Ingress, at a port that its Service has, over TLS."""
    assert [rule["ports"] for rule in policies("api", "ingress") if "from" not in rule] == [[{"port": "http"}]]
    assert not [rule for name in ("housekeeping", "worker") for rule in policies(name, "ingress") if "from" not in rule]
    (ingress,) = EXAMPLES
    (rule,) = ingress["spec"]["rules"]
    assert [rule["host"]] == ingress["spec"]["tls"][0]["hosts"]
    backend = rule["http"]["paths"][0]["backend"]["service"]
    (service,) = [one for one in RESOURCES if one["kind"] == "Service" and one["metadata"]["name"] == backend["name"]]
    assert backend["port"]["name"] in [port["name"] for port in service["spec"]["ports"]]


def test_the_worker_asks_for_one_gpu_and_is_what_is_scaled() -> None:
    """By the queue, from none."""
    limits = DEPLOYMENTS["worker"]["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == 1
    scaled = yaml.safe_load((FOLDER / "keda.yaml").read_text())
    assert scaled["spec"]["scaleTargetRef"]["name"] == "worker"
    assert scaled["spec"]["minReplicaCount"] == 0
    assert "replicas" not in DEPLOYMENTS["worker"]["spec"]  # applied again, it would undo what the autoscaler did
    metrics = (ROOT / "docs" / "metrics.md").read_text()
    query = scaled["spec"]["triggers"][0]["metadata"]["query"]
    names = {word for word in query.replace("(", " ").replace(")", " ").split() if word.startswith("kernelscope_")}
    assert names
    assert all(f"`{name}`" in metrics for name in names)
