"""Proves that random plans are measured as whole networks, kept in the table's file, and never measured twice.

Real networks are cut, compiled and timed on this machine; how close the predictions are is a benchmark's matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from aap_hw.compile.front.partition import partition
from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph
from aap_hw.lut import networks, validating
from aap_hw.lut.enumeration import group_candidates
from aap_hw.lut.file import load_table, save_table
from aap_hw.lut.journal import Journal
from aap_hw.lut.networks import IN_TURN, random_plans
from aap_hw.lut.predicting import predict_us
from aap_hw.lut.progress import Progress, ProgressCallback
from aap_hw.lut.subject import Workload
from aap_hw.lut.table import LatencyPoint, MissingKernelError, Validation
from aap_hw.lut.validating import validate_model
from tests.lut import tiny
from tests.lut.tiny import FIRST_WIDTHS, INPUT, SECOND_WIDTHS, Tiny

CANDIDATES = {"first": FIRST_WIDTHS, "second": SECOND_WIDTHS, "linear": (10,)}


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("profiled") / "table.json"
    tiny.profile(path)
    return path


@pytest.fixture
def path(profiled: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "table.json"
    copy.write_bytes(profiled.read_bytes())
    return copy


def validate(
    path: Path, plans: int, seed: int = 0, kernel: int = 1, on_progress: ProgressCallback = lambda _: None
) -> list[Validation]:
    workload = Workload("tiny", Tiny(kernel), INPUT)
    return validate_model(workload, tiny.device(), path, plans=plans, seed=seed, on_progress=on_progress, workers=1)


def test_plans_are_measured_and_kept_beside_the_predictions(path: Path) -> None:
    before = load_table(path)
    progress: list[Progress] = []
    entries = validate(path, 3, on_progress=progress.append)
    after = load_table(path)
    assert [entry.plan for entry in entries] == ["random-0-0", "random-0-1", "random-0-2"]
    assert after.points == before.points
    assert after.slowdowns == before.slowdowns
    assert [entry.plan for entry in after.validation] == ["dense", *(entry.plan for entry in entries)]
    network = partition(ChannelGraph.trace(Tiny(), INPUT.zeros()))
    for entry, widths in zip(entries, random_plans(CANDIDATES, "random-0", 3, 0).values(), strict=True):
        assert (entry.model, entry.inputs, entry.widths) == ("tiny", INPUT, widths)
        predicted = after.slowdown("tiny", INPUT).network_us(predict_us(network, widths, after))
        assert entry.predicted_us == pytest.approx(predicted, rel=1e-3)
        assert 0 < entry.measured_us < 1e5
    assert [(p.what, p.measured, p.total, p.kept) for p in progress] == [("networks", 0, 3, 0), ("networks", 3, 3, 0)]


def test_more_plans_begin_with_the_same_and_only_new_ones_are_measured(path: Path) -> None:
    first = validate(path, 2)
    progress: list[Progress] = []
    more = validate(path, 3, on_progress=progress.append)
    assert [entry.measured_us for entry in more[:2]] == pytest.approx([e.measured_us for e in first], rel=1e-3)
    assert [(p.measured, p.total, p.kept) for p in progress] == [(0, 1, 2), (1, 1, 2)]


def test_plans_that_are_there_are_not_measured_but_predicted_anew(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = validate(path, 1)
    monkeypatch.setattr(validating, "compiler", None)
    table = load_table(path)
    for key, points in table.points.items():
        for at, point in points.items():
            points[at] = LatencyPoint(at, 2 * point.latency_us, point.spread_us, point.samples)
        assert key in table.points
    save_table(table, path)
    (again,) = validate(path, 1)
    assert again.measured_us == pytest.approx(first[0].measured_us, rel=1e-3)
    assert again.predicted_us == pytest.approx(2 * first[0].predicted_us, rel=1e-3)


def test_networks_are_scaled_by_those_that_were_measured_before(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine has become half as fast for networks, and not for the reference kernel."""

    def half_as_fast(libraries: Mapping[str, object], *_: object) -> dict[str, float]:
        assert list(libraries) == ["dense", "random-0-0", "random-0-1"]
        return {"dense": 2 * dense_ratio, "random-0-0": dense_ratio, "random-0-1": 3 * dense_ratio}

    table = load_table(path)
    dense_us = table.validation[0].measured_us
    dense_ratio = dense_us / table.measurement["reference_us"]
    monkeypatch.setattr(networks, "time_networks", half_as_fast)
    assert [entry.measured_us for entry in validate(path, 2)] == pytest.approx([dense_us / 2, 1.5 * dense_us])


