"""Which network a command takes that names none, on a server without VGG-16's weights."""

from __future__ import annotations

import json
import re
from pathlib import Path

from kernelscope.client import Client
from kernelscope.stack import Stack
from tests.integration.cli import run

NAMED = "network instead: vgg_mini"


def test_every_command_with_a_model_takes_the_small_network_and_says_so(folder: Path, stack: Stack) -> None:
    """`explain`, `activations` and `surveys make`; a network that is named is taken, or refused."""
    url = {"KERNELSCOPE_URL": stack.url}
    assert run(folder, "datasets", "add", "photos", "--name", "default", **url).returncode == 0
    for words in (
        ("explain", "photo.jpg", "-l", "conv2_1", "-k", "3", "--effort", "quick", "-o", "out"),
        ("activations", "photo.jpg", "-l", "conv2_1"),
        ("surveys", "make", "default", "-l", "conv2_1"),
    ):
        ran = run(folder, *words, "--json", **url)
        assert ran.returncode == 0, ran.stderr
        assert "VGG-16 is not available here: no weights for vgg16" in ran.stderr
        assert NAMED in ran.stderr
        named = run(folder, *words, "--model", "vgg16", "--json", **url)
        assert named.returncode == 1
        assert NAMED not in named.stderr
        assert re.search(r"Model unavailable: .*downloading is turned off", named.stderr)
    survey = json.loads(ran.stdout)
    assert survey["model"] == "vgg_mini"
    with Client(stack.url) as client:
        client.delete_survey(survey["id"])
        client.delete_dataset(survey["dataset"])
