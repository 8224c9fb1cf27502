"""`openapi.json` is what the API says of itself; its examples are what it would answer."""

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


def test_the_file_is_the_code_s() -> None:
    """`make openapi` after a change."""
    kept = json.loads((Path(__file__).parents[2] / "openapi.json").read_text())
    assert kept == json.loads(json.dumps(DOCUMENT))
    assert kept["openapi"].startswith("3.1")


@pytest.mark.parametrize(("name", "operation"), OPERATIONS, ids=[name for name, _ in OPERATIONS])
def test_every_answer_has_an_example_that_fits_its_schema(name: str, operation: dict[str, Any]) -> None:
    """Every error is a problem with one for each of its types; files and streams have none."""
    assert operation["summary"]
    assert operation["description"]
    for status, answer in operation["responses"].items():
        assert (status in NO_BODY) == ("content" not in answer), status
        for media, content in answer.get("content", {}).items():
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
    """Of the JSON form; archives and files have none."""
    bodies = {name: operation["requestBody"]["content"] for name, operation in OPERATIONS if "requestBody" in operation}
    surveys = ("/surveys", "/surveys/{survey_id}/explanations")
    assert bodies.keys() == {f"post {path}" for path in ("/explain", "/activations", "/datasets", FILES, *surveys)}
    for name, content in bodies.items():
        if name != f"post {FILES}":
            json_body = content["application/json"]
            validator_for({**json_body["schema"], "components": DOCUMENT["components"]}).validate(json_body["example"])
        assert ("multipart/form-data" in content) == (name in ("post /explain", "post /activations", f"post {FILES}"))


@pytest.mark.parametrize(("name", "operation"), OPERATIONS, ids=[name for name, _ in OPERATIONS])
def test_what_is_named_in_a_path_may_not_be_there(name: str, operation: dict[str, Any]) -> None:
    """Whoever adds a route with a name in its path says what is answered where there is no such thing."""
    assert ("{" in name) <= ("404" in operation["responses"])
