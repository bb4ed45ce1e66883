"""Where the largest or smallest value along an axis is, on a CPU: the first place, if it is at several."""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code.function import KernelFunction, activations
from aap_hw.compile.cpu.emit import Steps, lane_loop, lanes_for, registers
from aap_hw.compile.cpu.loops import light_kernel, row_loop
from aap_hw.compile.families.reductions import Reduction
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.target import CpuTarget


def place_of_extreme(address: Address, target: CpuTarget) -> KernelFunction:
    """Every lane has the best value that it has seen, and the place of it."""
    key, shape = address.key, Reduction.of(address)
    type_, values = key.types.sum, math.prod(shape.source)
    lanes = lanes_for(shape.reduced if shape.inner == 1 else shape.inner, target, type_)

    def is_better(one: Any, other: Any) -> Any:
        return one > other if key.attribute("of") == "argmax" else one < other

    def see(best: Any, places: Any, value: Any, place: Any, lane: Any) -> None:
        place = tirx.Cast(type_, place)
        T.buffer_store(places, T.Select(is_better(value, best[lane]), place, places[lane]), [lane])
        T.buffer_store(best, T.Select(is_better(value, best[lane]), value, best[lane]), [lane])

    def begin(best: Any, places: Any, value: Any, place: Any, lane: Any) -> None:
        T.buffer_store(best, value, [lane])
        T.buffer_store(places, tirx.Cast(type_, place), [lane])

    def along(image: Any, output: Any) -> None:
        steps = Steps(shape.reduced, lanes)
        with row_loop(shape.outer, target, values) as row:
            first = T.bind(row * shape.reduced)
            best, places = registers(lanes, type_), registers(lanes, type_)
            with lane_loop(lanes) as lane:
                begin(best, places, image[first + lane], lane, lane)
            with T.serial(0, steps.count - 1) as step:
                start = T.bind(steps.start(step + 1))
                with lane_loop(lanes) as lane:
                    see(best, places, image[first + start + lane], start + lane, lane)
            found, place = registers(1, type_), registers(1, type_)
            T.buffer_store(found, best[0], [0])
            T.buffer_store(place, places[0], [0])
            with T.serial(1, lanes) as lane:
                is_equal = tirx.all(best[lane] == found[0], places[lane] < place[0])
                is_new = T.bind(tirx.Cast("int32", tirx.any(is_better(best[lane], found[0]), is_equal)))
                T.buffer_store(place, T.Select(is_new != 0, places[lane], place[0]), [0])
                T.buffer_store(found, T.Select(is_new != 0, best[lane], found[0]), [0])
            T.buffer_store(output, place[0], [row])

    def behind(image: Any, output: Any) -> None:
        steps = Steps(shape.inner, lanes)
        with row_loop(shape.outer * steps.count, target, values) as block:
            row, column = T.bind(block // steps.count), T.bind(steps.start(block % steps.count))
            first = T.bind(row * shape.reduced * shape.inner + column)
            best, places = registers(lanes, type_), registers(lanes, type_)
            with lane_loop(lanes) as lane:
                begin(best, places, image[first + lane], 0, lane)
            with T.serial(0, shape.reduced - 1) as i:
                start = T.bind(first + (i + 1) * shape.inner)
                with lane_loop(lanes) as lane:
                    see(best, places, image[start + lane], i + 1, lane)
            with lane_loop(lanes) as lane:
                T.buffer_store(output, places[lane], [row * shape.inner + column + lane])

    body = along if shape.inner == 1 else behind
    return light_kernel(key, activations(key, shape.source), shape.output, body)
