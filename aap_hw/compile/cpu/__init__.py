"""Kernels for CPUs: loops, vectors and register tiles written out. Importing the package fills the table of kernels."""

from aap_hw.compile.cpu import (
    concat,
    convolution,
    depthwise,
    elementwise,
    fused,
    movement,
    normalisation,
    pooling,
    products,
    recurrent,
    reductions,
    resizing,
    sampling,
    softmax,
    strided,
    transposed,
    volume,
)
from aap_hw.compile.cpu.kernels import KERNELS, PACKINGS

__all__ = [
    "KERNELS",
    "PACKINGS",
    "concat",
    "convolution",
    "depthwise",
    "elementwise",
    "fused",
    "movement",
    "normalisation",
    "pooling",
    "products",
    "recurrent",
    "reductions",
    "resizing",
    "sampling",
    "softmax",
    "strided",
    "transposed",
    "volume",
]
