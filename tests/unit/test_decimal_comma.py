"""A decimal comma is never two numbers: in the client and on the command line. The page has its own tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from kernelscope.cli import app
from kernelscope.client.transport import form
from shared.schemas import ExplainOptions
from shared.schemas.requests import NUMBERS
from tests.conftest import noise, png


@pytest.mark.parametrize(
    ("given", "two"),
    [("0,5", r"a list: \[0, 5\]"), (["0,5"], "0, 5 as two values"), (("1", "0,5"), "0, 5 as two values")],
)
@pytest.mark.parametrize("name", ["alpha", "beta"])
def test_the_client_refuses_what_may_be_one_number_or_two(name: str, given: object, two: str) -> None:
    """Before anything is sent; the error says what to write."""
    with pytest.raises(ValueError, match=rf"^{name}: '0,5' may be one number or two; write 0\.5, or {two}$"):
        form(png(noise()), {name: given})


@pytest.mark.parametrize(
    ("given", "sent"),
    [("0.5,2", "0.5,2"), ("1, 2, 3", "1, 2, 3"), ("1,2,3", "1,2,3"), ("0, 5", "0, 5"), (["0.5,2", 1], "0.5,2,1")],
)
def test_other_texts_with_commas_are_lists(given: object, sent: str) -> None:
    """They cannot be one number with a decimal comma."""
    assert form(png(noise()), {"beta": given})[1] == {"beta": sent}


@pytest.mark.parametrize("name", NUMBERS)
def test_the_server_refuses_it_where_one_number_is_wanted(name: str) -> None:
    """By the field's name, with how a number is written."""
    with pytest.raises(ValidationError, match=rf"{name}\n.*'0,5' is not a finite number; write it as 12, -0\.5 or"):
        ExplainOptions.model_validate({"layer": "conv2_2", "kernels": [3], "methods": ["evidence"], name: "0,5"})


def test_the_client_sends_numbers() -> None:
    """Alone, in a list, as text, in an array."""
    fields = {"alpha": ["0.5", 2], "beta": np.array([0.25, 1])}
    assert form(png(noise()), fields)[1] == {"alpha": "0.5,2", "beta": "0.25,1.0"}
    assert form(png(noise()), {"beta": 0.5, "alpha": "1", "kernels": "3,16"})[1] == {
        "beta": "0.5",
        "alpha": "1",
        "kernels": "3,16",
    }


@pytest.mark.parametrize("option", ["--alpha", "--beta", "--target-ssim", "--gamma"])
def test_the_command_line_refuses_it(tmp_path: Path, option: str) -> None:
    """By the option's name, and before a server is looked for."""
    photo = tmp_path / "photo.png"
    photo.write_bytes(png(noise()))
    ran = CliRunner().invoke(
        app, ["explain", str(photo), "-l", "conv2_2", option, "0,5", "--url", "http://127.0.0.1:9"]
    )
    assert ran.exit_code == 2
    assert option in ran.output
    assert "0,5" in ran.output
