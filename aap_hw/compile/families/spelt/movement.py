"""Values picked from a tensor by index."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def _select(values: Tensor, axis: int, index: int) -> Tensor:
    """One index of an axis, which may be negative."""
    return values.narrow(axis, index % values.shape[axis], 1).squeeze(axis)


def _index(values: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    """Indexing of several axes by as many tensors, element by element.

    The new axes stand where the indexed ones were if these are neighbours, else first, as in PyTorch.
    """
    chosen = {axis: index for axis, index in enumerate(indices) if index is not None}
    first, last, rank = min(chosen), max(chosen), values.dim()
    others = [axis for axis in range(rank) if axis not in chosen]
    places, count = torch.zeros((), dtype=torch.int64), 1
    for axis, index in reversed(chosen.items()):
        size = values.shape[axis]
        places = places + count * torch.where(index < 0, index + size, index)
        count *= size
    rest = [values.shape[axis] for axis in others]
    rows = values.permute(*chosen, *others).reshape(count, *rest)
    picked = rows.index_select(0, places.reshape(-1)).reshape(*places.shape, *rest)
    before = first if len(chosen) == last - first + 1 else 0
    new = places.dim()
    return picked.permute(*range(new, new + before), *range(new), *range(new + before, picked.dim()))


MOVEMENT: dict[str, Callable[..., Tensor]] = {"select": _select, "index": _index}
