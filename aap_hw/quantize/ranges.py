"""How far the range of a value reaches, in several ways, and which of these does least to a network's outputs.

What lies beyond a range is cut off, and a wider range has wider steps. Which of the two hurts more depends on what the
network makes of its largest values. So each way is tried on some samples, for all values alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

from aap_hw.graph.program.inputs import Tensors
from aap_hw.quantize.pt2e import HistogramObserver

HISTOGRAM = "histogram"
WAYS: dict[str, float | None] = {HISTOGRAM: None, "all": 0.0, "99.98 %": 1e-4, "99.8 %": 1e-3}
"""Ways to choose a range: the one that rounds the histogram's values best, or all but a share of them at either end."""


class RangeObserver(HistogramObserver):  # type: ignore[misc] # torchao has no types
    """Watches a value, and rounds it to the range that it has by a way.

    Attributes
    ----------
    way : how the range is chosen; one of `WAYS`.
    acts : what it does to a value: ``watches`` it, ``leaves`` it alone, or ``rounds`` it.
    """

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self.way, self.acts = HISTOGRAM, "watches"
        self._known: dict[str, tuple[Tensor, Tensor]] = {}

    def forward(self, value: Tensor) -> Tensor:
        """The value, rounded if that is what it does."""
        if self.acts == "watches":
            self._known.clear()
            watched: Tensor = super().forward(value)
            return watched
        if self.acts == "leaves":
            return value
        scale, zero_point = self.calculate_qparams()
        return torch.fake_quantize_per_tensor_affine(
            value, float(scale), int(zero_point), self.quant_min, self.quant_max
        )

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """The scale and zero point by its way."""
        if self.way not in self._known:
            share = WAYS[self.way]
            found = super().calculate_qparams() if share is None else self._calculate_qparams(*self._inner(share))
            self._known[self.way] = found
        return self._known[self.way]

    def _inner(self, share: float) -> tuple[Tensor, Tensor]:
        """The range without a share of the values at either end, by the histogram."""
        if not share or not self.histogram.sum():
            return self.min_val, self.max_val
        below = self.histogram.cumsum(0) / self.histogram.sum()
        width = (self.max_val - self.min_val) / len(below)
        first, last = int((below <= share).sum()), int((below < 1 - share).sum()) + 1
        return self.min_val + first * width, self.min_val + last * width


@torch.no_grad()
def choose_ranges(watching: GraphModule, batches: Sequence[Tensors]) -> str:
    """Let the observers of a program, which have watched, choose ranges in the way that rounds its outputs best.

    Returns that way. Weights are not rounded meanwhile.
    """
    observers = [each for each in watching.modules() if isinstance(each, RangeObserver)]

    def outputs(acts: Literal["leaves", "rounds"], way: str = HISTOGRAM) -> list[Tensor]:
        for each in observers:
            each.acts, each.way = acts, way
        return outputs_of(watching, batches)

    exact = outputs("leaves")
    best = min(WAYS, key=lambda way: noise_share(exact, outputs("rounds", way)))
    for each in observers:
        each.way = best
    return best


@torch.no_grad()
def outputs_of(program: torch.nn.Module, batches: Sequence[Tensors]) -> list[Tensor]:
    """All tensors that a program returns, batch by batch."""
    made: list[Tensor] = []
    for batch in batches:
        answer: Any = program(*(each.clone() for each in batch))
        made += [each for each in tree_leaves(answer) if isinstance(each, Tensor)]
    return made


def noise_share(exact: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Mean square of the difference of some outputs over their variance, the mean over all outputs that are floats."""
    shares = [
        float((other - one).double().square().mean() / one.double().var(correction=0).clamp(min=1e-30))
        for one, other in zip(exact, found, strict=True)
        if one.is_floating_point()
    ]
    return sum(shares) / len(shares) if shares else 0.0
