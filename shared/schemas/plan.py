"""The items of a request, and the slices in which workers run them."""

from __future__ import annotations

from itertools import product
from math import prod

from pydantic import BaseModel

from shared.errors import InvalidRequest
from shared.schemas.requests import ExplainRequest, kernel_choices, variants

SLICE_ITEMS = 16  # most items that are claimed, leased and retried together


class Item(BaseModel):
    """One X̂ to compute, one image whose kernels are to be ranked, or one part of a survey.

    For an X̂ either `kernel` or `rank` is set: rank r is the (r+1)-th most active kernel on the image.
    """

    index: int
    image: int
    kernel: int | None
    rank: int | None
    method: str
    alpha: float
    beta: float


def plan(request: ExplainRequest, max_items: int) -> list[list[Item]]:
    """One item for every image × kernel × method × α × β, in slices of at most 16.

    Only suppression and evidence have an item for every α and β. Any other method has one, whose loss is computed with
    the first α and the first β.

    Raises:
        InvalidRequest: more than `max_items` items.
    """
    choices = kernel_choices(request.kernels) if request.explains else [(None, None)]
    axes = (range(len(request.images)), choices, variants(request))
    count = prod(map(len, axes))
    if count > max_items:
        raise InvalidRequest(
            f"the request makes {count} items (image × kernel × method × α × β); at most {max_items} are accepted"
        )
    items = [
        Item(index=index, image=image, kernel=kernel, rank=rank, method=method, alpha=alpha, beta=beta)
        for index, (image, (kernel, rank), (method, alpha, beta)) in enumerate(product(*axes))
    ]
    return [items[start : start + SLICE_ITEMS] for start in range(0, len(items), SLICE_ITEMS)]
