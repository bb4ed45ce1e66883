"""What kernels with weights read on any device: an image, perhaps a residual, weights and a bias."""

from __future__ import annotations

from aap_hw.compile.code.function import Argument
from aap_hw.compile.families import Shape, family_of
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.precision import FLOAT32


def weighted_arguments(
    address: Address, image: Shape, weight: Shape, type_: str = FLOAT32, *, bias_of_any_width: bool = False
) -> list[Argument]:
    """Arguments in calling order, given how the image and the packed weight lie in memory, and the weight's type."""
    key, channels = address.key, address.width_out
    types, made = key.types, family_of(key).output(address)
    residual = [Argument("residual", made, type=types.read)] if "add" in key.epilogue else []
    return [
        Argument("activation", image, type=types.read),
        *residual,
        Argument("weight", weight, type=type_),
        Argument("bias", (channels,), bias_of_any_width, types.sum),
    ]
