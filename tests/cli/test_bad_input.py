"""Whatever is wrong with what was typed: exit code 2, one line on standard error, nothing else, nothing written."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.synthetic import resnet20

RESNET20 = ("--model", "resnet20", "--weights", "embedded", "--calibration-images", "8")


def fails(outcome: Any, sentence: str) -> None:
    assert (outcome.code, outcome.out) == (2, ""), outcome
    assert outcome.err.startswith("aap-hw: error: ")
    assert outcome.err.count("\n") == 1, outcome.err
    assert "Traceback" not in outcome.err
    assert re.search(sentence, outcome.err), outcome.err


BUDGETS = {
    "0": "has no unit",
    "0ms": "not more than zero",
    "-5ms": "not more than zero",
    "-5%": "not more than zero",
    "20": "type '20ms' for milliseconds",
    "20xs": "unknown unit 'xs'",
    "150%": "more than the dense network takes",
    "": "not a number with a unit",
    "fast": "not a number with a unit",
    "0,5ms": "the decimal sign is a point",
    "nanms": "not a number",
    "1e999ms": "too large",
    "100%": r"nothing needs pruning: the unpruned network takes 1\.\d+ ms and the budget is 1\.\d+ ms",
    "20ms": "nothing needs pruning: the unpruned network takes .* ms and the budget is 20 ms",
    "0.01ms": r"no plan reaches 0\.01 ms: the smallest reachable latency is 0\.\d+ ms \([\d.]+% of the unpruned",
    "1%": r"no plan reaches 0\.01\d+ ms: the smallest reachable latency is",
}


@pytest.mark.parametrize("command", ["plan", "prune"])
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.usefixtures("quick")
def test_budget(aap_hw: Callable[..., Any], table_file: Path, tmp_path: Path, command: str, budget: str) -> None:
    out = ("--out", str(tmp_path / "run")) if command == "prune" else ()
    fails(aap_hw(command, *RESNET20, "--lut", str(table_file), "--budget", budget, *out), BUDGETS[budget])
    assert [path.name for path in tmp_path.iterdir()] == ["table.json"]


@pytest.mark.usefixtures("quick")
def test_smallest_latency_that_is_named_can_be_asked_for(aap_hw: Callable[..., Any], table_file: Path) -> None:
    command = ("plan", *RESNET20, "--lut", str(table_file), "--budget")
    named = re.search(r"is ([\d.]+) ms \(([\d.]+)%", aap_hw(*command, "1%").err)
    assert named is not None
    for budget in (f"{named[1]}ms", f"{named[2]}%"):
        assert aap_hw(*command, budget).code == 0


COMMANDS: dict[str, tuple[tuple[str, ...], str]] = {
    "no table": (("plan", "--model", "resnet20", "--budget", "50%"), "Missing option '--lut'"),
    "no model to plan": (("plan", "--lut", "TABLE", "--budget", "50%"), "Missing option '--model'"),
    "no model to prune": (("prune", "--lut", "TABLE", "--budget", "50%"), "Missing option '--model'"),
    "no table to prune with": (("prune", "--model", "resnet20", "--budget", "50%"), "Missing option '--lut'"),
    "no budget": (
        ("prune", "--model", "resnet20", "--lut", "TABLE"),
        "there is nothing to prune to: give --budget 20ms",
    ),
    "no such file": (
        ("plan", "--model", "resnet20", "--lut", "nowhere/x86.json", "--budget", "50%"),
        "cannot read the latency table nowhere/x86.json: No such file",
    ),
    "no such shipped table": (
        ("plan", "--model", "resnet20", "--lut", "x87", "--budget", "50%"),
        "there is no latency table 'x87'",
    ),
    "a folder": (("lut", "show", "FOLDER"), "cannot read the latency table .*: Is a directory"),
    "model": (
        ("plan", "--model", "resnet21", "--lut", "TABLE", "--budget", "50%"),
        r"no model named 'resnet21' \(known: .*\); did you mean 'resnet",
    ),
    "model to profile": (("profile", "--device", "x86", "--model", "vgg"), "no model named 'vgg'"),
    "weights": (
        ("prune", "--model", "resnet20", "--weights", "mine", "--lut", "TABLE", "--budget", "50%"),
        "there are no weights 'mine'",
    ),
    "weights of another model": (
        ("plan", "--model", "resnet18", "--weights", "embedded", "--lut", "TABLE", "--budget", "50%"),
        "resnet18 has no embedded weights; those that have: resnet20",
    ),
    "data": (
        ("prune", "--model", "resnet20", "--data", "cifar", "--lut", "TABLE", "--budget", "50%"),
        "'cifar' is no source of images",
    ),
    "download of nothing": (
        ("prune", "--model", "resnet20", "--download", "--lut", "TABLE", "--budget", "50%"),
        "--download fetches the images of --data; say which",
    ),
    "data of other classes": (
        ("prune", "--model", "mobilenetv2", "--data", "embedded", "--lut", "TABLE", "--budget", "50%"),
        "mobilenetv2 tells 1000 classes apart and the samples are of 10",
    ),
    "input that is no shape": (
        ("plan", "--model", "resnet20", "--input", "3xAx32", "--lut", "TABLE", "--budget", "50%"),
        "'3xAx32' is not an input: write the shape of one sample",
    ),
    "type that no network takes": (
        ("plan", "--model", "resnet20", "--input", "float16:3x32x32", "--lut", "TABLE", "--budget", "50%"),
        "an input cannot be float16: give one of float32, int64",
    ),
    "several inputs of a network of one": (
        ("plan", "--model", "resnet20", "--input", "3x32x32,3x32x32", "--lut", "TABLE", "--budget", "50%"),
        "resnet20 takes one image, not 3x32x32,3x32x32",
    ),
    "input and example": (
        (
            "plan",
            "--model",
            "resnet20",
            "--input",
            "3x32x32",
            "--example",
            "a.npz",
            "--lut",
            "TABLE",
            "--budget",
            "50%",
        ),
        "--example says what the network takes; leave --input out",
    ),
    "example that is not there": (
        ("plan", "--model", "resnet20", "--example", "nowhere.npz", "--lut", "TABLE", "--budget", "50%"),
        "cannot read the example nowhere.npz: No such file",
    ),
    "input": (
        ("plan", "--model", "resnet20", "--input", "224", "--lut", "TABLE", "--budget", "50%"),
        "write channels, height and width like",
    ),
    "channels": (
        ("plan", "--model", "resnet20", "--input", "1x32x32", "--lut", "TABLE", "--budget", "50%"),
        "takes images of 3 channels, not 1; write --input 3x32x32",
    ),
    "another input size": (
        ("plan", "--model", "resnet20", "--input", "3x24x24", "--lut", "TABLE", "--budget", "50%"),
        "x86 is not of resnet20 at 3x24x24 but of resnet20 at 3x32x32: .*--input 3x24x24",
    ),
    "rounds": (
        ("prune", "--model", "resnet20", "--rounds", "0", "--lut", "TABLE", "--budget", "50%"),
        "0 is not in the range",
    ),
    "learning rate": (
        ("prune", "--model", "resnet20", "--learning-rate", "0", "--lut", "TABLE", "--budget", "50%"),
        "not in the range",
    ),
    "device": (("deploy", "RUN", "--device", "x68"), "there is no device 'x68' .*did you mean 'x86'?"),
    "board": (("deploy", "RUN", "--device", "rpi4"), "tracker at 127.0.0.1:9190 cannot be reached .* start it with"),
    "board to profile": (
        ("profile", "--device", "rpi5", "--connect", "rpc://127.0.0.1:1"),
        "nothing listens at 127.0.0.1:1; start the server there",
    ),
    "connect": (
        ("profile", "--device", "rpi5", "--connect", "pi:9090"),
        "'pi:9090' is no way to reach a device; write",
    ),
    "table in an impossible folder": (
        ("profile", "--device", "x86", "--model", "resnet20", "--out", "TABLE/x86.json"),
        "table.json is not a folder; choose another",
    ),
    "opset": (
        ("export", "RUN", "--onnx", "FOLDER/x.onnx", "--opset", "8"),
        "PyTorch .* writes ONNX opsets 9 to 23, not 8; give --opset one of these, or leave it out",
    ),
    "opset to come": (
        ("export", "RUN", "--onnx", "FOLDER/x.onnx", "--opset", "40"),
        "writes ONNX opsets 9 to 23, not 40",
    ),
    "run": (("deploy", "RUN", "--device", "x86"), "there is no run folder .*RUN; 'aap-hw prune' makes one"),
    "sub-command": (("lut", "shwo", "TABLE"), "No such command 'shwo'"),
    "option": (("plan", "--bugdet", "50%", "--lut", "TABLE"), r"No such option '?--bugdet'?.*--budget"),
    "accuracy without images": (
        ("prune", "--model", "resnet20", "--max-accuracy-drop", "1", "--lut", "TABLE"),
        "an accuracy can only be kept by training: add --data",
    ),
    "no training without images": (
        ("prune", "--model", "resnet20", "--no-training", "--budget", "50%", "--lut", "TABLE"),
        "--no-training is about the images of --data: say which, or leave it out",
    ),
    "no training, and how": (
        (
            "prune",
            "--model",
            "resnet20",
            "--data",
            "embedded",
            "--no-training",
            "--epochs",
            "2",
            "--budget",
            "9ms",
            "--lut",
            "TABLE",
        ),
        "--no-training trains nothing, so --epochs would do nothing",
    ),
    "resume what never began": (("prune", "--resume", "FOLDER"), "holds no run that was begun, so there is nothing"),
    "resume with other wishes": (
        ("prune", "--resume", "RUN", "--epochs", "9", "--seed", "1"),
        "--resume goes on with what the run was asked for; leave --epochs, --seed out",
    ),
    "report of no run": (("report",), "Missing argument 'RUN"),
    "report of a folder that is not there": (("report", "RUN"), "there is no run folder .*RUN; 'aap-hw prune' makes"),
    "report of a folder without a run": (("report", "FOLDER"), "holds no finished run"),
    "report of one run twice": (("report", "RUN", "RUN"), "a run is given twice; give each folder once"),
    "merge of one table": (("lut", "merge", "TABLE", "--out", "FOLDER/out.json"), "merging takes two tables or more"),
    "merge over a table": (("lut", "merge", "TABLE", "TABLE", "--out", "TABLE"), "exists already; give --out another"),
    "picture of another kind": (("lut", "plot", "TABLE", "--out", "FOLDER/x.svg"), "neither a .png nor an .html file"),
    "picture of no kernel": (
        ("lut", "plot", "TABLE", "--out", "FOLDER/x.png", "--kernel", "lstm"),
        "no kernel of several widths whose key contains 'lstm'",
    ),
    "difference to no table": (("lut", "diff", "TABLE", "nowhere.json"), "cannot read the latency table nowhere.json"),
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.usefixtures("quick")
def test_command(
    aap_hw: Callable[..., Any], table_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    arguments, sentence = COMMANDS[name]
    monkeypatch.chdir(tmp_path)
    places = {
        "TABLE/x86.json": f"{table_file}/x86.json",
        "TABLE": str(table_file),
        "FOLDER": str(tmp_path),
        "FOLDER/out.json": f"{tmp_path}/out.json",
        "FOLDER/x.svg": f"{tmp_path}/x.svg",
        "FOLDER/x.png": f"{tmp_path}/x.png",
        "FOLDER/x.onnx": f"{tmp_path}/x.onnx",
        "RUN": str(tmp_path / "RUN"),
    }
    fails(aap_hw(*(places.get(argument, argument) for argument in arguments)), sentence)
    assert [path.name for path in tmp_path.iterdir()] == ["table.json"]


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
    "Thresholded": r"cannot trace this Thresholded: its code depends on the values of its input \(net.py:\d+: return ",
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
    "estimated": (edited(lambda d: d["device"].update(provenance="estimated")), "are estimated, .*--allow-emulated"),
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


@pytest.mark.parametrize("below", ["", "run", "deep/run"])
@pytest.mark.usefixtures("quick")
def test_folder_that_cannot_be_made(
    aap_hw: Callable[..., Any], table_file: Path, tmp_path: Path, below: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aap_hw.prune.job.prune", None)
    (tmp_path / "file").write_text("")
    out = str(tmp_path / "file" / below)
    fails(
        aap_hw("prune", *RESNET20, "--lut", str(table_file), "--budget", "50%", "--out", out),
        "cannot write to the folder .*: .*file is not a folder; choose another",
    )
    json_out = ("--json", str(tmp_path / "file" / "plan.json"))
    fails(aap_hw("plan", *RESNET20, "--lut", str(table_file), "--budget", "50%", *json_out), "cannot write .*plan.json")
    fails(aap_hw("lut", "show", str(table_file), *json_out), "cannot write .*plan.json")


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
