"""Proves the profile job on this machine, with a real network that is small enough for a test.

It measures every point once and nothing twice, extends a table, and refuses to touch one of another device or to
begin where it could not write. What becomes of a job that is killed is `test_interrupted`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from aap_hw.compile.front.network import Network
from aap_hw.compile.front.partition import partition
from aap_hw.compile.keys.address import Address
from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph
from aap_hw.inputs import Inputs
from aap_hw.lut import networks as lut_networks
from aap_hw.lut import profiling
from aap_hw.lut.compiling import CompiledBatch
from aap_hw.lut.file import load_table
from aap_hw.lut.library_cache import users_cache
from aap_hw.lut.measuring import Visit
from aap_hw.lut.opening import set_aside
from aap_hw.lut.predicting import kernel_latencies, predict_us, slow_share
from aap_hw.lut.profiling import profile_model
from aap_hw.lut.progress import Progress, ProgressCallback
from aap_hw.lut.same_device import require_table_of
from aap_hw.lut.subject import Workload
from aap_hw.lut.table import LatencyPoint, LatencyTable, NetworkName
from tests.lut import tiny
from tests.lut.tiny import INPUT, POINTS, Tiny, journal_of
from tests.synthetic import ESTIMATE


def points_into(progress: list[Progress]) -> ProgressCallback:
    """Collects the progress of measuring points, without that of the whole networks behind them."""
    return lambda p: progress.append(p) if p.what == "points" else None


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LatencyTable, list[Progress]]:
    """The table of the tiny network, its file, and the progress of measuring it."""
    path = tmp_path_factory.mktemp("new") / "lut" / "tiny.json"
    progress: list[Progress] = []
    return path, tiny.profile(path, on_progress=points_into(progress)), progress


@pytest.fixture
def path(measured: tuple[Path, LatencyTable, list[Progress]], tmp_path: Path) -> Path:
    """A copy of the table's file, to be spoilt."""
    copy = tmp_path / "table.json"
    copy.write_bytes(measured[0].read_bytes())
    return copy


