"""The whole way to an Arm board, on one that is emulated: examined, profiled, pruned for, deployed to and compared.

Both programs of a bundle run there as well: the one in Python from the packages that the board has, the one in C++
built here by the cross compiler with the line in its head.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import aap_hw.deploy.runners
from aap_hw.compile.library.lowering import compile_network
from aap_hw.deploy.bundle import Bundle, write_bundle
from aap_hw.deploy.reference import TOLERANCE
from aap_hw.deploy.requirements import Requirements
from aap_hw.deploy.runners import build_command
from aap_hw.device.connection import Device
from aap_hw.lut.file import load_table
from aap_hw.models import zoo
from tests.board.board import PATIENCE_S, on_board
from tests.deploy.tiny import make_int8_bundle

pytestmark = pytest.mark.board
RUNNERS = Path(aap_hw.deploy.runners.__file__).parent


@pytest.fixture(scope="module")
def quick_profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rpi4's profile with few widths: emulated kernels take a hundred times as long."""
    text = (Path(__file__).parents[2] / "device_profiles" / "rpi4.toml").read_text()
    path = tmp_path_factory.mktemp("profile") / "rpi4.toml"
    path.write_text(re.sub("at_most = .*", "at_most = 2", text))
    return path


def on_this_machine(*command: str | Path) -> str:
    """What a program prints that runs here."""
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True).stdout


@pytest.fixture(scope="module")
def runner_in_cpp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``run.cc``, linked with the libraries of the board's own packages."""
    packages = on_board("python3", "-c", "import pathlib, tvm_ffi; print(pathlib.Path(tvm_ffi.__file__).parents[1])")
    folder = tmp_path_factory.mktemp("runner")
    shutil.copy(RUNNERS / "run.cc", folder)
    subprocess.run([*build_command(Path(packages.strip()), "aarch64-linux-gnu-g++"), "-Wall"], cwd=folder, check=True)
    return folder / "run"


def assert_runners_print(expected: np.ndarray, bundle: Path, runner_in_cpp: Path) -> None:
    """Both programs print these outputs, (n, classes), and find that they are PyTorch's."""
    for program in (["python3", bundle / "run.py"], [runner_in_cpp]):
        *rows, verdict = on_board(*program, bundle, "--print").splitlines()
        printed = np.array([[float(value) for value in row.split()] for row in rows])
        assert_alike(printed, expected)
        assert re.match(rf"{len(expected)} reference inputs: largest difference from PyTorch \S+, within", verdict)


def assert_alike(outputs: np.ndarray, expected: np.ndarray) -> None:
    assert outputs.shape == expected.shape
    assert np.abs(outputs - expected).max() <= TOLERANCE * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("name", ["resnet20", "mobilenetv2", "resnet18"])
