"""Networks: what torchvision has, cut at a layer, with whole, partial, damaged and missing weights."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor

from shared import catalogue
from shared.errors import LayerNotCovered, ModelUnavailable
from worker.networks import loaded as networks_module
from worker.networks import weights as weights_module
from worker.networks.architectures import ARCHITECTURES, cuts, receptive_field
from worker.networks.catalogue import catalogue as generated
from worker.networks.loaded import Networks
from worker.networks.weights import find, load

CPU = torch.device("cpu")


def whole(name: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """A random state dict of a network's convolutional part, scaled so that activations stay finite and alive."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, meta in ARCHITECTURES[name].features().state_dict().items():
        if meta.dtype is not torch.float32:
            state[f"features.{key}"] = torch.zeros(meta.shape, dtype=meta.dtype)
        elif "running_var" in key or (meta.ndim == 1 and "weight" in key):
            state[f"features.{key}"] = torch.rand(meta.shape, generator=generator) + 0.5
        else:
            fan_in = meta[0].numel() if meta.ndim > 1 else 100
            state[f"features.{key}"] = torch.randn(meta.shape, generator=generator) * (2 / fan_in) ** 0.5
    return state


def networks(folder: Path) -> Networks:
    """Networks of that folder, without downloading."""
    return Networks(folder, CPU, download=False)


def test_catalogue_is_what_torchvision_has() -> None:
    """The file that the API reads is what the generator makes from the modules themselves."""
    path = Path(catalogue.__file__).with_name("catalogue.json")
    assert path.read_text() == generated()


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_every_layer_is_torchvision_s_node(name: str, tmp_path: Path) -> None:
    """Each cut gives what torchvision's own model gives at the node of the same name, and the catalogue's shape."""
    state = whole(name)
    save_file(state, tmp_path / f"{name}.safetensors")
    network = networks(tmp_path).get(name)
    with torch.device("meta"):  # its classifier is not needed
        model = ARCHITECTURES[name].build().eval()
    model.load_state_dict(state, strict=False, assign=True)
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # in place, the extractor would hand out a map that a later node has changed
    layers = {layer.node: layer for layer in catalogue.network(name).layers}
    image = torch.randn(1, 3, network.input_size, network.input_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        nodes = create_feature_extractor(model, list(layers))(image)
        for node, layer in layers.items():
            maps = network.layer(layer.name).features(image)
            assert float((maps - nodes[node]).norm()) <= 1e-5 * float(nodes[node].norm()), node
            assert maps.shape == (1, layer.kernels, layer.height, layer.width)
            assert bool((maps >= 0).all()), f"{node} is not after a ReLU"


@pytest.mark.parametrize(
    ("name", "layer"), [("vgg16", "conv2_2"), ("alexnet", "conv2"), ("squeezenet1_1", "fire3"), ("vgg_mini", "conv3_2")]
)
def test_receptive_field_is_what_the_gradient_reaches(name: str, layer: str) -> None:
    """The square of input pixels that one position sees, measured; and the step between neighbours."""
    features = ARCHITECTURES[name].features().to_empty(device="cpu")
    modules = cuts(name)[layer].preactivation(features)
    for module in modules.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 0.01)
            nn.init.constant_(module.bias, 0.01)  # type: ignore[arg-type]
    linear = nn.Sequential(
        *(
            nn.AvgPool2d(m.kernel_size, m.stride, ceil_mode=bool(m.ceil_mode)) if isinstance(m, nn.MaxPool2d) else m
            for m in modules
        )
    )  # a maximum would pass one pixel only
    image = torch.ones(1, 3, 224, 224, requires_grad=True)
    maps = linear(image)
    spans = []
    for shift in (0, 1):
        row = maps.shape[2] // 2 + shift
        (slope,) = torch.autograd.grad(maps[0, -1, row, row], image, retain_graph=True)
        rows = slope[0].abs().sum(dim=(0, 2)).nonzero().flatten()
        spans.append((int(rows[0]), int(rows[-1])))
    field, stride = receptive_field(modules)
    assert spans[0][1] - spans[0][0] + 1 == field
    assert spans[1][0] - spans[0][0] == stride


def test_networks_are_loaded_once_frozen_and_share_modules(tmp_path: Path) -> None:
    """One copy of the parameters whatever layers are asked for; no gradient reaches them; no ReLU works in place."""
    save_file(whole("vgg11"), tmp_path / "vgg11.safetensors")
    source = networks(tmp_path)
    network = source.get("vgg11")
    assert source.get("vgg11") is network
    low, high = network.layer("conv1_1").cut, network.layer("conv3_2").cut
    assert all(a is b for a, b in zip(low, high, strict=False))
    assert not any(parameter.requires_grad for parameter in high.parameters())
    assert not any(module.training for module in high.modules())
    assert not any(module.inplace for module in high.modules() if isinstance(module, nn.ReLU))