@pytest.mark.slow
def test_interrupted_validation_keeps_what_was_measured(path: Path) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.measured:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        validate(path, IN_TURN + 1, on_progress=interrupt)
    assert sum(entry.plan.startswith("random-0-") for entry in load_table(path).validation) == IN_TURN
    progress: list[Progress] = []
    assert len(validate(path, IN_TURN + 1, on_progress=progress.append)) == IN_TURN + 1
    assert (progress[0].total, progress[0].kept) == (1, IN_TURN)


def test_table_of_another_device_is_refused(path: Path) -> None:
    table = load_table(path)
    table.device["cpu"] = "another CPU"
    save_table(table, path)
    with pytest.raises(UserError, match="holds latencies of another device"):
        validate(path, 1)


def test_table_of_another_network_is_refused_before_anything_is_compiled(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks.MeasuredNetwork, "_load", None)
    before = path.read_bytes()
    with pytest.raises(MissingKernelError, match=r"lacks 1 of 4 kernels, the first is 'conv2d 6x6 .*kernel=3x3"):
        validate(path, 1, kernel=3)
    assert path.read_bytes() == before


def test_plans_are_of_candidate_widths_and_depend_on_seed_and_number_only() -> None:
    candidates = group_candidates(ChannelGraph.trace(Tiny(), INPUT.zeros()), 8, 8)
    assert candidates == CANDIDATES
    many = random_plans(candidates, "random-7", 200, 7)
    assert list(many)[:2] == ["random-7-0", "random-7-1"]
    for name, widths in candidates.items():
        assert {plan[name] for plan in many.values()} == set(widths)
    few = random_plans(candidates, "random-7", 5, 7)
    assert few == {name: many[name] for name in few}
    assert list(random_plans(candidates, "random-8", 200, 8).values()) != list(many.values())


def test_random_plans_are_of_every_size_and_scatter_around_it() -> None:
    """Of thirty groups: chance alone would leave all plans near the middle."""
    candidates = {f"group_{i}": tuple(range(8, 104, 8)) for i in range(30)}
    plans = [list(plan.values()) for plan in random_plans(candidates, "random-1", 60, 1).values()]
    squares = sorted((sum(widths) / (30 * 96)) ** 2 for widths in plans)
    for number, share in enumerate(squares):
        assert share == pytest.approx((number + 0.5) / 60, abs=0.15)
    # Even the sizes of few plans lie far apart.
    few = sorted(map(sum, plans[:5]))
    assert few[0] < 0.5 * few[-1]
    middling = [widths for widths in plans if 40 < sum(widths) / 30 < 70]
    assert len(middling) > 10
    assert all(min(widths) <= 24 and max(widths) >= 80 for widths in middling)


def test_plan_of_the_same_name_and_other_widths_is_measured_anew(path: Path) -> None:
    first = validate(path, 1)
    table = load_table(path)
    (dense, stale) = table.validation
    table.validation[1] = replace(stale, widths={**stale.widths, "first": 8 if stale.widths["first"] > 8 else 16})
    # What the tracer made of the network then had other groups.
    table.validation.append(replace(stale, plan="random-3-0", widths={"first": 8}))
    save_table(table, path)
    progress: list[Progress] = []
    (again,) = validate(path, 1, on_progress=progress.append)
    assert progress[-1].measured == 1
    assert again.widths == first[0].widths
    assert [entry.plan for entry in load_table(path).validation] == ["dense", "random-0-0"]
    assert load_table(path).validation[0].measured_us == dense.measured_us


def test_a_table_that_a_profile_is_writing_to_is_left_alone(path: Path) -> None:
    journal = Journal(path.with_name(path.name + ".journal"), tiny.device().describe().as_json())
    before = path.read_bytes()
    with pytest.raises(UserError, match="another process is profiling"):
        validate(path, 1)
    assert path.read_bytes() == before
    journal.close()
