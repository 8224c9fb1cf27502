"""Previews: the present X̂ as small pictures, for clients that follow a job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO

from shared.images import pictured
from worker.engine.questions import Picture, Ticket

MOST = 4  # new previews of a slice per lease renewal


@dataclass
class Previews:
    """The previews of one slice."""

    iterations: dict[int, int] = field(default_factory=dict)  # of each item's last preview

    def new(self, running: Mapping[int, Ticket], *, wanted: bool) -> dict[int, bytes]:
        """The new previews, as WebP files by the item's index.

        Args:
            running: the tickets of the open items.
            wanted: whether to request further previews, of the items with the oldest ones.
        """
        previews = {index: ticket.preview for index, ticket in running.items() if ticket.preview}
        new = {index: one for index, one in previews.items() if one.iteration > self.iterations.get(index, 0)}
        self.iterations.update((index, preview.iteration) for index, preview in new.items())
        if wanted:
            for index in sorted(running, key=lambda index: self.iterations.get(index, 0))[:MOST]:
                running[index].preview_wanted = True
        return {index: _webp(preview.picture) for index, preview in new.items()}


def _webp(picture: Picture) -> bytes:
    """A small WebP, encoded fast."""
    file = BytesIO()
    pictured(picture).save(file, "WEBP", quality=70, method=0)
    return file.getvalue()
