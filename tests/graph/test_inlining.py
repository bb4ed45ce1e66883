"""Regions that cannot be seen through stay calls of their own, and what is around them is traced all the same."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from aap_hw.graph import ChannelGraph


class AutocastWithinNoGradients(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
        self.c, self.head = nn.Conv2d(6, 5, 1), nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        with torch.no_grad():
            y = self.a(x)
            with torch.autocast("cpu", torch.bfloat16, enabled=True):
                y = self.b(y)
            y = y.float()
        return self.head(self.c(y).relu())  # type: ignore[no-any-return]


def test_a_region_with_one_inside_that_stays_is_frozen_and_not_an_error() -> None:
    graph = ChannelGraph.trace(AutocastWithinNoGradients().eval(), (torch.zeros(1, 3, 4, 4),))
    assert {group.name: group.frozen is not None for group in graph.groups} == {"stem": True, "c": False, "head": True}
    assert graph.unsupported_ops()
