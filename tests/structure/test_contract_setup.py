"""The lists of routes behind the generated requests are complete, and name no route that is gone."""

from __future__ import annotations

import pytest

from api.app import create_app
from shared.settings import Settings
from tests.contract import schema_setup

ROUTES = {
    f"{method.upper()} {path}"
    for path, methods in create_app(Settings(_env_file=None)).openapi()["paths"].items()
    for method in methods
}


def test_every_route_gets_generated_requests() -> None:
    """A new route belongs in EVERY, or in RARE if few generated requests can succeed; none is in both."""
    assert sorted([*schema_setup.EVERY, *schema_setup.RARE]) == sorted(ROUTES)


@pytest.mark.parametrize("name", ["REFUSALS", "DELETED", "TOLERANT", "BOUND"])
def test_a_list_names_existing_routes(name: str) -> None:
    """What is known of a route must not outlive it."""
    assert set(getattr(schema_setup, name)) <= ROUTES
