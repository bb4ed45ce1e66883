"""Kernels of bytes: uint8 activations, int8 weights, sums in int32. Importing it fills the table of kernels."""

from aap_hw.compile.cpu.int8 import convolution, depthwise, light, movement, pooling, resizing, scaling

__all__ = ["convolution", "depthwise", "light", "movement", "pooling", "resizing", "scaling"]