def test_a_partial_file_serves_exactly_the_layers_that_it_covers(tmp_path: Path) -> None:
    """Blocks 1 and 2 of VGG16: four layers, and a clear refusal above; the state says the same before loading."""
    state = {key: tensor for key, tensor in whole("vgg16").items() if int(key.split(".")[1]) <= 7}
    save_file(state, tmp_path / "vgg16-blocks1-2.safetensors")
    source = networks(tmp_path)
    covered = ["conv1_1", "conv1_2", "conv2_1", "conv2_2"]
    assert source.states()["vgg16"].layers == covered
    network = source.get("vgg16")
    assert list(network.layers) == covered
    assert network.layer("conv2_2").features(torch.zeros(1, 3, 32, 32)).shape == (1, 128, 16, 16)
    with pytest.raises(
        LayerNotCovered, match=r"vgg16-blocks1-2\.safetensors.*do not cover conv3_1.*conv1_1, .*conv2_2"
    ):
        network.layer("conv3_1").features(torch.zeros(1, 3, 32, 32))


def test_a_gap_ends_the_coverage(tmp_path: Path) -> None:
    """A layer whose lower neighbour is missing cannot be computed."""
    state = {key: tensor for key, tensor in whole("vgg11").items() if key != "features.3.bias"}
    save_file(state, tmp_path / "vgg11.safetensors")
    assert list(networks(tmp_path).get("vgg11").layers) == ["conv1_1"]


def test_a_fire_module_may_be_covered_up_to_its_squeeze(tmp_path: Path) -> None:
    """The parameters of the same module that are missing are not in the way."""
    state = {key: t for key, t in whole("squeezenet1_1").items() if not key.startswith("features.3.expand")}
    save_file(state, tmp_path / "squeezenet1_1.safetensors")
    network = networks(tmp_path).get("squeezenet1_1")
    assert list(network.layers) == ["conv1", "fire2_squeeze"]
    assert network.layer("fire2_squeeze").features(torch.zeros(1, 3, 64, 64)).shape[1] == 16


def test_pth_files_are_read_without_running_code(tmp_path: Path) -> None:
    """A weights-only .pth under torchvision's own file name; a pickle that would run code is refused."""
    torch.save(whole("alexnet"), tmp_path / "alexnet-owt-7be5be79.pth")
    network = networks(tmp_path).get("alexnet")
    assert list(network.layers) == [f"conv{number}" for number in range(1, 6)]
    data = (tmp_path / "alexnet-owt-7be5be79.pth").read_bytes()
    assert network.weights.sha256 == hashlib.sha256(data).hexdigest()
    torch.save(nn.Linear(2, 2), tmp_path / "vgg11.pth")
    with pytest.raises(ModelUnavailable, match=r"vgg11\.pth: damaged, or more than named tensors"):
        networks(tmp_path).get("vgg11")


def test_another_network_s_file_is_no_candidate(tmp_path: Path) -> None:
    """However alike its name."""
    save_file(whole("vgg11"), tmp_path / "vgg11-b.safetensors")
    save_file(whole("vgg11_bn"), tmp_path / "vgg11_bn.safetensors")
    assert find("vgg11", tmp_path, download=False).file.name == "vgg11-b.safetensors"
    assert find("vgg11_bn", tmp_path, download=False).file.name == "vgg11_bn.safetensors"


def test_normalisation_comes_from_the_metadata(tmp_path: Path) -> None:
    """A file may bring its own mean and std; without, ImageNet's."""
    own = {"normalization_mean": "0.1,0.2,0.3", "normalization_std": "0.4,0.5,0.6"}
    save_file(whole("vgg11"), tmp_path / "vgg11.safetensors", own)
    save_file(whole("vgg13"), tmp_path / "vgg13.safetensors")
    assert load("vgg11", tmp_path, download=False).preprocessing.mean == (0.1, 0.2, 0.3)
    assert load("vgg11", tmp_path, download=False).preprocessing.std == (0.4, 0.5, 0.6)
    assert load("vgg13", tmp_path, download=False).preprocessing.mean == (0.485, 0.456, 0.406)


def test_damaged_and_misfitting_files_make_the_model_unavailable(tmp_path: Path) -> None:
    """Each with a reason, also in the state that the API shows; nothing else stops working."""
    (tmp_path / "vgg11.safetensors").write_bytes(b"\x00" * 100)
    wrong = {key: torch.zeros(1, *tensor.shape[1:]) for key, tensor in whole("vgg13").items()}
    save_file(wrong, tmp_path / "vgg13.safetensors")
    source = networks(tmp_path)
    assert "damaged" in source.states()["vgg11"].reason
    with pytest.raises(ModelUnavailable, match="does not fit vgg13"):
        source.get("vgg13")
    states = source.states()
    assert not states["vgg11"].available
    assert not states["vgg13"].available
    assert states["vgg_mini"].available


