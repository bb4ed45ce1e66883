"""Light kernels: pooling, element-wise steps and changes of shape, for which memory traffic is the whole cost."""

from __future__ import annotations

from collections.abc import Callable

from aap_hw.compile.code.expressions import ACTIVATIONS
from aap_hw.compile.code.function import KernelFunction
from aap_hw.compile.cpu.concat import concat
from aap_hw.compile.cpu.elementwise import activation, add, affine, multiply, scale_channels
from aap_hw.compile.cpu.layout import (
    channel_shuffle,
    channel_slice,
    flatten,
    interleave,
    pad_channels,
    subsample,
    to_nchw,
    to_nhwc,
)
from aap_hw.compile.cpu.pooling import average_pool, global_average_pool, max_pool
from aap_hw.compile.cpu.softmax import softmax
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.target import CpuTarget

LIGHT_KERNELS: dict[str, Callable[[Address, CpuTarget], KernelFunction]] = {
    "max_pool2d": max_pool,
    "avg_pool2d": average_pool,
    "global_avg_pool2d": global_average_pool,
    **dict.fromkeys(ACTIVATIONS, activation),
    "add": add,
    "mul": multiply,
    "scale_channels": scale_channels,
    "affine": affine,
    "concat": concat,
    "interleave": interleave,
    "channel_shuffle": channel_shuffle,
    "channel_slice": channel_slice,
    "subsample": subsample,
    "pad_channels": pad_channels,
    "flatten": flatten,
    "softmax": softmax,
    "to_nhwc": to_nhwc,
    "to_nchw": to_nchw,
}


def build_light(address: Address, target: CpuTarget) -> KernelFunction:
    """Code of a light kernel; see ``LIGHT_KERNELS`` for the operators."""
    return LIGHT_KERNELS[address.key.op](address, target)