@pytest.fixture
def no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes as far as starting the compilers has gone too far."""

    def fail(*_: object) -> None:
        raise AssertionError("the job began to measure")

    monkeypatch.setattr(profiling, "compiler", fail)


def test_every_point_is_measured_and_stored(measured: tuple[Path, LatencyTable, list[Progress]]) -> None:
    path, table, progress = measured
    assert len(table) == POINTS
    loaded = load_table(path)
    assert loaded.points.keys() == table.points.keys()
    for key, points in loaded.points.items():
        for at, point in points.items():
            assert 0 < point.latency_us < 1e5
            assert point.latency_us == pytest.approx(table.points[key][at].latency_us, rel=1e-3)
            assert point.samples == 3
    assert [p.measured for p in progress] == list(range(POINTS + 1))
    totals = [p.total for p in progress]
    assert totals == sorted(totals)
    assert (progress[-1].total, progress[-1].kept, progress[-1].seconds_left) == (POINTS, 0, 0)
    # The first point waits for its batch to be compiled: nothing can be told from it.
    assert [p.seconds_left is None for p in progress] == [p.measured < p.total / 10 for p in progress]


def test_table_says_what_its_latencies_depend_on(measured: tuple[Path, LatencyTable, list[Progress]]) -> None:
    _, table, _ = measured
    device = tiny.device()
    assert {**table.device, **device.describe().as_json()} == table.device
    assert table.device["provenance"] == "measured"
    assert (table.measurement["granularity"], table.measurement["at_most"]) == (8, 8)
    assert table.measurement["reference_us"] > 0


def test_unpruned_network_is_measured_end_to_end(measured: tuple[Path, LatencyTable, list[Progress]]) -> None:
    _, table, _ = measured
    (entry,) = table.validation
    assert (entry.model, entry.inputs, entry.plan) == ("tiny", INPUT, "dense")
    assert entry.predicted_us > 0
    assert entry.measured_us > 0
    assert table.dense_ms("tiny", INPUT) == entry.measured_us / 1e3
    assert table.dense_ms("tiny", Inputs.of((3, 7, 7))) is None
    assert table.dense_ms("other", INPUT) is None


def test_no_journal_is_left(measured: tuple[Path, LatencyTable, list[Progress]]) -> None:
    path, *_ = measured
    assert [file.name for file in path.parent.iterdir()] == ["tiny.json"]


@pytest.mark.usefixtures("no_measuring")
def test_second_call_measures_nothing_and_leaves_the_file(path: Path) -> None:
    before = path.stat().st_mtime_ns, path.read_bytes()
    progress: list[Progress] = []
    table = tiny.profile(path, on_progress=points_into(progress))
    assert len(table) == POINTS
    assert [(p.measured, p.total, p.kept) for p in progress] == [(0, 0, POINTS)]
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before
    assert not journal_of(path).exists()


def test_another_network_adds_only_the_points_that_are_new(path: Path) -> None:
    before = load_table(path)
    progress: list[Progress] = []
    after = tiny.profile(path, Tiny(kernel=3), "tiny3", on_progress=points_into(progress))
    # Its second convolution is another kernel; the first, the pooling and the linear layer are known.
    assert (progress[-1].measured, progress[-1].total, progress[-1].kept) == (15, 15, POINTS - 15)
    assert len(after) == POINTS + 15
    for key, points in before.points.items():
        assert after.points[key] == points
    assert after.measurement["reference_us"] == before.measurement["reference_us"]
    assert [entry.model for entry in after.validation] == ["tiny", "tiny3"]
    assert before.validation == after.validation[:1]


@pytest.mark.usefixtures("no_measuring")
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cpu", "another CPU"),
        ("profile_hash", "0" * 12),
        ("threads", 64),
        ("tvm", "0.1"),
        ("schedules", 999),
        ("target", {"kind": "llvm"}),
    ],
)
def test_table_of_another_device_is_refused_and_left_alone(path: Path, field: str, value: Any) -> None:
    document = json.loads(path.read_text())
    document["device"][field] = value
    path.write_text(json.dumps(document))
    before = path.read_bytes()
    with pytest.raises(UserError, match=rf"holds latencies of another device \({field} .*\(--out of 'aap-hw prof"):
        tiny.profile(path, Tiny(kernel=3), "tiny3")
    assert path.read_bytes() == before
    assert not journal_of(path).exists()


@pytest.mark.usefixtures("no_measuring")
def test_table_of_other_candidate_widths_is_refused_and_left_alone(path: Path) -> None:
    document = json.loads(path.read_text())
    document["measurement"]["at_most"] = 5
    path.write_text(json.dumps(document))
    before = path.read_bytes()
    with pytest.raises(UserError, match="other candidate widths than the device profile asks for now"):
        tiny.profile(path, Tiny(kernel=3), "tiny3")
    assert path.read_bytes() == before


def test_table_of_another_version_is_set_aside_too(path: Path) -> None:
    document = json.loads(path.read_text())
    document["schema_version"] = 1
    path.write_text(json.dumps(document))
    kept = set_aside(path, tiny.device())
    assert kept is not None
    assert json.loads(kept.read_text()) == document
    assert not path.exists()


def test_only_a_table_of_another_device_is_set_aside(path: Path) -> None:
    device = tiny.device()
    assert set_aside(path, device) is None
    assert set_aside(path.with_name("none.json"), device) is None
    document = json.loads(path.read_text())
    document["device"]["cpu"] = "another CPU"
    path.write_text(json.dumps(document))
    before = path.read_bytes()
    assert set_aside(path, device, others=False) is None
    kept = set_aside(path, device)
    assert kept is not None
    assert kept.read_bytes() == before
    assert not path.exists()


def test_estimated_table_always_gives_way_and_is_kept_beside_the_measured_one(path: Path) -> None:
    device = tiny.device()
    document = json.loads(path.read_text())
    document["device"]["provenance"] = "estimated"
    document |= {"measurement": {**ESTIMATE, "granularity": 4, "at_most": 8}, "validation": []}
    names = []
    for _ in range(2):
        path.write_text(json.dumps(document))
        with pytest.raises(UserError, match="is estimated, and nothing that is measured may be mixed into it"):
            require_table_of(device, load_table(path), path)
        kept = set_aside(path, device, others=False)
        assert kept is not None
        assert json.loads(kept.read_text()) == document
        names.append(kept.name)
    assert names[0] == f"{path.stem}.estimated.json"
    assert re.fullmatch(rf"{path.stem}-[0-9a-f]{{8}}\.estimated\.json", names[1])


@pytest.mark.usefixtures("no_measuring")
@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_text(path.read_text()[:300]),
        lambda path: path.write_text("{}"),
        lambda path: (path.unlink(), path.mkdir()),
    ],
)
def test_damaged_table_is_refused_and_left_alone(path: Path, spoil: Callable[[Path], object]) -> None:
    spoil(path)
    before = path.is_file() and path.read_bytes()
    with pytest.raises(UserError, match="latency table"):
        tiny.profile(path, Tiny(kernel=3), "tiny3")
    assert (path.is_file() and path.read_bytes()) == before
    assert not journal_of(path).exists()


@pytest.mark.usefixtures("no_measuring")
@pytest.mark.parametrize("place", ["/proc/aap-hw/table.json", "{file}/table.json", "{file}/deep/table.json"])
def test_place_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*choose a folder that can be written"):
        tiny.profile(Path(place.format(file=tmp_path / "file")))


@pytest.mark.usefixtures("no_measuring")
def test_network_without_kernels_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    class Exact(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).double().relu().float()

    with pytest.raises(UserError, match=r"x\.double computes in float64"):
        profile_model(Workload("exact", Exact(3, 8, 3), INPUT), tiny.device(), tmp_path / "table.json")
    assert list(tmp_path.iterdir()) == []


def test_profiling_leaves_the_network_as_it_was(path: Path) -> None:
    model = Tiny().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tiny.profile(path, model)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_cut_networks_calibrate_the_table(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    progress: list[Progress] = []
    table = profile_model(
        Workload("tiny", Tiny(), INPUT), tiny.device(), path,
        on_progress=progress.append, workers=1, tolerance=0.0, networks=2, cache=users_cache(),
    )  # fmt: skip
    assert [entry.plan for entry in table.validation] == ["dense", "calibration-0", "calibration-1"]
    network = partition(ChannelGraph.trace(Tiny(), INPUT.zeros()))
    slowdown = table.slowdown("tiny", INPUT)
    predicted = [entry.predicted_us for entry in table.validation]
    assert predicted[0] == pytest.approx(slowdown.network_us(predict_us(network, network.dense, table)))
    # The line goes through the middle of the networks that it was fitted to.
    alone = [predict_us(network, entry.widths, table) for entry in table.validation]
    measured = sum(entry.measured_us / us for entry, us in zip(table.validation, alone, strict=True))
    assert sum(us / own for us, own in zip(predicted, alone, strict=True)) == pytest.approx(measured, rel=1e-6)
    loaded = load_table(path).slowdown("tiny", INPUT)
    assert loaded.network_us(20.0) == pytest.approx(slowdown.network_us(20.0), rel=5e-3)
    assert [(p.measured, p.total) for p in progress if p.what == "networks"] == [(0, 3), (3, 3)]


@pytest.mark.parametrize(("uncertainty", "count"), [(0.004, 2), (0.006, 4)])
def test_more_networks_are_measured_where_the_first_leave_the_slowdown_uncertain(
    path: Path, monkeypatch: pytest.MonkeyPatch, uncertainty: float, count: int
) -> None:
    monkeypatch.setattr(lut_networks, "FIRST_NETWORKS", 1)
    monkeypatch.setattr(lut_networks, "uncertainty", lambda observations: uncertainty)
    document = json.loads(path.read_text())
    document["slowdowns"] = []
    path.write_text(json.dumps(document))
    assert len(tiny.profile(path, networks=3).validation) == count


def test_nobody_else_writes_the_table_before_the_last_network_is_in_it(path: Path) -> None:
    document = json.loads(path.read_text())
    document["validation"] = []
    path.write_text(json.dumps(document))
    refused: list[Progress] = []

    def begin_another(progress: Progress) -> None:
        if progress.what == "networks":
            with pytest.raises(UserError, match="another process is profiling into"):
                tiny.profile(path, Tiny(kernel=3), "tiny3")
            refused.append(progress)

    tiny.profile(path, on_progress=begin_another)
    assert [(p.measured, p.total) for p in refused] == [(0, 1), (1, 1)]
    assert not journal_of(path).exists()


@pytest.mark.usefixtures("no_measuring")
def test_profile_that_ended_before_it_calibrated_does_so_from_what_is_there(
    measured: tuple[Path, LatencyTable, list[Progress]], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = json.loads(path.read_text())
    document["slowdowns"] = []
    path.write_text(json.dumps(document))
    table = tiny.profile(path)
    calibrated = measured[1].slowdown("tiny", INPUT)
    assert table.slowdown("tiny", INPUT).network_us(20.0) == pytest.approx(calibrated.network_us(20.0), rel=1e-2)
    assert load_table(path).slowdowns.keys() == table.slowdowns.keys() == {NetworkName("tiny", INPUT)}


def test_second_network_leaves_the_slowdown_of_the_first(path: Path) -> None:
    before = load_table(path)
    after = tiny.profile(path, Tiny(kernel=3), "tiny3")
    assert after.slowdowns == {**before.slowdowns, NetworkName("tiny3", INPUT): after.slowdown("tiny3", INPUT)}
    assert after.points.keys() > before.points.keys()


@pytest.mark.parametrize(("bend_us", "expected"), [(0, [8, 24, 40]), (9, [8, 16, 24, 32, 40])])
def test_widths_between_measured_ones_are_measured_only_where_the_line_bends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bend_us: int, expected: list[int]
) -> None:
    """Compiled as ever, but timed by a formula that bends at 24 channels."""

    def by_formula(
        batches: Any, measure: object, reference: object, on_visit: Callable[[Visit, int], None], *_: object
    ) -> None:
        for _, batch in batches:
            for address in batch.points:
                us = 10.0 + address.width_in + bend_us * max(0, address.width_in - 24)
                for number in (1, 2):  # which settles it
                    on_visit(Visit(address.key, LatencyPoint(address.widths, us, 0.0, 3), 80.0), number)

    monkeypatch.setattr(profiling, "time_points", by_formula)
    workload = Workload("tiny", Tiny(), INPUT)
    table = profile_model(workload, tiny.device(), tmp_path / "table.json", workers=1, networks=0, cache=users_cache())
    (linear,) = [points for key, points in table.points.items() if key.op == "linear"]
    assert sorted(width for width, _ in linear) == expected


class OnTheSlowPath(nn.Module):
    """Operators without a schedule between two that have one, and a weight that the model computes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.larger, self.last = nn.ConvTranspose2d(16, 16, 2, 2, dilation=2), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.conv2d(x, self.first.weight / self.first.weight.std((1, 2, 3), keepdim=True), padding=1)
        return self.last(self.larger(x.cumprod(3)))  # type: ignore[no-any-return]


