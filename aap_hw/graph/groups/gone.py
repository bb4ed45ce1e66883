"""Where channels that a plan leaves out are in the values of the uncut network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from aap_hw.graph.groups.groups import Grouping
from aap_hw.graph.program.call import is_tensor
from aap_hw.graph.walk.labelling import Labelling


def gone_from(
    labelling: Labelling, grouping: Grouping, keep: Mapping[str, Sequence[int]]
) -> Callable[[Node], tuple[Tensor | None, ...]]:
    """Masks of the channels that go.

    Parameters
    ----------
    keep
        For each group that is cut, the channels that stay.

    Returns
    -------
    Callable
        Says of a node of the program, for each tensor that it yields, which positions are gone: true there, of the
        tensor's rank, and of length 1 along axes without channels. None stands for a tensor that stays whole.
    """
    atoms = np.zeros(grouping.member.size, dtype=bool)
    for number, group in enumerate(grouping.groups):
        if group.name in keep:
            channels = np.setdiff1d(np.arange(group.width), np.asarray(keep[group.name], dtype=np.int64))
            atoms |= (grouping.member == number) & np.isin(grouping.rank, channels)

    def of(node: Node) -> tuple[Tensor | None, ...]:
        result = labelling.of(node) if is_tensor(node) else labelling.labels[node]
        if node in labelling.across:  # what is gone along the other axis is zero in what reads the node
            result = labelling.across[node]
        found: list[Tensor | None] = []
        for labels in result if isinstance(result, tuple) else (result,):
            ids = np.array(-1) if labels is None else labels.ids
            # Parameters that weights are computed from have no atoms yet.
            is_known = (ids >= 0) & (ids < atoms.size)
            is_gone = is_known & atoms[np.where(is_known, ids, 0)] if atoms.size else np.array(False)
            found.append(torch.from_numpy(is_gone) if is_gone.any() else None)
        return tuple(found)

    return of
