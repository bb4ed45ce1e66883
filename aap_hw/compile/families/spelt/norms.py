"""Means and norms, summed so that float32 keeps its precision for any number of values.

TVM adds one value after the other, and computes a variance as the mean square minus the squared mean. For a 256x256
image that leaves three digits. Here a sum is a sum of sums of short rows, and a variance is the mean of squared
differences from the mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

# A row of at most this many values is summed one by one.
ROW = 256


def long_sum(values: Tensor, axes: Sequence[int]) -> Tensor:
    """The sum over some axes, which are kept with length 1."""
    for axis in axes:
        axis %= values.dim()
        while (size := values.shape[axis]) > 1:
            rows = -(-size // ROW)
            pads = [0, 0] * (values.dim() - axis - 1) + [0, rows * ROW - size]
            if rows > 1:
                in_rows = [*values.shape[:axis], rows, ROW, *values.shape[axis + 1 :]]
                values = F.pad(values, pads).reshape(in_rows).sum(axis + 1)
            else:
                values = values.sum(axis, keepdim=True)
    return values


def _axes(values: Tensor, axes: Sequence[int] | int | None) -> list[int]:
    if axes is None or axes == []:
        return list(range(values.dim()))
    return [axis % values.dim() for axis in ([axes] if isinstance(axes, int) else axes)]


def _shaped(kept: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    """A reduced value, without the reduced axes unless ``keepdim``."""
    return kept if keepdim else kept.reshape([size for axis, size in enumerate(kept.shape) if axis not in axes])


def mean_of(values: Tensor, axes: Sequence[int]) -> Tensor:
    """The mean over some axes, which are kept."""
    return long_sum(values, axes) / math.prod(values.shape[axis] for axis in axes)


def variance_of(values: Tensor, axes: Sequence[int], correction: float = 0) -> Tensor:
    """The variance over some axes, which are kept; the divisor is the number of values minus ``correction``."""
    count = math.prod(values.shape[axis] for axis in axes)
    return long_sum((values - mean_of(values, axes)) ** 2, axes) / max(count - correction, 0)


def _sum(values: Tensor, dim: Sequence[int] | int | None = None, keepdim: bool = False, dtype: None = None) -> Tensor:
    values = values.float()
    return _shaped(long_sum(values, axes := _axes(values, dim)), axes, keepdim)


def _mean(values: Tensor, dim: Sequence[int] | int | None = None, keepdim: bool = False, dtype: None = None) -> Tensor:
    return _shaped(mean_of(values, axes := _axes(values, dim)), axes, keepdim)


def _var(
    values: Tensor,
    dim: Sequence[int] | int | bool | None = None,
    unbiased: bool = True,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> Tensor:
    if isinstance(dim, bool):  # the overload over everything
        return _var(values, None, dim)
    axes = _axes(values, dim)
    return _shaped(variance_of(values, axes, float(unbiased) if correction is None else correction), axes, keepdim)


def _std(values: Tensor, *how: Any, **named: Any) -> Tensor:
    return _var(values, *how, **named).sqrt()


def _var_mean(
    values: Tensor, dim: Any = None, unbiased: bool = True, keepdim: bool = False, **named: Any
) -> tuple[Tensor, Tensor]:
    mean = _mean(values, None if isinstance(dim, bool) else dim, keepdim)
    return _var(values, dim, unbiased, keepdim, **named), mean


def _std_mean(values: Tensor, *how: Any, **named: Any) -> tuple[Tensor, Tensor]:
    variance, mean = _var_mean(values, *how, **named)
    return variance.sqrt(), mean


def _normalised(values: Tensor, axes: Sequence[int], eps: float) -> Tensor:
    return (values - mean_of(values, axes)) * (variance_of(values, axes) + eps).rsqrt()


def _along_channels(vector: Tensor, values: Tensor) -> Tensor:
    return vector.reshape(-1, *[1] * (values.dim() - 2))


def _group_norm(
    values: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    groups = values.reshape(values.shape[0], num_groups, -1, *values.shape[2:])
    result = _normalised(groups, range(2, groups.dim()), eps).flatten(1, 2)
    if weight is not None:
        result = result * _along_channels(weight, values)
    return result if bias is None else result + _along_channels(bias, values)


def _instance_norm(
    values: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    if use_input_stats:
        return _group_norm(values, values.shape[1], weight, bias, eps)
    return F.batch_norm(values, running_mean, running_var, weight, bias, False, momentum, eps)


def _layer_norm(
    values: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    rank = values.dim()
    result = _normalised(values, range(rank - len(normalized_shape), rank), eps)
    if weight is not None:
        result = result * weight
    return result if bias is None else result + bias


NORMS: dict[str, Callable[..., Any]] = {
    "sum": _sum,
    "mean": _mean,
    "var": _var,
    "std": _std,
    "var_mean": _var_mean,
    "std_mean": _std_mean,
    "group_norm": _group_norm,
    "instance_norm": _instance_norm,
    "layer_norm": _layer_norm,
}
