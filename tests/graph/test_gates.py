"""Gates made over channels: cutting these is the whole network with the gate made over those that stay.

The reference of each gate is its formula on the selected channels, written here once more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aap_hw.graph.check import silenced
from aap_hw.graph.check.self_check import checked_cut
from tests.graph.ground_truth import output
from tests.graph.one_stem import KEEP, expected, ready


class Neighbours(nn.Module):
    """Efficient channel attention, as timm and its authors write it."""

    def __init__(self, by_view: bool) -> None:
        super().__init__()
        self.line, self.by_view = nn.Conv1d(1, 1, 5, padding=2, bias=not by_view), by_view

    def forward(self, x: Tensor) -> Tensor:
        if self.by_view:
            gate = self.line(x.mean((2, 3)).view(x.shape[0], 1, -1)).sigmoid().view(x.shape[0], -1, 1, 1)
            return x * gate.expand_as(x)
        y = F.adaptive_avg_pool2d(x, 1)
        return x * self.line(y.squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1).sigmoid()


@pytest.mark.parametrize("by_view", [True, False])
def test_window_slides_along_the_channels_that_stay(by_view: bool) -> None:
    net, graph, images = ready(lambda: Neighbours(by_view))
    assert (graph.group("stem").renormalised or "").startswith("is mixed with neighbouring channels (nn.Conv1d")
    assert graph.group("norm.line").frozen is not None

    def formula(norm: Any, x: Tensor) -> Tensor:
        means = F.pad(x.mean((2, 3)), (2, 2)).unfold(1, 5, 1)
        gate = (means * norm.line.weight[0, 0]).sum(2) + (0 if by_view else norm.line.bias)
        return x * gate.sigmoid()[:, :, None, None]

    wanted = expected(net, formula, images)
    smaller = checked_cut(graph, net, {"stem": KEEP}, images)
    assert (output(smaller, images) - wanted).abs().max() < 1e-9


class SpatialGate(nn.Module):
    """Of means and maxima over channels, as CBAM has it, also where they are added instead of joined."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.window, self.how = nn.Conv2d(1 if how == "added" else 2, 1, 3, padding=1), how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "added":
            return x * self.window(0.5 * x.mean(1, keepdim=True) + 0.5 * x.amax(1, keepdim=True)).sigmoid()
        if self.how == "of torch.max":
            seen = torch.mean(x, 1).unsqueeze(1), torch.max(x, 1)[0].unsqueeze(1)
        elif self.how == "stacked":
            return x + x * (1 + self.window(torch.stack([x.mean(1), x.max(1).values], 1)).sigmoid())
        else:
            seen = x.mean(1, keepdim=True), x.amax(1, keepdim=True)
        return x + x * (1 + self.window(torch.cat(seen, 1)).sigmoid()).expand_as(x)


@pytest.mark.parametrize("how", ["of torch.max", "stacked", "joined", "added"])
def test_spatial_gate_looks_at_the_channels_that_stay(how: str) -> None:
    net, graph, images = ready(lambda: SpatialGate(how))
    assert (graph.group("stem").renormalised or "").startswith("is reduced for a spatial gate (")

    def formula(norm: Any, x: Tensor) -> Tensor:
        seen = torch.stack([x.sum(1) / len(KEEP), x.sort(1).values[:, -1]], 1)
        if how == "added":
            return x * F.conv2d(seen.sum(1, True) / 2, norm.window.weight, norm.window.bias, padding=1).sigmoid()
        return x * (2 + F.conv2d(seen, norm.window.weight, norm.window.bias, padding=1).sigmoid())

    wanted = expected(net, formula, images)
    (masked,) = silenced.Silenced(graph, net, {"stem": KEEP})(images)
    assert (masked - wanted).abs().max() < 1e-12
    smaller = checked_cut(graph, net, {"stem": KEEP}, images)
    assert (output(smaller, images) - wanted).abs().max() < 1e-9


@pytest.mark.parametrize("window", [nn.Conv1d(1, 1, 3), nn.Conv1d(1, 1, 2, stride=2), nn.Conv1d(1, 4, 3, padding=1)])
def test_other_windows_along_channels_leave_them_alone(window: nn.Module) -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.window = window

        def forward(self, x: Tensor) -> Tensor:
            return x + self.window(x.mean((2, 3))[:, None]).sum((1, 2))[:, None, None, None]

    _, graph, _ = ready(Gate)
    assert graph.group("stem").frozen is not None


NO_GATES: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "gate and the number of the largest": lambda window, x: (lambda y, at: x * window(y) + at)(*x.max(1, True)),
    "gate of something else": lambda window, x: x.sin() * window(x.mean(1, True)).sigmoid(),
    "mean taken away": lambda window, x: x * window((x - x.mean(1, True)).amax(1, True)),
    "convolution without a gate": lambda window, x: x + window(x.amax(1, True)),
    "largest of a row of channels": lambda window, x: x * window(x.amax((1, 2), True)).sigmoid(),
}


class OtherGate(nn.Module):
    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.window, self.function = nn.Conv2d(1, 1, 3, padding=1), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.window, x)


@pytest.mark.parametrize("name", NO_GATES)
def test_other_gates_leave_channels_alone(name: str) -> None:
    _, graph, _ = ready(lambda: OtherGate(NO_GATES[name]))
    assert graph.group("stem").frozen is not None
