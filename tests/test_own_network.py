"""A network of one's own: the section of docs/networks.md runs as it is written, and others go the whole way."""

from __future__ import annotations

import functools
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from aap_hw.lut import profiling
from aap_hw.models.origin import Origin
from aap_hw.models.saved import load
from aap_hw.resources import resource_dirs
from tests.synthetic import few_images

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "networks.md").read_text("utf-8")
SECTION = PAGE.partition("## Your own network\n")[2].partition("\n## ")[0]
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", SECTION, re.DOTALL)


@pytest.fixture(scope="module")
def quick_device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This machine with few widths and few samples."""
    text = (resource_dirs("device_profiles")[0] / "x86.toml").read_text()
    for key, value in {
        "name": '"x86"',
        "granularity": 16,
        "at_most": 2,
        "warmup": 1,
        "repeats": 3,
        "copies": 2,
    }.items():
        text = re.sub(rf"(?m)^{key} = .*$", f"{key} = {value}", text)
    path = tmp_path_factory.mktemp("device") / "quick.toml"
    path.write_text(text)
    return path


@pytest.fixture(autouse=True)
def no_whole_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """No cut networks calibrate these tables, which takes seconds: `tests.lut` proves that they do."""
    monkeypatch.setattr(profiling, "profile_model", functools.partial(profiling.profile_model, networks=0))


@pytest.mark.slow  # the network of the page is large; tests/cli has each of the commands
def test_commands_profile_plan_and_prune_it(
    quick_device: Path, tmp_path: Path, aap_hw: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (commands,) = [text for kind, text in BLOCKS if kind == ""]
    lines = [shlex.split(line) for line in commands.splitlines()]
    assert [line[:2] for line in lines] == [["aap-hw", "profile"], ["aap-hw", "plan"], ["aap-hw", "prune"]]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("aap_hw.train.data.load_embedded", few_images)
    monkeypatch.setattr("aap_hw.prune.job.device_of", lambda *_: (None, "of the test"))
    table, run = tmp_path / "table.json", tmp_path / "run"
    for line in lines:
        replaced = [
            {"x86": str(quick_device), "lut/x86.json": str(table), "60%": "97%"}.get(word, word) for word in line
        ]
        options = {
            "profile": ("--out", str(table), "--workers", "1"),
            "plan": ("--json", "-"),
            "prune": ("--out", str(run)),
        }
        outcome = aap_hw(*replaced[1:], *options[line[1]])
        assert outcome.code == 0, outcome
        if line[1] == "plan":
            groups = {group["name"]: group for group in json.loads(outcome.out)["groups"]}
            assert groups["blocks.1.primary.0"]["frozen"] is None
    assert "random weights" not in outcome.out
    summary = json.loads((run / "summary.json").read_text())
    assert summary["model"] == "examples/user_net.py:make"
    assert summary["params_pruned"] < summary["params_dense"]
    monkeypatch.chdir(tmp_path)
    smaller = load(run, trust_source=True)
    assert smaller.get_parameter("blocks.0.primary.0.weight").shape[0] == 16
    assert sum(parameter.numel() for parameter in smaller.parameters()) == summary["params_pruned"]


def test_python_runs_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (program,) = [text for kind, text in BLOCKS if kind == "python"]
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    where = {"__name__": "page"}
    exec(program.replace('"smaller.safetensors"', repr(str(tmp_path / "smaller.safetensors"))), where)
    image = torch.rand(2, 3, 96, 96)
    assert torch.equal(where["again"](image), where["smaller"](image))  # type: ignore[operator]
    assert load(tmp_path / "smaller.safetensors", trust_source=True)(image).shape == (2, 10)


# Nearly all of its time is that of the 128 channels which can be cut: a disturbed timing is no matter. It names float32
# itself and keeps its last map and a grid.
WITHOUT_SCHEDULES = """
import torch
from torch import nn

class Arc(nn.Module):
    def forward(self, x):
        return torch.atan(x)

class BytesToFloats(nn.Module):
    grid = None

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 8, 3, padding=1)), nn.GroupNorm(4, 8), Arc())
        self.wide = nn.Sequential(nn.Conv2d(8, 128, 3, padding=1), Arc())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))

    def forward(self, x):
        x = self.stem(x.float())
        if self.grid is None or self.grid.shape[-1] != x.shape[-1]:
            self.grid = torch.linspace(-1, 1, x.shape[-1])
        self.last = self.wide(x + self.grid.to(torch.float32))
        return self.head(self.last)
