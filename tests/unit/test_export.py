"""The exported site: whole, self-contained, escaped; and the commands and methods that read surveys."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from kernelscope import AsyncClient
from kernelscope.cli import app
from kernelscope.client import Client, ClientError, NotFound
from kernelscope.export import NoExport, chosen
from kernelscope.surveys import UnknownDataSet, in_words, named
from shared.schemas import Status
from tests.surveyed import DATASET, HOSTILE, KERNELS, SILENT, SURVEY, SurveyServer, dataset


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> SurveyServer:
    """What every client talks to, whatever its address."""
    made = SurveyServer()

    def opened(client: Client) -> httpx.Client:
        return httpx.Client(base_url=client.url, transport=httpx.MockTransport(made))

    plain = Client.__init__

    def init(self: Client, *arguments: Any, **options: Any) -> None:
        plain(self, *arguments, **options)
        self._http.close()
        self._http = opened(self)

    monkeypatch.setattr(Client, "__init__", init)
    return made


def run(*arguments: object) -> Result:
    """A command; an error of ours is raised."""
    ran = CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200"})
    if ran.exception and not isinstance(ran.exception, SystemExit):
        raise ran.exception
    return ran


def export(folder: Path, *options: object) -> str:
    """What it prints."""
    ran = run("export", "vgg_mini", "conv2_2", "-o", folder, *options)
    assert ran.exit_code == 0, ran.output
    return ran.output


class Reader(HTMLParser):
    """Of a page: what it refers to, and what a screen reader would miss."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """One tag."""
        known = dict(attrs)
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("href", "src") and value]
        assert tag != "img" or known["alt"]
        assert tag != "html" or known["lang"]


def pages(folder: Path) -> Iterator[tuple[Path, Reader]]:
    """All of a site."""
    for path in folder.glob("*.html"):
        yield path, Reader(path.read_text())


@pytest.mark.parametrize("explained", ["", "--explain"])
def test_a_site_is_whole_and_needs_nothing_from_elsewhere(server: SurveyServer, tmp_path: Path, explained: str) -> None:
    """Every link leads to a file of the folder; no address of a server, no fetch, no script of an image's name."""
    site = tmp_path / "site"
    said = export(site, *filter(None, [explained]))
    assert str(site / "index.html") in said.replace("\n", "")
    found = dict(pages(site))
    assert len(found) == KERNELS + 1
    for page in found.values():
        assert page.tags.count("h1") == 1
        assert all((site / link).is_file() for link in page.links), page.links
        assert "script" not in page.tags or page.links[-1] == "order.js"
    for path in site.rglob("*.*"):
        text = path.read_text(errors="replace").replace("http://elsewhere", "")
        assert "http" not in text, path
        assert "fetch(" not in text
    assert (site / "survey.csv").read_bytes().startswith(b"layer,kernel\r\n")
    crops = 2 * (KERNELS - 1)
    assert len(list((site / "images").iterdir())) == crops + (KERNELS - 1 if explained else 0)
    assert "consistency" not in (site / "kernel-3.html").read_text() or explained


def test_names_are_text(server: SurveyServer, tmp_path: Path) -> None:
    """Of images, of the data set, of errors."""
    export(tmp_path / "site", "--explain")
    for path, page in pages(tmp_path / "site"):
        assert page.tags.count("script") == (path.name == "index.html")
    text = (tmp_path / "site" / "kernel-3.html").read_text()
    assert "<script>" not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 5


def test_an_interrupted_export_continues_and_nothing_is_fetched_twice(server: SurveyServer, tmp_path: Path) -> None:
    """The index comes last; existing images are kept; kernels that are no longer requested are removed."""
    site = tmp_path / "site"
    server.gone = {"kernels.csv"}
    with pytest.raises(NotFound):
        export(site)
    assert not (site / "index.html").exists()
    server.gone = set()
    server.requests.clear()
    export(site)
    assert not [one for one in server.requests if "/crops/" in one.url.path]
    assert {value for one in server.requests for value in one.url.params.get_list("survey")} == {SURVEY}
    export(site, "--kernels", "1,2")
    assert sorted(path.name for path in site.glob("*.html")) == ["index.html", "kernel-1.html", "kernel-2.html"]
    assert "2 of its 12 kernels" in (site / "index.html").read_text()
    shown = {name for page in site.glob("*.html") for name in re.findall(r"images/([^\"]+)", page.read_text())}
    assert {path.name for path in (site / "images").iterdir()} == shown
    assert len(shown) == 5  # two of each kernel, and the first of a kernel that is like one of them


def test_deleted_images_are_reported(server: SurveyServer, tmp_path: Path) -> None:
    """The pages say so in their place."""
    server.gone = {"/3/crops/1"}
    assert "images that the server no longer has: 1" in export(tmp_path / "site")
    assert "this image was deleted" in (tmp_path / "site" / "kernel-3.html").read_text()


