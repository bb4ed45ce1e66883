"""What quantised kernels with weights share on a CPU: their arguments, and the way from a sum to what is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code.approximations import WITHOUT_FRACTION, sigmoid_for_bytes, silu_for_bytes
from aap_hw.compile.code.expressions import ACTIVATIONS, number
from aap_hw.compile.code.function import Argument, KernelFunction, apply_epilogue
from aap_hw.compile.code.quantized import (
    Number,
    Quantized,
    channel_constants,
    clip_of,
    made_in_steps,
    numbers_of,
    unclipped,
)
from aap_hw.compile.cpu.emit import Tensor, kernel_code, lane_loop, registers, spread, store, vector
from aap_hw.compile.cpu.int8.gated import TABLE, Gated
from aap_hw.compile.cpu.int8.storing import BITS_OF_IT, Bounds, saturates
from aap_hw.compile.cpu.isa import GROUP
from aap_hw.compile.cpu.kernels import Packing
from aap_hw.compile.families import Shape, family_of
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.keys.precision import FLOAT32
from aap_hw.compile.keys.target import CpuTarget

Numbers = Callable[[Number], Any]

FOR_BYTES = {**ACTIVATIONS, "sigmoid": sigmoid_for_bytes, "silu": silu_for_bytes}
"""As float32's, but those of many steps in fewer of them."""
LONG = {"sigmoid", "silu"}
CURVES = {*LONG, "hardswish"}
"""Functions that take registers for constants, or for what they come from, beside the sums."""


def quantized_kernel(
    address: Address,
    image: Shape,
    packed: Packing,
    order: np.ndarray,
    shift: int,
    body: Callable[..., None],
    *,
    reached: np.ndarray | None = None,
    gated: Gated | None = None,
) -> KernelFunction:
    """A kernel with weights, whose loops ``body`` writes over flat buffers.

    These are: image, perhaps a residual, packed weights, what sums begin with, factors and behind them offsets, numbers
    of the whole kernel, and the output. ``order`` says which channel's are at each place. Where windows lack taps that
    lie outside of the image, ``reached`` is (kinds of windows, taps), and sums begin with something else for each kind.
    Of a ``gated`` epilogue the table stands before the output.
    """
    key = address.key
    types, output = key.types, family_of(key).output(address)
    residual = [Argument("residual", output, type=types.read)] if "add" in key.epilogue else []
    arguments = [
        Argument("activation", image, type=types.read),
        *residual,
        Argument("weight", packed.shape, type=packed.type),
        Argument("constant", (1 if reached is None else len(reached), len(order)), type=types.sum),
        Argument("constant", (2, len(order))),
        Argument("constant", (len(Number),)),
        *([TABLE] if gated is not None else []),
    ]
    tensors = [Tensor(f"input_{i}", argument.shape, argument.type) for i, argument in enumerate(arguments)]
    code = kernel_code([*tensors, Tensor("output", output, types.made)], body)

    def quantized(model: Quantized) -> tuple[Any, ...]:
        assert model.weight is not None
        constants, numbers = channel_constants(key, model, order, shift, reached), numbers_of(key, model)
        if gated is not None:
            starts, channels, table = gated.constants(model, *constants)
            return packed.pack(model.weight), starts, channels, numbers, table
        return packed.pack(model.weight), *constants, numbers

    return KernelFunction(code, tuple(arguments), output, types.made, quantized=quantized)


def finished(key: KernelKey, total: Any, factor: Any, offset: Any, numbers: Numbers, residual: Any) -> Any:
    """What a kernel makes of the sum at one place; ``residual`` is the number to add there, if any."""
    return made_of(key, real(key, total, factor, offset, numbers, residual), numbers)


