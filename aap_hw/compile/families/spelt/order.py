"""Sorting, top k, the place of the largest; and running sums, products and maxima."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Every value is compared with every other one of its row.
LONGEST_ROW = 1024


def _running(combine: Callable[[Tensor, Tensor], Tensor], neutral: float) -> Callable[..., Tensor]:
    """Running results along a row, such as cumulative sums, in log2(length) steps."""

    def run(values: Tensor, dim: int, dtype: None = None) -> Tensor:
        row, distance = values.movedim(dim, -1), 1
        while distance < values.shape[dim]:
            row = combine(row, F.pad(row[..., :-distance], (distance, 0), value=neutral))
            distance *= 2
        return row.movedim(-1, dim)

    return run


def _running_maximum(values: Tensor, dim: int) -> tuple[Tensor]:
    return (_running(torch.maximum, float("-inf"))(values, dim),)


def _running_minimum(values: Tensor, dim: int) -> tuple[Tensor]:
    return (_running(torch.minimum, float("inf"))(values, dim),)


def _in_order(values: Tensor, count: int, dim: int, descending: bool) -> tuple[Tensor, Tensor]:
    """The first values of each row in order, and their places; a value's rank is how many come before it."""
    size = values.shape[dim]
    if size > LONGEST_ROW:
        raise NotImplementedError(f"rows of {size}")
    row, places = values.movedim(dim, -1), torch.arange(size)
    one, other = row.unsqueeze(-1), row.unsqueeze(-2)
    comes_before = (other > one) if descending else (other < one)
    is_first_of_equals = (other == one) & (places < places.unsqueeze(-1))
    ranks = (comes_before | is_first_of_equals).float().sum(-1)
    has_rank = ranks.unsqueeze(-2) == torch.arange(count).unsqueeze(-1)
    ordered = torch.where(has_rank, row.unsqueeze(-2), 0.0).sum(-1)
    found = torch.where(has_rank, places.float(), 0.0).sum(-1)
    return ordered.movedim(-1, dim), found.long().movedim(-1, dim)


def _sort(values: Tensor, dim: int = -1, descending: bool = False, stable: bool | None = None) -> tuple[Tensor, Tensor]:
    return _in_order(values, values.shape[dim], dim, descending)


def _argsort(values: Tensor, dim: int = -1, descending: bool = False, stable: bool | None = None) -> Tensor:
    return _in_order(values, values.shape[dim], dim, descending)[1]


def _topk(values: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> tuple[Tensor, Tensor]:
    return _in_order(values, k, dim, largest)


def _maximum(values: Tensor, other: Tensor | int | None = None, keepdim: bool = False) -> Tensor | tuple[Tensor, ...]:
    """The maximum of everything, of two tensors, or over an axis, then with the places of the maxima."""
    if isinstance(other, Tensor):
        return torch.maximum(values, other)
    return values.amax() if other is None else (values.amax(other, keepdim), values.argmax(other, keepdim))


def _minimum(values: Tensor, other: Tensor | int | None = None, keepdim: bool = False) -> Tensor | tuple[Tensor, ...]:
    if isinstance(other, Tensor):
        return torch.minimum(values, other)
    return values.amin() if other is None else (values.amin(other, keepdim), values.argmin(other, keepdim))


ORDER: dict[str, Callable[..., Any]] = {
    "cumsum": _running(torch.add, 0.0),
    "cumprod": _running(torch.mul, 1.0),
    "cummax": _running_maximum,
    "cummin": _running_minimum,
    "sort": _sort,
    "argsort": _argsort,
    "topk": _topk,
    "max": _maximum,
    "min": _minimum,
}
