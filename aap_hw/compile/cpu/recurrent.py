"""Recurrent layers on a CPU: a loop over the steps, each of which multiplies the state by the weights.

Weights are packed like those of linear layers. The code does not grow with the number of steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code.function import KernelFunction
from aap_hw.compile.code.recurrent import next_state, recurrent_arguments
from aap_hw.compile.cpu.emit import Steps, Tensor, constant, kernel_code, lane_loop, lanes_for, scratch, store, vector
from aap_hw.compile.cpu.kernels import KERNELS, PACKINGS, Packing
from aap_hw.compile.cpu.loops import channel_loop
from aap_hw.compile.cpu.padding import copy
from aap_hw.compile.cpu.sums import row_sum
from aap_hw.compile.cpu.tiles import accumulate, choose_tile
from aap_hw.compile.families import family_of, image_shape
from aap_hw.compile.families.recurrent import (
    GATES,
    hidden_units,
    is_backwards,
    is_projected,
    makes_cells,
    steps_first,
)
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.target import CpuTarget


@PACKINGS.register(*GATES)
def packing(address: Address, target: CpuTarget) -> Packing:
    """Slices of weights, one for each tile of the gates' channels, one behind the other."""
    gates, states = address.width_in, address.width_out
    tile = choose_tile(address.key.batch, gates, target, address.key.types.sum)
    deep = Steps(gates, tile.channels)

    def pack(weight: np.ndarray) -> np.ndarray:
        starts = [deep.start(part) for part in range(deep.count)]
        return np.concatenate([weight[start : start + tile.channels].T.ravel() for start in starts])

    return Packing((deep.count * states * tile.channels,), pack)


@KERNELS.register(*GATES)
def recurrent(address: Address, target: CpuTarget) -> KernelFunction:
    """The states of all steps, from zeros or those that are given on."""
    key, gates, made, types = address.key, address.width_in, address.width_out, address.key.types
    units = hidden_units(address)
    batch, steps, *_ = image_shape(key, 1)
    tile = choose_tile(batch, gates, target, types.sum)
    deep, along = Steps(gates, tile.channels), Steps(batch, tile.pixels)
    packed, output_shape = packing(address, target), family_of(key).output(address)
    arguments = recurrent_arguments(address, packed.shape)
    # A step reads one copy of the state and writes another, because overlapping vectors would read new values.
    half, half_of_cells = batch * made, batch * units

    def body(read: Any, *others: Any) -> None:
        *given, output = others
        projection = given.pop() if is_projected(key) else None
        *first_ones, weights, bias = given
        states, cells = scratch(2 * half, types.sum), scratch(2 * half_of_cells if key.op == "lstm" else 1, types.sum)
        products = scratch(batch * gates, types.sum)
        handed_on = scratch(half_of_cells if is_projected(key) else 1, types.sum)
        _begin(states, half, first_ones[:1], target)
        if key.op == "lstm":
            _begin(cells, half_of_cells, first_ones[1:], target)
        with T.serial(0, steps) as step:
            before, after = T.bind(step % 2), T.bind((step + 1) % 2)
            time = T.bind(steps - 1 - step if is_backwards(key) else step)
            with T.serial(0, deep.count) as part, T.serial(0, along.count) as some:
                first, sample = T.bind(deep.start(part)), T.bind(along.start(some))
                sums = accumulate(
                    tile,
                    [made],
                    lambda k, p: states[before * half + (sample + p) * made + k],
                    lambda k, v: vector(weights, (part * made + k) * tile.channels + v * tile.lanes, tile.lanes),
                    types.sum,
                )
                for v in range(tile.vectors):
                    for p in range(tile.pixels):
                        channel = T.bind(first + v * tile.lanes)
                        with lane_loop(tile.lanes) as i:
                            value = sums(p, v, i) + bias[channel + i]
                            T.buffer_store(products, value, [(sample + p) * gates + channel + i])
            with T.serial(0, batch) as n:
                row = T.bind(time * batch + n if steps_first(key) else n * steps + time)
                with channel_loop(units, target) as c:
                    at = n * units + c
                    state, cell = next_state(
                        key.op,
                        lambda gate: read[row * gates + gate * units + c],
                        lambda gate: products[n * gates + gate * units + c],
                        states[before * half + at],
                        cells[before * half_of_cells + at] if key.op == "lstm" else None,
                    )
                    if cell is not None:
                        T.buffer_store(cells, cell, [after * half_of_cells + at])
                    if projection is not None:
                        T.buffer_store(handed_on, state, [at])
                    else:
                        T.buffer_store(states, state, [after * half + at])
                        T.buffer_store(output, state, [row * made + c])
                if projection is not None:
                    with T.serial(0, made) as c:
                        state = _product_of_rows((projection, c * units), (handed_on, n * units), units, target)
                        T.buffer_store(states, state, [after * half + n * made + c])
                        T.buffer_store(output, state, [row * made + c])
        if makes_cells(key):
            copy(cells, steps % 2 * half, output, batch * steps * made, half, target)

    tensors = [Tensor(argument.role, argument.shape, argument.type) for argument in arguments]
    code = kernel_code([*tensors, Tensor("output", output_shape, types.made)], body)
    return KernelFunction(code, arguments, output_shape, types.made, packed.pack)


def _begin(buffer: Any, extent: int, first: Sequence[Any], target: CpuTarget) -> None:
    """Write what states or cells are before the first step: zeros, or what is given."""
    lanes = lanes_for(extent, target, buffer.dtype)
    parts = Steps(extent, lanes)
    with T.serial(0, parts.count) as i:
        start = T.bind(parts.start(i))
        zeros = constant(0.0, lanes, buffer.dtype)
        store(buffer, vector(first[0], start, lanes) if first else zeros, start, lanes)


def _product_of_rows(one: tuple[Any, Any], other: tuple[Any, Any], extent: int, target: CpuTarget) -> Any:
    """The sum of products of two rows, each a buffer and where in it the row begins."""

    def products(i: Any, lanes: int) -> Any:
        return vector(one[0], one[1] + i, lanes) * vector(other[0], other[1] + i, lanes)

    return row_sum(extent, target, one[0].dtype, products)
