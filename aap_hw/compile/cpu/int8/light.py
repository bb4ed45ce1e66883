"""Light kernels that compute with bytes: into bytes and out of them, sums and products, functions by table."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code.elementwise import OPERATIONS
from aap_hw.compile.code.function import Argument, KernelFunction, activations, apply_epilogue
from aap_hw.compile.code.fused import fused_arguments
from aap_hw.compile.code.quantized import Number, Quantized, normalisation_of, numbers_of, scales_of, unclipped
from aap_hw.compile.code.tables import ENTRIES, FUNCTIONS, table_of
from aap_hw.compile.cpu.emit import Steps, lane_loop, registers, spread, store, vector
from aap_hw.compile.cpu.fused import write_loops
from aap_hw.compile.cpu.int8.epilogue import Numbers, bounds_of, made_of
from aap_hw.compile.cpu.int8.storing import to_bytes
from aap_hw.compile.cpu.isa import GROUP
from aap_hw.compile.cpu.kernels import QUANTIZED
from aap_hw.compile.cpu.loops import channel_loop, light_kernel, pixel_loop, row_loop, shares
from aap_hw.compile.families import Shape, image_shape
from aap_hw.compile.families.fused import Fused, operand_shape
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.keys.precision import FLOAT32
from aap_hw.compile.keys.target import CpuTarget

# Values that a turn of a loop over a table looks up: enough to hide what the loop itself takes.
AT_ONCE = 16
FEW = 4
"""Channels of an image as cameras make them, at most."""
_PLACES = (Number.ZERO_READ, Number.STEP_READ), (Number.ZERO_ADDED, Number.STEP_ADDED)


def numbered_kernel(
    key: KernelKey, tensors: Sequence[Argument], output: Shape, body: Callable[..., None]
) -> KernelFunction:
    """A light kernel; ``body`` is called with the buffers of the tensors and the output, and the kernel's numbers."""

    def whole(*buffers: Any) -> None:
        *images, numbers, output = buffers
        known = {n: T.bind(numbers[int(n)]) for n in Number}
        body(*images, output, known.__getitem__)

    made = light_kernel(key, [*tensors, Argument("constant", (len(Number),))], output, whole)
    return replace(made, quantized=lambda model: (numbers_of(key, model),))


def real(value: Any, numbers: Numbers, operand: int = 0) -> Any:
    """What a byte of an operand stands for, in the unit that the epilogue counts in."""
    zero, step = _PLACES[operand]
    return (T.Cast(FLOAT32, value) - numbers(zero)) * numbers(step)


