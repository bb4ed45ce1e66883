"""Proves that this machine is described fully and runs what is loaded, and that a tracker hands out its boards."""

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
import tvm
from torch import nn

from aap_hw.compile.library.lowering import compile_network
from aap_hw.device import load_profile
from aap_hw.device.connection import LocalDevice, cpu_model, target_of
from aap_hw.errors import UserError
from aap_hw.resources import resource_dirs
from tests.device import servers
from tests.device.reaching import connect


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
    assert np.array_equal(loaded.run("main")[0], 2 * image)
    loaded.set_inputs("main", [-image])
    assert np.array_equal(loaded.run("main")[0], -2 * image)
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
        assert np.array_equal(loaded.run("main")[0], factor * image)


def test_host_profile_is_compiled_for_the_cpu_that_is_here() -> None:
    profile = load_profile("x86").model_copy(update={"threads": 2})
    target = target_of(profile)
    assert target.threads == 2
    assert dict(target.options)["mcpu"] == str(target.tvm.attrs["mcpu"])
    assert int(target.tvm.attrs["num-cores"]) == 2


def test_boards_of_the_profiles_have_targets_that_tvm_knows() -> None:
    lanes = {name: target_of(load_profile(name)).lanes for name in ("rpi4", "rpi5", "aarch64")}
    assert lanes == {"rpi4": 4, "rpi5": 4, "aarch64": 4}


@pytest.mark.parametrize("name", ["rpi4", "rpi5", "aarch64"])
def test_tracker_that_does_not_run_is_answered_with_the_command_that_starts_it(name: str) -> None:
    port = servers.free_port()
    with pytest.raises(
        UserError, match=rf"tracker at 127.0.0.1:{port} cannot be reached .*rpc_tracker .*--port {port}"
    ):
        connect(load_profile(name).reached_by(f"tracker://127.0.0.1:{port}/{name}"))


def test_key_that_the_tracker_does_not_have_is_answered_with_those_that_it_has() -> None:
    with servers.tracker() as tracker, servers.board("rpi5", tracker):
        profile = load_profile("x86").reached_by(f"tracker://127.0.0.1:{tracker.port}/x86")
        with pytest.raises(UserError, match=r"no board with the key 'x86' \(it has rpi5\); start one .*--key x86"):
            connect(profile)


def test_board_of_a_tracker_is_reached_and_free_again_when_its_session_has_ended() -> None:
    with servers.tracker() as tracker, servers.board("x86", tracker):
        profile = load_profile("x86").reached_by(f"tracker://127.0.0.1:{tracker.port}/x86")
        board = connect(profile)
        with pytest.raises(UserError, match="no free board"):
            connect(profile)
        board.close()
        servers.wait_until_free(tracker, "x86")
        connect(profile).close()


def test_what_listens_and_is_no_tracker_is_called_so() -> None:
    with servers.board() as server:
        profile = load_profile("x86").reached_by(f"tracker://127.0.0.1:{server.port}/x86")
        with pytest.raises(UserError, match=r"gave an answer that is no tracker's .*; check its port"):
            connect(profile)


@pytest.mark.skipif(tvm.cuda(0).exist, reason="there is a GPU here")
def test_gpu_that_is_not_there_is_missed_before_anything_is_compiled(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this machine has no NVIDIA GPU with a driver"):
        connect(load_profile("cuda"))
    text = (resource_dirs("device_profiles")[0] / "cuda.toml").read_text("utf-8")
    (tmp_path / "ampere.toml").write_text(text.replace('kind = "cuda"', 'kind = "cuda"\narch = "sm_80"'))
    with pytest.raises(UserError, match="'aap-hw compile' and 'aap-hw deploy --no-run' do without one"):
        connect(load_profile(tmp_path / "ampere.toml"))


@pytest.mark.skipif(platform.machine() == "aarch64", reason="this machine is of the board's kind")
def test_this_machine_is_not_taken_for_a_board_of_another_kind() -> None:
    said = rf"'rpi4' is for aarch64-linux-gnu and this machine is {platform.machine()}; say where .* --connect rpc://"
    with pytest.raises(UserError, match=said):
        connect(load_profile("rpi4").reached_by("local"))


def test_this_machine_is_reached() -> None:
    profile = load_profile("x86")
    assert connect(profile).profile == profile


@pytest.mark.slow
def test_connecting_leaves_the_process_free_to_use_every_core() -> None:
    script = (
        "import os; before = os.sched_getaffinity(0)\n"
        "from aap_hw.device import load_profile\n"
        "from aap_hw.device.connection import LocalDevice\n"
        "LocalDevice(load_profile('x86')); assert os.sched_getaffinity(0) == before"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TVM_BIND_THREADS"}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
