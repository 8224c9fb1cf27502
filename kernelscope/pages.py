"""The pages of an exported layer: HTML that needs no server and nothing from elsewhere, from the API's answers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from html import escape

from kernelscope.surveys import in_words
from shared.schemas import KernelPage, LayerKernels, Score, Similar, TopImage

ORDERS = {
    "": "number",
    "mean": "mean activation",
    "max": "highest activation",
    "active": "share of active positions",
    "consistency": "consistency of X̂",
    "colour": "share that is colour",
}
MEANINGS = {
    "mean": "Mean activation over all positions of all images.",
    "max": "Highest activation; 0 where no image activates it.",
    "active": "Share of positions at which the kernel is active.",
    "active images": "Share of images that have such a position.",
    "consistency": "Whether X̂ of its top images show the same thing.",
    "discrimination": "How often its X̂ is more like its own of another image than like another kernel's of the same.",
    "colour": "How much of the kernel's map goes when X̂ loses its colour: 1 − SSIM; 0: shape alone.",
}
BAR = 10  # units of a histogram's bar, with its gap
HIGH = 100


def image_file(url: str) -> str:
    """The file of an image: what a URL has never changes, so a file that is there is the same."""
    return f"images/{sha256(url.encode()).hexdigest()[:16]}.webp"


def page_file(kernel: int) -> str:
    """The file of a kernel's page."""
    return f"kernel-{kernel}.html"


def images_of(page: KernelPage) -> Iterator[tuple[str, str]]:
    """(file, URL) of every image that a kernel's page shows."""
    for one in page.top:
        yield image_file(one.crop), one.crop
        if one.picture:
            yield image_file(one.picture), one.picture
    yield from ((image_file(one.crop), one.crop) for one in page.similar if one.crop)


@dataclass(frozen=True)
class Site:
    """All pages of a layer.

    Args:
        pages: of the kernels that are exported, in their order.
        there: files of images that there are; of the others the page says that they are missing.
    """

    layer: LayerKernels
    pages: Sequence[KernelPage]
    there: Collection[str]

    @property
    def name(self) -> str:
        """The title of the pages."""
        return escape(f"{self.layer.layer.name} of {self.layer.survey.model}")

    @property
    def explained(self) -> bool:
        """Whether any kernel has an X̂."""
        return any(page.explanation for page in self.pages)

    def files(self) -> Iterator[tuple[str, str]]:
        """(file, content); the index, which makes it whole, comes last."""
        for number, page in enumerate(self.pages):
            before, after = self.pages[number - 1 : number], self.pages[number + 1 : number + 2]
            yield page_file(page.kernel), self._kernel(page, [*before], [*after])
        yield "index.html", self._index()

    def _index(self) -> str:
        every = self.layer.layer.kernels
        count = f"its {every} kernels" if len(self.pages) == every else f"{len(self.pages)} of its {every} kernels"
        options = "".join(f'<option value="{name}">{title}</option>' for name, title in ORDERS.items())
        return _document(
            f"{self.name}: {count}",
            f"<h1>{self.name}: {count}</h1>\n"
            f"<p>Beside what each kernel responds to most in the images of “{escape(self.layer.survey.dataset_name)}” "
            "is X̂, where it was made: the emptiest picture that keeps the kernel's map of this image and silences all "
            "others.</p>\n"
            f'<p hidden><label>In the order of their <select id="order">{options}</select></label></p>\n'
            f'<ol class="kernels">\n{"".join(map(self._entry, self.pages))}</ol>\n'
            f"<h2>Where this is from</h2>\n{self._source()}\n"
            '<script src="order.js"></script>\n',
        )

    def _entry(self, page: KernelPage) -> str:
        found = page.explanation
        scores = {name: getattr(found, name) for name in ("consistency", "colour")} if found else {}
        known = {"mean": page.mean, "max": page.max, "active": page.active}
        known |= {name: score.value for name, score in scores.items() if score}
        data = " ".join(f'data-{name}="{value:.6g}"' for name, value in known.items())
        none = f'<span class="pair">{_nothing("no image activates it")}{_nothing("") if self.explained else ""}</span>'
        shown = self._pair(page, page.top[0]) if page.top else none
        return (
            f'<li {data}><a href="{page_file(page.kernel)}">{shown}<span class="caption">Kernel {page.kernel}'
            f"<small>highest {page.max:.3g}, mean {page.mean:.3g}</small></span></a></li>\n"
        )

    def _kernel(self, page: KernelPage, before: Sequence[KernelPage], after: Sequence[KernelPage]) -> str:
        links = [f'<a href="index.html">All kernels of {self.name}</a>']
        links += [f'<a rel="prev" href="{page_file(one.kernel)}">‹ Kernel {one.kernel}</a>' for one in before]
        links += [f'<a rel="next" href="{page_file(one.kernel)}">Kernel {one.kernel} ›</a>' for one in after]
        parts = [
            f"<h2>Numbers</h2>\n{_numbers(page)}",
            f"<h2>Highest activation of each image</h2>\n{_histogram(page)}",
        ]
        if page.top:
            shown = "".join(self._top(page, one) for one in page.top)
            beside = "<p>Beside each part of an image is the same part of X̂.</p>\n" if page.explanation else ""
            parts.insert(0, f'<h2>What it responds to most</h2>\n{beside}<ol class="images">\n{shown}</ol>')
        if page.similar:
            alike = "".join(map(self._similar, page.similar))
            parts.append(f'<h2>Kernels that the same images activate</h2>\n<ul class="kernels">\n{alike}</ul>')
        parts.append(f"<h2>Where this is from</h2>\n{self._source()}")
        return _document(
            f"Kernel {page.kernel} of {self.name}",
            f'<nav aria-label="Kernels">{" ".join(links)}</nav>\n<h1>Kernel {page.kernel} of {self.name}</h1>\n'
            f"<p>{escape(in_words(page))}</p>\n" + "\n".join(parts) + "\n",
        )

    def _top(self, page: KernelPage, one: TopImage) -> str:
        ssim = "" if one.ssim is None else f", SSIM of its map on X̂ {one.ssim:.3f}"
        error = f"<small>{escape(one.error)}</small>" if one.error else ""
        return (
            f'<li><figure>{self._pair(page, one)}<figcaption class="caption">{escape(one.name)}'
            f"<small>activation {one.activation:.3g} at row {one.row}, column {one.column}{ssim}</small>{error}"
            "</figcaption></figure></li>\n"
        )

    def _pair(self, page: KernelPage, one: TopImage) -> str:
        crop = self._image(image_file(one.crop), f"What kernel {page.kernel} sees of {one.name}")
        if one.picture:
            crop += self._image(image_file(one.picture), f"The same part of X̂ of {one.name}")
        elif page.explanation:
            crop += _nothing("no X̂")
        return f'<span class="pair">{crop}</span>'

    def _similar(self, one: Similar) -> str:
        crop = self._image(image_file(one.crop), f"What kernel {one.kernel} sees") if one.crop else ""
        text = f"Kernel {one.kernel}<small>correlation {one.correlation:.2f}</small>"
        caption = f'{crop}<span class="caption">{text}</span>'
        exported = any(page.kernel == one.kernel for page in self.pages)
        shown = f'<a href="{page_file(one.kernel)}">{caption}</a>' if exported else caption
        return f"<li>{shown}</li>\n"

    def _image(self, file: str, alt: str) -> str:
        if file not in self.there:
            return _nothing("this image was deleted")
        return f'<img src="{file}" alt="{escape(alt)}" loading="lazy">'

    def _source(self) -> str:
        survey = self.layer.survey
        weights = survey.weights
        network = f", weights {escape(weights.source)} (SHA-256 {weights.sha256})" if weights else ""
        return (
            f"<p>Survey {survey.id} of {survey.created_at:%F}, of {survey.surveyed:,} images of the data set "
            f"“{escape(survey.dataset_name)}”; network {escape(survey.model)}{network}. A position of a map of "
            f"{self.name} sees {self.layer.layer.receptive_field} pixels a side.</p>\n"
            '<p><a href="survey.csv">The whole survey as a table</a> (CSV).</p>'
        )


