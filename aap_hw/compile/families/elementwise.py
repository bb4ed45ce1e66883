"""Kernels that make each value of an image from the values at the same place: activations, sums, products."""

from __future__ import annotations

from aap_hw.compile.families.family import FAMILIES, Family, Shape, image_shape, nothing
from aap_hw.compile.keys.address import Address

# Each may end an epilogue, and is a kernel of its own if no kernel before it can include it.
ACTIVATIONS = ("relu", "relu6", "sigmoid", "silu", "hardsigmoid", "hardswish")


def _same(address: Address) -> Shape:
    return image_shape(address.key, address.width_out)


def scale_and_shift(address: Address) -> int:
    """Numbers of a batch normalisation that is its own kernel: a factor and a summand for each channel."""
    return 2 * address.width_out


FAMILIES.register(*ACTIVATIONS, "cast", "add", "mul", "scale_channels")(Family(_same, nothing, nothing))
FAMILIES.register("affine")(Family(_same, nothing, scale_and_shift))
