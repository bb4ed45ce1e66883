"""`aap-hw prune` and `aap-hw deploy` as a person meets them: what they print, leave behind, and say when stopped."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from aap_hw.graph.cut import surgery
from aap_hw.inputs import Inputs
from aap_hw.lut.file import load_table, save_table
from aap_hw.lut.table import Validation
from aap_hw.models import zoo
from aap_hw.prune.run import RunFolder
from aap_hw.prune.task import PruneSettings
from tests import forked

ROOT = Path(__file__).parents[2]
RESNET20 = ("--model", "resnet20", "--weights", "embedded", "--calibration-images", "8")

PRUNES_WITH_FEW_IMAGES = """
import sys
sys.stdout.reconfigure(line_buffering=True)
import aap_hw.train.data
from tests.synthetic import few_images
from aap_hw.graph import ChannelGraph
aap_hw.train.data.load_embedded = few_images
trace = ChannelGraph.trace
ChannelGraph.trace = staticmethod(
    lambda *given, **named: print("tracing", file=sys.stderr) or trace(*given, **named)
)
from aap_hw.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.usefixtures("quick")
def test_without_data_it_cuts_once_and_says_that_nothing_was_retrained(
    aap_hw: Callable[..., Any], table_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "runs" / "first [1]"
    outcome = aap_hw("prune", *RESNET20, "--lut", str(table_file), "--budget", "50%", "--out", str(out))
    assert (outcome.code, outcome.err) == (0, "")
    stand_ins, *lines = outcome.out.splitlines()
    assert stand_ins.startswith("no inputs were given, so filters were ranked on stand-ins (pictures of clothes")
    assert lines[0].startswith("latencies are predicted, not measured: the table was measured with the CPU 'a CPU else")
    assert re.fullmatch(r"unpruned 1\.\d{3} ms measured; budget 0\.\d{3} ms", lines[1])
    assert re.fullmatch(r"round 1 of 1: cut to 0\.\d{3} ms predicted, keeping \d\d\.\d% of its attention", lines[2])
    assert re.search(r"latency, ms, predicted +1\.\d+ +0\.\d+ +(49|50)%", outcome.out)
    assert re.search(r"the budget of 0\.\d{3} ms is met: 0\.\d{3} ms predicted", outcome.out)
    (sentence,) = [line for line in lines if "not retrained" in line]
    assert f"train aap_hw.load({str(out)!r}) on your data" in sentence
    assert "--data" in sentence
    assert lines[-1] == f"next: aap-hw deploy {shlex.quote(str(out))} --device x86"
    summary = json.loads((out / "summary.json").read_text())
    assert summary["retrained"] is False
    log = [json.loads(line)["event"] for line in (out / "events.jsonl").read_text().splitlines()]
    assert log == ["start", "cut", "round"]


@pytest.mark.usefixtures("quick")
def test_predictions_are_quoted_with_the_error_of_the_table(
    aap_hw: Callable[..., Any], table_file: Path, tmp_path: Path
) -> None:
    table = load_table(table_file)
    table.validation.append(Validation("resnet20", Inputs.of((3, 32, 32)), "random-0-0", {}, 980.0, 1000.0))
    save_table(table, table_file)
    out = tmp_path / "run"
    outcome = aap_hw("prune", *RESNET20, "--lut", str(table_file), "--budget", "50%", "--out", str(out))
    assert (outcome.code, outcome.err) == (0, "")
    quoted = "predicted (table error on 1 random plan: mean 2.0 %, worst 2.0 %)"
    lines = outcome.out.splitlines()
    assert any(f"{quoted}, keeping" in line for line in lines)
    (met,) = [line for line in lines if "is met" in line]
    assert met.endswith(quoted)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["table_error"]["worst_pct"] == pytest.approx(2.0)


@pytest.mark.usefixtures("quick")
def test_with_data_it_trains_in_rounds_and_shows_them(
    aap_hw: Callable[..., Any], table_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    network = ("--model", "resnet20", "--calibration-images", "8", "--schedule", "additive")
    training = ("--data", "embedded", "--rounds", "2", "--epochs", "1", "--learning-rate", "0.01")
    out = tmp_path / "run"
    outcome = aap_hw("prune", *network, *training, "--lut", str(table_file), "--budget", "60%", "--out", str(out))
    assert (outcome.code, outcome.err) == (0, "")
    assert re.search(r"unpruned 1\.\d{3} ms measured, accuracy \d\d\.\d\d %; budget", outcome.out)
    for number in (1, 2):
        assert re.search(rf"\nround {number} of 2: cut to .*\n  epoch 1 of 1: loss \d\.\d{{4}}, accuracy", outcome.out)
    assert "not retrained" not in outcome.out
    assert re.search(r"accuracy, % +\d\d\.\d+ +\d\d\.\d+", outcome.out)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["weights"] == "embedded"
    rounds = json.loads((out / "run.json").read_text())["record"]["rounds"]
    assert [each["budget_ms"] / summary["dense_ms"] for each in rounds] == pytest.approx([0.8, 0.6])


@pytest.mark.usefixtures("quick")
def test_as_fast_as_an_accuracy_allows(aap_hw: Callable[..., Any], table_file: Path, tmp_path: Path) -> None:
    network = ("--model", "resnet20", "--calibration-images", "8", "--lut", str(table_file))
    training = ("--data", "embedded", "--rounds", "2", "--epochs", "1", "--learning-rate", "0.01")
    out = tmp_path / "run"
    outcome = aap_hw("prune", *network, *training, "--max-accuracy-drop", "99", "--out", str(out))
    assert (outcome.code, outcome.err) == (0, "")
    assert re.search(r"accuracy \d\d\.\d\d %; to keep: -?\d+\.\d\d %", outcome.out)
    assert re.search(r"the accuracy to keep, -?\d+\.\d\d %, is kept: \d+\.\d\d %", outcome.out)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["predicted_ms"] < summary["dense_ms"]
    assert summary["budget_ms"] is None


@pytest.mark.usefixtures("quick")
def test_an_accuracy_and_budgets_are_kept_at_once(aap_hw: Callable[..., Any], table_file: Path, tmp_path: Path) -> None:
    network = ("--model", "resnet20", "--calibration-images", "8", "--lut", str(table_file))
    training = ("--data", "embedded", "--rounds", "1", "--epochs", "1", "--learning-rate", "0.01")
    asked = ("--max-accuracy-drop", "99", "--budget", "60%", "--max-params", "90%", "--schedule", "additive")
    outcome = aap_hw("prune", *network, *training, *asked, "--score-scale", "rank", "--out", str(tmp_path / "run"))
    assert (outcome.code, outcome.err) == (0, "")
    assert re.search(r"budget .* parameters, to keep: -?\d+\.\d\d %", outcome.out)
    assert re.search(r"the accuracy to keep, -?\d+\.\d\d %, is kept: \d+\.\d\d %", outcome.out)
    assert outcome.out.count("is met") == 2


@pytest.mark.usefixtures("quick")
def test_to_a_number_of_parameters_without_a_latency(
    aap_hw: Callable[..., Any], table_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    outcome = aap_hw(
        "prune", *RESNET20, "--lut", str(table_file), "--max-params", "150k", "--score", "weight-l1", "--out", str(out)
    )
    assert (outcome.code, outcome.err) == (0, "")
    summary = json.loads((out / "summary.json").read_text())
    assert summary["params_pruned"] <= 150_000 < summary["params_dense"]
    assert (summary["budgets"], summary["score"]) == ({"parameters": 150_000}, "weight-l1")
    assert re.search(r"the budget of 150,000 parameters is met: [\d,]+ parameters", outcome.out)


@pytest.mark.usefixtures("quick")
def test_default_folder_is_named_after_model_device_and_budget_and_not_used_twice(
    aap_hw: Callable[..., Any], table_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ("prune", *RESNET20, "--lut", str(table_file), "--budget", "50%")
    assert aap_hw(*command).code == 0
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["resnet20-x86-50pct"]
    outcome = aap_hw(*command)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == (
        "aap-hw: error: runs/resnet20-x86-50pct already holds a run; choose another folder with --out, or delete it\n"
    )


def test_untrained_weights_can_be_asked_for(
    aap_hw: Callable[..., Any], table_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def prune(task: Any, *_: Any) -> None:
        seen.append(task.origin.weights)
        raise KeyboardInterrupt

    monkeypatch.setattr("aap_hw.prune.job.prune", prune)
    options = (
        "prune",
        "--model",
        "resnet20",
        "--lut",
        str(table_file),
        "--budget",
        "50%",
        "--out",
        str(tmp_path / "r"),
    )
    for given in ((), ("--data", "embedded"), ("--data", "embedded", "--weights", "none"), ("--weights", "embedded")):
        assert aap_hw(*options, *given).code == 130
    assert seen == [None, "embedded", None, "embedded"]


def test_what_is_not_given_is_as_in_python(aap_hw: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def prune(*_: Any, settings: Any, **__: Any) -> None:
        seen.append(settings)
        raise KeyboardInterrupt

    monkeypatch.setattr("aap_hw.api.prune", prune)
    to_half = ("--budget", "50%")
    given = (("--distill",), ("--no-distill",), ("--seed", "5"))
    for asked in (to_half, ("--max-accuracy-drop", "1"), *((*to_half, *each) for each in given)):
        assert aap_hw("prune", "--model", "resnet20", "--lut", "x86", *asked).code == 130
    assert seen[:2] == [PruneSettings()] * 2
    training = PruneSettings().training
    taught = [replace(training, loss=replace(training.loss, distillation=share)) for share in (0.5, 0.0)]
    assert seen[2:] == [*(PruneSettings(training=each) for each in taught), PruneSettings(seed=5)]


def pruning(table_file: Path, out: Path) -> AbstractContextManager[forked.Process]:
    arguments = [
        "--model",
        "resnet20",
        "--data",
        "embedded",
        "--epochs",
        "200",
        "--calibration-images",
        "8",
        "--budget",
        "50%",
        "--out",
        str(out),
    ]
    return forked.started(PRUNES_WITH_FEW_IMAGES, ["prune", "--lut", str(table_file), *arguments], cwd=ROOT)


@pytest.mark.slow  # test_main interrupts a process that takes less, and test_resume one that trains in this process
def test_ctrl_c_while_it_trains_is_one_sentence_that_says_how_to_go_on(
    aap_hw: Callable[..., Any], table_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pruning(table_file, out) as child:
        child.wait_until(lambda: "\n  epoch 1 of 200" in child.out)
        time.sleep(0.3)
        child.send(signal.SIGINT)
        assert child.wait() == 130
        err = child.err
    # A terminal's ^C is ended with an empty line, and what takes longer than ten seconds is said first.
    told = [line for line in err.splitlines() if line and not re.match("aap-hw: [a-z]+ing [^;]+$", line)]
    assert told == ["tracing", f"aap-hw: interrupted; 'aap-hw prune --resume {out}' goes on with the run"]
    assert not (out / "run.json").exists()
    refused = aap_hw("deploy", str(out), "--device", "x86")
    assert refused.code == 2
    assert "holds no finished run" in refused.err


@pytest.mark.slow  # as the one above
def test_ctrl_c_while_the_network_is_traced_leaves_not_even_a_folder(table_file: Path, tmp_path: Path) -> None:
    with pruning(table_file, tmp_path / "run") as child:
        child.wait_until(lambda: child.err.startswith("tracing\n"))
        time.sleep(0.2)
        child.send(signal.SIGINT)
        assert child.wait() == 130
        _, _, err = child.err.partition("\n")
    assert err.strip() == f"aap-hw: interrupted; no run was begun in {tmp_path / 'run'}; the same command begins it"
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("quick")
def test_cut_that_is_wrong_stops_the_run_and_the_group_can_be_left_alone(
    aap_hw: Callable[..., Any], table_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = surgery._shorten

    def faulty(model: Any, name: str, dim: int, removed: Any) -> None:
        wrong = (removed + 1) % 32 if (name, dim) == ("layer2.1.conv2.weight", 1) else removed
        real(model, name, dim, wrong)

    monkeypatch.setattr(surgery, "_shorten", faulty)
    out, asked = tmp_path / "run", ("--lut", str(table_file), "--budget", "50%")
    outcome = aap_hw("prune", *RESNET20, *asked, "--out", str(out))
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert re.search(
        r"error: cutting the channel group 'layer2\.1\.conv1' changes .*--skip 'layer2\.1\.conv1'", outcome.err
    )
    assert f"{out}/self_check.json says more" in outcome.err
    told = json.loads((out / "self_check.json").read_text())
    assert (told["group"], told["written_by"].keys()) == ("layer2.1.conv1", {"aap_hw", "torch"})
    assert told["difference"] > 1e-6
    assert len(told["keep"]["layer2.1.conv1"]) < 32
    assert not (out / "run.json").exists()
    again = tmp_path / "again"
    outcome = aap_hw("prune", *RESNET20, *asked, "--skip", "layer2.1.conv1", "--out", str(again))
    assert (outcome.code, outcome.err) == (0, "")
    assert "layer2.1.conv1" not in RunFolder(again).load().kept


@pytest.mark.usefixtures("quick")
def test_rounds_cut_only_the_groups_that_were_asked_for(
    aap_hw: Callable[..., Any], table_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    training = ("--data", "embedded", "--rounds", "2", "--epochs", "1", "--learning-rate", "0.01")
    asked = ("--only", "layer3.*", "--only", "layer2.*", "--skip", "layer2.0.*", "--budget", "80%")
    outcome = aap_hw("prune", *RESNET20, *training, *asked, "--lut", str(table_file), "--out", str(out))
    assert (outcome.code, outcome.err) == (0, "")
    allowed = {f"layer{stage}.{block}.conv1" for stage in (2, 3) for block in range(3)} - {"layer2.0.conv1"}
    assert set() < set(RunFolder(out).load().kept) <= allowed
    assert json.loads((out / "config.json").read_text())["settings"]["skip"] == ["layer2.0.*"]


def test_own_weights_classes_images_and_training_settings_arrive_in_the_run(
    aap_hw: Callable[..., Any], table_file: Path, tmp_path: Path
) -> None:
    latencies = load_table(table_file)
    (linear,) = [key for key in latencies.points if key.op == "linear"]
    for point in list(latencies.points[linear].values()):
        latencies.add(linear, replace(point, widths=(point.width_in, 4)))
    save_table(latencies, table_file)
    torch.manual_seed(5)
    mine = zoo.build("resnet20", classes=4).module
    for parameter in mine.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    torch.save(
        {"state_dict": {f"module.{name}": value for name, value in mine.state_dict().items()}}, tmp_path / "my.pt"
    )
    images = np.random.default_rng(6).integers(0, 256, (24, 32, 32, 3), np.uint8)
    splits = ("train", "val", "test")
    arrays = {f"{split}_images": images for split in splits}
    np.savez(tmp_path / "my.npz", **arrays, **{f"{split}_labels": np.arange(24) % 4 for split in splits})
    # So small a step leaves the weights as they were given.
    (tmp_path / "my.toml").write_text('epochs = 1\nlearning_rate = 1e-12\noptimiser = { name = "adamw" }\n')
    out = tmp_path / "run"
    network = ("--model", "resnet20", "--input", "3x32x32", "--weights", str(tmp_path / "my.pt"), "--classes", "4")
    data = ("--data", f"npz:{tmp_path / 'my.npz'}", "--normalise", "0.4,0.5,0.6/0.2,0.25,0.3")
    how = ("--training", str(tmp_path / "my.toml"), "--rounds", "1", "--calibration-images", "8", "--tensorboard")
    outcome = aap_hw("prune", *network, *data, *how, "--lut", str(table_file), "--budget", "60%", "--out", str(out))
    assert outcome.code == 0, outcome.err
    assert "the test split was looked at once, at the end" in outcome.out

    config = json.loads((out / "config.json").read_text())
    assert config["data"]["normalisation"] == {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}
    assert config["settings"]["training"]["optimiser"]["name"] == "adamw"
    loaded = RunFolder(out).load()
    assert loaded.kept
    kept = loaded.kept.get("conv1", list(range(16)))
    given = mine.get_parameter("conv1.weight").detach()[kept]
    torch.testing.assert_close(loaded.module.get_parameter("conv1.weight").detach(), given, rtol=0, atol=1e-6)
    assert loaded.module(torch.zeros(1, 3, 32, 32)).shape == (1, 4)

    (process,) = json.loads((out / "environment.json").read_text())
    assert process["packages"]["torch"] == importlib.metadata.version("torch")
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    assert (process["git"] or {"commit": ""})["commit"] == head
    figures = EventAccumulator(str(out / "tensorboard")).Reload()
    reached = json.loads((out / "summary.json").read_text())
    for name, value in (("accuracy", "accuracy_val_pruned"), ("test_accuracy", "accuracy_pruned")):
        assert [each.value for each in figures.Scalars(name)] == [pytest.approx(reached[value])]
