"""Whether a network that was cut still computes what it did without the channels that are gone.

The ground truth is the exported program of the uncut network, run without those channels (`silenced`); that it is the
network's own program is checked first, with all channels. How much may differ by rounding is decided in `rounding`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import nn

from aap_hw.activity import doing
from aap_hw.errors import UserError
from aap_hw.graph.channel_graph import ChannelGraph
from aap_hw.graph.check.rounding import reference
from aap_hw.graph.check.silenced import Silenced
from aap_hw.graph.program.copying import copied
from aap_hw.graph.program.inputs import Batch, in_batches, tensors_of
from aap_hw.graph.program.readiness import unwrapped

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
    batches = in_batches(tensors_of(samples), graph.batch)
    whole = reference(lambda: copied(model), batches, graph.names, same=lambda: Silenced(graph, model, {}))

    # What is stored of weights that were computed is rounded: they are compared as they are before.
    exact = copied(model).to(whole.precision) if graph.computes_weights else model

    def difference(kept: Keep, network: nn.Module) -> float:
        if graph.has_factors:  # which would be rounded in the network's own precision
            network = graph.cut(copied(model).to(whole.precision), kept)
        return whole.of(lambda: Silenced(graph, model, kept)).difference(copied(network))

    found = difference(keep, graph.cut(exact, keep) if graph.computes_weights else smaller)
    if not found:
        return smaller
    for name, channels in keep.items():
        alone = {name: channels}
        if difference(alone, graph.cut(exact, alone)):
            raise CutMismatchError(Mismatch(name, found, keep))
    raise CutMismatchError(Mismatch(None, found, keep))


def check_cutting(graph: ChannelGraph, model: nn.Module, samples: Batch) -> None:
    """Cut everything that may be cut to about half, to find what would end a run later before anything is measured.

    Raises as `checked_cut` does.
    """
    keep = {group.name: list(range(0, group.width, 2)) for group in graph.groups if group.frozen is None}
    checked_cut(graph, model, keep, samples)
