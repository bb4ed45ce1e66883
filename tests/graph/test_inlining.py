"""Regions that cannot be seen through stay calls of their own, and what is around them is traced all the same."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from aap_hw.graph import ChannelGraph


class AutocastWithinNoGradients(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.a(x)
            with torch.autocast("cpu", torch.bfloat16, enabled=True):
                y = self.b(y)
            y = y.float()
        return self.c(y)  # type: ignore[no-any-return]


def test_a_region_with_one_inside_that_stays_is_frozen_and_not_an_error() -> None:
    graph = ChannelGraph.trace(AutocastWithinNoGradients().eval(), (torch.zeros(1, 3, 4, 4),))
    assert all(group.frozen for group in graph.groups)
    assert graph.unsupported_ops()
