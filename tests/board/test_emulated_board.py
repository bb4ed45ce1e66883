"""The whole way to an Arm board, on one that is emulated: examined, profiled, pruned for, deployed to and compared.

Both programs of a bundle run there as well: the one in Python from the packages that the board has, the one in C++
built here by the cross compiler with the line in its head.

Needs ``scripts/emulated_board.sh``, which downloads a userland the first time; so this runs by ``make test-board``, and
not with the other tests.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import aap_hw.deploy.runners
from aap_hw.compile.code.quantized import Quantized
from aap_hw.compile.cpu.int8.gated import TABLE, Gated, Lines, largest_error
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.keys.precision import INT8, Scale
from aap_hw.compile.keys.target import CpuTarget
from aap_hw.compile.library.build import build_kernel
from aap_hw.compile.library.lowering import compile_network
from aap_hw.deploy.bundle import Bundle, write_bundle
from aap_hw.deploy.reference import TOLERANCE
from aap_hw.deploy.requirements import Requirements
from aap_hw.deploy.runners import build_command
from aap_hw.device import load_profile
from aap_hw.device.connection import Device
from aap_hw.lut.file import load_table
from aap_hw.models import zoo
from tests.compile.quantized import (
    UNSURE,
    Case,
    Numbers,
    Transposed,
    images_of,
    library_of,
    library_of_kernels,
    random_numbers,
    reference,
    wrong,
)
from tests.deploy.tiny import make_int8_bundle
from tests.device.reaching import connect

pytestmark = pytest.mark.board
SCRIPT = Path(__file__).parents[2] / "scripts" / "emulated_board.sh"
RUNNERS = Path(aap_hw.deploy.runners.__file__).parent
PORT = 9110
PATIENCE_S = 1200
"""What takes seconds in an emulator may take minutes on a machine that does other things, too."""


@pytest.fixture(scope="module")
def where() -> Iterator[str]:
    """What to write behind --connect."""
    environment = {**os.environ, "AAP_HW_EMULATED_PORT": str(PORT)}
    subprocess.run([SCRIPT, "up"], check=True, env=environment, stdout=subprocess.DEVNULL)
    yield f"rpc://127.0.0.1:{PORT}"
    subprocess.run([SCRIPT, "down"], check=True, env=environment)


@pytest.fixture(scope="module")
def device(where: str) -> Iterator[Device]:
    profile = load_profile("rpi4").reached_by(where)
    patient = profile.connect.model_copy(update={"timeout_s": float(PATIENCE_S)})
    board = connect(profile.model_copy(update={"connect": patient}))
    yield board
    board.close()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def quick_profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rpi4's profile with few widths: emulated kernels take a hundred times as long."""
    text = (Path(__file__).parents[2] / "device_profiles" / "rpi4.toml").read_text()
    path = tmp_path_factory.mktemp("profile") / "rpi4.toml"
    path.write_text(re.sub("at_most = .*", "at_most = 2", text))
    return path