"""


@pytest.mark.slow  # tests/lut/test_profiling.py measures such kernels in less time
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_network_that_names_float32_and_whose_kernels_have_no_schedule_goes_the_whole_way(
    quick_device: Path, tmp_path: Path, aap_hw: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("aap_hw.train.data.load_embedded", few_images)
    Path("net_of_mine.py").write_text(WITHOUT_SCHEDULES)
    network, device = ("--model", "net_of_mine:BytesToFloats", "--input", "3x16x16"), ("--device", str(quick_device))
    slow = "2 kernels on the slow path: 2 atan"
    profiled = aap_hw("profile", *device, *network, "--out", "table.json", "--workers", "1")
    assert profiled.code == 0, profiled
    told = profiled.out.index(f"{slow}; they have no schedule and may be slow")
    assert told < profiled.out.index("unpruned net_of_mine:BytesToFloats"), "it is told before anything is measured"
    share = rf"{slow}; without a schedule, they take [1-9]\d?% of the time"
    assert re.search(share, profiled.out), profiled
    planned = aap_hw("plan", *network, "--lut", "table.json", "--budget", "80%")
    assert (planned.code, bool(re.search(share, planned.out))) == (0, True), planned
    pruned = aap_hw("prune", *device, *network, "--lut", "table.json", "--budget", "80%", "--out", "run")
    assert pruned.code == 0, pruned
    assert "latency, ms, measured" in pruned.out
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.delitem(sys.modules, "net_of_mine")
    deployed = aap_hw("deploy", "../run", *device)
    assert deployed.code == 0, deployed
    assert slow in deployed.out
    summary = json.loads(Path("../run/summary.json").read_text())
    assert summary["max_abs_diff"] <= 1e-4
    assert summary["macs_pruned"] < summary["macs_dense"]


DETECTOR = """
from torch import nn
from tests.synthetic import few_images

def pictures(shape):
    return few_images()

class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 128, 3, padding=1), nn.ReLU())
        self.down = nn.Sequential(nn.Conv2d(128, 128, 3, 2, 1), nn.ReLU())
        self.boxes = nn.ModuleList([nn.Conv2d(128, 4, 1), nn.Conv2d(128, 4, 1)])
        self.scores = nn.ModuleList([nn.Conv2d(128, 7, 1), nn.Conv2d(128, 7, 1)])

    def forward(self, x):
        maps = [self.stem(x)]
        maps.append(self.down(maps[0]))
        return {
            "boxes": [head(each) for head, each in zip(self.boxes, maps)],
            "scores": [head(each) for head, each in zip(self.scores, maps)],
        }
