"""Which kernels there are in int8, and how the scales of what they read and make hang together."""

from __future__ import annotations

from aap_hw.compile.families.elementwise import ACTIVATIONS
from aap_hw.compile.families.expression import terms
from aap_hw.compile.families.family import FAMILIES, Family, Shape, image_shape, nothing
from aap_hw.compile.families.fused import AXES, Fused
from aap_hw.compile.families.movement import PADDING_MODES
from aap_hw.compile.families.resizing import axes_of
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey

# Most of a network's time: what these read is quantised for their sake.
WEIGHTED = frozenset(("conv2d", "depthwise_conv2d", "linear", "conv_transpose2d"))
# In int8 where all that they read is quantised anyway.
LIGHT = frozenset(
    ("add", "mul", "scale_channels", "affine", "avg_pool2d", "sum_pool2d", "global_avg_pool2d", "concat", *ACTIVATIONS)
)
# Each value that they make is one that they read, so all of these have one scale.
MOVING = frozenset(("to_nhwc", "to_nchw", "strided_copy", "flatten", "channel_shuffle", "channel_slice", "subsample"))
MOVING |= {"interleave", "max_pool2d"}
# Reductions that only add up or choose: the square root of a sum near 0 would make its rounding much larger.
ADDING = frozenset(("sum", "mean", "amax", "amin"))
# Functions that make no rounding of what they read much larger. Quotients, powers and logarithms near 0 do.
GENTLE = frozenset(("add", "sub", "mul", "neg", "abs", "minimum", "maximum", "clamp", *ACTIVATIONS))
GENTLE |= {"tanh", "erf", "gelu", "gelu_tanh", "mish", "log_sigmoid", "leaky_relu", "softplus", "elu"}


def is_moving(key: KernelKey) -> bool:
    """Whether each value that a kernel makes is one that it reads, or zero. Then all of these have one scale."""
    if key.op == "resize":
        return key.attribute("how") == "largest" or all(taps.is_picked for taps in axes_of(key))
    if key.op == "pad":
        return key.attribute("mode", PADDING_MODES[0]) != PADDING_MODES[0] or not float(key.attribute("value", "0"))
    return key.op in MOVING or key.op == "pad_channels"


def has_int8_form(key: KernelKey) -> bool:
    """Whether there is a kernel of this operator that reads bytes."""
    if key.op == "elementwise":
        fused = Fused.of(key)
        return fused.order == AXES and {term.function for term in terms(fused.expression)} <= GENTLE
    if key.op == "conv_transpose2d":
        return not key.attribute("groups")
    if key.op == "reduce":
        return key.attribute("of") in ADDING
    return key.op in WEIGHTED | LIGHT or key.op == "resize" or is_moving(key)


def _same(address: Address) -> Shape:
    return image_shape(address.key, address.width_out)


FAMILIES.register("quantize", "dequantize")(Family(_same, nothing, nothing))