def test_without_any_file_the_reason_says_what_would_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file should be, and that downloading is off."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    state = networks(tmp_path / "nowhere").states()["vgg16"]
    assert not state.available
    assert "nowhere" in state.reason
    assert "vgg16.pth" in state.reason
    assert "downloading is turned off" in state.reason


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The server of torchvision, played by one on loopback; its files are in the folder that is returned."""
    folder = tmp_path / "server"
    folder.mkdir()
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        torch.save(whole("vgg11"), folder / "weights.pth")
        digest = hashlib.sha256((folder / "weights.pth").read_bytes()).hexdigest()[:8]
        (folder / "weights.pth").rename(folder / f"vgg11-{digest}.pth")

        class Published:
            url = f"http://127.0.0.1:{server.server_port}/vgg11-{digest}.pth"
            meta: ClassVar[dict[str, Any]] = {"_file_size": 35.2}

        monkeypatch.setattr(weights_module, "_published", lambda _: Published)
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
        yield folder
        server.shutdown()


def test_weights_that_an_image_brings_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the folder's, before a download; under torchvision's own file name."""
    brought = tmp_path / "bundled"
    brought.mkdir()
    monkeypatch.setattr(weights_module, "BUNDLED", brought)
    torch.save(whole("vgg11"), brought / "vgg11-8a719046.pth")
    found = find("vgg11", tmp_path, download=True)
    assert found.source == "bundled"
    assert load("vgg11", tmp_path, download=False).sha256
    save_file(whole("vgg11"), tmp_path / "vgg11.safetensors")
    assert find("vgg11", tmp_path, download=True).source == "folder"
    assert find("vgg_mini", tmp_path, download=False).source == "bundled"


def test_weights_are_downloaded_checked_and_kept(
    published: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The state says that it would download; loading does, with progress; the second time the cache serves."""
    source = Networks(tmp_path, CPU, download=True)
    state = source.states()["vgg11"]
    assert state.available
    assert "37 MB, downloaded on first use" in state.reason
    assert list(source.get("vgg11").layers)[-1] == "conv5_2"
    assert "100%" in capfd.readouterr().err
    for file in published.iterdir():
        file.unlink()
    assert Networks(tmp_path, CPU, download=True).get("vgg11").reason.endswith("downloaded before")


def test_a_damaged_download_is_refused_and_not_kept(published: Path, tmp_path: Path) -> None:
    """The hash in the file's name is checked; a half file is not taken for a whole one later."""
    (file,) = published.iterdir()
    file.write_bytes(file.read_bytes()[:-1000] + b"\x00" * 1000)
    with pytest.raises(ModelUnavailable, match="downloaded file is damaged"):
        load("vgg11", tmp_path, download=True)
    assert list((tmp_path / "cache").rglob("*.pth")) == []


def test_a_download_that_fails_is_told_and_not_tried_at_every_job(published: Path, tmp_path: Path) -> None:
    """No such file on the server: unavailable, with the reason, and at once the second time."""
    (file,) = published.iterdir()
    file.unlink()
    source = Networks(tmp_path, CPU, download=True)
    for _ in range(2):
        with pytest.raises(ModelUnavailable, match=r"download from 127\.0\.0\.1.*failed"):
            source.get("vgg11")
    assert "failed" in source.states()["vgg11"].reason


def test_what_nobody_foresaw_in_a_weights_file_makes_that_network_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the reason, in the heartbeat too; the others are served."""
    save_file(whole("vgg11"), tmp_path / "vgg11.safetensors")
    source = networks(tmp_path)

    def strange(name: str, *_: Any, **__: Any) -> Any:
        if name == "vgg11":
            raise RuntimeError("a tensor that is none")
        return load(name, tmp_path, download=False)

    monkeypatch.setattr(networks_module, "load", strange)
    with pytest.raises(ModelUnavailable, match="a tensor that is none"):
        source.get("vgg11")
    assert "a tensor that is none" in source.states()["vgg11"].reason
    assert source.get("vgg_mini").layers


def test_a_download_that_trickles_keeps_nobody_else_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that is loaded, and one that is not, are got meanwhile; who wants the slow one gets the same object."""
    trickling, arrived, loads = threading.Event(), threading.Event(), list[str]()
    state = tmp_path / "vgg11.safetensors"
    save_file(whole("vgg11"), state)

    def slowly(name: str, *arguments: Any, **options: Any) -> Any:
        loads.append(name)
        if name == "vgg11":
            trickling.set()
            assert arrived.wait(30)
        return load(name, *arguments, **options)

    monkeypatch.setattr(networks_module, "load", slowly)
    source = networks(tmp_path)
    got: list[object] = []
    waiting = [threading.Thread(target=lambda: got.append(source.get("vgg11"))) for _ in range(3)]
    for thread in waiting:
        thread.start()
    assert trickling.wait(30)
    assert source.get("vgg_mini") is source.get("vgg_mini")
    assert not got
    arrived.set()
    for thread in waiting:
        thread.join(30)
    assert len(got) == 3
    assert set(map(id, got)) == {id(source.get("vgg11"))}
    assert loads == ["vgg11", "vgg_mini"]


def test_torchvision_still_publishes_every_network() -> None:
    """Each ImageNet network has a default entry with a URL whose name carries a hash, and a size."""
    for name in ARCHITECTURES:
        if name != "vgg_mini":
            entry = models.get_model_weights(name).DEFAULT
            assert entry.url.startswith("https://")
            assert len(entry.url.rsplit("-", 1)[-1].removesuffix(".pth")) == 8
            assert entry.meta["_file_size"] > 1
