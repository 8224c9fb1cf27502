"""The paper's figures: `make figures`, or `python -m benchmarks.figures [--out DIR]`.

    1 one kernel on an image of all colours       5 the same as 4 for another kernel
    2 its map and two other kernels', all methods 6, 7 both kernels on several images
    4 several images × methods, one kernel        8 several β: X̂, stretched, maps, differences

Figure 3, the joint distribution, is drawn by `benchmarks.table1`. Without `--weights-dir` the network is `vgg_mini`;
without `--images-dir` the photographs are four of scikit-image: a cat, an astronaut, coffee, a rocket. The methods are
evidence, the paper's, and the baselines. Each figure is a file that the service returns for a job on a private stack.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from skimage import data

from benchmarks.table1 import SUFFIXES
from kernelscope.client import Client
from kernelscope.stack import Stack, free_port
from shared.drawings import all_colours
from shared.schemas import ItemResult
from shared.settings import settings

BOTH = "evidence,suppression"
METHODS = f"{BOTH},guided_backprop,deconvnet,lrp"
LOW = {"vgg16": "conv1_1", "vgg_mini": "conv1_2"}
HIGH = {
    "vgg16": ("conv5_3", "conv4_3", "conv3_3", "conv2_2"),
    "vgg_mini": ("conv3_2",),
}  # the first covered one is used
SIDE = 224


def main() -> int:
    """Start a stack, submit the jobs, and write their figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights-dir", type=Path)
    parser.add_argument("--images-dir", type=Path)
    parser.add_argument("--model", choices=list(LOW), help="vgg16 where there is a weights folder")
    parser.add_argument("--out", type=Path, default=Path("evidence/figures"))
    options = parser.parse_args()

    def say(line: str) -> None:
        sys.stderr.write(f"{line}\n")

    options.out.mkdir(parents=True, exist_ok=True)
    model = options.model or ("vgg16" if options.weights_dir else "vgg_mini")
    with tempfile.TemporaryDirectory() as folder:
        own: dict[str, Any] = {"data_dir": Path(folder), "store_url": "", "port": free_port()}
        own |= {"preload": (model,), "download_weights": False}
        own |= {"weights_dir": options.weights_dir} if options.weights_dir else {}
        configuration = settings().model_copy(update=own)
        with Stack(configuration, say).running() as stack, Client(stack.url) as client:
            for name, file in figures(client, model, shown(options.images_dir)):
                (options.out / name).write_bytes(file)
                say(str(options.out / name))
    return 0


def shown(folder: Path | None) -> list[bytes]:
    """Four images of the folder, or those of scikit-image."""
    if folder:
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
        return [file.read_bytes() for file in files[:: max(1, len(files) // 4)][:4]]
    four = (data.chelsea(), data.astronaut(), data.coffee(), data.rocket())
    return [png(Image.fromarray(picture).resize((SIDE, SIDE))) for picture in four]


def figures(client: Client, model: str, images: list[bytes]) -> list[tuple[str, bytes]]:
    """(file name, figure) of each."""
    low, covered = LOW[model], [layer.name for layer in client.model(model).layers if layer.available]
    high = next(layer for layer in HIGH[model] if layer in covered)
    colours = explained(client, [png(all_colours(SIDE))], model=model, layer=low, kernels="top:6", methods=METHODS)
    first = max((one for one in colours.results if one.method == "suppression"), key=_emptiness)
    found = [
        ("figure1.png", client.file(first.artifacts["sweep.png"])),
        ("figure2.png", client.file(first.artifacts["panel.png"])),
    ]
    ranked = explained(client, images[:1], model=model, layer=high, kernels="top:2").results
    one, two = sorted(result.kernel for result in ranked if result.kernel is not None)
    for name, kernels, methods in (("4", one, METHODS), ("5", two, METHODS), ("6-7", f"{one},{two}", BOTH)):
        job = explained(client, images, model=model, layer=high, kernels=str(kernels), methods=methods)
        found.append((f"figure{name}.png", client.file(job.links["contact_sheet"])))
    swept = explained(client, images[:1], model=model, layer=high, kernels=str(one), beta="0,0.3,1,3,10", methods=BOTH)
    for name, method in (("8", "suppression"), ("8-evidence", "evidence")):
        first = next(result for result in swept.results if result.method == method)
        found.append((f"figure{name}.png", client.file(first.artifacts["sweep.png"])))
    return found


def _emptiness(result: ItemResult) -> float:
    """The sparsity, which is highest for a kernel that responds to few colours."""
    return result.metrics.sparsity if result.metrics else 0.0


def explained(client: Client, images: list[bytes], **fields: Any) -> Any:
    """A succeeded job with these fields."""
    job = client.explain(images, **fields, effort="quick").wait()
    if job.status != "succeeded":
        raise SystemExit(f"job {job.id} {job.status}: {job.error}")
    return job


def png(picture: Image.Image) -> bytes:
    """The picture as a PNG."""
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(main())
