"""A run of mixed precisions, from its plans over a kill to what is deployed, exported and reported.

It has all that a run may have: two rounds, a budget beside latency, roundings in training, and a teacher.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aap_hw.compile.front.partition import partition
from aap_hw.compile.keys.precision import INT8, MIXED
from aap_hw.compile.keys.target import device_target
from aap_hw.compile.library.footprint import peak_bytes
from aap_hw.deploy import deployable
from aap_hw.deploy.deploying import deploy
from aap_hw.graph import ChannelGraph
from aap_hw.lut.file import save_table
from aap_hw.lut.table import LatencyTable
from aap_hw.models.origin import Origin
from aap_hw.prune.job import start
from aap_hw.prune.planning import Plan
from aap_hw.prune.quantised import quantised_of
from aap_hw.prune.run import PrunedNetwork, RunFolder
from aap_hw.quantize import for_timing, read_quantised
from aap_hw.report.writing import write_report
from tests import forked
from tests.prune.killed import result
from tests.prune.small import INPUTS, images, mixed_job, mixed_table, origin_in, show_few
from tests.synthetic import this_device

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    show_few(monkeypatch)


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Origin:
    return origin_in(tmp_path_factory.mktemp("network"))


@pytest.fixture(scope="module")
def latencies(origin: Origin) -> LatencyTable:
    return mixed_table(ChannelGraph.trace(origin.build(), INPUTS.zeros()), MIXED)


@pytest.fixture(scope="module")
def run(origin: Origin, latencies: LatencyTable, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("runs") / "mixed"
    with pytest.MonkeyPatch.context() as patch:
        show_few(patch)
        start(mixed_job(origin), latencies, folder)
        yield folder


def test_a_plan_of_mixed_precisions_is_pruned_and_quantised_as_planned(run: Path, latencies: LatencyTable) -> None:
    network, summary = RunFolder(run).load(), RunFolder(run).summary()
    assert (summary["precision"], network.record["precision"], network.precision) == ("mixed", "mixed", "int8")
    lines = map(json.loads, (run / "journal.jsonl").read_text().splitlines())
    plan = Plan.from_json(next(line["value"]["plan"] for line in lines if line["name"] == "round/2/plan"))
    assert plan.floats == ["3", "6"]
    assert plan.precisions == {"input of 0": "int8", "0": "fp32", "3": "fp32", "6": "int8"}
    assert network.record["quantisation"]["floats"] == ["3", "6"]
    _, scales = read_quantised(quantised_of(network, images()))
    assert set(scales.weights) == {"0.weight", "10.weight"}
    # What is deployed has the kernels that were planned.
    program, quantisation = for_timing(network.module, INPUTS, plan.floats)
    made = partition(ChannelGraph.trace(program, INPUTS.zeros()), INT8, quantisation)
    assert [(str(k.key), *k.at(made.dense).widths) for k in made.kernels] == [
        (row.key, row.width_in, row.width_out) for row in plan.kernels
    ]
    target = device_target(latencies.device["target"], 1)
    assert peak_bytes(made, made.dense, target) == summary["memory_pruned"] == plan.spent["memory"]
    assert summary["memory_pruned"] <= 0.6 * summary["memory_dense"]


def test_a_network_whose_plan_left_nothing_in_int8_computes_in_float32(run: Path) -> None:
    network = RunFolder(run).load()
    kept = {name: each for name, each in network.record.items() if name != "quantisation"}
    assert PrunedNetwork(network.origin, {}, "x86", network.module, kept).precision == "fp32"


KILLED = """
import sys
from pathlib import Path
import pytest
from aap_hw.lut.file import load_table
from aap_hw.models.origin import Origin
from aap_hw.prune.job import resume, start
from tests.prune.killed import in_child
from tests.prune.small import INPUTS, die_at, mixed_job, show_few
network, latencies, folder = map(Path, sys.argv[1:])
show_few(pytest.MonkeyPatch())
job, table = mixed_job(Origin.of(f"{network}:make", INPUTS)), load_table(latencies)
print(in_child(lambda: start(job, table, folder, die_at("epoch", 2)))[0])
print((folder / "run.json").exists())
print(in_child(lambda: resume(folder))[0])
"""


@pytest.mark.slow  # test_resume does the same in one precision
def test_killed_in_its_second_round_it_resumes_to_the_same_run(
    run: Path, origin: Origin, latencies: LatencyTable, tmp_path: Path
) -> None:
    save_table(latencies, tmp_path / "table.json")
    network, folder = origin.model.removesuffix(":make"), tmp_path / "run"
    done = forked.run(KILLED, [network, str(tmp_path / "table.json"), str(folder)], cwd=ROOT)
    assert done.stdout.split() == ["-9", "False", "0"], done.stderr
    assert result(folder) == result(run)


@pytest.mark.parametrize("pixels", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_it_is_deployed_beside_the_unpruned_network_in_float32(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pixels: bool
) -> None:
    monkeypatch.setattr(deployable, "CHECKED_PIXELS", 20 * 16 * 16)
    folder = RunFolder(Path(shutil.copytree(run, tmp_path / "run")))
    done = deploy(folder, this_device(), images(), pixels=pixels)
    assert (done.precision, done.images, done.agreement) == ("int8", 20, 100.0)
    summary = folder.summary()
    assert (summary["precision"], summary["deployed_precision"]) == ("mixed", "int8")
    assert summary["budget_ms"] == pytest.approx(0.7 * summary["dense_ms"])
    assert summary["pruned_ms"] in summary["ms_of_loads"] == sorted(summary["ms_of_loads"])
    manifest = json.loads((done.bundle / "manifest.json").read_text())
    assert manifest["latency"]["measured"]["unpruned_ms"] == summary["dense_ms"]
    assert manifest["precision"] == "int8"
    page = write_report([folder.path]).read_text()
    assert '"in fp32"' in page
    assert "accuracy in mixed precision (unpruned: float32), %" in page


def test_its_onnx_file_has_weights_in_bytes_and_in_float32(
    run: Path, tmp_path: Path, aap_hw: Callable[..., Any]
) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    outcome = aap_hw("export", str(run), "--onnx", str(tmp_path / "net.onnx"))
    assert outcome.code == 0, outcome.err
    assert "its int8 kernels give the same class for 100.0 %" in outcome.out
    weights = [each for each in onnx.load(tmp_path / "net.onnx").graph.initializer if len(each.dims) > 1]
    types = [each.data_type for each in weights]
    assert types.count(onnx.TensorProto.INT8) == types.count(onnx.TensorProto.FLOAT) == 2
