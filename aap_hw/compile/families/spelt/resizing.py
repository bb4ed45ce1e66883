"""Interpolation: along each axis, every output pixel is a weighted sum of a few input pixels.

Indices and weights are computed in float32 as in PyTorch, so that they are exactly the same.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

HALF = np.float32(0.5)
Taps = list[tuple[list[int], list[float]]]
"""For each term of the sums: the input pixel of every output pixel, and its weight."""


def _nearest(size: int, made: int, scale: float | None) -> Taps:
    return _picked(np.arange(made, dtype=np.float32) * _step(size, made, scale), size)


def forgets_factor(size: int, made: int) -> bool:
    """Whether PyTorch's nearest pixels of images, not those of lines and volumes, are the same whatever the factor."""
    return made in (size, 2 * size)


def _nearest_of_images(size: int, made: int, scale: float | None) -> Taps:
    return _nearest(size, made, None if forgets_factor(size, made) else scale)


def _nearest_exact(size: int, made: int, scale: float | None) -> Taps:
    return _picked(_centres(size, made, scale) + HALF, size)


def _centres(size: int, made: int, scale: float | None) -> np.ndarray:
    """Input coordinates of the output pixels' centres, rounded once, as a fused multiply-add rounds."""
    middles = np.arange(made) + 0.5
    return (middles * float(_step(size, made, scale)) - 0.5).astype(np.float32)


def _picked(at: np.ndarray, size: int) -> Taps:
    return [(np.clip(np.floor(at).astype(int), 0, size - 1).tolist(), [1.0] * len(at))]


def _step(size: int, made: int, scale: float | None) -> np.float32:
    return np.float32(1.0 / scale) if scale else np.float32(size) / np.float32(made)


def _linear(size: int, made: int, scale: float | None, align_corners: bool) -> Taps:
    scale = None if size == made else scale  # PyTorch copies an axis that stays as long, whatever the factor
    at = np.maximum(_corners(size, made) if align_corners else _centres(size, made, scale), 0)
    low = np.minimum(at.astype(int), size - 1)
    share = at - low.astype(np.float32)
    if not share.any():  # an axis that stays, or corners that meet
        return _picked(at, size)
    return [(low.tolist(), (1 - share).tolist()), (np.minimum(low + 1, size - 1).tolist(), share.tolist())]


def _cubic(size: int, made: int, scale: float | None, align_corners: bool) -> Taps:
    at = _corners(size, made) if align_corners else _centres(size, made, scale)
    low = np.floor(at).astype(int)
    share = (at - low).astype(np.float64)
    return [
        (np.clip(low + term, 0, size - 1).tolist(), [_cubic_weight(x, -0.75) for x in (term - share).tolist()])
        for term in (-1, 0, 1, 2)
    ]


def _corners(size: int, made: int) -> np.ndarray:
    """Input coordinates of the output pixels if the corner pixels of both images are aligned."""
    return np.arange(made, dtype=np.float32) * (np.float32(size - 1) / np.float32(max(made - 1, 1)))


def _antialiased(reach: float, weight: Callable[[float], float]) -> Callable[..., Taps]:
    """Taps of an antialiasing filter with a reach in pixels of the smaller image, as in Pillow."""

    def taps(size: int, made: int, scale: float | None, align_corners: bool) -> Taps:
        if size == made:  # is copied, too
            step = 1.0
        elif align_corners:
            step = (size - 1) / (made - 1) if made > 1 else 0.0
        else:
            step = 1.0 / scale if scale else size / made
        wide = max(step, 1.0)
        rows = []
        for place in range(made):
            centre = step * (place + 0.5)
            first = max(int(centre - reach * wide + 0.5), 0)
            last = min(int(centre + reach * wide + 0.5), size)
            shares = [weight((at - centre + 0.5) / wide) for at in range(first, last)]
            rows.append((first, [share / sum(shares) for share in shares]))
        length = max(len(shares) for _, shares in rows)
        return [
            (
                [min(first + term, size - 1) for first, _ in rows],
                [shares[term] if term < len(shares) else 0.0 for _, shares in rows],
            )
            for term in range(length)
        ]

    return taps


