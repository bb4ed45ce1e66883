"""Batches of a network's inputs as tensors; what a network takes is said by `aap_hw.inputs`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]
"""One tensor for each input of a network, in their order, all of one batch."""
Batch = Tensor | Sequence[Tensor]
"""The same; a network's only input may be given as it is."""


def tensors_of(batch: Batch) -> Tensors:
    """The tensors of a batch."""
    return (batch,) if isinstance(batch, Tensor) else tuple(batch)


def in_batches(tensors: Tensors, size: int = 1) -> Iterator[Tensors]:
    """A batch in smaller ones; by default each sample as a batch of its own."""
    return zip(*(torch.split(each, size) for each in tensors), strict=True)
