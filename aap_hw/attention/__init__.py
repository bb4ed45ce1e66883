"""How much attention each channel of each group gets on calibration images."""

from aap_hw.attention.alternatives import ALTERNATIVES
from aap_hw.attention.contribution import contributions
from aap_hw.attention.observer import AttentionObserver, attention_scores
from aap_hw.attention.scale import SCALES, scaled
from aap_hw.attention.sums import REDUCTIONS, ActivationSums, Reduction

__all__ = [
    "ALTERNATIVES",
    "REDUCTIONS",
    "SCALES",
    "ActivationSums",
    "AttentionObserver",
    "Reduction",
    "attention_scores",
    "contributions",
    "scaled",
]
