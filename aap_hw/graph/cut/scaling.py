"""The factor 1 / sqrt(d) of attention whose width d is cut.

``F.scaled_dot_product_attention`` divides by the root of the width that it sees. The network without some of the
channels would still divide by the root of the whole width, so that the cut network has to multiply its queries by
sqrt(d_cut / d). This goes into the rows of the layer that makes them, which `absorbing` finds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from aap_hw.graph.groups.widths import WidthExpr
from aap_hw.graph.walk.absorbing import Rows


@dataclass(frozen=True)
class Rescaling:
    """Rows that a cut network needs sqrt(width / width before) times as large.

    Parameters
    ----------
    rows
        In the uncut network.
    width
        That of the queries of one head.
    """

    rows: tuple[Rows, ...]
    width: WidthExpr

    @torch.no_grad()
    def apply(self, model: nn.Module, widths: Mapping[str, int], full: Mapping[str, int]) -> None:
        """Multiply the rows of a model that is not cut yet."""
        factor = math.sqrt(self.width.at(widths) / self.width.at(full))
        for each in self.rows:
            path, _, leaf = each.parameter.rpartition(".")
            tensor: torch.Tensor = getattr(model.get_submodule(path), leaf)
            if factor != 1.0:
                tensor.movedim(each.dim, 0)[torch.from_numpy(each.places).to(tensor.device)] *= factor


class Setting(Protocol):
    """Something that a module keeps and that changes with the widths."""

    def set_in(self, model: nn.Module, widths: Mapping[str, int]) -> None:
        """Give it the value that belongs to the widths."""


@dataclass(frozen=True)
class ScaleAttribute:
    """A module's attribute that is 1 / sqrt(width), for the code of its that passes a scale.

    Parameters
    ----------
    module, name
        Where it is.
    width
        As a function of group widths.
    """

    module: str
    name: str
    width: WidthExpr

    def set_in(self, model: nn.Module, widths: Mapping[str, int]) -> None:
        """Give the attribute the value that belongs to the widths."""
        setattr(model.get_submodule(self.module), self.name, self.width.at(widths) ** -0.5)
