"""How far the range of a value reaches is chosen by what rounding to it does to the outputs, not to the value."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from aap_hw.quantize.quantizer import VALUES
from aap_hw.quantize.ranges import RangeObserver, choose_ranges

LARGEST = 300.0


class Watched(nn.Module):
    """A value that is watched, and what is made of it."""

    def __init__(self, make: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        how = {"dtype": VALUES.dtype, "quant_min": 0, "quant_max": 255, "qscheme": VALUES.qscheme}
        self.observer, self.make = RangeObserver(**how), make

    def forward(self, x: Tensor) -> Tensor:
        return self.make(self.observer(x))


@pytest.mark.parametrize(
    ("make", "reaches"),
    [(lambda x: x.clamp(-3, 3), (3, 5)), (lambda x: x, (0.98 * LARGEST, 1.02 * LARGEST))],
    ids=["large values are cut off behind it", "the largest is returned"],
)
def test_the_range_is_the_one_whose_rounding_moves_the_outputs_least(
    make: Callable[[Tensor], Tensor], reaches: tuple[float, float]
) -> None:
    x = torch.randn(1, 2000, generator=torch.Generator().manual_seed(0))
    x[0, 7] = LARGEST
    watched = Watched(make)
    watched(x)
    way = choose_ranges(watched, [(x,)])  # type: ignore[arg-type]
    assert watched.observer.way == way
    scale, zero_point = watched.observer.calculate_qparams()
    assert reaches[0] < float(scale * (255 - zero_point)) < reaches[1]

    def moved(lowest: float, highest: float) -> float:
        step = (highest - lowest) / 255
        return float((make((x.clamp(lowest, highest) / step).round() * step) - make(x)).square().mean())

    chosen = float((watched(x) - make(x)).square().mean())
    assert chosen <= 1.1 * min(moved(float(x.min()), LARGEST), moved(-4, 4))
