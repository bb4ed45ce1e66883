"""Recurrent layers on a CPU: a loop over the steps, each of which multiplies the state by the weights.

Weights are packed like those of linear layers. The code does not grow with the number of steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code.function import KernelFunction
from aap_hw.compile.code.recurrent import next_state, recurrent_arguments
from aap_hw.compile.cpu.emit import Steps, Tensor, constant, kernel_code, lane_loop, lanes_for, scratch, store, vector
from aap_hw.compile.cpu.kernels import KERNELS, PACKINGS, Packing
from aap_hw.compile.cpu.loops import channel_loop
from aap_hw.compile.cpu.padding import copy
from aap_hw.compile.cpu.tiles import accumulate, choose_tile
from aap_hw.compile.families import family_of, image_shape
from aap_hw.compile.families.recurrent import GATES, is_backwards, makes_cells, steps_first
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.target import CpuTarget


@PACKINGS.register(*GATES)
def packing(address: Address, target: CpuTarget) -> Packing:
    """Slices of weights, one for each tile of the gates' channels, one behind the other."""
    gates, hidden = address.width_in, address.width_out
    tile = choose_tile(address.key.batch, gates, target, address.key.types.sum)
    deep = Steps(gates, tile.channels)

    def pack(weight: np.ndarray) -> np.ndarray:
        starts = [deep.start(part) for part in range(deep.count)]
        return np.concatenate([weight[start : start + tile.channels].T.ravel() for start in starts])

    return Packing((deep.count * hidden * tile.channels,), pack)


@KERNELS.register(*GATES)
def recurrent(address: Address, target: CpuTarget) -> KernelFunction:
    """The states of all steps, from zeros or those that are given on."""
    key, gates, hidden, types = address.key, address.width_in, address.width_out, address.key.types
    batch, steps, *_ = image_shape(key, 1)
    tile = choose_tile(batch, gates, target, types.sum)
    deep, along = Steps(gates, tile.channels), Steps(batch, tile.pixels)
    packed, output_shape = packing(address, target), family_of(key).output(address)
    # A step reads one copy of the state and writes another, because overlapping vectors would read new values.
    half = batch * hidden

    def body(read: Any, *others: Any) -> None:
        *first_ones, weights, bias, output = others
        states, cells = scratch(2 * half, types.sum), scratch(2 * half if key.op == "lstm" else 1, types.sum)
        products = scratch(batch * gates, types.sum)
        lanes = lanes_for(half, target, types.sum)
        cleared = Steps(half, lanes)
        with T.serial(0, cleared.count) as i:
            start = T.bind(cleared.start(i))
            for number, buffer in enumerate((states, cells) if key.op == "lstm" else (states,)):
                zeros = constant(0.0, lanes, types.sum)
                store(buffer, vector(first_ones[number], start, lanes) if first_ones else zeros, start, lanes)
        with T.serial(0, steps) as step:
            before, after = T.bind(step % 2 * half), T.bind((step + 1) % 2 * half)
            time = T.bind(steps - 1 - step if is_backwards(key) else step)
            with T.serial(0, deep.count) as part, T.serial(0, along.count) as some:
                first, sample = T.bind(deep.start(part)), T.bind(along.start(some))
                sums = accumulate(
                    tile,
                    [hidden],
                    lambda k, p: states[before + (sample + p) * hidden + k],
                    lambda k, v: vector(weights, (part * hidden + k) * tile.channels + v * tile.lanes, tile.lanes),
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
                with channel_loop(hidden, target) as c:
                    at = n * hidden + c
                    state, cell = next_state(
                        key.op,
                        lambda gate: read[row * gates + gate * hidden + c],
                        lambda gate: products[n * gates + gate * hidden + c],
                        states[before + at],
                        cells[before + at] if key.op == "lstm" else None,
                    )
                    if cell is not None:
                        T.buffer_store(cells, cell, [after + at])
                    T.buffer_store(states, state, [after + at])
                    T.buffer_store(output, state, [row * hidden + c])
        if makes_cells(key):
            copy(cells, steps % 2 * half, output, batch * steps * hidden, half, target)

    arguments = recurrent_arguments(address, packed.shape)
    tensors = [Tensor(argument.role, argument.shape, argument.type) for argument in arguments]
    code = kernel_code([*tensors, Tensor("output", output_shape, types.made)], body)
    return KernelFunction(code, arguments, output_shape, types.made, packed.pack)
