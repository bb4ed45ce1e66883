"""Proves that this machine's CPU is described fully and runs what is loaded, and that a board is refused."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from aap_hw.compile.lowering import compile_network
from aap_hw.device import DeviceProfile, load_profile
from aap_hw.device.connection import LocalDevice, connect, cpu_model, target_of
from aap_hw.errors import UserError


@pytest.fixture(scope="module")
def device() -> LocalDevice:
    return LocalDevice(load_profile("x86"))


@pytest.fixture(scope="module")
def library(device: LocalDevice, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(2.0, device, tmp_path_factory.mktemp("libraries") / "twice.so")


def compiled(factor: float, device: LocalDevice, path: Path) -> Path:
    """A library whose main function multiplies two channels by a number."""
    model = nn.Conv2d(2, 2, 1, bias=False)
    model.weight.data = factor * torch.eye(2).reshape(2, 2, 1, 1)
    compile_network(model, torch.zeros(1, 2, 2, 2), device.target, path)
    return path


def test_description_names_what_a_latency_depends_on_and_survives_json(device: LocalDevice) -> None:
    described = device.describe().as_json()
    assert described["name"] == "x86"
    assert described["profile_hash"] == device.profile.profile_hash
    assert described["cpu"] == cpu_model()
    assert described["threads"] == device.profile.threads
    assert described["target"]["kind"] == "llvm"
    assert described["target"]["mcpu"]
    # A table is one of this device if what was read from its file equals what the device says.
    assert json.loads(json.dumps(described)) == described


def test_cpu_is_named_as_the_operating_system_names_it() -> None:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    assert cpu_model().startswith(names[0] if names else platform.machine())


def test_loaded_library_runs_and_its_file_is_no_longer_needed(
    device: LocalDevice, library: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.so"
    copy.write_bytes(library.read_bytes())
    loaded = device.load(copy)
    copy.unlink()
    image = np.arange(8, dtype="float32").reshape(1, 2, 2, 2)
    loaded.set_inputs("main", [image])
    assert np.array_equal(loaded.run("main"), 2 * image)
    loaded.set_inputs("main", [-image])
    assert np.array_equal(loaded.run("main"), -2 * image)
    samples = loaded.time_us("main", number=3, repeats=4)
    assert len(samples) == 4
    assert all(0 < us < 1e6 for us in samples)


def test_file_that_replaced_another_is_loaded_anew(device: LocalDevice, library: Path, tmp_path: Path) -> None:
    path, image = tmp_path / "net.so", np.ones((1, 2, 2, 2), "float32")
    path.write_bytes(library.read_bytes())
    first = device.load(path)
    compiled(3.0, device, path)
    second = device.load(path)
    for loaded, factor in ((first, 2), (second, 3)):
        loaded.set_inputs("main", [image])
        assert np.array_equal(loaded.run("main"), factor * image)


def test_host_profile_is_compiled_for_the_cpu_that_is_here() -> None:
    profile = load_profile("x86").model_copy(update={"threads": 2})
    target = target_of(profile)
    assert target.threads == 2
    assert dict(target.options)["mcpu"] == str(target.tvm.attrs["mcpu"])
    assert int(target.tvm.attrs["num-cores"]) == 2


def test_boards_of_the_profiles_have_targets_that_tvm_knows() -> None:
    lanes = {name: target_of(load_profile(name)).lanes for name in ("rpi4", "rpi5")}
    assert lanes == {"rpi4": 4, "rpi5": 4}


@pytest.mark.parametrize("name", ["rpi4", "rpi5", "jetson-orin", "cuda"])
def test_board_cannot_be_reached_yet_and_that_is_said(name: str) -> None:
    profile: DeviceProfile = load_profile(name)
    with pytest.raises(UserError, match=f"'aap-hw profile' cannot use the device '{name}' yet"):
        connect(profile, "profile")


def test_this_machine_is_reached() -> None:
    profile = load_profile("x86")
    assert connect(profile, "profile").profile == profile


def test_connecting_leaves_the_process_free_to_use_every_core() -> None:
    script = (
        "import os; before = os.sched_getaffinity(0)\n"
        "from aap_hw.device import load_profile\n"
        "from aap_hw.device.connection import LocalDevice\n"
        "LocalDevice(load_profile('x86')); assert os.sched_getaffinity(0) == before"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TVM_BIND_THREADS"}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
