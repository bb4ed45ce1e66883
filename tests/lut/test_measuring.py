"""Proves how a point is timed on a machine that is not steady, and that a measured kernel is the one that was meant.

Latencies are scripted here; the compiled code behind a point is proven in ``tests/compile/test_one_lowering.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from aap_hw.compile.kernel import KernelKey
from aap_hw.lut.compiling import compile_batch
from aap_hw.lut.measuring import STEADY, TRIES, Reference, time_point, time_steadily
from aap_hw.lut.table import LatencyPoint
from tests.lut.tiny import device


class ScriptedReference:
    """A reference kernel whose latencies are given."""

    def __init__(self, *latencies_us: float) -> None:
        self.latest_us, *rest = latencies_us
        self._rest = iter(rest)
        self.best_us = min(latencies_us)

    def time_us(self) -> float:
        self.latest_us = next(self._rest)
        return self.latest_us


def points(*medians_and_spreads: tuple[float, float]) -> Iterator[LatencyPoint]:
    return (LatencyPoint(8, 16, latency_us, spread_us, 20) for latency_us, spread_us in medians_and_spreads)


def steadily(made: Iterator[LatencyPoint], reference: ScriptedReference) -> tuple[LatencyPoint, float]:
    return time_steadily(lambda: next(made), cast(Reference, reference))


def test_steady_point_counts_at_once_beside_the_reference_around_it() -> None:
    point, reference_us = steadily(points((10.0, 0.5)), ScriptedReference(80.0, 84.0))
    assert (point.latency_us, reference_us) == (10.0, 82.0)


def test_point_is_timed_again_while_its_samples_or_the_reference_vary() -> None:
    # First the samples vary, then the reference does, behind a point and before the next one.
    made = points((10.0, 5.0), (11.0, 0.1), (12.0, 0.1), (13.0, 0.1))
    point, reference_us = steadily(made, ScriptedReference(80.0, 80.0, 100.0, 82.0, 84.0))
    assert (point.latency_us, reference_us) == (13.0, 83.0)


def test_after_a_few_tries_the_steadiest_one_counts() -> None:
    spreads = [4.0, 2.0, 3.0, 5.0]
    assert len(spreads) == TRIES
    assert min(spreads) / 10 > STEADY
    made = points(*((10.0 + i / 10, spread) for i, spread in enumerate(spreads)), (99.0, 0.0))
    point, reference_us = steadily(made, ScriptedReference(80.0, 80.0, 82.0, 82.0, 82.0, 82.0))
    assert (point.latency_us, reference_us) == (10.1, 81.0)


def test_point_is_timed_again_while_the_device_is_slower_than_it_was() -> None:
    made = points((15.0, 0.1), (14.0, 0.1), (10.0, 0.1))
    point, reference_us = steadily(made, ScriptedReference(120.0, 120.0, 81.0, 80.0))
    assert (point.latency_us, reference_us) == (10.0, 80.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("batches")


def test_latency_of_a_point_is_that_of_one_of_its_calls(folder: Path) -> None:
    board, key = device(), KernelKey.make("linear", (), 1, epilogue=("bias",))
    batch = compile_batch([(key, 64, 64)], board.target, 4, folder / "batch.so")

    class Clock:
        def set_inputs(self, function: str, inputs: list[np.ndarray]) -> None:
            # One image, and each call its own weights and bias.
            assert (function, len(inputs)) == ("point_0", 1 + 4 * 2)
            assert [array.shape for array in inputs] == list(batch.shapes[0])

        def run(self, function: str) -> np.ndarray:
            raise AssertionError(function)

        def time_us(self, function: str, number: int, repeats: int) -> list[float]:
            return [40.0] * repeats

    point = time_point(Clock(), batch, 0, board.profile.measure)
    assert point == LatencyPoint(64, 64, 10.0, 0.0, board.profile.measure.repeats)


def test_large_weights_have_fewer_copies_than_would_fill_the_memory(folder: Path) -> None:
    key = KernelKey.make("linear", (), 1, epilogue=("bias",))
    small, large = (key, 64, 64), (key, 4096, 4096)
    batch = compile_batch([small, large], device().target, 4, folder / "large.so")
    assert batch.copies == (4, 1)
