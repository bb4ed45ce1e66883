"""Every kind of text that names a network makes it, the same one each time; every wrong one is one sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from aap_hw.errors import UserError
from aap_hw.inputs import Inputs
from aap_hw.models import libraries
from aap_hw.models.origin import Origin
from aap_hw.models.source import find

ROOT = Path(__file__).resolve().parents[2]
SMALL = (3, 32, 32)

NET = """
from dataclasses import dataclass
from torch import nn
from layers_of_mine import block

@dataclass
class Settings:
    width: "int" = 4

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(block(Settings().width), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))

made = nn.ReLU()
def make():
    import layers_of_mine  # as late as this
    return Net()
def nothing(): pass
def a_list(): return [Net()]
def broken(): raise RuntimeError("first\\nsecond")
def quits(): raise SystemExit(3)
def wants_more(width): return Net()
"""


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that defines networks, and its neighbour, which it imports; the working folder is theirs."""
    (tmp_path / "layers_of_mine.py").write_text(
        "from torch import nn\ndef block(width): return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width))\n"
    )
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "layers_of_mine", raising=False)
    return tmp_path / "net.py"


def test_names_of_one_network_are_one_text() -> None:
    texts = ("mobilenetv2", "mobilenet_v2", "torchvision:mobilenet_v2")
    assert {find(text).text for text in texts} == {"mobilenetv2"}
    assert {find(text).text for text in ("squeezenet1_1", "torchvision:squeezenet1_1")} == {"torchvision:squeezenet1_1"}


def test_file_is_one_text_however_it_is_written(net: Path) -> None:
    texts = {find(f"{path}:make").text for path in ("net.py", "./net.py", "../" + net.parent.name + "/net.py", net)}
    assert texts == {"net.py:make"}
    elsewhere = find(f"{ROOT}/examples/user_net.py:make")
    assert (elsewhere.text, elsewhere.short) == (f"{ROOT}/examples/user_net.py:make", "user_net-make")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("torchvision:efficientnet_b1", (3, 240, 240)),
        ("torchvision:inception_v3", (3, 299, 299)),
        ("timm:mobilenetv3_small_050", (3, 224, 224)),
        ("resnet20", SMALL),
        ("torchvision:r3d_18", None),
    ],
)
def test_usual_size_is_that_of_the_library(text: str, size: tuple[int, int, int] | None) -> None:
    assert find(text).inputs == (None if size is None else Inputs.of(size))


@pytest.mark.parametrize("text", ["squeezenet1_1", "timm:test_resnet", "net.py:make", "net.py:Net", "net:make"])
def test_network_is_the_same_each_time_and_the_global_generator_is_left_alone(
    net: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "net", raising=False)
    path = list(sys.path)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    origin = Origin.of(text, (3, 64, 64))
    first, again = origin.build(), Origin.of(text, (3, 64, 64)).build()
    assert torch.equal(torch.rand(1), expected)
    assert sys.path == path
    assert not any(module.training for module in first.modules())
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert first(image).shape == (2, origin.classes)
    norms = [module for module in first.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.running_mean is not None and norm.running_mean.any() for norm in norms)


def test_trained_statistics_are_left_as_they_are(net: Path) -> None:
    net.write_text(NET + "\ndef trained():\n    n = Net()\n    n[0][1].running_mean.fill_(0.25)\n    return n\n")
    trained = Origin.of("net.py:trained", SMALL).build()
    assert (trained.get_buffer("0.1.running_mean") == 0.25).all()


def test_looking_a_source_up_runs_no_code(net: Path) -> None:
    net.write_text("raise SystemExit('was run')")
    assert Origin.of("net.py:make", SMALL).model == "net.py:make"


