"""Two processes that torchrun starts score, plan and train as one does with the same batches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from aap_hw import ranks
from aap_hw.device.boards import PATIENCE_S
from tests import forked
from tests.synthetic import write_table

# What each process does: a run by the command line, the scores of a network, and a training without batch norm, whose
# statistics are those of a process's part of a batch.
DOES = """
import json, os, sys
from pathlib import Path
import numpy as np, pytest, safetensors.torch
import aap_hw.train.data
from aap_hw import ranks
from aap_hw.cli.main import main
from aap_hw.graph import ChannelGraph
from aap_hw.prune.scoring import scores_of
from aap_hw.prune.task import PruneSettings, Task
from tests.prune.together import planned, trained
from tests.synthetic import ORIGIN, few_images, resnet20, share_resnet20, table
share_resnet20(pytest.MonkeyPatch())
aap_hw.train.data.load_embedded = few_images
out = Path(sys.argv[1])
with ranks.joined(os.environ):
    code = main(["prune", "--model", "resnet20", "--data", "embedded", "--lut", sys.argv[2], "--budget", "60%",
                 "--rounds", "1", "--epochs", "1", "--calibration-images", "101", "--out", str(out / "run")])
    assert code == 0, code
    module, graph, _ = resnet20()
    scores = scores_of(Task(ORIGIN, table(), few_images()), module, graph, PruneSettings(calibration_images=101))
    np.savez(out / f"scores-{ranks.number()}.npz", **scores)
    (out / f"planned-{ranks.number()}.json").write_text(json.dumps(planned(scores)))
    safetensors.torch.save_file(trained().state_dict(), out / f"trained-{ranks.number()}.safetensors")
"""


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of what one process and two wrote."""
    folder = tmp_path_factory.mktemp("torchrun")
    script, table = folder / "does.py", write_table(folder / "table.json")
    script.write_text(DOES)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    starter = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    found = []
    for name in ("one", "two"):
        (out := folder / name).mkdir()
        if name == "one":
            done = forked.run(script, [str(out), str(table)], cwd=folder, env=environment)
        else:
            command = [*starter, str(script), str(out), str(table)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        (out / "screen.txt").write_text(done.stdout)
        found.append(out)
    return found[0], found[1]


@pytest.mark.slow
def test_two_processes_score_alike_and_as_one(outputs: tuple[Path, Path]) -> None:
    one, two = outputs
    alone = np.load(one / "scores-0.npz")
    first, second = np.load(two / "scores-0.npz"), np.load(two / "scores-1.npz")
    for name in alone:
        assert np.array_equal(first[name], second[name])
        np.testing.assert_allclose(first[name], alone[name], rtol=1e-6)


@pytest.mark.slow
def test_two_processes_make_the_same_plan_as_one_and_one_of_them_writes(outputs: tuple[Path, Path]) -> None:
    plans = []
    for folder in outputs:
        with safetensors.safe_open(folder / "run" / "model.safetensors", "pt") as file:
            plans.append(json.loads(file.metadata()["aap_hw"])["kept_channels"])
    assert plans[0]
    assert plans[0] == plans[1]
    events = [
        [json.loads(line)["event"] for line in (folder / "run" / "events.jsonl").read_text().splitlines()]
        for folder in outputs
    ]
    assert events[0] == events[1]
    # How far an epoch is that takes seconds is the machine's affair.
    one, two = (
        [line for line in (folder / "screen.txt").read_text().splitlines() if "% of it" not in line]
        for folder in outputs
    )
    assert len(one) == len(two) > 5


@pytest.mark.slow
def test_only_the_first_process_asks_the_solver(outputs: tuple[Path, Path]) -> None:
    one, two = outputs
    alone = json.loads((one / "planned-0.json").read_text())
    assert alone["measured"] != alone["by table"]
    assert [json.loads((two / f"planned-{rank}.json").read_text()) for rank in (0, 1)] == [alone, alone]


@pytest.mark.slow
def test_two_processes_train_to_the_same_weights_as_one(outputs: tuple[Path, Path]) -> None:
    one, two = outputs
    alone = safetensors.torch.load_file(one / "trained-0.safetensors")
    first, second = (safetensors.torch.load_file(two / f"trained-{rank}.safetensors") for rank in (0, 1))
    for name, tensor in alone.items():
        assert torch.equal(first[name], second[name])
        assert torch.allclose(first[name], tensor, atol=1e-5)


@pytest.mark.slow
def test_a_run_of_two_processes_is_loaded_and_resumed_like_any_other(outputs: tuple[Path, Path]) -> None:
    from aap_hw.prune.run import RunFolder

    summary = json.loads((outputs[1] / "run" / "summary.json").read_text())
    assert summary["accuracy_dense"] == json.loads((outputs[0] / "run" / "summary.json").read_text())["accuracy_dense"]
    assert RunFolder(outputs[1] / "run").load().kept


def test_processes_wait_for_the_first_while_it_waits_for_a_board(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(ranks.dist, "init_process_group", lambda _, **how: given.update(how))
    monkeypatch.setattr(ranks.dist, "destroy_process_group", lambda: None)
    with ranks.joined({"WORLD_SIZE": "2"}):
        assert given["timeout"].total_seconds() > 2 * PATIENCE_S
