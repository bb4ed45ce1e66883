"""Activations, other element-wise arithmetic, and distances."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def _selu(x: Tensor) -> Tensor:
    """As published (Klambauer et al., 2017, equation 2)."""
    alpha, scale = 1.6732632423543772, 1.0507009873554805
    return scale * (x.clamp(min=0) + alpha * (x.clamp(max=0).exp() - 1))


def _rrelu(x: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False) -> Tensor:
    """At inference the random slope is the mean of its bounds."""
    return torch.where(x >= 0, x, x * ((lower + upper) / 2))


def _erfc(x: Tensor) -> Tensor:
    return 1 - x.erf()


def _cdist(left: Tensor, right: Tensor, p: float = 2.0, mode: int | None = None) -> Tensor:
    """Distances between rows, from their differences: expanding the square would lose digits of short distances."""
    differences = (left.unsqueeze(-2) - right.unsqueeze(-3)).abs()
    if p == 1:
        return differences.sum(-1)
    return (differences**2).sum(-1).sqrt() if p == 2 else (differences**p).sum(-1) ** (1 / p)


def _clamp(values: Tensor, least: float | Tensor | None = None, most: float | Tensor | None = None) -> Tensor:
    """Values cut to two bounds, one of which may be missing. TVM has no infinite bound for whole numbers."""
    if not values.is_floating_point():
        limits = torch.iinfo(values.dtype if values.dtype.itemsize < 4 else torch.int32)
        least, most = limits.min if least is None else least, limits.max if most is None else most
    clamped: Tensor = torch.ops.aten.clamp(values, least, most)
    return clamped


ARITHMETIC: dict[str, Callable[..., Tensor]] = {
    "selu": _selu,
    "rrelu": _rrelu,
    "erfc": _erfc,
    "cdist": _cdist,
    "clamp": _clamp,
}
