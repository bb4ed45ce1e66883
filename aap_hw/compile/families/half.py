"""Which kernels there are in half precision, beside those that read bytes."""

from __future__ import annotations

from aap_hw.compile.families.quantised import has_int8_form
from aap_hw.compile.keys.key import KernelKey

# What int8 has no form of, and what float32 computes inside of a kernel.
OTHERS = frozenset(
    ("affine", "concat", "conv_transpose2d", "depthwise_conv_transpose2d", "resize", "pad", "pad_channels")
)
OTHERS |= {"layer_norm", "rms_norm", "group_norm", "l2_norm", "softmax"}
# Twice as fast in half precision as in float32, so that what they read is stored in it for their sake.
FASTER = frozenset(("conv2d", "depthwise_conv2d", "linear"))


def has_half_form(key: KernelKey) -> bool:
    """Whether there is a kernel of this operator that reads half precision and rounds what it makes once."""
    return key.op in OTHERS or has_int8_form(key)
