"""Recurrent layers on a GPU: one block of threads for each sample, with its state in shared memory.

The weight is in PyTorch's order, (gates x hidden, hidden).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code.expressions import number
from aap_hw.compile.code.function import OPAQUE, KernelFunction
from aap_hw.compile.code.recurrent import next_state, recurrent_arguments
from aap_hw.compile.families import family_of, image_shape
from aap_hw.compile.families.recurrent import (
    GATES,
    hidden_units,
    is_backwards,
    is_projected,
    makes_cells,
    steps_first,
)
from aap_hw.compile.gpu.scheduling import KERNELS
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.target import GpuTarget

THREADS = 128


@contextmanager
def _each(extent: int) -> Iterator[Any]:
    """The index of a loop whose iterations the threads share."""
    with T.thread_binding(0, THREADS, "threadIdx.x") as thread, T.serial(0, math.ceil(extent / THREADS)) as turn:
        index = T.bind(turn * THREADS + thread)
        with T.If(index < extent), T.Then():
            yield index


@KERNELS.register(*GATES)
def recurrent(address: Address, _: GpuTarget) -> KernelFunction:
    """The states of all steps, from zeros or those that are given on."""
    key, gates, made, units = address.key, address.width_in, address.width_out, hidden_units(address)
    batch, steps, *_rest = image_shape(key, 1)
    output_shape = family_of(key).output(address)
    arguments = recurrent_arguments(address, (gates, made))

    with IRBuilder() as builder, T.prim_func():
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True, "op_pattern": OPAQUE})
        names = [f"{argument.role}_{i}" for i, argument in enumerate(arguments)]
        named = zip(names, arguments, strict=True)
        buffers = [T.arg(name, T.buffer(a.shape, a.type)) for name, a in named]
        projection = buffers.pop() if is_projected(key) else None
        read, *first_ones, weight, bias = buffers
        output = T.arg("output", T.buffer(output_shape, key.types.made))
        with T.thread_binding(0, batch, "blockIdx.x") as n:
            states, cells = (T.alloc_buffer((size,), key.types.sum, scope="shared") for size in (made, units))
            handed_on = T.alloc_buffer((units,), key.types.sum, scope="shared") if projection is not None else states
            products = T.alloc_buffer((gates,), key.types.sum, scope="shared")
            total = T.alloc_buffer((1,), key.types.sum, scope="local")
            for buffer, size, first in zip((states, cells), (made, units), [*first_ones, None, None], strict=False):
                with _each(size) as c:
                    T.buffer_store(buffer, number(0.0) if first is None else first[n, c], [c])
            with T.serial(0, steps) as step:
                time = T.bind(steps - 1 - step if is_backwards(key) else step)
                row = T.bind(time * batch + n if steps_first(key) else n * steps + time)
                place = T.bind(row // steps), T.bind(row % steps)
                written = (0, row) if makes_cells(key) else place
                with _each(gates) as g:
                    T.buffer_store(total, bias[g], [0])
                    with T.serial(0, made) as k:
                        T.buffer_store(total, total[0] + weight[g, k] * states[k], [0])
                    T.buffer_store(products, total[0], [g])
                with _each(units) as c:
                    state, cell = next_state(
                        key.op,
                        lambda gate: read[*place, 0, gate * units + c],
                        lambda gate: products[gate * units + c],
                        states[c],
                        cells[c],
                    )
                    state = T.bind(state)  # before the cell, which it was made from, is written to
                    if cell is not None:
                        T.buffer_store(cells, cell, [c])
                    T.buffer_store(handed_on, state, [c])
                    if projection is None:
                        T.buffer_store(output, state, [*written, 0, c])
                if projection is not None:
                    with _each(made) as c:
                        T.buffer_store(total, number(0.0), [0])
                        with T.serial(0, units) as k:
                            T.buffer_store(total, total[0] + projection[c, k] * handed_on[k], [0])
                        T.buffer_store(states, total[0], [c])
                        T.buffer_store(output, total[0], [*written, 0, c])
            if makes_cells(key):
                with _each(units) as c:
                    T.buffer_store(output, cells[c], [0, batch * steps + n, 0, c])
    return KernelFunction(builder.get(), arguments, output_shape, key.types.made, lambda packed: packed)