@QUANTIZED.register("quantize")
def quantize(address: Address, target: CpuTarget) -> KernelFunction:
    """Real numbers (N, H, W, C), or (N, C, H, W) if the key says so, as bytes (N, H, W, C)."""
    key, channels = address.key, address.width_in
    shape, area = image_shape(key, channels), math.prod(key.image)
    is_planar = key.attribute("layout") == "nchw"
    source = (key.batch, channels, *key.image) if is_planar else shape

    def in_order(image: Any, output: Any, numbers: Numbers) -> None:
        _one_vector(shape, target, lambda i: T.buffer_store(output, made_of(key, image[i], numbers), [i]))

    def planes(image: Any, output: Any, numbers: Numbers) -> None:
        if channels <= FEW and area >= target.lanes:
            few_planes(image, output, numbers)
            return
        with row_loop(key.batch, target, math.prod(shape)) as n, T.serial(0, channels) as c:
            first = T.bind((n * channels + c) * area)
            with channel_loop(area, target) as pixel:
                value = made_of(key, image[first + pixel], numbers)
                T.buffer_store(output, value, [(n * area + pixel) * channels + c])

    def few_planes(image: Any, output: Any, numbers: Numbers) -> None:
        """A vector of each plane, and all of them side by side."""
        by_vectors = target.multiplies_by_lane and area >= GROUP * target.lanes
        lanes = GROUP * target.lanes if by_vectors else target.lanes
        along, places = Steps(area, lanes), [c * lanes + i for i in range(lanes) for c in range(channels)]

        def joined(vectors: Sequence[Any]) -> Any:
            return tirx.Shuffle(list(vectors), places) if channels > 1 else vectors[0]

        with row_loop(key.batch * along.count, target, math.prod(shape)) as turn:
            n, first = T.bind(turn // along.count), T.bind(along.start(turn % along.count))
            if by_vectors:
                starts = [(n * channels + c) * area + first for c in range(channels)]
                store(output, joined(bytes_at(image, starts, numbers)), (n * area + first) * channels, lanes * channels)
                return
            made = [registers(lanes, key.types.made) for _ in range(channels)]
            for c, plane in enumerate(made):
                with lane_loop(lanes) as i:
                    value = made_of(key, image[(n * channels + c) * area + first + i], numbers)
                    T.buffer_store(plane, value, [i])
            vectors = [vector(plane, 0, lanes) for plane in made]
            store(output, joined(vectors), (n * area + first) * channels, lanes * channels)

    def bytes_at(image: Any, starts: Sequence[Any], numbers: Numbers) -> list[Any]:
        """Vectors of bytes of what lies at some places; each comes from four vectors."""
        lanes, steps = target.lanes, spread(numbers(Number.STEPS_MADE), target.lanes)
        parts = [[vector(image, start + v * lanes, lanes) * steps for v in range(GROUP)] for start in starts]
        return to_bytes(parts, bounds_of(key, numbers), lanes, target)

    return numbered_kernel(key, activations(key, source), shape, planes if is_planar else in_order)


@QUANTIZED.register("dequantize")
def dequantize(address: Address, target: CpuTarget) -> KernelFunction:
    """Bytes as the real numbers that they stand for."""
    key, shape = address.key, image_shape(address.key, address.width_in)

    def body(image: Any, output: Any, numbers: Numbers) -> None:
        _one_vector(shape, target, lambda i: T.buffer_store(output, real(image[i], numbers), [i]))

    return numbered_kernel(key, activations(key, shape), shape, body)


@QUANTIZED.register("add", "mul")
def of_two(address: Address, target: CpuTarget) -> KernelFunction:
    """Sums and products of two tensors of bytes, each with a scale of its own."""
    key, shape, operation = address.key, image_shape(address.key, address.width_in), OPERATIONS[address.key.op]

    def body(one: Any, two: Any, output: Any, numbers: Numbers) -> None:
        def make(at: Any) -> None:
            value = operation.function(real(one[at], numbers), real(two[at], numbers, 1))
            value = apply_epilogue(value, unclipped(key), None, None)
            T.buffer_store(output, made_of(key, value, numbers), [at])

        _one_vector(shape, target, make)

    return numbered_kernel(key, activations(key, shape, shape), shape, body)


@QUANTIZED.register("affine")
def normalised(address: Address, target: CpuTarget) -> KernelFunction:
    """A factor and a summand for each channel."""
    key, channels = address.key, address.width_in
    shape = image_shape(key, channels)

    def body(image: Any, factors: Any, output: Any, numbers: Numbers) -> None:
        with pixel_loop(shape, target) as pixel, channel_loop(channels, target) as c:
            value = real(image[pixel * channels + c], numbers) * factors[c] + factors[channels + c]
            value = apply_epilogue(value, unclipped(key), None, None)
            T.buffer_store(output, made_of(key, value, numbers), [pixel * channels + c])

    arguments = [*activations(key, shape), Argument("constant", (2, channels))]
    function = numbered_kernel(key, arguments, shape, body)
    return replace(function, quantized=lambda model: (normalisation_of(key, model), numbers_of(key, model)))


@QUANTIZED.register(*FUNCTIONS)
def by_table(address: Address, target: CpuTarget) -> KernelFunction:
    """An activation, looked up."""
    key, shape = address.key, image_shape(address.key, address.width_in)
    values = math.prod(shape)

    def body(image: Any, table: Any, output: Any) -> None:
        turns = values // AT_ONCE
        with row_loop(turns, target, values) as turn:
            for i in range(AT_ONCE):
                at = turn * AT_ONCE + i
                T.buffer_store(output, table[T.Cast("int32", image[at])], [at])
        for at in range(turns * AT_ONCE, values):
            T.buffer_store(output, table[T.Cast("int32", image[at])], [at])

    arguments = [*activations(key, shape), Argument("constant", (ENTRIES,), type=key.types.made)]

    def quantized(model: Quantized) -> tuple[Any, ...]:
        return (table_of(key, model),)

    return replace(light_kernel(key, arguments, shape, body), quantized=quantized)


@QUANTIZED.register("elementwise")
def expression(address: Address, target: CpuTarget) -> KernelFunction:
    """An expression of broadcast tensors of bytes and of constants, computed in float32."""
    key, read = address.key, Fused.of(address.key).reads

    def body(*buffers: Any) -> None:
        *tensors, scales, numbers, output = buffers
        known = {n: T.bind(numbers[int(n)]) for n in Number}
        pairs = {f"x{i}": [T.bind(scales[2 * i + j]) for j in (0, 1)] for i in range(len(read))}

        def real_of(name: str, value: Any) -> Any:
            if name not in pairs:
                return value
            zero, step = pairs[name]
            return (T.Cast(FLOAT32, value) - zero) * step

        write_loops(address, target, tensors, output, real_of, lambda value: made_of(key, value, known.__getitem__))

    def quantized(model: Quantized) -> tuple[Any, ...]:
        return *model.constants, scales_of(key, model), numbers_of(key, replace(model, read=()))

    own = Argument("constant", (len(read), 2)), Argument("constant", (len(Number),))
    function = light_kernel(key, [*fused_arguments(address), *own], operand_shape(address), body)
    return replace(function, quantized=quantized)


def _one_vector(shape: Shape, target: CpuTarget, make: Callable[[Any], None]) -> None:
    """``make`` for all values of an image, as one long vector that threads share row by row."""
    values = math.prod(shape)
    rows = math.prod(shape[:2]) if shares(target, values) else 1
    with row_loop(rows, target, values) as row, channel_loop(values // rows, target) as i:
        make(row * (values // rows) + i)
