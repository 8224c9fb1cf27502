"""The kernels of `benchmarks.table1`."""

from __future__ import annotations

import argparse
import json
import random
import sys

from worker.engine.engine import Engine
from worker.engine.questions import Answer, Picture, Question

SEED = 0
KEPT = 0.9  # SSIM of a preserved map
SHORT = 80  # evaluations
TRIED_AT_ONCE, TRIED_AT_MOST = 8, 64


class KernelChoices:
    """Chooses the kernels of each layer, and stores them, so that an interrupted run continues with the same ones."""

    def __init__(self, engine: Engine, options: argparse.Namespace) -> None:
        self.engine, self.options = engine, options
        self.file = options.out / "kernels.json"
        self.chosen: dict[str, list[int]] = json.loads(self.file.read_text()) if self.file.exists() else {}

    def get(self, model: str, layer: str, shown: list[Picture], held_out: list[Picture]) -> list[int]:
        """The kernels of a layer, in ascending order."""
        count, how = self.options.kernels, self.options.choose
        key = f"{how} {count} of {model} {layer} on {len(shown)} images"
        if key not in self.chosen:
            active = [
                set(self.engine.call(self.engine.device.ranking, model, layer, one)) for one in (*shown, *held_out)
            ]
            order = sorted(set.intersection(*active))
            random.Random(f"{SEED} {model} {layer}").shuffle(order)  # noqa: S311
            found = order[:count] if how == "any" else self._explained(model, layer, order[:TRIED_AT_MOST], held_out)
            self.chosen[key] = sorted(found)
            self.file.write_text(json.dumps(self.chosen, indent=1))
        return self.chosen[key]

    def _explained(self, model: str, layer: str, order: list[int], held_out: list[Picture]) -> list[int]:
        """The first kernels whose map is preserved; if there are too few, those whose map is preserved best."""
        worst: dict[int, float] = {}
        count = self.options.kernels
        for start in range(0, len(order), TRIED_AT_ONCE):
            asked = [
                Question(model, layer, picture, kernel, 1.0, 1.0, effort="quick", iterations=SHORT)
                for kernel in order[start : start + TRIED_AT_ONCE]
                for picture in held_out
            ]
            for number, answer in self.engine.ask(asked):
                ssim = (answer.metrics.ssim or 0) if isinstance(answer, Answer) else 0
                kernel = asked[number].kernel
                worst[kernel] = min(worst.get(kernel, 1.0), ssim)
            good = [kernel for kernel in order if worst.get(kernel, 0) >= KEPT]
            sys.stderr.write(f"{model} {layer}: {len(good)} of {len(worst)} kernels tried have an explanation\n")
            if len(good) >= count:
                return good[:count]
        return sorted(worst, key=worst.__getitem__, reverse=True)[:count]
