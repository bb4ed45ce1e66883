"""Resizing on a CPU: whole rows of the image are combined first, then the pixels of the combined row.

If the image has many more columns than the output, most of such a row would not be read; then each pixel is computed in
one step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code import DEFINITIONS
from aap_hw.compile.code.function import KernelFunction
from aap_hw.compile.code.resizing import combined
from aap_hw.compile.cpu.emit import Steps, lane_loop, lanes_for, registers, scratch, spread, store, vector
from aap_hw.compile.cpu.kernels import KERNELS
from aap_hw.compile.cpu.loops import light_kernel, row_loop
from aap_hw.compile.families import image_shape
from aap_hw.compile.families.resizing import Taps, axes_of
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.precision import FLOAT32
from aap_hw.compile.keys.target import CpuTarget

# Sums of more terms than this are loops.
UNROLLED = 4
# With more input columns than this for each output column, rows are not combined first.
NARROWER = 2


@dataclass(frozen=True)
class Terms:
    """The terms of a sum: how many stretches of memory, where each begins, and its weight, if there are weights."""

    count: int
    start: Callable[[Any], Any]
    weight: Callable[[Any], Any] | None


Made = Callable[[Any], Any]
"""What is written for the number that a sum comes to."""


@KERNELS.register("resize")
def resize(address: Address, target: CpuTarget) -> KernelFunction:
    """Row by row, pixel by pixel, a vector of channels at a time."""
    key, definition = address.key, DEFINITIONS["resize"](address)
    made = light_kernel(key, definition.arguments, definition.shape, resizing_loops(address, target))
    return replace(made, literals=definition.literals)


def resizing_loops(
    address: Address, target: CpuTarget, summed: str = FLOAT32, made: Made | None = None
) -> Callable[..., None]:
    """What writes the loops over the buffers: image, places and weights of the rows and of the columns, output.

    Values are combined as numbers of the type ``summed``, and ``made`` is written for one, or else itself.
    """
    key, definition = address.key, DEFINITIONS["resize"](address)
    how, (rows, columns) = key.attribute("how"), axes_of(key)
    _, height, width, channels = image_shape(key, address.width_in)
    batch, made_height, made_width, _ = definition.shape
    by_row = not rows.is_picked and width <= NARROWER * made_width

    def weight(taps: Taps, at: Callable[[Any], Any]) -> Callable[[Any], Any] | None:
        return None if taps.is_picked or how == "largest" else at

    def body(image: Any, row_places: Any, row_weights: Any, column_places: Any, column_weights: Any, out: Any) -> None:
        with row_loop(batch * made_height, target, math.prod(definition.shape)) as line:
            n, y = T.bind(line // made_height), T.bind(line % made_height)
            of_rows = Terms(
                rows.terms,
                lambda term: (n * height + row_places[term * made_height + y]) * (width * channels),
                weight(rows, lambda term: row_weights[term * made_height + y]),
            )
            if by_row:
                source = scratch(width * channels, summed)
                _sum(how, of_rows, width * channels, image, source, 0, target, summed)
                of_rows = Terms(1, lambda _: 0, None)
            else:
                source = image
            with T.serial(0, made_width) as x:
                of_columns = Terms(
                    columns.terms,
                    lambda term: column_places[term * made_width + x] * channels,
                    weight(columns, lambda term: column_weights[term * made_width + x]),
                )
                first = T.bind((line * made_width + x) * channels)
                _sum(how, _pairs(of_rows, of_columns), channels, source, out, first, target, summed, made)

    return body


def _pairs(rows: Terms, columns: Terms) -> Terms:
    """Every term along the rows paired with every term along the columns."""

    def weight(term: Any) -> Any:
        shares = [
            each.weight(at)
            for each, at in ((rows, term // columns.count), (columns, term % columns.count))
            if each.weight is not None
        ]
        return math.prod(shares[1:], start=shares[0])

    return Terms(
        rows.count * columns.count,
        lambda term: rows.start(term // columns.count) + columns.start(term % columns.count),
        None if rows.weight is None and columns.weight is None else weight,
    )


def _sum(
    how: str,
    terms: Terms,
    extent: int,
    source: Any,
    output: Any,
    first: Any,
    target: CpuTarget,
    summed: str,
    made: Made | None = None,
) -> None:
    """Combine the stretches of ``source`` into one of ``extent`` values of the output."""
    lanes = lanes_for(extent, target, summed)
    steps = Steps(extent, lanes)
    is_unrolled = terms.count <= UNROLLED
    known = range(terms.count) if is_unrolled else range(0)
    starts = [T.bind(terms.start(term)) for term in known]
    weights = [T.bind(terms.weight(term)) for term in known] if terms.weight is not None else []

    def values_at(place: Any) -> Any:
        value = vector(source, place, lanes)
        return value if source.dtype == summed else T.Cast(f"{summed}x{lanes}" if lanes > 1 else summed, value)

    def term_at(term: Any, at: Any) -> Any:
        value = values_at(T.bind(terms.start(term)) + at)
        return value if terms.weight is None else spread(T.bind(terms.weight(term)), lanes) * value

    with T.serial(0, steps.count) as step:
        at = T.bind(steps.start(step))
        if is_unrolled:
            values = [values_at(start + at) for start in starts]
            value = combined(how, [spread(weight, lanes) for weight in weights], values)
        else:
            sums = registers(lanes, summed)
            store(sums, term_at(0, at), 0, lanes)
            with T.serial(1, terms.count) as term:
                both = [vector(sums, 0, lanes), term_at(term, at)]
                store(sums, combined(how, [], both), 0, lanes)
            value = vector(sums, 0, lanes)
        if made is None:
            store(output, value, first + at, lanes)
        else:
            found = registers(lanes, summed)
            store(found, value, 0, lanes)
            with lane_loop(lanes) as i:
                T.buffer_store(output, made(found[i]), [first + at + i])