def test_outputs_on_the_board_are_those_of_pytorch(
    device: Device, runner_in_cpp: Path, tmp_path: Path, name: str
) -> None:
    model = zoo.build(name)
    image = torch.randn(1, *model.input_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.module(image).numpy()
    assert np.ptp(expected) > 1e-2, "outputs that are all alike prove nothing"
    library, bundle = tmp_path / "net.so", tmp_path / "bundle"
    compile_network(model.module, image, device.target, library)

    loaded = device.load(library)
    loaded.set_inputs("main", [image.numpy()])
    assert_alike(loaded.run("main")[0], expected)

    requires, facts = Requirements.of(library, device.target), device.describe().as_json()
    how, latency = (
        {"scale": 1.0, "mean": [0.0] * 3, "std": [1.0] * 3, "in_network": False},
        {"predicted": None, "measured": None},
    )
    outputs = {"logits": expected[:, None]}
    tolerances = {"logits": TOLERANCE * max(1.0, float(np.abs(expected).max()))}
    write_bundle(
        bundle, library, Bundle(name, facts, requires, {"image": image.numpy()}, outputs, tolerances, (), how, latency)
    )
    assert_runners_print(expected, bundle, runner_in_cpp)


@pytest.mark.parametrize("pixels", [False, True], ids=["floats", "pixels"])
def test_a_network_in_int8_computes_on_the_board_what_it_does_here(
    device: Device, runner_in_cpp: Path, tmp_path: Path, pixels: bool
) -> None:
    """To the bit, as an Arm CPU without dot products adds up whole numbers, too; floats only scale them."""
    name = "pixels" if pixels else "floats"
    expected = make_int8_bundle(tmp_path / "here", pixels=pixels)
    make_int8_bundle(tmp_path / name, pixels=pixels, target=device.target)
    found = []
    for bundle, programs in (
        (tmp_path / "here", [[sys.executable, tmp_path / "here" / "run.py"]]),
        (tmp_path / name, [["python3", tmp_path / name / "run.py"], [runner_in_cpp]]),
    ):
        for program in programs:
            run = on_this_machine if program[0] == sys.executable else on_board
            *rows, verdict = run(*program, bundle, "--print").splitlines()
            found.append(np.array([[float(value) for value in row.split()] for row in rows], np.float32))
            assert "within 1e-05" in verdict
    here, *there = found
    np.testing.assert_allclose(here, expected, rtol=0, atol=1e-5)
    for each in there:
        assert np.array_equal(each, here), np.abs(each - here).max()


class OddWidths(torch.nn.Module):
    """Convolutions whose sums have any number of terms: whole vectors of them, or some left, or fewer than one."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 33, 3, stride=2, padding=1),
            torch.nn.ReLU6(),
            torch.nn.Conv2d(33, 6, 1),
            torch.nn.Hardswish(),
            torch.nn.Conv2d(6, 57, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.Conv2d(57, 30, 5, padding=4, dilation=2),
            torch.nn.Conv2d(30, 35, 3, padding=1, groups=5),
            torch.nn.ReLU(),
            torch.nn.Flatten(),
            torch.nn.Linear(35 * 15 * 13, 7),
        )
        self.beside = torch.nn.Conv2d(3, 2, 1)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.layers(image), self.beside(image)


def test_sums_of_any_number_of_terms_are_those_of_pytorch(device: Device, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, image = OddWidths().eval(), torch.randn(1, 3, 29, 25)
    with torch.no_grad():
        expected = [each.numpy() for each in model(image)]
    compile_network(model, image, device.target, tmp_path / "net.so")
    loaded = device.load(tmp_path / "net.so")
    loaded.set_inputs("main", [image.numpy()])
    for made, wanted in zip(loaded.run("main"), expected, strict=True):
        assert np.ptp(wanted) > 1e-2
        assert_alike(made, wanted)


def test_examined_profiled_pruned_for_and_deployed_to(
    aap_hw: Callable[..., Any],
    device: Device,
    where: str,
    runner_in_cpp: Path,
    quick_profile: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device.close()  # type: ignore[attr-defined]
    monkeypatch.chdir(tmp_path)
    there = ("--device", str(quick_profile), "--connect", where)
    examined = aap_hw("doctor", *there, "--json")
    assert examined.code == 0, examined.out
    assert all(finding["ok"] for finding in json.loads(examined.out)["findings"])

    profiled = aap_hw("profile", *there, "--model", "resnet20", "--out", "rpi4.json")
    assert profiled.code == 0, profiled.err
    table = load_table(Path("rpi4.json"))
    assert table.device["provenance"] == "emulated"
    assert [facts["points"] for facts in table.measurement["boards"].values()] == [len(table)]
    assert not re.search(r"\d ms", profiled.out)

    # The same by a folder that is carried, as if no connection reached the board.
    carried = ("profile", "--device", str(quick_profile), "--model", "resnet20", "--out", "carried.json")
    packed = aap_hw(*carried, "--pack", "to-the-board")
    assert packed.code == 0, packed.err
    on_board("python3", tmp_path / "to-the-board" / "run.py")
    unpacked = aap_hw(*carried, "--unpack", "to-the-board")
    assert unpacked.code == 0, unpacked.err
    came = load_table(Path("carried.json"))
    assert came.points.keys() == table.points.keys()
    assert came.device == table.device

    command = ("prune", "--model", "resnet20", "--lut", "rpi4.json", "--budget", "70%", "--out", "run")
    refused = aap_hw(*command)
    assert refused.code == 2
    assert "emulated, not measured on the device" in refused.err
    pruned = aap_hw(*command, "--allow-emulated")
    assert pruned.code == 0, pruned.err
    times = [line for line in pruned.out.splitlines() if re.search(r"\d ms| ms,", line)]
    assert all("emulated" in line or line.startswith("unpruned") for line in times), times
    assert json.loads(Path("run/summary.json").read_text())["provenance"] == "emulated"

    deployed = aap_hw("deploy", "run", *there, "--out", "bundle", "--json")
    assert deployed.code == 0, deployed.err
    assert json.loads(deployed.out)["max_abs_diff"] <= 1e-4
    latency = json.loads(Path("bundle/manifest.json").read_text())["latency"]
    assert latency["measured"] is None
    assert latency["predicted"]["provenance"] == "emulated"
    assert_runners_print(np.load("bundle/reference_outputs.npy"), tmp_path / "bundle", runner_in_cpp)


def test_network_that_was_pruned_by_an_estimated_table_runs_on_the_board(
    aap_hw: Callable[..., Any], runner_in_cpp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the table that comes with the package: no device is there until the bundle is carried to it."""
    monkeypatch.chdir(tmp_path)
    command = ("prune", "--model", "resnet20", "--lut", "rpi4", "--budget", "60%", "--allow-estimated", "--out", "run")
    pruned = aap_hw(*command)
    assert pruned.code == 0, pruned.err
    deployed = aap_hw("deploy", "run", "--device", "rpi4", "--no-run", "--out", "bundle")
    assert deployed.code == 0, deployed.err
    manifest = json.loads(Path("bundle/manifest.json").read_text())
    assert manifest["latency"] == {"predicted": None, "measured": None}
    assert manifest["estimate"]["device"] == "rpi4"
    assert_runners_print(np.load("bundle/reference_outputs.npy"), tmp_path / "bundle", runner_in_cpp)
