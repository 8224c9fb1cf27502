"""The keyword arguments of requests, with their types."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, TypedDict

import numpy as np

from shared.schemas import Method

Number = float | np.floating[Any] | np.integer[Any]
Numbers = Number | Iterable[Number]
Kernels = int | np.integer[Any] | Iterable[int] | str
Effort = Literal["quick", "standard", "thorough"]


class ActivationsOptions(TypedDict, total=False):
    """What `POST /activations` accepts besides image, layer and model. None is the server's default."""

    deadline_s: Number | None
    webhook_url: str | None


class ExplainOptions(ActivationsOptions, total=False):
    """What `POST /explain` accepts besides images, layer, kernels and model, by the names of its JSON fields."""

    methods: Method | Iterable[Method] | None
    rule: Literal["zplus", "gamma_epsilon"] | None
    scaling: Literal["max", "minmax"] | None
    alpha: Numbers | None
    beta: Numbers | None
    solver: Literal["fast", "reference"] | None
    effort: Effort | None
    iterations: int | np.integer[Any] | None
    target_ssim: Number | None
    max_preservation: Number | None
    only_remove: bool | np.bool_ | None
    gamma: Number | None
    max_invention: Number | None
