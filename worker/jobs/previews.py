"""X̂ as it forms, for who watches a job: sketches that the engine makes become small pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO

from shared.images import pictured
from worker.engine.questions import Picture, Ticket

MOST = 4  # of a slice's items that a watcher is shown in one beat of the pulse


@dataclass
class Previews:
    """Of one slice."""

    told: dict[int, int] = field(default_factory=dict)  # of which evaluation an item's last preview was

    def new(self, running: Mapping[int, Ticket], *, wanted: bool) -> dict[int, bytes]:
        """The pictures that are new, WebP files by the item's index.

        Args:
            wanted: ask for more, of those that have waited longest.
        """
        sketches = {index: ticket.preview for index, ticket in running.items() if ticket.preview}
        new = {index: one for index, one in sketches.items() if one.iteration > self.told.get(index, 0)}
        self.told.update((index, sketch.iteration) for index, sketch in new.items())
        if wanted:
            for index in sorted(running, key=lambda index: self.told.get(index, 0))[:MOST]:
                running[index].preview_wanted = True
        return {index: _webp(sketch.picture) for index, sketch in new.items()}


def _webp(picture: Picture) -> bytes:
    """Small and quick to make: for one look."""
    file = BytesIO()
    pictured(picture).save(file, "WEBP", quality=70, method=0)
    return file.getvalue()
