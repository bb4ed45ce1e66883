"""Where channels that a plan leaves out are in the values of the uncut network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from aap_hw.graph.groups.groups import Grouping
from aap_hw.graph.program.call import is_tensor, shape_of
from aap_hw.graph.walk.labelling import Labelling
from aap_hw.graph.walk.labels import IntArray, Labels


class Gone:
    """Masks of the channels that go.

    Parameters
    ----------
    labelling, grouping
        Of the uncut network.
    keep
        For each group that is cut, the channels that stay.
    """

    def __init__(self, labelling: Labelling, grouping: Grouping, keep: Mapping[str, Sequence[int]]) -> None:
        self._labelling = labelling
        self._atoms = np.zeros(grouping.member.size, dtype=bool)
        for number, group in enumerate(grouping.groups):
            if group.name in keep:
                channels = np.setdiff1d(np.arange(group.width), np.asarray(keep[group.name], dtype=np.int64))
                self._atoms |= (grouping.member == number) & np.isin(grouping.rank, channels)

    def of(self, node: Node) -> tuple[Tensor | None, ...]:
        """For each tensor that a node of the program yields, which positions are gone.

        True there, of the tensor's rank, and of length 1 along axes without channels. None stands for a tensor that
        stays whole.
        """
        result = self._labelling.of(node) if is_tensor(node) else self._labelling.labels[node]
        if node in self._labelling.across:  # what is gone along the other axis is zero in what reads the node
            result = self._labelling.across[node]
        parts = result if isinstance(result, tuple) else (result,)
        return tuple(None if labels is None else self._mask(labels.ids) for labels in parts)

    def read_directly(self, placeholder: Node) -> Tensor | None:
        """The same of a parameter or buffer that is added, multiplied or read by a layer as an activation is."""
        name, rank = self._labelling.parameter_name(placeholder), len(shape_of(placeholder))
        for dim in range(rank):
            ids = self._labelling.axis_of(placeholder, dim)
            if name is not None and ids is not None and self._labelling.roles.get((name, dim)) == "scale":
                return self._mask(Labels.along(rank, dim, ids).ids)
        return None

    def _mask(self, ids: IntArray) -> Tensor | None:
        # Parameters that weights are computed from have no atoms yet.
        is_known = (ids >= 0) & (ids < self._atoms.size)
        is_gone = is_known & self._atoms[np.where(is_known, ids, 0)] if self._atoms.size else np.array(False)
        return torch.from_numpy(is_gone) if is_gone.any() else None
