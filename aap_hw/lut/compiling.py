"""Compiling table points and networks, in worker processes if need be.

A point becomes a small network that calls its kernel several times, each time with its own copy of the weights: call
overhead is included, the activations are warm and the weights are not, as in a real network.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from tvm import relax

from aap_hw.compile.code.function import CONSTANTS, Argument
from aap_hw.compile.front.network import Network
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.precision import BYTES
from aap_hw.compile.keys.target import DeviceTarget, GpuTarget, device_target
from aap_hw.compile.library.build import build_kernel, export_library
from aap_hw.compile.library.lowering import lower_network
from aap_hw.errors import UserError
from aap_hw.lut.library_cache import LibraryCache
from aap_hw.processes import FORKED, ctrl_c_blocked

# Copies of a kernel's weights beyond this many bytes would only fill memory: the caches are long full.
COPIES_BYTES = 64 << 20

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class CompiledBatch:
    """Several points in one library: the i-th is its function ``point_i``, with inputs of these shapes and types."""

    library: Path
    points: tuple[Address, ...]
    copies: tuple[int, ...]
    shapes: tuple[tuple[tuple[int, ...], ...], ...]
    types: tuple[tuple[str, ...], ...]


def compile_batch(
    points: Sequence[Address], target: DeviceTarget, copies: int, library: Path, cache: LibraryCache | None = None
) -> CompiledBatch:
    """Compile points into one library whose points ``time_point`` times, or take it from a cache."""
    builder = relax.BlockBuilder()
    counts, shapes, types = [], [], []
    for index, address in enumerate(points):
        function = build_kernel(address, target)
        code = builder.add_func(function.code, f"kernel_{index}")
        constants = [a for a in function.arguments if a.role in CONSTANTS]
        activations = [a for a in function.arguments if a.role not in (*CONSTANTS, "literal")]
        literals = [relax.const(literal, str(literal.dtype)) for literal in function.literals]
        count = max(1, min(copies, COPIES_BYTES // max(1, sum(map(_bytes, constants)))))
        tensors = [*activations, *constants * count]
        inputs = [relax.Var(f"p{index}_{i}", relax.TensorType(a.shape, a.type)) for i, a in enumerate(tensors)]
        shared, own = inputs[: len(activations)], inputs[len(activations) :]
        with builder.function(f"point_{index}", inputs):
            with builder.dataflow():
                for copy in range(count):
                    mine = own[copy * len(constants) : (copy + 1) * len(constants)]
                    output_type = relax.TensorType(function.output_shape, function.output_type)
                    given = _in_order(function.arguments, shared, mine, literals)
                    value = builder.emit(relax.call_tir(code, given, output_type))
                result = builder.emit_output(value)
            builder.emit_func_output(result)
        counts.append(count)
        shapes.append(tuple(a.shape for a in tensors))
        types.append(tuple(a.type for a in tensors))
    if cache is None or isinstance(target, GpuTarget):  # what a GPU runs is a second file
        export_library(builder.get(), target, library)
    else:
        made_from = [[str(point.key), *point.widths] for point in points], [*target.options], target.threads, copies
        cache.make(library, made_from, lambda path: export_library(builder.get(), target, path))
    return CompiledBatch(library, tuple(points), tuple(counts), tuple(shapes), tuple(types))


def _in_order(
    arguments: Sequence[Argument], activations: Sequence[Any], constants: Sequence[Any], literals: Sequence[Any]
) -> list[Any]:
    """What a kernel is called with, each kind of which is in its order."""
    values, kept, own = iter(activations), iter(constants), iter(literals)
    return [next(kept if a.role in CONSTANTS else own if a.role == "literal" else values) for a in arguments]


def _bytes(argument: Argument) -> int:
    return math.prod(argument.shape) * BYTES[argument.type]


class Compiler:
    """Worker processes that compile batches of points, or find them in a cache, and whole networks."""

    def __init__(
        self, target: DeviceTarget, copies: int, folder: Path, workers: int, cache: LibraryCache | None = None
    ) -> None:
        self._options, self._threads, self._copies = dict(target.options), target.threads, copies
        self._folder, self._cache = folder, cache
        try:
            self._pool = ProcessPoolExecutor(workers, mp_context=FORKED, initializer=_die_with_parent)
        except OSError as problem:  # of a semaphore, the first thing that it makes
            raise UserError(
                f"processes that compile need shared memory in /dev/shm: {problem.strerror}; see that it is mounted, "
                "can be written to and has room"
            ) from problem
        self._workers: set[BaseProcess] = set()
        self._count = 0

    def submit(self, points: Sequence[Address]) -> Future[CompiledBatch]:
        """Begin to compile one batch."""
        arguments = (points, self._options, self._threads, self._copies, self._new_file(), self._cache)
        return self._submit(_compile, *arguments)

    def submit_network(
        self, network: Network, widths: Mapping[str, int], state: Mapping[str, torch.Tensor]
    ) -> Future[Path]:
        """Begin to compile a network at the given group widths, which its weights have already; gives its library."""
        # Pickled here: multiprocessing would send each tensor as an open file, and the usual limit is 1,024 of them.
        given = pickle.dumps((network, dict(widths), dict(state)))
        return self._submit(_compile_network, given, self._options, self._threads, self._new_file())

    def _new_file(self) -> Path:
        self._count += 1
        return self._folder / f"library_{self._count}.so"

    def _submit(
        self, work: Callable[_Arguments, _Result], *arguments: _Arguments.args, **named: _Arguments.kwargs
    ) -> Future[_Result]:
        with ctrl_c_blocked():  # until the new worker is known, or nothing would end it
            others = set(multiprocessing.active_children())
            future = self._pool.submit(work, *arguments, **named)
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
        self._pool.shutdown(wait=True)  # or Python warns of leaked semaphores when it ends


def _compile(
    points: Sequence[Address],
    options: dict[str, object],
    threads: int,
    copies: int,
    library: Path,
    cache: LibraryCache | None,
) -> CompiledBatch:
    return compile_batch(points, device_target(options, threads), copies, library, cache)


def _compile_network(given: bytes, options: dict[str, object], threads: int, library: Path) -> Path:
    network, widths, state = pickle.loads(given)
    target = device_target(options, threads)
    export_library(lower_network(network, widths, state, target), target, library)
    return library


def _die_with_parent() -> None:
    threading.Thread(target=_exit_after_parent, daemon=True).start()


def _exit_after_parent() -> None:
    # A parent that was killed cannot say goodbye, and its workers would wait for work for ever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def compiler(
    target: DeviceTarget, copies: int, folder: Path, workers: int, cache: LibraryCache | None = None
) -> Iterator[Compiler]:
    """Worker processes for the length of a ``with`` block."""
    pool = Compiler(target, copies, folder, workers, cache)
    try:
        yield pool
    except BrokenProcessPool as problem:
        pool.kill()
        raise UserError(
            "a compiling process was killed, most likely because memory ran out; close other programs, or compile in "
            "one process with --workers 1"
        ) from problem
    except BaseException:
        pool.kill()
        raise
    pool.close()
