"""What a deployed network must compute: PyTorch's outputs for real images, and how far others may be from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from aap_hw.errors import Fault
from aap_hw.prune.run import PrunedNetwork
from aap_hw.train.data import LabelledImages

# Outputs may differ from PyTorch's by rounding only: relative to the largest output of the network.
TOLERANCE = 1e-4
# How many go into a bundle, or are enough to see that a format was translated right.
FEW = 8


@dataclass(frozen=True)
class Reference:
    """Images (n, C, H, W), prepared as the network takes them, and PyTorch's outputs for them (n, classes)."""

    images: torch.Tensor
    outputs: np.ndarray

    @classmethod
    def of(cls, network: PrunedNetwork, data: LabelledImages, count: int = FEW) -> Reference:
        """The network's outputs for ``count`` of the test images, spread over the classes."""
        images = data.tensors("test", network.origin.input_shape, data.spread("test", count))
        with torch.no_grad():
            outputs = [network.module(batch).numpy() for batch in torch.split(images, 100)]
        return cls(images, np.concatenate(outputs))

    @property
    def tolerance(self) -> float:
        """How far an output may be from PyTorch's."""
        return TOLERANCE * max(1.0, float(np.abs(self.outputs).max()))

    def compare(self, outputs: np.ndarray, what: str) -> float:
        """The largest difference from PyTorch's outputs.

        Raises
        ------
        Fault : it is more than rounding.
        """
        difference = float(np.abs(outputs - self.outputs).max())
        if not difference <= self.tolerance:  # not so for NaN
            raise Fault(
                f"{what} differs from PyTorch by {difference:.3g} on {len(self.images)} images; nothing was written; "
                "this is a fault of aap-hw, please report it with the run folder"
            )
        return difference
