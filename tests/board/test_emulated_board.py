"""The whole way to an Arm board, on one that is emulated: examined, profiled, pruned for, and its outputs compared.

Needs ``scripts/emulated_board.sh``, which downloads a userland the first time; so this runs by ``make test-board``, and
not with the other tests.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aap_hw.compile.lowering import compile_network
from aap_hw.device import load_profile
from aap_hw.device.connection import Device, connect
from aap_hw.lut.file import load_table
from aap_hw.models import zoo

pytestmark = pytest.mark.board
SCRIPT = Path(__file__).parents[2] / "scripts" / "emulated_board.sh"
PORT = 9110


@pytest.fixture(scope="module")
def where() -> Iterator[str]:
    """What to write behind --connect."""
    environment = {**os.environ, "AAP_HW_EMULATED_PORT": str(PORT)}
    subprocess.run([SCRIPT, "up"], check=True, env=environment, stdout=subprocess.DEVNULL)
    yield f"rpc://127.0.0.1:{PORT}"
    subprocess.run([SCRIPT, "down"], check=True, env=environment)


@pytest.fixture(scope="module")
def device(where: str) -> Iterator[Device]:
    board = connect(load_profile("rpi4").reached_by(where))
    yield board
    board.close()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def quick_profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rpi4's profile with few widths: emulated kernels take a hundred times as long."""
    text = (Path(__file__).parents[2] / "device_profiles" / "rpi4.toml").read_text()
    path = tmp_path_factory.mktemp("profile") / "rpi4.toml"
    path.write_text(re.sub("at_most = .*", "at_most = 2", text))
    return path


@pytest.mark.parametrize("name", ["resnet20", "mobilenetv2", "resnet18"])
def test_outputs_on_the_board_are_those_of_pytorch(device: Device, tmp_path: Path, name: str) -> None:
    model = zoo.build(name)
    image = torch.randn(1, *model.input_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.module(image).numpy()
    compile_network(model.module, image, device.target, tmp_path / "net.so")
    loaded = device.load(tmp_path / "net.so")
    loaded.set_inputs("main", [image.numpy()])
    difference = np.abs(loaded.run("main") - expected).max()
    assert np.ptp(expected) > 1e-2, "outputs that are all alike prove nothing"
    assert difference <= 1e-4 * max(1.0, np.abs(expected).max())


def test_examined_profiled_and_pruned_for(
    aap_hw: Callable[..., Any],
    device: Device,
    where: str,
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

    command = ("prune", "--model", "resnet20", "--lut", "rpi4.json", "--budget", "70%", "--out", "run")
    refused = aap_hw(*command)
    assert refused.code == 2
    assert "emulated, not measured on the device" in refused.err
    pruned = aap_hw(*command, "--allow-emulated")
    assert pruned.code == 0, pruned.err
    times = [line for line in pruned.out.splitlines() if re.search(r"\d ms| ms,", line)]
    assert all("emulated" in line or line.startswith("unpruned") for line in times), times
    assert json.loads(Path("run/summary.json").read_text())["provenance"] == "emulated"