def real(key: KernelKey, total: Any, factor: Any, offset: Any, numbers: Numbers, residual: Any) -> Any:
    """The number at the end of a kernel's epilogue, before it is rounded."""
    value = T.Cast(FLOAT32, total) * factor + offset
    steps: Sequence[str] = [step for step in unclipped(key) if step != "bias"]
    if residual is not None:
        residual = (T.Cast(FLOAT32, residual) - numbers(Number.ZERO_ADDED)) * numbers(Number.STEP_ADDED)
    return apply_epilogue(value, steps, None, residual, FOR_BYTES)


def made_of(key: KernelKey, value: Any, numbers: Numbers) -> Any:
    """What a kernel writes for a real number at the end of its epilogue."""
    if key.types.made != "uint8":
        return value
    return T.Cast("uint8", in_whole_steps(in_steps(key, value, numbers), numbers))


def in_steps(key: KernelKey, value: Any, numbers: Numbers) -> Any:
    """A real number at the end of an epilogue in steps of the output."""
    return value if made_in_steps(key) else value * numbers(Number.STEPS_MADE)


def in_whole_steps(value: Any, numbers: Numbers) -> Any:
    """A real number of steps as the int32 that stands for it, rounded to the nearest, of two to the even one."""
    inside = te.min(te.max(value, numbers(Number.LOWEST)), numbers(Number.HIGHEST))
    bits = T.reinterpret("int32", inside + number(WITHOUT_FRACTION))
    return bits - (BITS_OF_IT - T.Cast("int32", numbers(Number.ZERO_MADE)))


def bounds_of(key: KernelKey, numbers: Numbers) -> Bounds:
    """What a kernel's output can hold."""
    zero = numbers(Number.ZERO_MADE)
    whole = T.bind(T.Cast("int16", zero))
    lowest, highest = (T.bind(T.Cast("uint8", zero + numbers(n))) for n in (Number.LOWEST, Number.HIGHEST))
    return Bounds(whole, lowest, highest, clip_of(key))


def in_vectors(values: Any, lanes: int) -> list[Any]:
    """Four times as many bytes as a vector has lanes, as vectors of float32 in their order."""
    size, found = GROUP * lanes, list[Any]()
    for v in range(GROUP):
        # Three zeros behind each byte make it an int32.
        places = [place for i in range(v * lanes, (v + 1) * lanes) for place in (i, size, size, size)]
        widened = tirx.Shuffle([values, spread(T.uint8(0), size)], places)
        found.append(T.Cast(f"{FLOAT32}x{lanes}", T.reinterpret(f"int32x{lanes}", widened)))
    return found


def reals(
    key: KernelKey,
    sums: Sequence[tuple[Any, Any]],
    lanes: int,
    constants: tuple[Any, int],
    numbers: Numbers,
    added: Callable[[int, Any], Any] | None,
    target: CpuTarget,
) -> list[Any]:
    """The numbers that vectors of sums come to, in steps if bytes are made, for `to_bytes` on that CPU.

    With each vector comes the place of its first channel among the factors, ``constants``; offsets lie so much further
    on. ``added(v, i)`` is what is added to lane i of vector v, if anything is.
    """
    factors, apart = constants
    is_plain, values = {*unclipped(key)} <= {"bias"}, list[Any]()
    for v, (total, place) in enumerate(sums):
        c = T.bind(place)
        if is_plain:
            factor, offset = (vector(factors, begin + c, lanes) for begin in (0, apart))
            values.append(T.Cast(f"{FLOAT32}x{lanes}", total) * factor + offset)
            continue
        whole, made = registers(lanes, key.types.sum), registers(lanes, FLOAT32)
        store(whole, total, 0, lanes)
        with lane_loop(lanes) as i:
            residual = added(v, i) if added is not None else None
            value = real(key, whole[i], factors[c + i], factors[apart + c + i], numbers, residual)
            if key.types.made == "uint8":
                value = in_steps(key, value, numbers)
                # Larger ones would not fit an int32. With a bias only, constants are such that there are none.
                value = value if saturates(target) else T.min(value, numbers(Number.HIGHEST))
            T.buffer_store(made, value, [i])
        values.append(vector(made, 0, lanes))
    return [T.bind(value) for value in values]
