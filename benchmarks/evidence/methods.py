"""The methods and the controls on photographs, by readings that are not optimised; and pairs of kernels."""

from __future__ import annotations

from api.pictures.consistency import consistency, description, discrimination
from benchmarks.evidence.bench import CONTROLS, LONGER, METHODS, MODEL, QUICK, Bench, Row, controls, numbers
from benchmarks.evidence.tables import mean
from benchmarks.readings import deletion, small_changes, strength
from shared import catalogue
from worker.engine.questions import Answer, Picture, Question

RANK = 2  # the third most active kernel
PAIRS = 3  # kernels, and photographs, of a layer


def methods(bench: Bench, count: int) -> None:
    """The methods and the controls on `count` photographs of each layer; beyond `quick`, what is optimised only."""
    compared, given = (METHODS, CONTROLS) if bench.effort == QUICK else (LONGER, ())
    for image, picture in list(bench.shown.items())[:count]:
        for layer in bench.layers:
            kernel = bench.ranking(layer, picture)[RANK]
            prefix = f"{layer}/{image}/{kernel}{bench.key_suffix}"
            questions = {
                name: Question(MODEL, layer, picture, kernel, 1.0, 1.0, effort=bench.effort, **options)
                for name, options in compared.items()
            }
            found = dict(bench.asked({n: one for n, one in questions.items() if bench.missing(f"{prefix}/{n}", one)}))
            question = Question(MODEL, layer, picture, kernel, 1.0, 1.0)
            if any(bench.missing(f"{prefix}/{name}", question) for name in given):
                found |= bench.engine.call(controls, bench.network, question)
            where = {"part": "methods", "effort": bench.effort, "layer": layer, "image": image, "kernel": kernel}
            if found:
                chance = bench.engine.call(deletion, bench.network, layer, kernel, picture, None)
                where |= {"deletion_random": chance}
            for name, answer in found.items():
                row = where | {"method": name} | numbers(answer) | _readings(bench, layer, kernel, picture, answer)
                bench.keep(f"{prefix}/{name}", questions.get(name, question), row, answer.picture)


def _readings(bench: Bench, layer: str, kernel: int, original: Picture, answer: Answer) -> Row:
    """The readings that are not optimised, computed on the engine's thread."""

    def all_of_them() -> Row:
        found: Row = bench.other.read(original, answer.picture)
        found |= small_changes(bench.network, layer, kernel, original, answer.picture)
        order = strength(bench.network, answer.picture)
        return found | {"deletion_auc": deletion(bench.network, layer, kernel, original, order)}

    return bench.engine.call(all_of_them)


def pairs(bench: Bench) -> None:
    """Discrimination and consistency: the kernels that are most active on all of three photographs."""
    shown = dict(list(bench.shown.items())[:PAIRS])
    for layer in bench.layers:
        kernels = _common(bench, layer, list(shown.values()))
        for method in (*METHODS, *CONTROLS) if bench.effort == QUICK else ("paper", "evidence"):
            questions = {
                f"{image}/{kernel}": Question(
                    MODEL, layer, picture, kernel, 1.0, 1.0, effort=bench.effort, **METHODS.get(method, {})
                )
                for image, picture in shown.items()
                for kernel in kernels
            }
            key, last = f"{layer}/pairs{bench.key_suffix}/{method}", list(questions.values())[-1]
            if not bench.missing(key, last):
                continue
            if method in CONTROLS:
                answers = {name: bench.engine.call(controls, bench.network, q)[method] for name, q in questions.items()}
            else:
                answers = dict(bench.asked(questions))
            row = {"part": "pairs", "effort": bench.effort, "layer": layer, "method": method, "kernels": kernels}
            bench.keep(key, last, row | _apart(answers, list(shown), kernels, layer))


def _apart(answers: dict[str, Answer], shown: list[str], kernels: list[int], layer: str) -> Row:
    """The means over the kernels."""
    stride = catalogue.network(MODEL).layer(layer).stride
    described = {
        kernel: {
            number: found
            for number, image in enumerate(shown)
            if (answer := answers.get(f"{image}/{kernel}")) is not None
            and (found := description(answer.x, stride)) is not None
        }
        for kernel in kernels
    }
    rivals = {kernel: [own for other, own in described.items() if other != kernel] for kernel in kernels}
    return {
        "discrimination": mean(discrimination(own, rivals[kernel]) for kernel, own in described.items()),
        "consistency": mean(consistency(own) for own in described.values()),
    }


def _common(bench: Bench, layer: str, shown: list[Picture]) -> list[int]:
    """The kernels whose worst rank on these images is best."""
    ranks = [{kernel: place for place, kernel in enumerate(bench.ranking(layer, picture))} for picture in shown]
    everywhere = set.intersection(*(set(one) for one in ranks))
    return sorted(everywhere, key=lambda kernel: max(one[kernel] for one in ranks))[:PAIRS]
