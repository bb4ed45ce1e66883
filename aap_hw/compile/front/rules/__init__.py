"""Which kernels each family of aten operators becomes; importing the package fills the table in `registry`."""

from aap_hw.compile.front.rules import (
    adaptive,
    channels,
    convolution,
    elementwise,
    fused,
    layout,
    linear,
    movement,
    normalisation,
    order,
    padding,
    pooling,
    products,
    recurrent,
    reductions,
    resizing,
    sampling,
)
from aap_hw.compile.front.rules.registry import RULES

__all__ = [
    "RULES",
    "adaptive",
    "channels",
    "convolution",
    "elementwise",
    "fused",
    "layout",
    "linear",
    "movement",
    "normalisation",
    "order",
    "padding",
    "pooling",
    "products",
    "recurrent",
    "reductions",
    "resizing",
    "sampling",
]
