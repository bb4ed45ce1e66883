"""Reductions of bytes that only add up or choose: sums, means and extreme values, whose scale is applied at the end."""

from __future__ import annotations

from typing import Any

from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code.function import KernelFunction, activations
from aap_hw.compile.code.quantized import Number, unclipped
from aap_hw.compile.code.reductions import finished
from aap_hw.compile.cpu.emit import spread, vector
from aap_hw.compile.cpu.int8.epilogue import Numbers, made_of
from aap_hw.compile.cpu.int8.light import numbered_kernel
from aap_hw.compile.cpu.kernels import QUANTIZED
from aap_hw.compile.cpu.reductions import reduction_loops
from aap_hw.compile.families.reductions import Reduction
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.precision import FLOAT32
from aap_hw.compile.keys.target import CpuTarget


@QUANTIZED.register("reduce")
def reduction(address: Address, target: CpuTarget) -> KernelFunction:
    """A reduction along an axis. Whole numbers are added up in float32, which has all sums below 2^24 exactly."""
    key, shape = address.key, Reduction.of(address)
    last = key.having(epilogue=unclipped(key))

    def body(image: Any, output: Any, numbers: Numbers) -> None:
        def read(buffer: Any, at: Any, lanes: int) -> Any:
            type_ = f"{FLOAT32}x{lanes}" if lanes > 1 else FLOAT32
            return T.Cast(type_, vector(buffer, at, lanes)) - spread(numbers(Number.ZERO_READ), lanes)

        def made(found: Any) -> Any:
            return made_of(key, finished(last, shape.reduced, found * numbers(Number.STEP_READ)), numbers)

        reduction_loops(address, target, FLOAT32, read, made)(image, output)

    return numbered_kernel(key, activations(key, shape.source), shape.output, body)
