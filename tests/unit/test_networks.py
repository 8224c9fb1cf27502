"""Torchvision's networks, cut at a layer, with complete, partial, damaged and missing weights."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections import OrderedDict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, fx, nn
from torchvision import models
from torchvision.models.feature_extraction import NodePathTracer

from shared import catalogue
from shared.errors import LayerNotCovered, ModelUnavailable
from tests.conftest import FULL
from worker.networks import download as download_module
from worker.networks import loaded as networks_module
from worker.networks import weights as weights_module
from worker.networks.architectures import ARCHITECTURES, BUILT_IN, layers_of
from worker.networks.catalogue import catalogue as generated
from worker.networks.loaded import Networks
from worker.networks.weights import find, load

CPU = torch.device("cpu")


def whole(name: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """A random state dict of the parameters that maps depend on, scaled so that activations stay finite and nonzero."""
    generator = torch.Generator().manual_seed(seed)
    own, state = layers_of(name), {}
    for key, meta in ARCHITECTURES[name].module().state_dict().items():
        if not own.matters(key):
            continue
        if "running_var" in key or (meta.ndim == 1 and "weight" in key):
            state[key] = torch.rand(meta.shape, generator=generator) + 0.5
        elif meta.ndim in (2, 4):
            state[key] = torch.randn(meta.shape, generator=generator) * (2 / meta[0].numel()) ** 0.5
        else:
            state[key] = torch.randn(meta.shape, generator=generator) * 0.1
    return state


def networks(folder: Path) -> Networks:
    """The networks of that folder, without downloads."""
    return Networks(folder, CPU, download=False)


def test_catalogue_is_what_torchvision_has() -> None:
    """The file that the API reads is what the generator writes."""
    path = Path(catalogue.__file__).with_name("catalogue.json")
    assert path.read_text() == generated()


# Of each family; the rest of torchvision's are the same with other numbers.
FAMILIES = (
    *("resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "densenet121", "googlenet", "inception_v3"),
    *("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0", "efficientnet_v2_s"),
    *("regnet_x_400mf", "regnet_y_400mf", "shufflenet_v2_x0_5", "mnasnet0_5", "convnext_tiny"),
)
FEW = ("vgg16", "vgg11_bn", "alexnet", "squeezenet1_1", "vgg_mini", "resnet18", "googlenet", "mobilenet_v2")


MOST = 1000 if FULL else 40  # nodes: each is a run of all below it
ALL = [pytest.param(name, MOST, marks=pytest.mark.slow) for name in (*BUILT_IN, *FAMILIES)]


@pytest.mark.parametrize(("name", "most"), [*((name, 20) for name in FEW), *ALL])
def test_every_node_is_torchvision_s(name: str, most: int) -> None:
    """Cuts compute the same as torchvision's own module at the node of the same name, with the described shape."""
    state, own = whole(name), layers_of(name)
    model = ARCHITECTURES[name].module()
    state = OrderedDict(state)
    state._metadata = {"": {"version": 2}}  # type: ignore[attr-defined]  # MNASNet asks for it
    model.to_empty(device="cpu").load_state_dict(state, strict=False)
    size = own.architecture.frame.width
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    expected = plain_run(model, image)
    filled = own.filled(state, own.layers)
    names = list(own.layers)
    for layer in names[:: -(-len(names) // most)]:
        node = own.layers[layer]
        with torch.no_grad():
            maps = own.cut(filled, layer)(image)
        maps = maps if node.signed else maps.clamp_min(0)
        plain = expected[node.node]
        if plain.shape != maps.shape:
            plain = plain.permute(0, 3, 1, 2)  # channels last, in ConvNeXt's blocks
        assert maps.shape == (1, node.kernels, node.height, node.width)
        assert float((maps - plain).norm()) <= 1e-5 * float(plain.norm()), layer
        assert node.signed or bool((maps >= 0).all()), layer


def plain_run(model: nn.Module, image: Tensor, *, training: bool = False) -> dict[str, Tensor]:
    """The value of each node of torchvision's graph, copied before another node can change it."""
    tracer = NodePathTracer()
    graph = fx.GraphModule(model, tracer.trace(model if training else model.eval()))
    names = {node.name: name for node, name in tracer.node_to_qualname.items()}
    found: dict[str, Tensor] = {}

    class Reader(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            value = super().run_node(node)
            if isinstance(value, Tensor) and node.name in names:
                found[names[node.name]] = value.clone()
            return value

    with torch.no_grad():
        Reader(graph).run(image)
    return found


@pytest.mark.parametrize("name", list(ARCHITECTURES))
@pytest.mark.slow
def test_every_network_of_torchvision_has_layers(name: str) -> None:
    """Each can be traced, one convolution sees its pixels, and its last main layer is deep."""
    own = layers_of(name)
    main = [node for node in own.layers.values() if node.main]
    assert own.graph.first == own.graph.parameters[:1]
    assert len(main) >= 5
    assert main[-1].field.side > 60


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("vgg16", "conv2_2"),
        ("alexnet", "conv2"),
        ("alexnet", "conv5"),
        ("squeezenet1_1", "fire3"),
        ("squeezenet1_1", "fire8"),
        ("vgg_mini", "conv3_2"),
        ("resnet18", "layer2.0.relu_1"),
        ("densenet121", "features.transition1.pool"),
    ],
)
def test_receptive_field_is_what_the_gradient_reaches(name: str, layer: str) -> None:
    """The measured receptive field of one position, and the stride between neighbours."""
    own = layers_of(name)
    state = {key: torch.full(tensor.shape, 0.01) for key, tensor in whole(name).items()}
    cut = own.cut(own.filled(state, [layer]), layer)
    for path, module in list(cut.named_modules()):  # a maximum would pass one pixel only
        if isinstance(module, nn.MaxPool2d):
            average = nn.AvgPool2d(module.kernel_size, module.stride, module.padding, bool(module.ceil_mode))
            cut.add_submodule(path, average)
    image = torch.ones(1, 3, 224, 224, requires_grad=True)
    maps = cut(image)
    spans = []
    for shift in (0, 1):
        row = maps.shape[2] // 2 + shift
        (slope,) = torch.autograd.grad(maps[0, -1, row, row], image, retain_graph=True)
        rows = slope[0].abs().sum(dim=(0, 2)).nonzero().flatten()
        spans.append((int(rows[0]), int(rows[-1])))
    field = own.layers[layer].field
    assert spans[0][1] - spans[0][0] + 1 == field.side
    assert spans[1][0] - spans[0][0] == field.stride
    assert spans[0][0] == field.middle + maps.shape[2] // 2 * field.stride - field.side / 2


def test_networks_are_loaded_once_frozen_and_share_modules(tmp_path: Path) -> None:
    """The parameters are shared by all layers; they need no gradient, and no ReLU works in place."""
    save_file(whole("vgg11"), tmp_path / "vgg11.safetensors")
    source = networks(tmp_path)
    network = source.get("vgg11")
    assert source.get("vgg11") is network
    low, high = network.layer("conv1_1").cut, network.layer("conv3_2").cut
    assert low.get_submodule("features.0") is high.get_submodule("features.0")
    assert not any(parameter.requires_grad for parameter in high.parameters())
    assert not any(module.training for module in high.modules())
    assert not any(module.inplace for module in high.modules() if isinstance(module, nn.ReLU))


def test_a_partial_file_serves_exactly_the_layers_that_it_covers(tmp_path: Path) -> None:
    """With blocks 1 and 2 of VGG-16: four layers, and a clear error above; the state says the same before loading."""
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
    """Missing parameters that are above the layer do not matter."""
    state = {key: t for key, t in whole("squeezenet1_1").items() if not key.startswith("features.3.expand")}
    save_file(state, tmp_path / "squeezenet1_1.safetensors")
    network = networks(tmp_path).get("squeezenet1_1")
    assert list(network.layers) == ["conv1", "fire2_squeeze"]
    assert network.layer("fire2_squeeze").features(torch.zeros(1, 3, 64, 64)).shape[1] == 16


def test_pth_files_are_read_without_running_code(tmp_path: Path) -> None:
    """A weights-only .pth with torchvision's file name is read; a pickle that would run code is refused."""
    torch.save(whole("alexnet"), tmp_path / "alexnet-owt-7be5be79.pth")
    network = networks(tmp_path).get("alexnet")
    assert list(network.layers) == [f"conv{number}" for number in range(1, 6)]
    data = (tmp_path / "alexnet-owt-7be5be79.pth").read_bytes()
    assert network.weights.sha256 == hashlib.sha256(data).hexdigest()
    torch.save(nn.Linear(2, 2), tmp_path / "vgg11.pth")
    with pytest.raises(ModelUnavailable, match=r"vgg11\.pth: damaged, or more than named tensors"):
        networks(tmp_path).get("vgg11")


def test_another_network_s_file_is_no_candidate(tmp_path: Path) -> None:
    """However similar its name."""
    save_file(whole("vgg11"), tmp_path / "vgg11-b.safetensors")
    save_file(whole("vgg11_bn"), tmp_path / "vgg11_bn.safetensors")
    assert find("vgg11", tmp_path, download=False).file.name == "vgg11-b.safetensors"
    assert find("vgg11_bn", tmp_path, download=False).file.name == "vgg11_bn.safetensors"


def test_normalisation_comes_from_the_metadata(tmp_path: Path) -> None:
    """A file may contain its mean and std; the default is ImageNet's."""
    own = {"normalization_mean": "0.1,0.2,0.3", "normalization_std": "0.4,0.5,0.6"}
    save_file(whole("vgg11"), tmp_path / "vgg11.safetensors", own)
    save_file(whole("vgg13"), tmp_path / "vgg13.safetensors")
    assert load("vgg11", tmp_path, download=False).preprocessing.mean == (0.1, 0.2, 0.3)
    assert load("vgg11", tmp_path, download=False).preprocessing.std == (0.4, 0.5, 0.6)
    assert load("vgg13", tmp_path, download=False).preprocessing.mean == (0.485, 0.456, 0.406)


def test_damaged_and_misfitting_files_make_the_model_unavailable(tmp_path: Path) -> None:
    """Each with a reason, which is also in the state that the API shows; nothing else is affected."""
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
    """The reason says where the file should be, and that downloads are disabled."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    state = networks(tmp_path / "nowhere").states()["vgg16"]
    assert not state.available
    assert "nowhere" in state.reason
    assert "vgg16.pth" in state.reason
    assert "downloading is turned off" in state.reason


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A local server in the place of torchvision's; its files are in the returned folder."""
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

        monkeypatch.setattr(download_module, "_published", lambda _: Published)
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
        yield folder
        server.shutdown()


def test_weights_that_an_image_brings_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After those of the folder and before a download, by torchvision's file name."""
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
    """The state announces a download, loading performs it with progress, and the second time the cache is used."""
    source = Networks(tmp_path, CPU, download=True)
    state = source.states()["vgg11"]
    assert state.available
    assert "37 MB, downloaded on first use" in state.reason
    assert list(source.get("vgg11").layers)[-1] == "conv5_2"
    assert "100%" in capfd.readouterr().err
    for file in published.iterdir():
        file.unlink()
    assert Networks(tmp_path, CPU, download=True).get("vgg11").reason.endswith("from torch's cache")


def test_a_damaged_download_is_refused_and_not_kept(published: Path, tmp_path: Path) -> None:
    """The hash in the file's name is checked; a partial file is not used later."""
    (file,) = published.iterdir()
    file.write_bytes(file.read_bytes()[:-1000] + b"\x00" * 1000)
    with pytest.raises(ModelUnavailable, match="downloaded file is damaged"):
        load("vgg11", tmp_path, download=True)
    assert list((tmp_path / "cache").rglob("*.pth")) == []


def test_a_download_that_fails_is_reported_and_not_tried_at_every_job(published: Path, tmp_path: Path) -> None:
    """Without such a file on the server the network is unavailable with the reason, at once the second time."""
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
    """With the reason, also in the heartbeat; the others can be used."""
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
    """Other networks can be loaded meanwhile, and all callers of the slow one get the same object."""
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
            assert len(entry.url.rsplit("-", 1)[-1].removesuffix(".pth")) in (8, 10)
            assert entry.meta["_file_size"] > 1
