"""How channels pass through each family of aten ops; importing the package fills the table in `registry`."""

from aap_hw.graph.walk.rules import (
    contraction,
    convolution,
    filled,
    gather,
    layout,
    normalisation,
    pieces,
    pointwise,
    recurrent,
    reduction,
    reshape,
    shuffle,
    spatial,
)
from aap_hw.graph.walk.rules.registry import RULES, Result, Rule

__all__ = [
    "RULES",
    "Result",
    "Rule",
    "contraction",
    "convolution",
    "filled",
    "gather",
    "layout",
    "normalisation",
    "pieces",
    "pointwise",
    "recurrent",
    "reduction",
    "reshape",
    "shuffle",
    "spatial",
]
