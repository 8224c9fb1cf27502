"""A decimal comma is never two numbers: in the client and on the command line. The page has its own tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from kernelscope.cli import app
from kernelscope.client.transport import form
from tests.conftest import noise, png


@pytest.mark.parametrize("given", ["0,5", ["0,5"], ("1", "0,5")])
@pytest.mark.parametrize("name", ["alpha", "beta"])
def test_the_client_refuses_text_with_a_comma(name: str, given: object) -> None:
    """Before anything is sent; the error says what to write."""
    with pytest.raises(ValueError, match=rf"{name}: '0,5' is not a number; write 0.5, or a list: \[0, 5\]"):
        form(png(noise()), {name: given})


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
