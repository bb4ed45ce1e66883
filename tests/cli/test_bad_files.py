"""Whatever is wrong with a file that is given: exit code 2, one line on standard error, nothing else, nothing written.

The files are networks, tables, weights and images. What is wrong with options is in `test_bad_input`.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.cli.failing import RESNET20, fails
from tests.synthetic import resnet20

NETWORKS = """
import torch
import torch.nn.functional as F
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def between(self, x):
        return x

    def forward(self, x):
        return self.b(self.between(self.a(x)))

class Thresholded(Net):
    def forward(self, x):
        x = self.a(x)
        return self.b(x * 2 if x.std() < 1 else x)

class Eigenvalues(Net):
    def between(self, x):
        return x * torch.linalg.eigvals(x).abs().unsqueeze(-1)

class InHalf(Net):
    def between(self, x):
        return x.half().float()

class Choosy(Net):
    def forward(self, x):
        if x.shape[-1] % 7:
            raise ValueError("the width must be a multiple of 7")
        return self.b(self.a(x))

class Returned(Net):
    def forward(self, x):
        return self.a(x), self.b(self.a(x))

class LastDigits(Net):
    def forward(self, x):
        return (super().forward(x.float()) * 1e7).sin()

def half():
    return Net().half()

def brain():
    return Net().bfloat16()

def double():
    return Net().double()

def scripted():
    return torch.jit.script(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)))

def on_meta():
    with torch.device("meta"):
        return Net()

def for_eight_bits():
    from torch.ao import quantization
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)).train()
    model.qconfig = quantization.get_default_qat_qconfig("x86")
    return quantization.prepare_qat(model)

def pooling():
    return nn.Sequential(nn.AvgPool2d(2), nn.Flatten())
