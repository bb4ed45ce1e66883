"""Compiling table points in worker processes and timing them on a device.

A point is timed as a small network that calls its kernel several times, each time with its own copy of the weights:
call overhead is included, the activations are warm and the weights are not, as in a real network.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
from tvm import relax

from aap_hw.compile.build import build_kernel, export_library
from aap_hw.compile.kernel import Address, KernelKey
from aap_hw.compile.target import CpuTarget
from aap_hw.device.connection import Device, LoadedLibrary
from aap_hw.device.profile import MeasureSpec
from aap_hw.device.timing import time_function
from aap_hw.lut.table import LatencyPoint

# Copies of a kernel's weights beyond this many bytes would only fill memory: the caches are long full.
COPIES_BYTES = 64 << 20
# A point counts at once if neither its samples nor the reference kernel beside it vary by more than this share.
STEADY = 0.1
TRIES = 4
REFERENCE = (
    KernelKey.make(
        "conv2d",
        (14, 14),
        1,
        kernel=(1, 1),
        stride=(1, 1),
        padding=(0, 0),
        dilation=(1, 1),
        epilogue=("bias",),
    ),
    128,
    128,
)


@dataclass(frozen=True)
class CompiledBatch:
    """Several points in one library: the i-th is its function ``point_i``."""

    library: Path
    points: tuple[Address, ...]
    copies: tuple[int, ...]
    shapes: tuple[tuple[tuple[int, ...], ...], ...]


def compile_batch(points: Sequence[Address], target: CpuTarget, copies: int, library: Path) -> CompiledBatch:
    """Compile points into one library that ``time_batch`` can run."""
    builder = relax.BlockBuilder()
    counts, shapes = [], []
    for index, (key, width_in, width_out) in enumerate(points):
        function = build_kernel(key, width_in, width_out, target)
        code = builder.add_func(function.code, f"kernel_{index}")
        constants = [a.shape for a in function.arguments if a.role in ("weight", "bias")]
        activations = [a.shape for a in function.arguments if a.role not in ("weight", "bias")]
        count = max(1, min(copies, COPIES_BYTES // max(1, 4 * sum(map(_size, constants)))))
        all_shapes = [*activations, *constants * count]
        inputs = [relax.Var(f"p{index}_{i}", relax.TensorType(shape, "float32")) for i, shape in enumerate(all_shapes)]
        shared, own = inputs[: len(activations)], inputs[len(activations) :]
        with builder.function(f"point_{index}", inputs):
            with builder.dataflow():
                for copy in range(count):
                    mine = own[copy * len(constants) : (copy + 1) * len(constants)]
                    output_type = relax.TensorType(function.output_shape, "float32")
                    value = builder.emit(relax.call_tir(code, [*shared, *mine], output_type))
                result = builder.emit_output(value)
            builder.emit_func_output(result)
        counts.append(count)
        shapes.append(tuple(all_shapes))
    export_library(builder.get(), target, library)
    return CompiledBatch(library, tuple(points), tuple(counts), tuple(shapes))


def _size(shape: Sequence[int]) -> int:
    return int(np.prod(shape))


def time_point(library: LoadedLibrary, batch: CompiledBatch, index: int, measure: MeasureSpec) -> LatencyPoint:
    """Time one point of a loaded batch."""
    random = np.random.default_rng(0)
    inputs = [random.random(shape, dtype=np.float32) for shape in batch.shapes[index]]
    timing = time_function(library, f"point_{index}", inputs, measure)
    _, width_in, width_out = batch.points[index]
    calls = batch.copies[index]
    return LatencyPoint(width_in, width_out, timing.median_us / calls, timing.spread_us / calls, timing.samples)


class Reference:
    """One fixed kernel, timed again and again: how fast the device is at the moment."""

    def __init__(self, device: Device, pool: Compiler) -> None:
        self._measure = device.profile.measure
        self._batch = pool.submit([REFERENCE]).result()
        self._library = device.load(self._batch.library)
        self.latest_us = self.time_us()

    def time_us(self) -> float:
        """Latency of the reference kernel now."""
        self.latest_us = time_point(self._library, self._batch, 0, self._measure).median_us
        return self.latest_us


def time_steadily(time_once: Callable[[], LatencyPoint], reference: Reference) -> tuple[LatencyPoint, float]:
    """Time a point between two timings of the reference kernel, again while the device is not steady.

    Returns the point and the reference latency (µs) that belongs to it. After a few tries the steadiest one counts.
    """
    tries: list[tuple[float, LatencyPoint, float]] = []
    for _ in range(TRIES):
        before = reference.latest_us
        point = time_once()
        after = reference.time_us()
        unsteadiness = max(abs(after / before - 1), point.spread_us / point.median_us)
        tries.append((unsteadiness, point, (before + after) / 2))
        if unsteadiness <= STEADY:
            break
    _, point, reference_us = min(tries, key=lambda attempt: attempt[0])
    return point, reference_us


class Compiler:
    """Worker processes that compile batches of points."""

    def __init__(self, target: CpuTarget, copies: int, folder: Path, workers: int) -> None:
        self._options, self._threads, self._copies = dict(target.options), target.threads, copies
        self._folder = folder
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_die_with_parent)
        self._workers: set[BaseProcess] = set()
        self._count = 0

    def submit(self, points: Sequence[Address]) -> Future[CompiledBatch]:
        """Begin to compile one batch."""
        self._count += 1
        library = self._folder / f"batch_{self._count}.so"
        others = set(multiprocessing.active_children())
        with _ctrl_c_blocked():
            future = self._pool.submit(_compile, points, self._options, self._threads, self._copies, library)
        self._workers |= set(multiprocessing.active_children()) - others
        return future

    def close(self) -> None:
        """Let the workers end, which by now have nothing to do."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def kill(self) -> None:
        """End the workers at once, whatever they are at."""
        self.close()
        for worker in self._workers:
            worker.kill()


def _compile(
    points: Sequence[Address], options: dict[str, object], threads: int, copies: int, library: Path
) -> CompiledBatch:
    return compile_batch(points, CpuTarget.of(options, threads), copies, library)


@contextmanager
def _ctrl_c_blocked() -> Iterator[None]:
    # Ctrl-C reaches the whole process group, but what becomes of the work is for the parent to decide. Processes that
    # are started here inherit the block, so that not even a worker that is still importing is disturbed.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _die_with_parent() -> None:
    threading.Thread(target=_exit_after_parent, daemon=True).start()


def _exit_after_parent() -> None:
    # A parent that was killed cannot say goodbye, and its workers would wait for work for ever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def compiler(target: CpuTarget, copies: int, folder: Path, workers: int) -> Iterator[Compiler]:
    """Worker processes for the length of a ``with`` block."""
    pool = Compiler(target, copies, folder, workers)
    try:
        yield pool
    except BaseException:
        pool.kill()
        raise
    pool.close()
