"""`openapi.json` is the document of the code, and its examples are valid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema_rs import validator_for

from api.app import create_app
from shared.errors import error_types
from shared.settings import Settings

DOCUMENT: dict[str, Any] = create_app(Settings(_env_file=None)).openapi()
OPERATIONS = [
    (f"{method} {path}", operation)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
]
FILES = "/datasets/{dataset_id}/images"
NO_BODY = {"204", "304"}


def test_the_file_is_up_to_date() -> None:
    """Run `make openapi` after a change."""
    stored = json.loads((Path(__file__).parents[2] / "openapi.json").read_text())
    assert stored == json.loads(json.dumps(DOCUMENT))
    assert stored["openapi"].startswith("3.1")


@pytest.mark.parametrize(("name", "operation"), OPERATIONS, ids=[name for name, _ in OPERATIONS])
def test_every_response_has_an_example_that_fits_its_schema(name: str, operation: dict[str, Any]) -> None:
    """Each error response is a problem with an example of each of its types; files and streams have no examples."""
    assert operation["summary"]
    assert operation["description"]
    for status, response in operation["responses"].items():
        assert (status in NO_BODY) == ("content" not in response), status
        for media, content in response.get("content", {}).items():
            if int(status) >= 400:
                assert media == "application/problem+json"
                examples = [example["value"] for example in content["examples"].values()]
                assert all(example["status"] == int(status) for example in examples)
                assert all(example["type"].removeprefix("/problems/") in error_types() for example in examples)
            elif media == "application/json":
                examples = [content["example"]]
            else:
                continue
            schema = {**content["schema"], "components": DOCUMENT["components"]}
            for example in examples:
                validator_for(schema).validate(example)


def test_every_request_body_has_an_example_that_fits() -> None:
    """Bodies of JSON; forms have none."""
    bodies = {name: operation["requestBody"]["content"] for name, operation in OPERATIONS if "requestBody" in operation}
    surveys = ("/surveys", "/surveys/{survey_id}/explanations")
    assert bodies.keys() == {f"post {path}" for path in ("/explain", "/activations", "/datasets", FILES, *surveys)}
    for name, content in bodies.items():
        if name != f"post {FILES}":
            json_body = content["application/json"]
            validator_for({**json_body["schema"], "components": DOCUMENT["components"]}).validate(json_body["example"])
        assert ("multipart/form-data" in content) == (name in ("post /explain", "post /activations", f"post {FILES}"))


@pytest.mark.parametrize(("name", "operation"), OPERATIONS, ids=[name for name, _ in OPERATIONS])
def test_a_route_with_a_name_in_its_path_describes_404(name: str, operation: dict[str, Any]) -> None:
    """Whatever the path names may not exist."""
    assert ("{" in name) <= ("404" in operation["responses"])


@pytest.mark.parametrize(("name", "operation"), OPERATIONS, ids=[name for name, _ in OPERATIONS])
def test_a_route_describes_the_errors_that_every_route_has(name: str, operation: dict[str, Any]) -> None:
    """`refusals()` adds them; a public route needs no key."""
    public = operation.get("security") == []
    assert public == (name.split("/")[1] in ("healthz", "readyz", "problems"))
    expected = {"422"} if public else {"401", "403", "422", "429", "500", "503"}
    assert expected <= operation["responses"].keys()
