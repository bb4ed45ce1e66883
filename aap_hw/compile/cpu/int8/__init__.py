"""Kernels of bytes: uint8 activations, int8 weights, sums in int32. Importing it fills the table of kernels."""

from aap_hw.compile.cpu.int8 import (
    convolution,
    depthwise,
    light,
    movement,
    pooling,
    reductions,
    resizing,
    scaling,
    transposed,
)

__all__ = [
    "convolution",
    "depthwise",
    "light",
    "movement",
    "pooling",
    "reductions",
    "resizing",
    "scaling",
    "transposed",
]