def test_a_folder_with_something_else_is_left_alone(server: SurveyServer, tmp_path: Path) -> None:
    """Also an export of another layer; and a survey that still runs is refused."""
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(NoExport, match="not empty and is not an export"):
        export(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    site = tmp_path / "site"
    export(site)
    mark = json.loads((site / "export.json").read_text())
    (site / "export.json").write_text(json.dumps({**mark, "layer": "conv1_1"}))
    with pytest.raises(NoExport, match="conv1_1 of vgg_mini by survey"):
        export(site)
    server.status = Status.RUNNING
    with pytest.raises(NoExport, match=rf"512 of 1,000 images\); `kernelscope surveys follow {SURVEY}`"):
        export(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_kernels_are_chosen_by_number_or_by_how_active_they_are(server: SurveyServer, tmp_path: Path) -> None:
    """Anything else is refused, with what would be right."""
    known = server.layer()
    assert chosen(known, None) == list(range(KERNELS))
    assert chosen(known, "top:3") == [0, 1, 2]
    assert chosen(known, " 4, 1,4") == [1, 4]
    for wrong, said in {"x": "give 1,2 or top:8", "top:0": "give 1,2", "1,40": "its 12 kernels are 0 to 11"}.items():
        ran = run("export", "vgg_mini", "conv2_2", "-o", tmp_path / "site", "--kernels", wrong)
        assert ran.exit_code == 2
        assert said in re.sub(r"[\s│]+", " ", ran.output)


def test_x_are_made_of_the_kernels_that_have_images(server: SurveyServer, tmp_path: Path) -> None:
    """Of a silent one there is nothing to explain."""
    export(tmp_path / "site", "--explain")
    (request,) = [one for one in server.requests if one.url.path.endswith("/explanations")]
    body = json.loads(request.content)
    assert body == {
        "layer": "conv2_2",
        "kernels": [k for k in range(KERNELS) if k != SILENT],
        "images": 9,
        "effort": "quick",
        "rivals": False,
    }
    assert "The same part of X̂ of" in (tmp_path / "site" / "kernel-3.html").read_text()


def test_a_survey_is_made_followed_listed_and_deleted(server: SurveyServer, tmp_path: Path) -> None:
    """By the name of a data set; as a table and as JSON."""
    made = run("surveys", "make", "birds", "--model", "vgg_mini", "--layer", "conv2_1, conv2_2", "--layer", "conv1_1")
    assert "1,000 of 1,000 images" in made.output
    (posted,) = [one for one in server.requests if one.method == "POST"]
    assert json.loads(posted.content) == {
        "dataset": DATASET,
        "model": "vgg_mini",
        "layers": ["conv2_1", "conv2_2", "conv1_1"],
    }
    assert posted.headers["idempotency-key"]
    printed = json.loads(run("surveys", "make", DATASET, "--detach", "--json").stdout)
    assert printed["id"] == SURVEY
    assert json.loads(server.requests[-2].content) == {"dataset": DATASET, "model": "vgg_mini"}  # no VGG-16 there
    assert SURVEY in (listed := run("surveys", "list").output)
    assert "1,000" in listed
    assert json.loads(run("surveys", "list", "--json").stdout)[0]["id"] == SURVEY
    assert "1,000 of 1,000" in run("surveys", "follow", SURVEY).output
    assert "is deleted" in run("surveys", "delete", SURVEY).output
    assert run("surveys", "csv", SURVEY).output.startswith("layer,kernel")
    assert "1 kernels are in" in run("surveys", "csv", SURVEY, "-o", tmp_path / "k.csv").output
    assert (tmp_path / "k.csv").read_bytes() == b"layer,kernel\r\nconv2_2,0\r\n"


def test_ctrl_c_leaves_the_survey_running(server: SurveyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """And says how to go on with it."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    server.status = Status.RUNNING
    monkeypatch.setattr("kernelscope.client.sync.Job.wait", interrupted)
    ran = CliRunner().invoke(app, ["surveys", "make", "birds"], env={"COLUMNS": "200"})
    assert ran.exit_code == 130
    assert f"kernelscope surveys follow {SURVEY}" in ran.output.replace("\n", " ")
    assert not [one for one in server.requests if one.url.path.endswith("/cancel")]


def test_a_kernel_is_shown_in_the_terminal(server: SurveyServer) -> None:
    """In words and as a table; nothing of a name is markup."""
    server.explained = True
    printed = run("surveys", "kernel", "vgg_mini", "conv2_2", 3, "--survey", SURVEY).output
    assert "most active in" in printed
    assert "consistency 0.62 ± 0.03; colour 0.10" in " ".join(printed.split())
    assert "<script>" in printed
    assert json.loads(run("surveys", "kernel", "vgg_mini", "conv2_2", 3, "--json").stdout)["kernel"] == 3
    assert in_words(server.kernel(SILENT)).endswith(
        "is active in none of the 1,000 images of " + repr(f"birds {HOSTILE}") + "."
    )


def test_a_data_set_is_found_by_its_id_or_name() -> None:
    """One's own before public ones; an ambiguous name is refused."""
    mine, theirs = dataset(), dataset().model_copy(update={"id": "f" * 32, "mine": False, "public": True})
    assert named([theirs, mine], "birds") is mine
    assert named([theirs, mine], theirs.id) is theirs
    with pytest.raises(UnknownDataSet, match="there are: birds; `kernelscope datasets add"):
        named([mine], "cats")
    with pytest.raises(UnknownDataSet, match=r"2 data sets have the name .*give the id"):
        named([mine, mine.model_copy(update={"id": "1" * 32})], "birds")
    assert issubclass(UnknownDataSet, ClientError)


def test_names_are_parts_of_paths(server: SurveyServer) -> None:
    """Dots and slashes too; the client requests JSON where a browser gets a page."""
    server.gone = {"/kernels/"}
    with Client("http://server") as client, pytest.raises(NotFound, match="makes a survey"):
        client.layer_kernels("own net", "layer3.1/relu", "a&b")
    request = server.requests[-1]
    assert request.url.raw_path == b"/kernels/own%20net/layer3.1%2Frelu?survey=a%26b"
    assert request.headers["accept"] == "application/json"


def test_both_clients_do_the_same() -> None:
    """Method for method, argument for argument."""
    plain, other = (
        {
            name: inspect.signature(method)
            for name, method in vars(kind).items()
            if not name.startswith("_") and callable(method)
        }
        for kind in (Client, AsyncClient)
    )
    assert plain.keys() == other.keys()
    for name, signature in plain.items():
        assert list(signature.parameters.values()) == list(other[name].parameters.values()), name
