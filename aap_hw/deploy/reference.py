"""What a deployed network must compute: PyTorch's outputs for real images, and how far others may be from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from aap_hw.errors import Fault
from aap_hw.graph.outputs import output_names, output_tensors
from aap_hw.prune.run import PrunedNetwork
from aap_hw.train.data import LabelledImages

# Outputs may differ from PyTorch's by rounding only: relative to the largest output of the network.
TOLERANCE = 1e-4
# How many go into a bundle, or are enough to see that a format was translated right.
FEW = 8


@dataclass(frozen=True)
class Reference:
    """Images (n, C, H, W), prepared as the network takes them, and PyTorch's outputs for them.

    Attributes
    ----------
    outputs : an array for each output, such as (n, classes), under its name.
    """

    images: torch.Tensor
    outputs: dict[str, np.ndarray]

    @classmethod
    def of(cls, network: PrunedNetwork, data: LabelledImages, count: int = FEW) -> Reference:
        """The network's outputs for ``count`` of the test images, spread over the classes."""
        images = data.tensors("test", network.origin.input_shape, data.spread("test", count))
        with torch.no_grad():
            returned = [network.module(batch) for batch in torch.split(images, 100)]
        parts = zip(*map(output_tensors, returned), strict=True)
        outputs = [torch.cat(part).numpy() for part in parts]
        return cls(images, dict(zip(output_names(returned[0]), outputs, strict=True)))

    @property
    def scores(self) -> np.ndarray | None:
        """PyTorch's score of each class, (n, classes), if that is what the network returns."""
        first, *others = self.outputs.values()
        return first if first.ndim == 2 and not others else None

    def agreement(self, outputs: Sequence[np.ndarray]) -> float | None:
        """Share of the images that get PyTorch's class, in percent; None if the network scores no classes."""
        scores = self.scores
        return None if scores is None else 100.0 * float(np.mean(outputs[0].argmax(1) == scores.argmax(1)))

    @property
    def tolerance(self) -> float:
        """How far an output may be from PyTorch's."""
        return TOLERANCE * max(1.0, *(float(np.abs(output).max()) for output in self.outputs.values()))

    def compare(self, outputs: Sequence[np.ndarray], what: str) -> float:
        """The largest difference of any output from PyTorch's.

        Raises
        ------
        Fault : it is more than rounding.
        """
        pairs = zip(outputs, self.outputs.values(), strict=True)
        difference = float(np.max([np.abs(here - there).max() for here, there in pairs]))
        if not difference <= self.tolerance:  # not so for NaN
            raise Fault(
                f"{what} differs from PyTorch by {difference:.3g} on {len(self.images)} images; nothing was written; "
                "this is a fault of aap-hw, please report it with the run folder"
            )
        return difference


def in_turn(answers: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """The outputs of several batches, each as one array."""
    return [np.concatenate(parts) for parts in zip(*answers, strict=True)]
