"""A run in int8 plans, trains and judges the network that is deployed: the quantised one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from aap_hw.compile.front.partition import partition
from aap_hw.compile.keys.precision import INT8
from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph
from aap_hw.lut.enumeration import group_candidates, points_of
from aap_hw.lut.file import save_table
from aap_hw.lut.table import LatencyPoint, LatencyTable, Validation
from aap_hw.models.origin import Origin
from aap_hw.prune.job import start
from aap_hw.prune.quantised import quantised_of
from aap_hw.prune.run import RunFolder
from aap_hw.prune.steps import State
from aap_hw.prune.summary import as_computed
from aap_hw.prune.task import PruneSettings
from aap_hw.prune.training import settle
from aap_hw.quantize import read_quantised, sensitivity
from aap_hw.report.writing import write_report
from aap_hw.train.evaluation import evaluate
from tests import forked
from tests.prune.killed import result
from tests.prune.small import INPUTS, images, int8_job, origin_in, show_few
from tests.synthetic import latency_us, table_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Origin:
    return origin_in(tmp_path_factory.mktemp("network"))


@pytest.fixture(scope="module")
def latencies(origin: Origin) -> LatencyTable:
    """Of the network in int8, with the kernels that it has if its second layer stays in float32, at all widths."""
    graph = ChannelGraph.trace(origin.build(), INPUTS.zeros())
    made = table_of(graph, partition(graph, INT8))
    for address in points_of(partition(graph, INT8, floats=["3"]), group_candidates(graph, 4, 8)):
        made.add(address.key, LatencyPoint(address.widths, latency_us(address), 0.1, 20))
    return made


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    show_few(monkeypatch)


@pytest.fixture(scope="module")
def undisturbed(origin: Origin, latencies: LatencyTable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    with pytest.MonkeyPatch.context() as patch:
        show_few(patch)
        start(int8_job(origin), latencies, folder)
    return folder


def test_a_run_says_what_the_quantised_network_does(undisturbed: Path, latencies: LatencyTable) -> None:
    summary = json.loads((undisturbed / "summary.json").read_text())
    assert summary["precision"] == "int8"
    assert summary["float_layers"]["names"] == []
    assert 4 * summary["params_pruned"] > summary["bytes_pruned"] > summary["params_pruned"]
    events = [json.loads(line) for line in (undisturbed / "events.jsonl").read_text().splitlines()]
    (told,) = (event for event in events if event["event"] == "quantised")
    assert (told["accuracy"], told["accuracy_float"]) == (summary["accuracy_pruned"], summary["accuracy_pruned_float"])
    network = RunFolder(undisturbed).load()
    data = images()
    assert evaluate(network.module, data, INPUTS) == summary["accuracy_pruned_float"]
    reference = quantised_of(network, data)
    (shown,) = data.inputs("test", INPUTS)
    with torch.no_grad():
        answers = torch.stack([reference(image[None])[0] for image in shown]).argmax(1)
    labels = data.stored("test", slice(None))[1]
    assert 100 * float((answers == labels).float().mean()) == pytest.approx(summary["accuracy_pruned"], abs=1.01)
    for damaged in ({}, {"quantisation": {"floats": []}}, {"quantisation": {"floats": [], "values": {"x": [0, 1]}}}):
        kept = {name: each for name, each in network.record.items() if name != "quantisation"}
        with pytest.raises(UserError, match=r"run.json is damaged where it says what is in int8 \(.*\); restore it"):
            quantised_of(replace(network, record={**kept, **damaged}), data)
    _, scales = read_quantised(reference)
    assert set(scales.weights) == {"0.weight", "3.weight", "6.weight", "10.weight"}
    page = write_report([undisturbed]).read_text()
    assert "accuracy in int8 (unpruned: float32), %" in page


# After the first epoch with roundings, which is before the one in which norms and ranges are settled; then when it is
# quantised.
DIES_TWICE = """
import sys
from pathlib import Path
import pytest
from aap_hw.lut.file import load_table
from aap_hw.models.origin import Origin
from aap_hw.prune.job import resume, start
from tests.prune.killed import in_child
from tests.prune.small import INPUTS, die_at, int8_job, show_few
network, latencies, folder = map(Path, sys.argv[1:])
show_few(pytest.MonkeyPatch())
asked, table = int8_job(Origin.of(f"{network}:make", INPUTS)), load_table(latencies)
print(in_child(lambda: start(asked, table, folder, die_at("epoch", 3)))[0])
print(in_child(lambda: resume(folder, die_at("quantised", 1)))[0])
print((folder / "run.json").exists())
print(in_child(lambda: resume(folder))[0])
"""


@pytest.mark.slow  # test_resume does the same in float32 without a process of its own
def test_killed_while_it_trains_and_when_it_is_quantised_it_resumes_to_the_same_run(
    undisturbed: Path, origin: Origin, latencies: LatencyTable, tmp_path: Path
) -> None:
    save_table(latencies, tmp_path / "table.json")
    network, folder = origin.model.removesuffix(":make"), tmp_path / "run"
    done = forked.run(DIES_TWICE, [network, str(tmp_path / "table.json"), str(folder)], cwd=ROOT)
    assert done.stdout.split() == ["-9", "-9", "False", "0"], done.stderr
    assert result(folder) == result(undisturbed)


def test_a_layer_that_loses_too_much_stays_in_float32_in_plan_and_network(
    origin: Origin, latencies: LatencyTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = sensitivity.FloatLayers(("3",), 0.1, 2.0, {"3": 0.5, "0": 0.1})
    monkeypatch.setattr(sensitivity, "float_layers", lambda *_: chosen)
    whole = partition(ChannelGraph.trace(origin.build(), INPUTS.zeros()), INT8).dense
    table = replace(latencies, validation=[Validation(origin.model, INPUTS, "dense", whole, 100.0, 100.0, INT8)])
    done = start(replace(int8_job(origin, rounds=1, qat=False), data=None), table, tmp_path / "run")
    assert done.summary["float_layers"]["names"] == ["3"]
    kernels = [row["key"] for row in _plan_rows(tmp_path / "run")]
    assert sum("int8" not in key for key in kernels) == 1
    assert not done.summary["dense_is_measured"], "the table's whole network has no layer in float32"
    _, scales = read_quantised(quantised_of(done.network, images()))
    assert set(scales.weights) == {"0.weight", "6.weight", "10.weight"}
    assert done.summary["accuracy_pruned"] is None


def _plan_rows(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    (found,) = (line["value"]["plan"]["kernels"] for line in lines if line["name"] == "round/1/plan")
    return list(found)


def test_the_record_of_a_run_names_its_precision() -> None:
    nothing: Any = None
    state = State(nothing, nothing, nothing)
    assert as_computed(nothing, PruneSettings(precision="half"), state) == {"precision": "half"}
    assert as_computed(nothing, PruneSettings(), state) == {}


@pytest.mark.parametrize(("epochs", "settled"), [(1, 0), (2, 1), (4, 1), (30, 7)])
def test_norms_and_ranges_are_settled_in_the_last_quarter_of_a_training(epochs: int, settled: int) -> None:
    class Told:
        def settle(self, is_settled: bool) -> None:
            told.append(is_settled)

    told: list[bool] = []
    for done in range(epochs):
        settle(cast("Any", Told()), epochs, done)
    assert told == [False] * (epochs - settled) + [True] * settled


def test_roundings_in_training_are_only_for_int8_and_for_what_trains(origin: Origin) -> None:
    with pytest.raises(UserError, match="qat trains with the roundings of int8; add --precision int8"):
        PruneSettings(qat=True)
    for idle in ({"data": None}, {"train": False}):
        with pytest.raises(UserError, match="nothing trains without --data or with --no-training; leave --qat out"):
            replace(int8_job(origin), **idle)