def _triangle(x: float) -> float:
    return max(1 - abs(x), 0.0)


def _cubic_weight(x: float, a: float = -0.5) -> float:
    """Keys, 1981; PyTorch takes one ``a`` for plain and another for antialiased resizing."""
    x = abs(x)
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0


def _resizing(taps: Callable[..., Taps], has_corners: bool = True) -> Callable[..., Tensor]:
    """The function that resizes all axes behind the channels."""

    def resize(image: Tensor, size: Sequence[int] | None, *how: Any) -> Tensor:
        corners, scales = how[:1] if has_corners else (), how[has_corners:]
        # One overload has all scales in a list, the other has one argument for each.
        factors = scales[0] if len(scales) == 1 and not isinstance(scales[0], float) else scales
        for axis, factor in zip(range(2, image.dim()), factors or itertools.repeat(None), strict=False):
            length = image.shape[axis]
            made = math.floor(length * factor) if size is None else size[axis - 2]
            terms = [
                image.index_select(axis, torch.tensor(places))
                * torch.tensor(weights).reshape(-1, *[1] * (image.dim() - axis - 1))
                if set(weights) != {1.0}
                else image.index_select(axis, torch.tensor(places))
                for places, weights in taps(length, made, factor, *corners)
            ]
            image = sum(terms[1:], start=terms[0])
        return image

    return resize


def _windows(size: int, made: int) -> list[range]:
    """The windows of adaptive pooling."""
    return [range(i * size // made, -(-(i + 1) * size // made)) for i in range(made)]


def _mean(size: int, made: int, _: float | None) -> Taps:
    windows = _windows(size, made)
    return [
        (
            [min(w.start + term, size - 1) for w in windows],
            [1 / len(w) if term < len(w) else 0.0 for w in windows],
        )
        for term in range(max(map(len, windows)))
    ]


def _largest(size: int, made: int, _: float | None) -> Taps:
    windows = _windows(size, made)
    return [([w[min(term, len(w) - 1)] for w in windows], [1.0] * made) for term in range(max(map(len, windows)))]


TAPS: dict[str, Callable[[int, int, float | None], Taps]] = {
    "nearest": _nearest,
    "nearest_exact": _nearest_exact,
    "linear": partial(_linear, align_corners=False),
    "linear_corners": partial(_linear, align_corners=True),
    "cubic": partial(_cubic, align_corners=False),
    "cubic_corners": partial(_cubic, align_corners=True),
    "smooth_linear": partial(_antialiased(1.0, _triangle), align_corners=False),
    "smooth_linear_corners": partial(_antialiased(1.0, _triangle), align_corners=True),
    "smooth_cubic": partial(_antialiased(2.0, _cubic_weight), align_corners=False),
    "smooth_cubic_corners": partial(_antialiased(2.0, _cubic_weight), align_corners=True),
    "mean": _mean,
    "largest": _largest,
}
"""By way of resizing: the taps that resize an axis from ``size`` to ``made`` pixels, given a factor or None."""


RESIZING = {
    **{f"upsample_nearest{rank}d": _resizing(_nearest, has_corners=False) for rank in (1, 3)},
    "upsample_nearest2d": _resizing(_nearest_of_images, has_corners=False),
    **{f"_upsample_nearest_exact{rank}d": _resizing(_nearest_exact, has_corners=False) for rank in (1, 2, 3)},
    "upsample_linear1d": _resizing(_linear),
    "upsample_bilinear2d": _resizing(_linear),
    "upsample_trilinear3d": _resizing(_linear),
    "upsample_bicubic2d": _resizing(_cubic),
    "_upsample_bilinear2d_aa": _resizing(_antialiased(1.0, _triangle)),
    "_upsample_bicubic2d_aa": _resizing(_antialiased(2.0, _cubic_weight)),
}
