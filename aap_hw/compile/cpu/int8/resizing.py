"""Resizing of bytes: as they are where each is one of the image's, or else sums of them in float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code import DEFINITIONS
from aap_hw.compile.code.function import Argument, KernelFunction
from aap_hw.compile.code.quantized import Number, Quantized, numbers_of
from aap_hw.compile.cpu.int8.epilogue import made_of
from aap_hw.compile.cpu.int8.light import real
from aap_hw.compile.cpu.kernels import QUANTIZED
from aap_hw.compile.cpu.loops import light_kernel
from aap_hw.compile.cpu.resizing import resizing_loops
from aap_hw.compile.families.quantised import is_moving
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.precision import FLOAT32
from aap_hw.compile.keys.target import CpuTarget


@QUANTIZED.register("resize")
def resize(address: Address, target: CpuTarget) -> KernelFunction:
    """Weights of a sum add up to one, so that numbers are combined before they are scaled."""
    key, definition = address.key, DEFINITIONS["resize"](address)
    is_moved = is_moving(key) and key.types.made == key.types.read

    def body(*buffers: Any) -> None:
        *tensors, numbers, output = buffers
        if is_moved:
            resizing_loops(address, target, key.types.read)(*tensors, output)
            return
        known = {n: T.bind(numbers[int(n)]) for n in Number}
        resizing_loops(address, target, FLOAT32, _scaled(key, known.__getitem__))(*tensors, output)

    def quantized(model: Quantized) -> tuple[np.ndarray, ...]:
        return *definition.literals, numbers_of(key, model)

    arguments = [*definition.arguments, Argument("constant", (len(Number),))]
    return replace(light_kernel(key, arguments, definition.shape, body), quantized=quantized)


def _scaled(key: Any, numbers: Any) -> Callable[[Any], Any]:
    return lambda value: made_of(key, real(value, numbers), numbers)
