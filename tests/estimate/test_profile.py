"""A table is estimated without a device, taken up where it was killed, and never replaces one that was measured."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aap_hw.device import load_profile
from aap_hw.errors import UserError
from aap_hw.estimate.estimator import METHOD, Estimator
from aap_hw.lut.estimating import estimate_model
from aap_hw.lut.file import load_table, save_table
from aap_hw.lut.progress import Progress
from aap_hw.lut.subject import Workload
from tests import forked
from tests.estimate.tiny import estimated
from tests.lut.tiny import INPUT, Tiny, journal_of
from tests.synthetic import table

ROOT = Path(__file__).parents[2]
DIES = """
import os, signal, sys
from pathlib import Path
from aap_hw.estimate.estimator import Estimator
from tests.estimate.tiny import estimated

real, left = Estimator.latency_us, [6]

def dies(self, address):
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, address)

Estimator.latency_us = dies
estimated(Path(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of an estimated table."""
    path = tmp_path_factory.mktemp("estimated") / "rpi4.json"
    estimated(path)
    return path


def test_table_says_what_it_is_of_and_that_nothing_was_measured(undisturbed: Path) -> None:
    made = load_table(undisturbed)
    profile = load_profile("rpi4")
    assert made.is_estimated
    assert (made.device["name"], made.device["cpu"], made.device["threads"]) == ("rpi4", "cortex-a72", 4)
    assert made.device["profile_hash"] == profile.profile_hash
    assert made.measurement["method"].startswith(METHOD)
    assert made.validation == []
    assert all(point.samples == 0 for points in made.points.values() for point in points.values())
    ((network, slowdown),) = made.slowdowns.items()
    assert network.model == "tiny"
    assert made.dense_ms("tiny", INPUT) is None, "an estimate is no measured latency"
    assert slowdown.measured_us >= slowdown.alone_us > 0
    assert not journal_of(undisturbed).exists()


def test_killed_job_goes_on_where_it_was(undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rpi4.json"
    killed = forked.run(DIES, [str(path)], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not path.exists()
    progress: list[Progress] = []
    asked: list[str] = []
    real = Estimator.latency_us
    monkeypatch.setattr(Estimator, "latency_us", lambda self, at: asked.append(str(at)) or real(self, at))
    estimated(path, on_progress=progress.append)
    assert progress[0].kept == 6
    assert len(asked) == len(load_table(path)) - 6
    assert path.read_text() == undisturbed.read_text()


def test_another_network_is_added_and_the_same_one_again_changes_nothing(undisturbed: Path, tmp_path: Path) -> None:
    path = tmp_path / "rpi4.json"
    path.write_bytes(undisturbed.read_bytes())
    progress: list[Progress] = []
    estimated(path, on_progress=progress.append)
    assert path.read_bytes() == undisturbed.read_bytes()
    assert [(each.total, each.kept) for each in progress] == [(0, len(load_table(path)))]
    both = estimated(path, "tiny3", 3)
    assert [network.model for network in both.networks] == ["tiny", "tiny3"]
    assert len(both) > len(load_table(undisturbed))


def test_measured_table_is_never_replaced_and_an_older_estimate_moves_aside(undisturbed: Path, tmp_path: Path) -> None:
    path = tmp_path / "rpi4.json"
    save_table(table(name="rpi4"), path)
    before = path.read_bytes()
    with pytest.raises(UserError, match="was measured, and an estimate is worth less; write it to another file"):
        estimated(path, keep_others=True)
    assert path.read_bytes() == before
    older = load_table(undisturbed)
    older.measurement["method"] = "another method"
    save_table(older, path)
    moved: list[Path | None] = []
    estimated(path, on_network=lambda _, aside: moved.append(aside))
    assert moved == [tmp_path / "rpi4.estimated.json"]
    assert load_table(tmp_path / "rpi4.estimated.json").measurement["method"] == "another method"
    assert path.read_bytes() == undisturbed.read_bytes()


def test_device_that_the_method_does_not_know_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="jetson"):
        estimate_model(Workload("tiny", Tiny(), INPUT), load_profile("jetson-orin"), tmp_path / "lut.json")
    assert list(tmp_path.iterdir()) == []


def test_command_estimates_and_says_what_that_is_worth(aap_hw: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "rpi4.json"
    network = ("--model", f"{ROOT / 'tests' / 'lut' / 'tiny.py'}:Tiny", "--input", INPUT.text)
    command = ("profile", "--device", "rpi4", *network, "--out", str(path), "--estimate")
    outcome = aap_hw(*command, "--json", "-")
    assert outcome.code == 0, outcome.err
    lines = outcome.err.splitlines()
    assert any(re.fullmatch(r"estimated \d+ of \d+ points", line) for line in lines)
    assert any(re.search(r"; unpruned .* \d\.\d{3} ms, estimated$", line) for line in lines)
    assert any(line.startswith("estimated: ") for line in lines)
    assert lines[-1].endswith("--budget 60% --allow-estimated")
    figures = json.loads(outcome.out)
    assert figures["provenance"] == "estimated"
    assert figures["estimate"]["mean_pct"] > 0


@pytest.mark.parametrize(
    "option", [("--connect", "local"), ("--pack", "folder"), ("--unpack", "folder"), ("--no-cache",)]
)
def test_options_of_a_device_are_refused(aap_hw: Callable[..., Any], option: tuple[str, ...]) -> None:
    outcome = aap_hw("profile", "--device", "rpi4", "--model", "resnet20", "--estimate", *option)
    assert (outcome.code, outcome.out) == (2, "")
    assert f"--estimate reaches no device and compiles nothing; leave {option[0]} out" in outcome.err
