"""The configurations of the paper can be used as they are: each names a network, a source and settings that exist."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pydantic
import pytest

from aap_hw.models.origin import Origin
from aap_hw.train.sources import ImageSource

SCRIPTS = Path(__file__).parent.parent / "scripts"
CONFIGS = sorted(SCRIPTS.glob("reproduce/*.toml"))


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("reproduce_aap", SCRIPTS / "reproduce_aap.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["reproduce_aap"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_names_what_exists(config, script):
    setting = pydantic.TypeAdapter(script.Setting).validate_python(tomllib.loads(config.read_text()))
    origin = Origin.of(setting.model, setting.input, None, setting.classes)
    assert (
        origin.classes
        == {"10": 10, "tiny": 200, "imagenet": 1000}[
            "tiny" if "tiny" in config.stem else "imagenet" if "imagenet" in config.stem else "10"
        ]
    )
    ImageSource(setting.data)
    assert setting.training.epochs >= 90


@pytest.mark.parametrize("gpus", ["1", "4"])
def test_configurations_may_be_of_any_folder_and_have_any_name(tmp_path, gpus):
    called, environment = tmp_path / "called", {**os.environ, "PYTHON": str(tmp_path / "python"), "GPUS": gpus}
    (tmp_path / "python").write_text(f'#!/bin/sh\nfor last; do echo "$last" >>"{called}"; done\n')
    (tmp_path / "python").chmod(0o755)
    subprocess.run(
        [SCRIPTS / "reproduce_aap.sh", "my own.toml", "--", "--data", "cifar10:my images"],
        cwd=tmp_path, env=environment, check=True,
    )  # fmt: skip
    *_, script, config, option, data = called.read_text().splitlines()
    assert (script, config) == ("scripts/reproduce_aap.py", str(tmp_path / "my own.toml"))
    assert (option, data) == ("--data", "cifar10:my images")
    assert ("--nproc-per-node" in called.read_text()) is (gpus == "4")
    called.unlink()
    subprocess.run([SCRIPTS / "reproduce_aap.sh"], cwd=tmp_path, env=environment, check=True)
    assert [line for line in called.read_text().splitlines() if line.endswith(".toml")] == [
        f"scripts/reproduce/{config.name}" for config in CONFIGS
    ]


@pytest.mark.slow
def test_rounds_prune_by_the_threshold_and_are_not_trained_again(script, tmp_path, monkeypatch, capfd):
    config = tmp_path / "tiny.toml"
    config.write_text(
        'model = "resnet20"\ndata = "embedded"\nobjective = "flops"\ntarget = 90.0\nstep = 3.0\n'
        "[training]\nepochs = 1\nbatch_size = 32\nlearning_rate = 0.02\n"
    )
    arguments = ["x", str(config), "--out", str(tmp_path / "run"), "--limit", "64", "--rounds", "2"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert script.main() == 0
    first = capfd.readouterr().out
    assert first.count("epoch 1 of 1") == 3
    sliced = "sliced, as the network is"
    assert "-0.00%" not in first[first.index(sliced) :]
    assert script.main() == 0
    second = capfd.readouterr().out
    assert "epoch 1 of 1" not in second
    assert second[second.index("resnet20:") :] == first[first.index("resnet20:") :]
    for option in (["--epochs", "2"], ["--limit", "32"]):
        monkeypatch.setattr(sys, "argv", [*arguments, *option])
        assert script.main() == 2
        assert f"run holds a run with other settings ({option[0].strip('-').replace('epochs', 'training')})" in (
            capfd.readouterr().err
        )
