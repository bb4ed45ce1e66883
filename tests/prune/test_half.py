"""A run in half precision says how accurate the network is that is deployed: the one whose values are rounded."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from aap_hw.compile.front.partition import partition
from aap_hw.compile.keys.precision import HALF
from aap_hw.compile.keys.target import CpuTarget
from aap_hw.graph import ChannelGraph
from aap_hw.prune.job import EMBEDDED, Job, Limit, start
from aap_hw.prune.quantised import accuracy_rounded, quantised
from aap_hw.prune.run import RunFolder
from aap_hw.prune.sentences import figure_rows
from aap_hw.prune.task import PruneSettings
from aap_hw.quantize.halved import halved
from aap_hw.quantize.reference import Program
from aap_hw.train.evaluation import evaluate
from aap_hw.train.settings import TrainSettings
from tests.compile.running import target
from tests.prune.small import INPUTS, images, origin_in, show_few
from tests.synthetic import table_of


def test_a_run_reports_the_accuracy_of_the_rounded_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    show_few(monkeypatch)
    origin = origin_in(tmp_path)
    graph = ChannelGraph.trace(origin.build(), INPUTS.zeros())
    table = table_of(graph, partition(graph, HALF), target={"kind": "llvm", "mcpu": "znver4"})
    programs = []

    def noted(*given: object) -> torch.nn.Module:
        programs.append(halved(*given))  # type: ignore[arg-type]
        return programs[-1]

    monkeypatch.setattr("aap_hw.quantize.halved.halved", noted)
    settings = PruneSettings(
        1, 32, precision="half", training=TrainSettings(epochs=1, batch_size=24, learning_rate=0.05)
    )
    done = start(Job(origin, EMBEDDED, {"latency": Limit(0.7, True)}, settings=settings), table, tmp_path / "run")
    network, summary = RunFolder(tmp_path / "run").load(), done.summary
    assert network.record["precision"] == summary["precision"] == "half"
    assert summary["accuracy_pruned_float"] == evaluate(network.module, images(), INPUTS)
    (shown,) = images().inputs("test", INPUTS)
    with torch.no_grad():
        rounded, exact = Program(programs[0], INPUTS.names, 64)(shown), network.module(shown)
    right = rounded.argmax(1) == images().stored("test", slice(None))[1]
    assert summary["accuracy_pruned"] == pytest.approx(100 * float(right.double().mean()))
    assert 0 < (rounded - exact).abs().max() < 0.05 * exact.abs().max()
    (told,) = (json.loads(each) for each in _lines(tmp_path / "run") if '"quantised"' in each)
    assert (told["precision"], told["accuracy"]) == ("half", summary["accuracy_pruned"])
    assert "accuracy in half precision (unpruned: float32), %" in [row[0] for row in figure_rows(summary)]


class Views(torch.nn.Module):
    """Views an image as a row, which PyTorch does of contiguous ones only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Linear(1024, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(image).view(-1, 1024))  # type: ignore[no-any-return]


@pytest.mark.parametrize("precision", ["half", "int8"])
def test_a_rounded_network_that_views_an_image_as_a_row_has_an_accuracy(precision: str) -> None:
    torch.manual_seed(0)
    model, data = Views().eval(), images()
    device = target() if precision == "int8" else CpuTarget.of({"kind": "llvm", "mcpu": "znver4"}, threads=1)
    task: Any = SimpleNamespace(origin=SimpleNamespace(inputs=INPUTS), data=data, target=device)
    form = quantised(task, model, PruneSettings(1, 32), ()) if precision == "int8" else None
    assert accuracy_rounded(task, model, form, "test") == pytest.approx(evaluate(model, data, INPUTS), abs=5)


def _lines(run: Path) -> list[str]:
    return (run / "events.jsonl").read_text().splitlines()
