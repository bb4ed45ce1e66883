"""Whether a network that was cut still computes what it did without the channels that are gone.

The ground truth is the uncut network, changed so that nothing reads those channels. How much may differ by rounding is
decided in `rounding`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from aap_hw.activity import doing
from aap_hw.errors import UserError
from aap_hw.graph.channel_graph import ChannelGraph
from aap_hw.graph.copying import copied
from aap_hw.graph.inputs import Batch, in_batches, tensors_of
from aap_hw.graph.readiness import unwrapped
from aap_hw.graph.rounding import reference
from aap_hw.graph.surgery import removed_blocks

Keep = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Mismatch:
    """A cut that changed what the network computes.

    Parameters
    ----------
    group
        A group that is enough to show it when it is cut alone; None if only several together do.
    difference
        Of the outputs, as a share of the largest; infinite if the cut network does not run.
    keep
        The cut.
    """

    group: str | None
    difference: float
    keep: Keep

    def as_json(self) -> dict[str, Any]:
        """JSON values, which know no infinity."""
        return {**asdict(self), "difference": self.difference if np.isfinite(self.difference) else None}


class CutMismatchError(UserError):
    """A cut network is not what it should be, so that nothing made from it would be worth anything."""

    def __init__(self, mismatch: Mismatch) -> None:
        self.mismatch = mismatch
        what = f"the channel group '{mismatch.group}'" if mismatch.group else "several channel groups together"
        how = (
            f"by {mismatch.difference:.2g} of an output's largest value"
            if mismatch.difference < np.inf
            else "so far that it fails"
        )
        skip = f"'{mismatch.group}'" if mismatch.group else "GROUP for some of them"
        super().__init__(
            f"cutting {what} changes what the network computes otherwise, {how}, which is a fault of aap-hw; "
            f"begin again with --skip {skip}, which leaves it as it is"
        )


@doing("comparing the cut network with the whole one")
def checked_cut(graph: ChannelGraph, model: nn.Module, keep: Keep, samples: Batch) -> nn.Module:
    """Cut a model, and compare the result with the uncut model on a batch of its inputs, such as images (N, C, H, W).

    Raises
    ------
    CutMismatchError
        If they differ; a group that is to blame is looked for.
    UserError
        If the uncut model fails, or the two cannot be compared.
    """
    model = unwrapped(model)
    smaller = graph.cut(model, keep)
    difference = _difference(graph, model, smaller, keep, samples)
    if not difference:
        return smaller
    for name, channels in keep.items():
        alone = {name: channels}
        if _difference(graph, model, graph.cut(model, alone), alone, samples):
            raise CutMismatchError(Mismatch(name, difference, keep))
    raise CutMismatchError(Mismatch(None, difference, keep))


def check_cutting(graph: ChannelGraph, model: nn.Module, samples: Batch) -> None:
    """Cut everything that may be cut to about half, to find what would end a run later before anything is measured.

    Raises as `checked_cut` does.
    """
    keep = {group.name: list(range(0, group.width, 2)) for group in graph.groups if group.frozen is None}
    checked_cut(graph, model, keep, samples)


def _difference(graph: ChannelGraph, model: nn.Module, smaller: nn.Module, keep: Keep, samples: Batch) -> float:
    batches = in_batches(tensors_of(samples), graph.batch)
    return reference(lambda: _silenced(graph, model, keep), batches, graph.names).difference(copied(smaller))


@torch.no_grad()
def _silenced(graph: ChannelGraph, model: nn.Module, keep: Keep) -> nn.Module:
    """A copy of the uncut model in which nothing reads what `keep` leaves out, and branches that go are zero."""
    whole = copied(model)
    tensors = dict(whole.named_parameters(remove_duplicate=False))
    removed = removed_blocks(graph.blocks, keep)
    for path in (path for block in removed for path in block.modules):
        layer = whole.get_submodule(path)
        for tensor in (*layer.parameters(), getattr(layer, "running_mean", None)):
            if tensor is not None:
                tensor.zero_()
    gone_with_it = {name for block in removed for name in block.groups}
    for name, kept in keep.items():
        if name in gone_with_it:
            continue
        group = graph.group(name)
        gone = np.setdiff1d(np.arange(group.width), kept)
        for axis in group.axes:
            if axis.role == "in":
                tensors[axis.parameter].index_fill_(axis.dim, torch.from_numpy(axis.index[gone].ravel()), 0.0)
    return whole
