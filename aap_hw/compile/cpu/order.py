"""Values in their order, picked by their numbers, and running sums, on a CPU."""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code import DEFINITIONS
from aap_hw.compile.code.function import KernelFunction, activations
from aap_hw.compile.code.order import BLOCK, comes_before
from aap_hw.compile.code.sampling import row_number
from aap_hw.compile.cpu.emit import Steps, constant, lanes_for, registers, scratch, store, vector
from aap_hw.compile.cpu.kernels import KERNELS
from aap_hw.compile.cpu.loops import channel_loop, light_kernel, row_loop
from aap_hw.compile.families.order import is_by_row, ordered_shape
from aap_hw.compile.families.reductions import Reduction
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.target import CpuTarget


@KERNELS.register("argsort")
def argsort(address: Address, target: CpuTarget) -> KernelFunction:
    """Runs of 1, 2, 4, ... values are merged, each only as far as is asked for; the left one goes first of equals.

    Where few are asked for, those that are no better than the last of the best so far are passed over, and the others
    sorted together with these when there are as many.
    """
    key, shape, made = address.key, Reduction.of(address), ordered_shape(address)
    size, count, type_ = shape.reduced, made[1], key.types.sum
    room = min(size, 2 * count)
    turns = (room - 1).bit_length()

    def body(image: Any, output: Any) -> None:
        with row_loop(shape.outer * shape.inner, target, math.prod(shape.source)) as row:
            outer, inner = T.bind(row // shape.inner), T.bind(row % shape.inner)
            values, places = scratch(2 * room, type_), scratch(2 * room, "int32")
            heads, found = registers(2, "int32"), registers(1, "int32")

            def merge(turn: Any, run: Any, size: Any) -> None:
                length = T.bind(tirx.const(1, "int32") << turn)
                source, goal = T.bind(turn % 2 * room), T.bind((turn + 1) % 2 * room)
                start = T.bind(run * 2 * length)
                middle = T.bind(T.min(start + length, size))
                ends = T.bind(T.min(middle, start + count)), T.bind(T.min(T.min(middle + length, size), middle + count))
                T.buffer_store(heads, start, [0])
                T.buffer_store(heads, middle, [1])
                with T.serial(0, T.min(ends[0] - start + ends[1] - middle, count)) as k:
                    left, right = T.bind(heads[0]), T.bind(heads[1])
                    one, other = (T.bind(values[source + T.min(at, size - 1)]) for at in (left, right))
                    is_before = tirx.all(right < ends[1], comes_before(key, other, one))
                    is_right = T.bind(tirx.Cast("int32", tirx.any(left >= ends[0], is_before)))
                    T.buffer_store(values, T.Select(is_right != 0, other, one), [goal + start + k])
                    chosen = T.Select(is_right != 0, right, left)
                    T.buffer_store(places, places[source + chosen], [goal + start + k])
                    T.buffer_store(heads, left + 1 - is_right, [0])
                    T.buffer_store(heads, right + is_right, [1])

            def sort(size: Any) -> None:
                if turns:
                    with T.serial(0, turns) as turn:
                        pair = T.bind(tirx.const(2, "int32") << turn)
                        with T.serial(0, (size + pair - 1) // pair) as run:
                            merge(turn, run, size)
                if turns % 2:
                    with T.serial(0, count) as k:
                        T.buffer_store(values, values[room + k], [k])
                        T.buffer_store(places, places[room + k], [k])

            T.buffer_store(found, tirx.const(0, "int32"), [0])
            with T.serial(0, size) as i:
                value = T.bind(image[(outer * size + i) * shape.inner + inner])
                with T.If(tirx.any(i < room, comes_before(key, value, values[count - 1]))), T.Then():
                    T.buffer_store(values, value, [found[0]])
                    T.buffer_store(places, i, [found[0]])
                    T.buffer_store(found, found[0] + 1, [0])
                with T.If(tirx.any(found[0] == room, i == size - 1)), T.Then():
                    sort(T.bind(found[0]))
                    T.buffer_store(found, tirx.const(count, "int32"), [0])
            with T.serial(0, count) as k:
                place = tirx.Cast(key.types.made, places[k])
                T.buffer_store(output, place, [(outer * count + k) * shape.inner + inner])

    return light_kernel(key, activations(key, shape.source), made, body)


@KERNELS.register("take_along")
def take_along(address: Address, target: CpuTarget) -> KernelFunction:
    """Row by row."""
    definition, (_, rows, values) = DEFINITIONS["take_along"](address), Reduction.of(address).source
    taken, by_row = definition.shape[1], is_by_row(address.key)

    def body(table: Any, index: Any, output: Any) -> None:
        with row_loop(definition.shape[0] * taken, target, math.prod(definition.shape)) as row:
            first = T.bind(row // taken * rows)
            start = T.bind((first + row_number(index[row], rows)) * values) if by_row else None
            with channel_loop(values, target) as i:
                at = row * values + i
                place = start + i if by_row else (first + row_number(index[at], rows)) * values + i
                T.buffer_store(output, table[place], [at])

    return light_kernel(address.key, definition.arguments, definition.shape, body)


@KERNELS.register("cumsum")
def cumsum(address: Address, target: CpuTarget) -> KernelFunction:
    """Along the rows; each block of them is summed on its own and added to the sum of those before it."""
    key, shape = address.key, Reduction.of(address)
    type_ = key.types.sum
    lanes = lanes_for(shape.inner, target, type_)
    steps = Steps(shape.inner, lanes)
    blocks = math.ceil(shape.reduced / BLOCK)

    def body(image: Any, output: Any) -> None:
        with row_loop(shape.outer * steps.count, target, math.prod(shape.source)) as row:
            first = T.bind(row // steps.count * (shape.reduced * shape.inner) + steps.start(row % steps.count))
            before, here = registers(lanes, type_), registers(lanes, type_)
            store(before, constant(0.0, lanes, type_), 0, lanes)
            with T.serial(0, blocks) as block:
                store(here, constant(0.0, lanes, type_), 0, lanes)
                with T.serial(0, T.min(BLOCK, shape.reduced - block * BLOCK)) as i:
                    at = T.bind(first + (block * BLOCK + i) * shape.inner)
                    store(here, vector(here, 0, lanes) + vector(image, at, lanes), 0, lanes)
                    store(output, vector(before, 0, lanes) + vector(here, 0, lanes), at, lanes)
                store(before, vector(before, 0, lanes) + vector(here, 0, lanes), 0, lanes)

    return light_kernel(key, activations(key, shape.source), shape.source, body)