"""


@pytest.mark.slow
def test_network_with_several_outputs_goes_the_whole_way(
    quick_device: Path, tmp_path: Path, aap_hw: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("aap_hw.train.data.load_embedded", None)  # others than one's own are not asked for
    Path("detector_of_mine.py").write_text(DETECTOR)
    network, device = ("--model", "detector_of_mine.py:Detector", "--input", "3x16x16"), ("--device", str(quick_device))
    prune = (
        "prune",
        *device,
        *network,
        "--data",
        "detector_of_mine:pictures",
        "--lut",
        "table.json",
        "--budget",
        "80%",
        "--out",
        "run",
    )
    assert aap_hw("profile", *device, *network, "--out", "table.json", "--workers", "1").code == 0
    refused = aap_hw(*prune)
    assert (refused.code, "returns something else; cut it to a budget with --no-training" in refused.err) == (
        2,
        True,
    ), refused
    assert aap_hw(*prune, "--no-training").code == 0
    assert json.loads(Path("run/config.json").read_text())["train"] is False
    smaller = load("run", trust_source=True)
    with torch.no_grad():
        for parameter in smaller.parameters():  # as training does, somewhere else
            parameter.mul_(1.5)
    torch.save(smaller.state_dict(), "trained.pt")
    trained = ("--weights", "trained.pt")
    for command in (("deploy", "run", *device, *trained), ("export", "run", *trained, "--onnx", "net.onnx")):
        outcome = aap_hw(*command)
        assert outcome.code == 0, outcome
    bundle = next(Path("run").glob("bundle-*"))
    images, reference = (np.load(bundle / f"reference_{what}.npy") for what in ("inputs", "outputs"))
    found = smaller.eval()(torch.from_numpy(images))
    rows = torch.cat([each.flatten(1) for each in (*found["boxes"], *found["scores"])], 1)
    np.testing.assert_allclose(reference, rows.detach().numpy(), rtol=0, atol=1e-5)
    torch.save(Origin.of("detector_of_mine.py:Detector", (3, 16, 16)).build().state_dict(), "dense.pt")
    before = (bundle / "manifest.json").read_bytes()
    wrong = aap_hw("deploy", "run", *device, "--weights", "dense.pt")
    assert (wrong.code, "dense.pt do not fit the cut network of run" in wrong.err) == (2, True), wrong
    assert (bundle / "manifest.json").read_bytes() == before
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["max_abs_diff"] <= 1e-4
    assert summary["macs_pruned"] < summary["macs_dense"]
    session = onnxruntime.InferenceSession("net.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    of_onnx = dict(zip(names, session.run(None, {"image": images[:1]}), strict=True))
    for i in range(2):
        expected = found["scores"][i][:1].detach().numpy()
        np.testing.assert_allclose(of_onnx[f"output_scores_{i}"], expected, rtol=0, atol=1e-5)
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["trained"]["path"] == "trained.pt"
    shapes = {output["name"]: output["shape"] for output in manifest["outputs"]}
    assert shapes == {
        "output_boxes_0": [1, 4, 16, 16], "output_boxes_1": [1, 4, 8, 8],
        "output_scores_0": [1, 7, 16, 16], "output_scores_1": [1, 7, 8, 8],
    }  # fmt: skip


OF_OTHER_INPUTS = """
import torch
from torch import nn

class Alike(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 64, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.judge = nn.Linear(64, 1)

    def forward(self, left, right):
        return self.judge((self.trunk(left) - self.trunk(right)) ** 2)

def sound():
    return nn.Sequential(
        nn.Conv1d(1, 64, 9, 4), nn.BatchNorm1d(64), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(64, 5)
    )
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "takes"), [("Alike", "left:3x48x48,right:3x48x48"), ("sound", "1x4000")], ids=["two images", "sound"]
)
def test_network_of_other_inputs_goes_the_whole_way(
    quick_device: Path,
    tmp_path: Path,
    aap_hw: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    takes: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("others_of_mine.py").write_text(OF_OTHER_INPUTS)
    network, device = ("--model", f"others_of_mine.py:{function}", "--input", takes), ("--device", str(quick_device))
    for command in (
        ("profile", *device, *network, "--out", "table.json", "--workers", "1"),
        ("prune", *device, *network, "--lut", "table.json", "--max-params", "60%", "--no-training", "--out", "run"),
        ("deploy", "run", *device),
        ("export", "run", "--onnx", "net.onnx"),
    ):
        outcome = aap_hw(*command)
        assert outcome.code == 0, (command, outcome)
    smaller = load("run", trust_source=True)
    summary = json.loads(Path("run/summary.json").read_text())
    assert sum(map(torch.numel, smaller.parameters())) == summary["params_pruned"] <= 0.6 * summary["params_dense"]
    shapes = [tuple(map(int, each.rpartition(":")[2].split("x"))) for each in takes.split(",")]
    arrays = [np.random.default_rng(i).random((1, *shape), np.float32) for i, shape in enumerate(shapes)]
    with torch.no_grad():
        expected = smaller.eval()(*map(torch.from_numpy, arrays)).numpy()
    session = onnxruntime.InferenceSession("net.onnx", providers=["CPUExecutionProvider"])
    (exported,) = session.run(
        None, {place.name: each for place, each in zip(session.get_inputs(), arrays, strict=True)}
    )
    np.testing.assert_allclose(exported, expected, rtol=0, atol=1e-5)
    bundle = next(Path("run").glob("bundle-*"))
    subprocess.run([sys.executable, bundle / "run.py"], check=True)
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert [tuple(each["shape"]) for each in manifest["inputs"]] == [(1, *shape) for shape in shapes]
