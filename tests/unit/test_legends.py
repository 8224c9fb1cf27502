"""Legends of figures use plain words."""

from __future__ import annotations

from api.pictures.colours import Scale


def test_a_legend_says_what_the_colours_mean() -> None:
    """Of maps that are never negative, and of others."""
    assert Scale(1.0).key == "black: no activation, bright: high"
    assert Scale(1.0, signed=True).key == "blue: negative, white: 0, red: positive"
