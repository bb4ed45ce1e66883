"""Element-wise kernels as `code.elementwise` defines them, in as few loops as the operands allow."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code import DEFINITIONS
from aap_hw.compile.code.elementwise import OPERATIONS, Reach, operation_of
from aap_hw.compile.code.function import KernelFunction
from aap_hw.compile.cpu.kernels import KERNELS
from aap_hw.compile.cpu.loops import channel_loop, light_kernel, pixel_loop, row_loop, shares
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.target import CpuTarget


@KERNELS.register(*OPERATIONS)
def element_wise(address: Address, target: CpuTarget) -> KernelFunction:
    """A function of the values at one index. Without an operand for each channel, an image is one long vector."""
    definition, operation = DEFINITIONS[address.key.op](address), operation_of(address.key)
    batch, height, width, channels = shape = definition.shape
    values = math.prod(shape)
    rows = batch * height if shares(target, values) else 1

    def value(buffers: Any, place: Callable[[Reach], Any]) -> Any:
        return operation.function(*[b[place(reach)] for b, reach in zip(buffers, operation.operands, strict=True)])

    def one_vector(*buffers: Any) -> None:
        *operands, output = buffers
        with row_loop(rows, target, values) as row, channel_loop(values // rows, target) as i:
            at = row * (values // rows) + i
            T.buffer_store(output, value(operands, lambda _: at), [at])

    def pixel_by_pixel(*buffers: Any) -> None:
        *operands, output = buffers
        with pixel_loop(shape, target) as pixel:
            own = T.bind(pixel // (height * width) * channels) if Reach.IMAGE in operation.operands else 0
            with channel_loop(channels, target) as c:
                at = pixel * channels + c
                places = {Reach.PLACE: at, Reach.IMAGE: own + c, Reach.CHANNEL: c}
                T.buffer_store(output, value(operands, places.__getitem__), [at])

    body = one_vector if set(operation.operands) == {Reach.PLACE} else pixel_by_pixel
    return light_kernel(address.key, definition.arguments, shape, body)