def on_board(*command: str | Path) -> str:
    """What a program prints that runs on the board."""
    done = subprocess.run([SCRIPT, "run", *command], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


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


CLIPPED = ("bias", "relu6")
OF_BYTES = [
    Case(33, 18, (5, 6), epilogue=CLIPPED, exact=True),
    Case(70, 41, (4, 5), (1, 1), padding=(0, 0), epilogue=("bias", "add", "relu"), exact=True),
    Case(57, 57, (9, 11), depthwise=True, epilogue=CLIPPED, exact=True),
    Case(24, 24, (9, 8), (5, 5), (2, 2), (2, 2), depthwise=True, epilogue=CLIPPED, exact=True),
    Case(128, 10, (1, 1), (0, 0), exact=True),
    Case(64, 64, (5, 3), exact=True, epilogue=("bias", "add", "relu")),
    Case(16, 96, (9, 9), (1, 1), padding=(0, 0), epilogue=CLIPPED, exact=True),
    Case(24, 12, (7, 3), (1, 1), padding=(0, 0), epilogue=CLIPPED, exact=True),
    Case(24, 28, (7, 3), (1, 1), padding=(0, 0), epilogue=("bias", "add", "hardswish")),
    Case(40, 40, (5, 12), depthwise=True, epilogue=("bias", "silu")),
    Case(40, 20, (3, 3), (1, 1), padding=(0, 0), epilogue=("bias", "silu")),
    Case(150, 33, (3, 3), (1, 1), padding=(0, 0), epilogue=("bias", "hardswish")),
    Case(3, 24, (19, 21), (7, 7), (2, 2), (3, 3), epilogue=CLIPPED, exact=True, planar=True, batch=2),
    Case(3, 16, (9, 11), (3, 3), (2, 2), (1, 1), epilogue=CLIPPED, exact=True),
    Case(57, 113, (4, 5), (1, 1), padding=(0, 0), epilogue=("bias", "add"), exact=True),
    Case(28, 140, (6, 5), dilation=(2, 2), padding=(2, 2), groups=2, epilogue=CLIPPED, exact=True),
    Transposed(21, 30, (5, 6), (4, 4), (2, 2), (1, 1), epilogue=CLIPPED, exact=True),
]


STEEPEST = 1.5
"""The largest slope of a swish or hard-swish."""


def wrong_on_arm(case: Case, numbers: Numbers, made: np.ndarray, target: CpuTarget) -> str:
    """What is wrong with what a kernel made; some functions are approximate there, and may cross a middle."""
    scale, unsure = numbers.model.made, UNSURE
    assert scale is not None
    gated = Gated.of(case.key(), math.prod(case.kernel) * case.read)
    if gated is not None and TABLE in build_kernel(case.address(), target).arguments:
        assert numbers.model.weight_scales is not None
        of_sums = numbers.model.read[0].scale * float(numbers.model.weight_scales.max())
        rounded = 0.75 * of_sums * STEEPEST if gated.is_small else 0.0
        unsure = (largest_error(scale.scale) + rounded) / scale.scale
    assert unsure < 0.5, "nothing would be held to a byte"
    return wrong(made.transpose(0, 3, 1, 2), reference(case, numbers), scale, exact=case.exact, unsure=unsure)


def test_kernels_of_bytes_equal_an_integer_reference_on_the_board(device: Device, tmp_path: Path) -> None:
    assert isinstance(device.target, CpuTarget)
    library_of(OF_BYTES, device.target, tmp_path / "kernels.so")
    loaded = device.load(tmp_path / "kernels.so")
    for i, case in enumerate(OF_BYTES):
        numbers = random_numbers(case)
        loaded.set_inputs(f"kernel_{i}", [np.ascontiguousarray(image) for image in images_of(case, numbers)])
        (made,) = loaded.run(f"kernel_{i}")
        assert wrong_on_arm(case, numbers, made, device.target) == "", case


# Steps and zero points at which 16 bits have least room for what is made.
OF_GATED = {
    Case(40, 20, (9, 9), (1, 1), padding=(0, 0), epilogue=("bias", "silu")): [Scale(1.0, 248), Scale(0.1, 238)],
    Case(150, 33, (9, 9), (1, 1), padding=(0, 0), epilogue=("bias", "hardswish")): [
        Scale(0.0517, 196),
        Scale(0.1, 242),
        Scale(0.0517, 230),
    ],
    Case(40, 40, (5, 12), depthwise=True, epilogue=("bias", "silu")): [],
}
GATED_STEPS = (0.01, 0.02, 0.05, 0.1, 0.3)


def test_swish_and_hard_swish_are_right_at_any_zero_point(device: Device, tmp_path: Path) -> None:
    assert isinstance(device.target, CpuTarget)
    tried = []
    for case, scales in OF_GATED.items():
        several = [Scale(step, zero) for i, step in enumerate(GATED_STEPS) for zero in range(5 * i, 256, 25)]
        numbers = random_numbers(case)
        tried += [(case, replace(numbers, model=replace(numbers.model, made=made))) for made in [*scales, *several]]
    kernels = [(case.address(), numbers.model) for case, numbers in tried]
    library_of_kernels(kernels, device.target, tmp_path / "kernels.so")
    loaded = device.load(tmp_path / "kernels.so")
    for i, (case, numbers) in enumerate(tried):
        loaded.set_inputs(f"kernel_{i}", [np.ascontiguousarray(image) for image in images_of(case, numbers)])
        (made,) = loaded.run(f"kernel_{i}")
        scale = numbers.model.made
        assert scale is not None
        assert wrong_on_arm(case, numbers, made, device.target) == "", (case, scale)
        # What is proved of `Lines` holds for the code, but for float32 that rounds x to another unit.
        x = reference(replace(case, epilogue=("bias",)), numbers)
        off = np.abs(Lines.of(case.epilogue[-1], scale).evaluated(x, scale).astype(int) - made.transpose(0, 3, 1, 2))
        assert off.max() <= 1, (case, scale)
        assert np.mean(off) < 0.01, (case, scale)


@dataclass(frozen=True)
class Light:
    """A kernel without weights, and what it makes of images (N, H, W, C), as real numbers."""

    address: Address
    model: Quantized
    images: list[np.ndarray]
    expected: np.ndarray
    unsure: float = UNSURE


def light_kernels() -> list[Light]:
    """Those that compute otherwise on Arm: sums in 16 bits that must be emptied, and products in 16 bits."""
    random, read, made, found = np.random.default_rng(0), Scale(0.05, 131), Scale(0.061, 77), []
    for width in (19, 150):
        image = random.integers(128, 256, (1, 20, 30, width), np.uint8)
        key = KernelKey.make("global_avg_pool2d", (20, 30), 1).at_precision(INT8)
        mean = (read.scale * (image.astype("f8") - read.zero_point)).mean((1, 2), keepdims=True)
        found.append(Light(Address(key, (width, width)), Quantized((read,), made), [image], mean))
    # A step of the image makes up to 0.8 steps, 6.5, and, with a gate that may be negative, 1.8.
    products = [(read, Scale(2.0**p / 256, zero), made, power) for p, zero, power in ((0, 0, 0), (3, 0, 3), (1, 60, 2))]
    # With a gate that may be negative, what is added to a product may be more than the largest byte.
    products.append((Scale(0.05, 250), Scale(1 / 512, 230), Scale(0.05, 200), 1))
    for _ in range(24):
        zeros = (int(zero) for zero in random.integers(0, 256, 3))
        one, gate, many = (Scale(step, zero) for step, zero in zip((0.05, 1 / 512, 0.05), zeros, strict=True))
        products.append((one, gate, many, int(gate.zero_point > 0)))
    for read, gate, made, power in products:
        images = [random.integers(0, 256, shape, np.uint8) for shape in ((2, 6, 9, 70), (2, 1, 1, 70))]
        images[0][:, 0, 0], images[1][0, 0, 0, :2] = 200, (0, 255)
        one, other = (s.scale * (x.astype("f8") - s.zero_point) for x, s in zip(images, (read, gate), strict=True))
        key = KernelKey.make("scale_channels", (6, 9), 2).at_precision(INT8)
        model = Quantized((read, gate), made)
        found.append(Light(Address(key, (70, 70)), model, images, one * other, unsure=2**power / 85))
    return found


# Runs the kernels of a library on the images beside it.
RUNNING = """
import sys
from pathlib import Path

import numpy as np
import tvm
from tvm.runtime.vm import VirtualMachine

folder = Path(sys.argv[1])
machine = VirtualMachine(tvm.runtime.load_module(str(folder / "kernels.so")), tvm.cpu())
for path in folder.glob("kernel_*.npz"):
    machine.set_input(path.stem, *(tvm.runtime.tensor(image) for image in np.load(path).values()))
    machine.invoke_stateful(path.stem)
    np.save(path.with_suffix(".npy"), machine.get_outputs(path.stem).numpy())
"""


def test_kernels_for_a_cpu_with_dot_products_equal_an_integer_reference(tmp_path: Path) -> None:
    """On a cortex-a76; the board that serves RPC has no such instructions."""
    target, light = CpuTarget.of(load_profile("rpi5").target_config(), threads=1), light_kernels()
    dense = [(case.address(), random_numbers(case).model) for case in OF_BYTES]
    library_of_kernels([*dense, *((each.address, each.model) for each in light)], target, tmp_path / "kernels.so")
    read = [*(images_of(case, random_numbers(case)) for case in OF_BYTES), *(each.images for each in light)]
    for i, images in enumerate(read):
        np.savez(tmp_path / f"kernel_{i}.npz", *[np.ascontiguousarray(image) for image in images])
    (tmp_path / "running.py").write_text(RUNNING)
    environment = {**os.environ, "AAP_HW_EMULATED_CPU": "cortex-a76", "TVM_USE_RUNTIME_LIB": "1"}
    command = [SCRIPT, "run", "python3", tmp_path / "running.py", tmp_path]
    subprocess.run(command, env=environment, timeout=PATIENCE_S, check=True)
    for i, case in enumerate(OF_BYTES):
        numbers, made = random_numbers(case), np.load(tmp_path / f"kernel_{i}.npy")
        assert wrong_on_arm(case, numbers, made, target) == "", case
    for i, each in enumerate(light, len(OF_BYTES)):
        made = np.load(tmp_path / f"kernel_{i}.npy")
        assert wrong(made, each.expected, each.model.made, unsure=each.unsure) == "", each.address


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
