"""Published weights by name: from files placed in the libraries' caches, from a server, and refused without either.

What PyTorch's and timm's own loaders make of the same file is the reference. That nothing in a file is run is shown by
one that would.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import logging
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
import torchvision

import aap_hw
from aap_hw.errors import UserError
from aap_hw.given import origin_of, tell_of_published
from aap_hw.inputs import Inputs
from aap_hw.lut.subject import Workload
from aap_hw.models import published
from aap_hw.models.initialise import calibrate_batch_norm
from aap_hw.models.origin import Origin
from aap_hw.models.published.caches import fetched_hub, fetched_url
from aap_hw.models.saved import SavedNetwork, read, write

State = dict[str, torch.Tensor]


@pytest.fixture
def torch_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """PyTorch's cache, empty, and no way to any server."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for scheme in ("http", "https"):
        monkeypatch.setenv(f"{scheme}_proxy", "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Places a file in the Hub's cache, which is empty at first; there is no way to the Hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def place(repository: str, name: str, content: bytes) -> Path:
        folder = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        file = folder / "snapshots" / "0123abc" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / "main").write_text("0123abc")
        return file

    return place


def trained(module: torch.nn.Module) -> torch.nn.Module:
    """A network with numbers of its own, that does not output next to nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.05 if parameter.dim() < 2 else parameter[0].numel() ** -0.5)
        calibrate_batch_norm(module, (3, 64, 64), seed=1)
    return module.eval()


def file_of(name: str, weights: str, folder: Path) -> Path:
    return folder / torchvision.models.get_model_weights(name)[weights].url.rpartition("/")[2]


def before_2018(state: State) -> State:
    """DenseNet's file has a point more in some names, and no counters."""
    dotted = {name.replace("norm1", "norm.1").replace("conv2.", "conv.2."): value for name, value in state.items()}
    return {name: value for name, value in dotted.items() if not name.endswith("num_batches_tracked")}


@pytest.mark.parametrize(
    ("name", "weights", "as_stored"),
    [
        ("shufflenet_v2_x0_5", "pretrained", dict),
        ("mnasnet0_5", "IMAGENET1K_V1", dict),  # asks which version its state is of
        ("densenet121", "DenseNet121_Weights.IMAGENET1K_V1", before_2018),
    ],
)
def test_a_file_in_torchvisions_cache_gives_the_network_that_torchvision_makes_of_it(
    name: str, weights: str, as_stored: Callable[[State], State], torch_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = trained(torchvision.models.get_model(name)).state_dict()
    torch.save(as_stored(state), file_of(name, "IMAGENET1K_V1", torch_cache))
    if name == "mnasnet0_5":  # whose own loader refuses a file without the version
        reference = torchvision.models.get_model(name)
        reference.load_state_dict(state)
    else:
        reference = torchvision.models.get_model(name, weights="IMAGENET1K_V1")
    with caplog.at_level(logging.WARNING):
        origin = origin_of(f"torchvision:{name}", None, weights=weights)
    assert "is not the file that was published (sha256" in caplog.text
    assert origin.inputs.image == (3, 224, 224)
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(origin.build()(image), reference.eval()(image))
    assert origin.classes == 1000
    assert origin.published is not None
    assert origin.published.classes[:2] == ("tench", "goldfish")
    assert origin.published.name == "IMAGENET1K_V1"


def test_a_run_finds_its_weights_by_name_again(
    torch_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = trained(torchvision.models.get_model("shufflenet_v2_x0_5"))
    file = file_of("shufflenet_v2_x0_5", "IMAGENET1K_V1", torch_cache)
    torch.save(module.state_dict(), file)
    origin = origin_of("torchvision:shufflenet_v2_x0_5", (3, 64, 64), weights="pretrained")
    write(SavedNetwork(origin, {}, origin.build()), tmp_path / "a.safetensors")
    content = file.read_bytes()
    file.unlink()  # what was pruned does not need it any more
    again = read(tmp_path / "a.safetensors")
    assert again.origin.weights == origin.weights
    assert again.origin.published is not None
    assert again.origin.published.name == "IMAGENET1K_V1"
    with pytest.raises(UserError, match=r"cannot be fetched \(Connection refused\): get .*-f707e7126e\.pth"):
        again.origin.build()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "elsewhere"))  # as on another machine
    moved = tmp_path / "elsewhere" / "hub" / "checkpoints" / file.name
    moved.parent.mkdir(parents=True)
    moved.write_bytes(content)
    assert again.origin.build().state_dict().keys() == module.state_dict().keys()
    moved.write_bytes(b"another")
    with pytest.raises(UserError, match=r"-f707e7126e\.pth has changed \(sha256"):
        again.origin.build()


