"""How much attention each channel of each group gets on calibration images."""

from aap_hw.attention.alternatives import ALTERNATIVES
from aap_hw.attention.observer import AttentionObserver, attention_scores, observed
from aap_hw.attention.reading import read_attention
from aap_hw.attention.rounding import Dependence, Rounded, dependence
from aap_hw.attention.scale import SCALES, scaled
from aap_hw.attention.sensitivity import sensitivities
from aap_hw.attention.sums import REDUCTIONS, ActivationSums, Reduction

__all__ = [
    "ALTERNATIVES",
    "REDUCTIONS",
    "SCALES",
    "ActivationSums",
    "AttentionObserver",
    "Dependence",
    "Reduction",
    "Rounded",
    "attention_scores",
    "dependence",
    "observed",
    "read_attention",
    "scaled",
    "sensitivities",
]