def test_zoo_is_found_without_loading_libraries() -> None:
    program = (
        "import sys; from aap_hw.models.source import find; find('resnet50'); sys.exit('torchvision' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


WRONG = {
    "resnet21": r"no model named 'resnet21' \(known: .*resnet20.*, and all of torchvision's\); did you mean 'resnet",
    "densenet12": "did you mean 'densenet121'",
    "torchvision:resnet19": "torchvision has no model named 'resnet19'; did you mean 'resnet18'",
    "timm:resnet19": "timm has no model named 'resnet19'; did you mean 'resnet",
    "timm:hf-hub:somebody/net": "something|write torchvision:NAME",
    "nowhere.py:make": "cannot read the model nowhere.py: there is no such file; a relative path starts from /",
    ".:make": "write torchvision:NAME, timm:NAME, FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION",
    "nowhere.pt2": "cannot read the model nowhere.pt2: there is no such file",
    "net.py": "name the function that makes the network, as in net.py:make",
    "net.py:": "something is missing beside the colon",
    "net.py:mke": "there is no 'mke' in net.py; did you mean 'make'",
    "net.py:made": "net.py:made is no function or class",
    "net.py:nothing": "net.py:nothing returned nothing; it must return a torch.nn.Module",
    "net.py:a_list": "net.py:a_list returned a list; it must return",
    "net.py:broken": r"net.py:broken failed: RuntimeError: first \(net.py:\d+: .*\); it is called without arguments",
    "net.py:quits": "net.py:quits failed: SystemExit: 3",
    "net.py:wants_more": "net.py:wants_more failed: TypeError: .*'width'; it is called without arguments",
    "no_such_module:make": "cannot import no_such_module .*No module named 'no_such_module'",
    "tim:resnet18": "cannot import tim for .* there is no module of that name; did you mean 'timm'",
    "torch.nn:Nothing": "there is no 'Nothing' in torch.nn",
    "wrong.py:make": r"cannot run wrong.py for the model: SyntaxError: .*wrong.py, line 1\)",
    "exits.py:make": "cannot run exits.py for the model: SystemExit: usage",
}


@pytest.mark.parametrize("text", WRONG)
def test_wrong_source_is_one_sentence(net: Path, text: str) -> None:
    (net.parent / "wrong.py").write_text("def make(:\n")
    (net.parent / "exits.py").write_text("raise SystemExit('usage')\n")
    with pytest.raises(UserError, match=WRONG[text]) as refused:
        Origin.of(text, SMALL).build()
    assert "\n" not in str(refused.value)


def test_size_of_the_images_is_asked_for_where_there_is_no_usual_one(net: Path) -> None:
    with pytest.raises(UserError, match=r"net.py:make has no usual image size; .*--input 3x96x96"):
        Origin.of("net.py:make")


def test_images_that_the_network_does_not_take_are_named(net: Path) -> None:
    with pytest.raises(UserError, match=r"net\.py:make does not take images of 5x32x32: RuntimeError: .*channels"):
        Origin.of("net.py:make", (5, 32, 32)).build()
    with pytest.raises(UserError, match="squeezenet1_1 does not take images of 3x4x4"):
        Origin.of("squeezenet1_1", (3, 4, 4)).build()
    with pytest.raises(UserError, match="squeezenet1_1 takes images of 3 channels, not 1; write --input 3x64x64"):
        Origin.of("squeezenet1_1", (1, 64, 64))


def test_network_without_class_scores_is_not_asked_for_classes(net: Path) -> None:
    net.write_text("from torch import nn\ndef make(): return nn.Conv2d(3, 4, 3)\n")
    assert Origin.of("net.py:make", SMALL).classes is None


def test_classes_are_those_of_the_file_as_it_is_now(net: Path) -> None:
    net.write_text("from torch import nn\ndef make(): return nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))\n")
    assert Origin.of("net.py:make", SMALL).classes == 10
    net.write_text(net.read_text().replace("10", "20"))
    assert Origin.of("net.py:make", SMALL).classes == 20


ONE_SAMPLE = """
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
    def forward(self, x):
        return self.norm(self.convolution(x)).reshape(1, 4096)
class Pooled(Net):
    def forward(self, x):
        return self.norm(self.convolution(x).mean((2, 3)).reshape(1, 4, 1, 1))
"""


def test_batch_norms_of_a_network_for_one_sample_get_the_statistics_of_one(net: Path) -> None:
    net.write_text(ONE_SAMPLE)
    norm = Origin.of("net.py:Net", SMALL).build().get_submodule("norm")
    assert norm.get_buffer("running_mean").any()
    assert not norm.training
    with pytest.raises(
        UserError, match=r"net\.py:Pooled has batch norms without statistics, .*: RuntimeError: .*\(net\.py:11: "
    ):
        Origin.of("net.py:Pooled", SMALL).build()


def test_missing_timm_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"timm:ghostnet_100 needs the package timm; .*: pip install 'aap-hw\[timm\]'"):
        find("timm:ghostnet_100")


def test_weights_of_the_zoo_are_for_the_zoo() -> None:
    with pytest.raises(UserError, match="torchvision:squeezenet1_1 has no weights named 'embedded'"):
        Origin.of("squeezenet1_1", weights="embedded")