def _document(title: str, body: str) -> str:
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{title}</title>\n<link rel="stylesheet" href="style.css">\n</head>\n'
        f"<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )


def _nothing(why: str) -> str:
    return f'<span class="nothing">{escape(why)}</span>'


def _numbers(page: KernelPage) -> str:
    known = {
        "mean": f"{page.mean:.4g}",
        "max": f"{page.max:.4g}",
        "active": f"{page.active:.2%}",
        "active images": f"{page.active_images:.1%}",
    }
    if found := page.explanation:
        scores = {"consistency": found.consistency, "discrimination": found.discrimination, "colour": found.colour}
        known |= {name: _score(score) for name, score in scores.items() if score}
    rows = "".join(
        f'<tr><th scope="row">{name}</th><td class="number">{value}</td><td>{MEANINGS[name]}</td></tr>\n'
        for name, value in known.items()
    )
    return f'<div class="scroll"><table>\n{rows}</table></div>'


def _score(score: Score) -> str:
    return f"{score.value:.3f}" + ("" if score.error is None else f" ± {score.error:.3f}")


def _histogram(page: KernelPage) -> str:
    most = max((one.images for one in page.histogram), default=0) or 1
    bars, rows = [], []
    for number, one in enumerate(page.histogram):
        height = HIGH * one.images / most
        place = f'x="{number * BAR}" y="{HIGH - height:.2f}" width="{BAR - 1}" height="{height:.2f}"'
        bars.append(f"<rect {place}/>")
        end = "on" if one.end is None else f"to {one.end:.3g}"
        rows.append(f'<tr><th scope="row">{one.start:.3g} {end}</th><td class="number">{one.images:,}</td></tr>')
    box = f'viewBox="0 0 {max(1, len(bars)) * BAR} {HIGH}" preserveAspectRatio="none"'
    head = '<tr><th scope="col">highest activation</th><th scope="col">images</th></tr>'
    return (
        f'<svg {box} role="img" aria-label="Histogram; the table below has its numbers">{"".join(bars)}</svg>\n'
        f"<details><summary>From {page.histogram[0].start:.3g} to {page.max:.3g}: the numbers</summary>"
        f'<div class="scroll"><table>\n{head}\n{"".join(rows)}\n</table></div></details>'
        if bars
        else "<p>No image activates it.</p>"
    )
