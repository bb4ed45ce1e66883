"""Which kernels there are in int8, and how the scales of what they read and make hang together."""

from __future__ import annotations

from aap_hw.compile.families.family import FAMILIES, Family, Shape, image_shape, nothing
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey

# Most of a network's time: what these read is quantised for their sake.
WEIGHTED = frozenset(("conv2d", "depthwise_conv2d", "linear"))
# In int8 where all that they read is quantised anyway.
LIGHT: frozenset[str] = frozenset()
# Each value that they make is one that they read, so both have one scale. Not all of them have a form in int8.
MOVING = frozenset(("to_nhwc", "to_nchw", "strided_copy", "flatten", "channel_shuffle", "channel_slice", "subsample"))
MOVING |= {"max_pool2d"}
MOVING_IN_INT8: frozenset[str] = frozenset()


def has_int8_form(key: KernelKey) -> bool:
    """Whether there is a kernel of this operator that reads bytes."""
    return key.op in WEIGHTED | LIGHT | MOVING_IN_INT8


def _same(address: Address) -> Shape:
    return image_shape(address.key, address.width_out)


FAMILIES.register("quantize", "dequantize")(Family(_same, nothing, nothing))
