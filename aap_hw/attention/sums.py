"""Running sums of activation maps, and the attention scores that follow from them.

Covers the arithmetic only, for one activation at a time; which activations of a network are summed is decided
in `aap_hw.attention.observer`. Memory is that of one map (C, H, W), however many images are added.
"""

import math
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aap_hw import ranks
from aap_hw.errors import UserError, closest

Reduction = Literal["mean", "sum", "max"]
REDUCTIONS: tuple[str, ...] = get_args(Reduction)


class ActivationSums:
    """The sum of |Y| over the images seen so far, for one activation Y, and what its variance follows from.

    Parameters
    ----------
    with_map
        Whether |Y| is summed, which `scores` needs. The moments alone take half the time.

    Attributes
    ----------
    total
        Sum over images, float64, shape ``(C, H, W)``; or ``(C,)`` for an activation without a map. None
        before the first image.
    moments
        Sums of Y and of its square over images and pixels, float64, shape ``(2, C)``. None likewise.
    images
        How many images are in the sums.
    """

    def __init__(self, with_map: bool = True) -> None:
        self._with_map = with_map
        self._shape: tuple[int, ...] | None = None
        self.total: Tensor | None = None
        self.moments: Tensor | None = None
        self.images = 0

    def add(self, activation: Tensor) -> None:
        """Add a batch of shape ``(N, C, H, W)`` or ``(N, C)``.

        Raises
        ------
        ValueError
            If the maps have another shape than those before.
        """
        shape = tuple(activation.shape[1:])
        if self._shape not in (None, shape):
            raise ValueError(f"maps of shape {shape} do not add to {self._shape}")
        self._shape = shape
        # In float64: the sum must not depend on how the images were divided into batches. As few passes as can be: for
        # MobileNetV2 it is 6.7 million values an image.
        values = activation.to(torch.float64, copy=True)
        by_channel = values.movedim(1, 0).flatten(1)
        moments = torch.stack([by_channel.sum(dim=1), torch.einsum("cx,cx->c", by_channel, by_channel)])
        self.moments = _sum(self.moments, moments)
        if self._with_map:
            values.abs_()
            self.total = _sum(self.total, values[0] if len(values) == 1 else values.sum(dim=0))
        self.images += len(values)

    def gather(self) -> None:
        """Replace the sum by that over all processes that train together; each has seen at least one image."""
        assert self.moments is not None
        self.moments = ranks.summed(self.moments)
        if self.total is not None:
            self.total = ranks.summed(self.total)
        self.images = int(ranks.summed(torch.tensor(self.images, device=self.moments.device)))

    def scores(self, reduction: str = "mean", p: float = 1.0) -> NDArray[np.float64]:
        """Attention of each channel, shape ``(C,)``: ``reduce_hw((mean over the images of |Y|) ** p)``.

        The families of AAP (arXiv 2303.08595); its published code uses the mean over h and w, and p = 1.

        Parameters
        ----------
        reduction
            How the pixels of the mean map are summarised: ``mean``, ``sum`` or ``max``.
        p
            Exponent of each pixel, positive.

        Raises
        ------
        UserError
            If `reduction` or `p` is not as described.
        ValueError
            If no image has been added, or no map is summed.
        """
        check_score(reduction, p)
        if self.total is None:
            raise ValueError("no image has been added" if self._with_map else "no map is summed")
        powers = (self.total / self.images).reshape(len(self.total), -1) ** p
        if reduction == "max":
            reduced = powers.amax(dim=1)
        else:
            reduced = powers.mean(dim=1) if reduction == "mean" else powers.sum(dim=1)
        array: NDArray[np.float64] = reduced.cpu().numpy()
        return array

    def energy(self) -> NDArray[np.float64]:
        """Mean of the square of Y over images and pixels, of each channel, shape ``(C,)``.

        Raises
        ------
        ValueError
            If no image has been added.
        """
        _, square = self._means()
        return square

    def variance(self) -> NDArray[np.float64]:
        """Variance of Y over images and pixels, of each channel, shape ``(C,)``.

        Raises
        ------
        ValueError
            If no image has been added.
        """
        mean, square = self._means()
        spread: NDArray[np.float64] = np.maximum(square - mean**2, 0.0)
        return spread

    def _means(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Means of Y and of its square, of each channel, each of shape ``(C,)``."""
        if self.moments is None or self._shape is None:
            raise ValueError("no image has been added")
        mean, square = (self.moments / (self.images * math.prod(self._shape[1:]))).cpu().numpy()
        return mean, square


def _sum(before: Tensor | None, added: Tensor) -> Tensor:
    return added if before is None else before.add_(added.to(before.device))


def check_score(reduction: str, p: float) -> None:
    """Raise a UserError unless `reduction` and `p` describe an attention score."""
    if reduction not in REDUCTIONS:
        known = ", ".join(REDUCTIONS)
        raise UserError(
            f"unknown attention reduction '{reduction}'; use one of {known}{closest(reduction, REDUCTIONS)}"
        )
    if not (math.isfinite(p) and p > 0):
        raise UserError(f"the attention exponent p must be a positive number such as 1 or 2, not {p:g}")
