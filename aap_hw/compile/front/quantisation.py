"""What a quantised network is: its float program, and how the values of that program are stored in bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from aap_hw.compile.keys.precision import Scale

LARGEST_WEIGHT = 127


@dataclass(frozen=True)
class Quantisation:
    """The scales of a float program's values and weights.

    Attributes
    ----------
    values
        By the names of the program's nodes: those whose values are stored as uint8. All readers read these.
    weights
        By the names that weights have in the model's state: one scale for each output channel, (C_out,) float32. The
        weights are stored as int8, symmetric about 0.
    lowest
        The smallest number that weights may be stored as, by their names, where it is not -127.
    axes
        The axis of the output channels in the model's weights, by their names, where it is not the first.
    """

    values: Mapping[str, Scale] = field(default_factory=dict)
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    lowest: Mapping[str, int] = field(default_factory=dict)
    axes: Mapping[str, int] = field(default_factory=dict)

    def lowest_weight(self, name: str) -> int:
        """The smallest number that weights of this name may be stored as."""
        return self.lowest.get(name, -LARGEST_WEIGHT)