def test_without_a_network_the_sentence_says_where_the_file_can_be_put(
    torch_cache: Path, hub_cache: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError) as problem:
        origin_of("mobilenetv2", None, weights="pretrained")
    url = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V2.url
    file = torch_cache / url.rpartition("/")[2]
    assert f"get {url} by other means and put it at {file}, or give" in str(problem.value)
    assert str(problem.value).startswith(
        "the weights IMAGENET1K_V2 of mobilenetv2 cannot be fetched (Connection refused): "
    )
    assert not list(torch_cache.iterdir())
    with pytest.raises(UserError) as problem:
        origin_of("timm:test_resnet", None, weights="pretrained")
    assert (
        "run 'hf download timm/test_resnet.r160_in1k model.safetensors' and copy what it makes to "
        f"{tmp_path}/hub/models--timm--test_resnet.r160_in1k, or give a checkpoint of your own with --weights FILE"
    ) in str(problem.value)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a web server, whose address is in ``URL`` in it."""
    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        (folder / "URL").write_text(f"http://127.0.0.1:{running.server_address[1]}")
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield folder
        finally:
            running.shutdown()
            thread.join()


def test_a_file_is_fetched_once_and_one_that_was_changed_on_the_way_is_not_kept(server: Path, tmp_path: Path) -> None:
    content, url = b"some weights", (server / "URL").read_text()
    name = f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    (server / name).write_bytes(content)
    file = fetched_url(f"{url}/{name}", "the weights X")
    assert file == tmp_path / "torch" / "hub" / "checkpoints" / name
    assert file.read_bytes() == content
    (server / name).unlink()
    assert fetched_url(f"{url}/{name}", "the weights X") == file
    (server / "net-0123abcd.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"the weights X cannot be fetched \(.*invalid hash value"):
        fetched_url(f"{url}/net-0123abcd.pth", "the weights X")
    assert [each.name for each in file.parent.iterdir()] == [name]
    with pytest.raises(UserError, match=r"cannot be fetched \(.*404"):
        fetched_url(f"{url}/nothing-0123abcd.pth", "the weights X")


TINY = "timm:test_resnet"


@pytest.mark.parametrize("weights", ["pretrained", "timm:test_resnet.r160_in1k"])
def test_a_file_in_the_hubs_cache_gives_the_network_that_timm_makes_of_it(
    weights: str, hub_cache: Callable[..., Path]
) -> None:
    module = trained(timm.create_model("test_resnet"))
    hub_cache("timm/test_resnet.r160_in1k", "model.safetensors", safetensors.torch.save(module.state_dict()))
    origin = origin_of(TINY, None, weights=weights)
    assert origin.inputs.image == (3, 160, 160)
    image = torch.rand(2, 3, 160, 160)
    built = origin.build()
    with torch.no_grad():
        assert torch.equal(built(image), module(image))
    assert "state_dict" not in built.pretrained_cfg
    assert origin.published is not None
    assert origin.published.classes[0].startswith("tench")
    assert origin.published.folders[0] == "n01440764"


def test_a_bundle_names_the_weights_and_the_classes_in_words(hub_cache: Callable[..., Path], tmp_path: Path) -> None:
    state = trained(timm.create_model("test_resnet", num_classes=3)).state_dict()
    hub_cache("me/mine", "config.json", described(label_names=["ant", "bee", "fly"]))
    hub_cache("me/mine", "model.safetensors", safetensors.torch.save(state))
    bundle = aap_hw.bundle_model(TINY, "x86", weights="hf-hub:me/mine", input_shape=(3, 32, 32), out=tmp_path / "b")
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["labels"] == ["ant", "bee", "fly"]
    assert manifest["trained"]["name"] == "hf-hub:me/mine"
    assert (manifest["preprocessing"]["mean"], manifest["preprocessing"]["std"]) == ([0.5] * 3, [0.25] * 3)


def test_a_profile_is_of_the_network_that_weights_are_for(
    hub_cache: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = trained(timm.create_model("test_resnet", num_classes=3)).state_dict()
    hub_cache("me/mine", "config.json", described())
    hub_cache("me/mine", "model.safetensors", safetensors.torch.save(state))
    measured: list[tuple[Inputs, int]] = []

    def profile_model(workload: Workload, *_: Any, on_network: Any, **__: Any) -> None:
        on_network(None)
        measured.append((workload.inputs, workload.module(*workload.inputs.zeros()).shape[1]))

    monkeypatch.setattr("aap_hw.lut.profiling.profile_model", profile_model)
    aap_hw.profile("x86", TINY, weights="hf-hub:me/mine", out=tmp_path / "table.json")
    aap_hw.profile("x86", TINY, classes=5, out=tmp_path / "table.json")
    assert measured == [(Inputs.of((3, 96, 96)), 3), (Inputs.of((3, 160, 160)), 5)]


def described(**config: Any) -> bytes:
    pretrained = {"input_size": [3, 96, 96], "crop_pct": 0.75, "mean": [0.5] * 3, "std": [0.25] * 3, **config}
    return json.dumps({"architecture": "test_resnet", "num_classes": 3, "pretrained_cfg": pretrained}).encode()


def test_a_repository_of_the_hub_gives_weights_classes_and_pictures(hub_cache: Callable[..., Path]) -> None:
    module = trained(timm.create_model("test_resnet", num_classes=3))
    hub_cache("me/mine", "config.json", described(label_names=["ant", "bee", "fly"], interpolation="bilinear"))
    hub_cache("me/mine", "model.safetensors", safetensors.torch.save(module.state_dict()))
    origin = origin_of(TINY, None, weights="hf-hub:me/mine")
    assert (origin.inputs.image, origin.classes) == ((3, 96, 96), 3)
    with torch.no_grad():
        assert torch.equal(origin.build()(image := torch.rand(1, 3, 96, 96)), module(image))
    found = origin.published
    assert found is not None
    assert found.classes == ("ant", "bee", "fly")
    assert found.preparation is not None
    assert (found.preparation.side, found.preparation.shorter_side) == (96, 128)
    assert (found.preparation.interpolation, found.preparation.normalisation.mean) == ("bilinear", (0.5,) * 3)
    with pytest.raises(UserError, match="are for test_resnet, not for timm:resnet18; give --model timm:test_resnet"):
        origin_of("timm:resnet18", None, weights="hf-hub:me/mine")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("checkpoint_path", "/home/me/local.pth"),
        ("pretrained", True),
        ("cache_dir", "/tmp"),
        ("pretrained_strict", False),
    ],
)
def test_a_description_that_says_where_weights_come_from_is_refused(
    name: str, value: object, hub_cache: Callable[..., Path]
) -> None:
    description = json.loads(described()) | {"model_args": {"stem_type": "deep", name: value}}
    hub_cache("me/mine", "config.json", json.dumps(description).encode())
    hub_cache("me/mine", "model.safetensors", b"")
    with pytest.raises(UserError, match=f"description of the weights hf-hub:me/mine sets {name} in its model_args"):
        origin_of(TINY, None, weights="hf-hub:me/mine")


def test_a_description_of_another_kind_of_network_is_one_sentence(hub_cache: Callable[..., Path]) -> None:
    description = json.loads(described()) | {"model_args": {"depht": 3}}
    hub_cache("me/mine", "config.json", json.dumps(description).encode())
    hub_cache("me/mine", "model.safetensors", safetensors.torch.save({"weight": torch.ones(1)}))
    with pytest.raises(UserError, match=r"hf-hub:me/mine do not fit timm:test_resnet: TypeError: .*'depht'"):
        origin_of(TINY, None, weights="hf-hub:me/mine").build()


def test_a_repository_without_a_description_fits_a_network_of_any_other_kind(hub_cache: Callable[..., Path]) -> None:
    module = trained(torchvision.models.get_model("shufflenet_v2_x0_5"))
    hub_cache("me/shuffle", "model.safetensors", safetensors.torch.save(module.state_dict()))
    built = origin_of("torchvision:shufflenet_v2_x0_5", None, weights="hf-hub:me/shuffle").build()
    with torch.no_grad():
        assert torch.equal(built(image := torch.rand(1, 3, 64, 64)), module(image))


class _Runs:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_nothing_in_a_cached_file_is_run(torch_cache: Path, hub_cache: Callable[..., Path], tmp_path: Path) -> None:
    trap = pickle.dumps({"weight": _Runs(tmp_path / "ran")})
    file_of("mobilenet_v2", "IMAGENET1K_V2", torch_cache).write_bytes(trap)
    hub_cache("timm/test_resnet.r160_in1k", "pytorch_model.bin", trap)
    for model in ("mobilenetv2", TINY):
        with pytest.raises(UserError, match=r"holds .*no weights"):
            origin_of(model, None, weights="pretrained").build()
    assert not (tmp_path / "ran").exists()
    pickle.loads(trap)  # it would have
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("model", "weights", "sentence"),
    [
        ("mobilenetv2", "IMAGENET1K_V3", "no weights 'IMAGENET1K_V3' for mobilenetv2; it has IMAGENET1K_V1, .*_V2"),
        ("timm:test_resnet", "timm:test_resnet.x", r"timm has no weights 'test_resnet.x' for test_resnet; it has"),
        ("timm:test_resnet", "timm:resnet18", "are not for timm:test_resnet; give --model timm:resnet18"),
        ("mobilenetv2", "timm:resnet18", "are for networks of timm, and mobilenetv2 is none"),
        ("resnet20", "pretrained", "nobody publishes weights of resnet20 by name; give 'embedded' or a checkpoint"),
        ("resnet56", "pretrained", "nobody publishes weights of resnet56 by name; give a checkpoint's path"),
        ("torchvision:mobilenet_v2", "hf-hub:a b", "'a b' is no repository of the Hugging Face Hub; write ORG/NAME"),
        ("mobilenetv2", "pretained", "there are no weights 'pretained': .*; did you mean 'pretrained'"),
    ],
)  # fmt: skip
def test_names_that_mean_nothing_are_refused_with_those_that_do(
    model: str, weights: str, sentence: str, hub_cache: Callable[..., Path]
) -> None:
    with pytest.raises(UserError, match=sentence):
        origin_of(model, None, weights=weights)


def test_weights_for_other_classes_are_refused_before_they_are_fetched() -> None:
    with pytest.raises(UserError, match=r"IMAGENET1K_V2 of mobilenetv2 tell 1000 classes apart, not 10; train"):
        origin_of("mobilenetv2", None, weights="pretrained", classes=10)


@pytest.mark.parametrize(
    ("model", "classes", "told"),
    [
        ("torchvision:mobilenet_v2", None, "pretrained takes those that are published for it (IMAGENET1K_V2)"),
        ("torchvision:mobilenet_v2", 10, None),
        ("timm:test_resnet", None, "pretrained takes those that are published for it (timm:test_resnet.r160_in1k)"),
        ("resnet20", None, "embedded takes trained ones"),
        ("resnet20", 100, None),
        (f"{Path(__file__).parent}/checkpoints/networks.py:network", None, None),
    ],
)
def test_whoever_takes_random_weights_is_told_of_published_ones(
    model: str, classes: int | None, told: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    tell_of_published(Origin.of(model, (3, 32, 32), None, classes))
    assert caplog.messages == [] if told is None else f"; --weights {told}" in caplog.text


def test_a_revision_and_a_missing_file_are_told_apart(hub_cache: Callable[..., Path]) -> None:
    file = hub_cache("me/mine", "model.safetensors", b"")
    assert fetched_hub("me/mine", ("model.safetensors",), "the weights") == file
    with pytest.raises(UserError, match="the weights cannot be fetched"):
        fetched_hub("me/mine@other", ("model.safetensors",), "the weights")
    assert published.is_name("hf-hub:me/mine@other")
    assert not published.is_name("weights/mine.pth")


def test_a_file_that_is_there_is_taken_though_its_name_looks_like_that_of_published_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "BEST_MODEL").write_bytes(b"no checkpoint")
    with pytest.raises(UserError, match="the weights BEST_MODEL were not written by"):
        origin_of("resnet20", None, weights="BEST_MODEL").build()


@pytest.mark.parametrize("weights", ["pretrained", "IMAGENET1K_V2"])
def test_a_folder_that_is_called_like_published_weights_does_not_hide_them(
    weights: str, torch_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / weights).mkdir()
    file_of("mobilenet_v2", "IMAGENET1K_V2", torch_cache).write_bytes(b"")
    assert origin_of("mobilenetv2", None, weights=weights).published is not None
