"""Proves how points are timed on a machine that is not steady, and that a measured kernel is the one that was meant.

Latencies are scripted here; the compiled code behind a point is proven in ``tests/compile/test_one_lowering.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.device.visiting import VISITS
from aap_hw.lut import measuring
from aap_hw.lut.compiling import compile_batch
from aap_hw.lut.measuring import Reference, Visit, time_point, time_points
from aap_hw.lut.table import LatencyPoint
from tests.lut.tiny import device

KEY = KernelKey.make("linear", (), 1, epilogue=("bias",))
MEASURE = device().profile.measure


class Scripted:
    """A loaded batch of points and a reference kernel, both of which take as long as they are told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, points_us: Sequence[Sequence[float]], *reference_us: float):
        self.visited: list[int] = []
        self._points = [iter(latencies) for latencies in points_us]
        self._reference = iter(reference_us) if reference_us else repeat(80.0)
        self._batch = SimpleNamespace(points=[Address(KEY, (8 * i, 16)) for i in range(len(points_us))])
        monkeypatch.setattr(measuring, "time_point", self._time_point)

    def time_us(self) -> float:
        return next(self._reference)

    def _time_point(self, library: object, batch: object, index: int, measure: object) -> LatencyPoint:
        self.visited.append(index)
        return LatencyPoint((8 * index, 16), next(self._points[index]), 0.1, 20)

    def time(self, *before: Visit) -> list[Visit]:
        visits: list[Visit] = []
        made: dict[Address, list[Visit]] = {}
        for each in before:
            made.setdefault(Address(each.key, each.point.widths), []).append(each)
        batches = cast(Any, [(None, self._batch)])

        def keep(visit: Visit, number: int) -> None:
            visits.append(visit)
            assert number == sum(each.point.width_in == visit.point.width_in for each in [*before, *visits])

        time_points(batches, MEASURE, cast(Reference, self), keep, made)
        assert [visit.point.width_in // 8 for visit in visits] == self.visited
        # The quickest visit of each point, in the order in which the points were settled.
        points = dict.fromkeys(reversed([visit.point.width_in for visit in visits]))
        return [
            min((v for v in visits if v.point.width_in == width), key=lambda v: v.ratio) for width in reversed(points)
        ]


def test_points_are_visited_in_turn_until_two_visits_of_each_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Scripted(monkeypatch, [[10.0, 10.1], [30.0, 20.0, 25.0, 20.1], [40.0, 40.0]])
    settled = script.time()
    assert script.visited == [0, 1, 2, 0, 1, 2, 1, 1]
    assert [(visit.point.width_in, visit.point.latency_us) for visit in settled] == [(0, 10.0), (16, 40.0), (8, 20.0)]
    assert {visit.key for visit in settled} == {KEY}


def test_point_that_never_settles_counts_as_its_quickest_visit(monkeypatch: pytest.MonkeyPatch) -> None:
    latencies = [10.0 * 1.1**i for i in range(VISITS)]
    (visit,) = Scripted(monkeypatch, [[*latencies[3:], *latencies[:3], 1.0]]).time()
    assert visit.point.latency_us == 10.0


def test_visits_that_were_made_before_count(monkeypatch: pytest.MonkeyPatch) -> None:
    before = [Visit(KEY, LatencyPoint((8 * i, 16), us, 0.1, 20), 80.0) for i, us in ((0, 10.0), (0, 10.1), (1, 20.0))]
    script = Scripted(monkeypatch, [[], [20.1], [30.0, 30.1]])
    script.time(*before)
    assert script.visited == [1, 2, 2]


def test_quickest_is_told_by_the_reference_kernel_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # During the second visit the clock becomes twice as slow, and the point only 1.9 times. The reference is timed once
    # between two visits, and no more often.
    script = Scripted(monkeypatch, [[10.0, 19.0, 19.0, 19.0]], 80.0, 80.0, 160.0, 160.0, 160.0)
    (visit,) = script.time()
    assert (visit.point.latency_us, visit.reference_us) == (19.0, 160.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("batches")


def test_latency_of_a_point_is_that_of_one_of_its_calls(folder: Path) -> None:
    board, key = device(), KernelKey.make("linear", (), 1, epilogue=("bias",))
    batch = compile_batch([Address(key, (64, 64))], board.target, 4, folder / "batch.so")

    class Clock:
        def set_inputs(self, function: str, inputs: list[np.ndarray]) -> None:
            # One image, and each call its own weights and bias.
            assert (function, len(inputs)) == ("point_0", 1 + 4 * 2)
            assert [array.shape for array in inputs] == list(batch.shapes[0])

        def run(self, function: str) -> list[np.ndarray]:
            raise AssertionError(function)

        def time_us(self, function: str, number: int, repeats: int) -> list[float]:
            return [40.0] * repeats

    point = time_point(Clock(), batch, 0, board.profile.measure)
    assert point == LatencyPoint((64, 64), 10.0, 0.0, board.profile.measure.repeats)


def test_large_weights_have_fewer_copies_than_would_fill_the_memory(folder: Path) -> None:
    key = KernelKey.make("linear", (), 1, epilogue=("bias",))
    small, large = Address(key, (64, 64)), Address(key, (4096, 4096))
    batch = compile_batch([small, large], device().target, 4, folder / "large.so")
    assert batch.copies == (4, 1)