@pytest.mark.slow
def test_kernels_on_the_slow_path_are_measured_like_others_and_in_whole_networks(tmp_path: Path) -> None:
    networks: list[Network] = []
    module = OnTheSlowPath().eval()
    table = tiny.profile(tmp_path / "slow.json", module, "slow", networks=1, on_network=networks.append)
    slow = {key.op: points for key, points in table.points.items() if key.op.startswith("aten.")}
    assert set(slow) == {"aten.cumprod.default", "aten.conv_transpose2d.input"}
    assert set(slow["aten.cumprod.default"]) == {(8, 8), (16, 16)}
    assert set(slow["aten.conv_transpose2d.input"]) == {(n, m) for n in (8, 16) for m in (8, 16)}
    assert {entry.plan for entry in table.validation} == {"dense", "calibration-0"}
    assert load_table(tmp_path / "slow.json").points.keys() == table.points.keys()
    widths = dict.fromkeys(networks[0].dense, 8) | {"last": 4}
    rows = kernel_latencies(networks[0], networks[0].dense, table)
    slow_us = sum(points[max(points)].latency_us for points in slow.values())
    assert slow_share(rows) == pytest.approx(slow_us / sum(row.latency_us for row in rows))
    assert 0 < predict_us(networks[0], widths, table) < predict_us(networks[0], networks[0].dense, table) * 2


def test_kernel_that_takes_too_long_to_compile_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "LONGEST_COMPILE_S", 0.01)
    module = OnTheSlowPath().eval()
    network = partition(ChannelGraph.trace(module, INPUT.zeros()))
    points = [kernel.at(network.dense) for kernel in network.kernels if kernel.key.op.startswith("aten.")]

    class Sleeping:
        def submit(self, points: Sequence[Address]) -> Future[CompiledBatch]:
            return Future()

    with pytest.raises(UserError, match=r"cumprod .*test_profiling\.py.* TVM takes more than 0 minutes to compile it"):
        profiling._Piece([points]).compiled(cast(Any, Sleeping()), network)