"""

REFUSED = {
    "Thresholded": r"cannot trace this Thresholded: its code depends on the values of a tensor \(net.py:\d+: return ",
    "Eigenvalues": r"torch.linalg.eigvals computes in complex64, and only float32 .* \(net.py:\d+: return ",
    "InHalf": r"x.half computes in float16, and only float32 can be compiled so far \(net.py:\d+: ",
    "Choosy": r"does not take images of 3x16x16: ValueError: the width must be a multiple of 7 \(net.py:\d+: raise",
    "Returned": r"be cut: 'a' reaches the network's output \(nn.Conv2d 'a', net.py:\d+\); the same holds for 1 of",
    "half": r"the weights 'a.weight' are float16 and the input is float32; convert the model",
    "brain": r"the weights 'a.weight' are bfloat16 and the input is float32; convert the model with",
    "double": "the weights 'a.weight' are float64 and the input is float32; convert the model",
    "LastDigits": "rounding to float32 alone changes what the network computes too much for a wrong cut to be told",
    "scripted": "this RecursiveScriptModule is TorchScript, whose code cannot be followed",
    "on_meta": "the weights 'a.weight' are on the meta device, where they have no values",
    "for_eight_bits": r"'0.weight_fake_quant' of this Sequential is prepared for quantization, .* cut the",
    "pooling": "net.py:pooling has no channel group that may be cut: it has no convolution and no linear layer",
}


@pytest.mark.filterwarnings("ignore")  # of what PyTorch would rather have than scripts and its own quantization
@pytest.mark.parametrize("name", REFUSED)
def test_network_that_cannot_be_cut(
    aap_hw: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NETWORKS)
    network = ("--model", f"net.py:{name}", "--input", "3x16x16")
    fails(aap_hw("profile", "--device", "x86", *network, "--out", "table.json"), REFUSED[name])
    assert {path.name for path in tmp_path.iterdir()} <= {"net.py", "__pycache__"}


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[str], str]:
    def edit(text: str) -> str:
        document = json.loads(text)
        change(document)
        return json.dumps(document)

    return edit


TABLES: dict[str, tuple[Callable[[str], str], str]] = {
    "empty": (lambda text: "", "damaged or cut short"),
    "truncated": (lambda text: text[: len(text) // 2], "damaged or cut short .* at line"),
    "a list": (lambda text: "[1, 2]", "not a latency table of version 4"),
    "older": (edited(lambda d: d.update(schema_version=0)), "schema_version is 0"),
    "newer": (edited(lambda d: d.update(schema_version=5)), "use the version of aap-hw that wrote it"),
    "without version": (edited(lambda d: d.pop("schema_version")), "schema_version is None"),
    "without device": (edited(lambda d: d.pop("device")), "'device' is a required property"),
    "of unknown provenance": (edited(lambda d: d["device"].update(provenance="guessed")), "'guessed' is not one of"),
    "negative latency": (
        edited(lambda d: next(iter(d["kernels"].values()))["points"][0].__setitem__(2, -1.0)),
        r"is not valid at .*points",
    ),
    "emulated": (edited(lambda d: d["device"].update(provenance="emulated")), "are emulated, .*--allow-emulated"),
    "estimated without a word of how": (
        edited(lambda d: d["device"].update(provenance="estimated")),
        r"is not valid at \$\.(measurement|validation)",
    ),
}


@pytest.mark.parametrize("command", ["plan", "prune"])
@pytest.mark.parametrize("name", TABLES)
@pytest.mark.usefixtures("quick")
def test_table(aap_hw: Callable[..., Any], table_file: Path, tmp_path: Path, command: str, name: str) -> None:
    change, sentence = TABLES[name]
    table_file.write_text(change(table_file.read_text()))
    out = ("--out", str(tmp_path / "run")) if command == "prune" else ()
    fails(aap_hw(command, *RESNET20, "--lut", str(table_file), "--budget", "50%", *out), sentence)
    assert [path.name for path in tmp_path.iterdir()] == ["table.json"]


def _script(file: Path) -> None:
    file.write_bytes(b"import torch\n")


def _program(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        for part in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"net/{part}", b"\x80\x02N.")


def _half(file: Path) -> None:
    torch.save(resnet20()[0].state_dict(), file)
    file.write_bytes(file.read_bytes()[:5000])


def _called(file: Path) -> None:
    file.write_bytes(b"\x80\x02cos\nsystem\n(X\x0a\x00\x00\x00touch harmtR.")


WEIGHTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no checkpoint": (
        _script,
        "the weights w.pt were not written by torch.save; give such a file, or a safetensors file",
    ),
    "a program": (_program, r"w.pt is a TorchScript program and no checkpoint; .*torch.jit.load\('w.pt'\).state_dict"),
    "half a file": (_half, "cannot read the weights w.pt: the file is damaged or cut short; copy or download it again"),
    "code": (
        _called,
        "w.pt holds no weights; what os.system would make is not looked at, as that could run code; save",
    ),
    "nothing": (lambda file: torch.save({"args": {"lr": 0.1}}, file), "holds a dict with the keys args and no weights"),
    "another network": (
        lambda file: torch.save({"state_dict": {"conv1.weight": torch.zeros(16, 3, 3, 3)}}, file),
        r"the weights w.pt, under 'state_dict', do not fit resnet20: they lack 'bn1.weight', .* of 116 tensors",
    ),
    "another width": (
        lambda file: torch.save({**resnet20()[0].state_dict(), "linear.bias": torch.zeros(7)}, file),
        r"'linear.bias' differ in shape: linear.bias is \(7,\) there and \(10,\) in resnet20",
    ),
    "a folder": (lambda file: file.mkdir(), "the weights w.pt are a folder; give the file in it"),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights(
    aap_hw: Callable[..., Any], table_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    save, sentence = WEIGHTS[name]
    monkeypatch.chdir(tmp_path)
    save(Path("w.pt"))
    fails(
        aap_hw("plan", "--model", "resnet20", "--weights", "w.pt", "--lut", str(table_file), "--budget", "50%"),
        sentence,
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.json", "w.pt"]


def _pictures(*places: str, content: bytes | None = None) -> Callable[[], None]:
    """Pictures of one colour, or files of some content, at these places below ``images``."""

    def make() -> None:
        for place in places:
            file = Path("images", place)
            file.parent.mkdir(parents=True, exist_ok=True)
            for number in range(12):
                file = file.with_stem(str(number))
                Image.new("RGB", (9, 9), "red").save(file, "PNG") if content is None else file.write_bytes(content)

    return make


def _then(*makers: Callable[[], object]) -> Callable[[], None]:
    def make() -> None:
        for maker in makers:
            maker()

    return make


def _arrays(**changes: Any) -> Callable[[], None]:
    images, labels = np.zeros((4, 3, 9, 9), np.uint8), np.arange(4)
    given = {"train_images": images, "train_labels": labels, "test_images": images, "test_labels": labels} | changes
    return lambda: np.savez("images.npz", **given)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
IMAGES: dict[str, tuple[Callable[[], object], str]] = {
    "test pictures that were never fetched": (
        _then(_pictures("train/a/0.png"), _pictures("validation/a/0.png", content=POINTER)),
        r"more than 3 of 12 image files .* images/validation/a/0.png \(it is no picture of a kind that is read\), ",
    ),
    "test pictures of a telephone": (
        _pictures("Train/a/0.png", "Train/b/0.png", "Test/a/0.png", "Test/b/0.heif"),
        "images/Test/b holds no picture of a format that is read, only 12 .heif; put .jpg",
    ),
    "pictures and masks": (
        _pictures("train/images/0.png", "train/masks/0.png", "val/images/0.png", "val/masks/0.png"),
        "images/train has pictures beside what is to be found in them, for detection or segmentation",
    ),
    "two test splits": (
        _pictures("train/a/0.png", "dev/a/0.png", "Validation/a/0.png"),
        "images has both 'Validation' and 'dev', and either could be meant; rename or move one",
    ),
    "arrays of floats": (
        _arrays(train_images=np.linspace(0, 1, 972).reshape(4, 3, 9, 9)),
        r"the training images are float64 from 0 to 1; give bytes .*such as \(images \* 255\)",
    ),
    "arrays without a test image": (
        _arrays(test_images=np.zeros((0, 3, 9, 9), np.uint8), test_labels=np.zeros(0, int)),
        "there is not one image in the test split",
    ),
}


@pytest.mark.parametrize("name", IMAGES)
def test_images(
    aap_hw: Callable[..., Any], table_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    make, sentence = IMAGES[name]
    monkeypatch.chdir(tmp_path)
    make()
    there = sorted(path.name for path in tmp_path.iterdir())
    source = "npz:images.npz" if "images.npz" in there else "imagefolder:images"
    command = ("prune", "--model", "resnet20", "--data", source, "--lut", str(table_file), "--out", "run")
    fails(aap_hw(*command, "--max-accuracy-drop", "1"), sentence)
    assert sorted(path.name for path in tmp_path.iterdir()) == there
