"""Weights that a model's code computes lose inputs, too: what is standardised is standardised over those that stay.

The reference of each is its formula on the selected inputs and filters, written here once more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aap_hw.graph import ChannelGraph
from aap_hw.graph.check import silenced
from aap_hw.graph.check.self_check import CutMismatchError, checked_cut
from tests.graph.ground_truth import IMAGES, output

KEEP, FILTERS = [0, 2, 3, 7, 10], [1, 2, 5]
EPS = 1e-5


class Computed(nn.Conv2d):
    """A convolution from 12 channels to 8, with a gain for each filter."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__(12, 8, 3, padding=1, groups=groups)
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, 8).reshape(8, 1, 1, 1))
        self.factor = (12 * 9) ** -0.5

    def filters(self) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.filters(), self.bias, 1, 1, 1, self.groups)


class ByBatchNorm(Computed):
    """As timm's ScaledStdConv2d."""

    def filters(self) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        gain = (self.gain * self.factor).view(-1)
        return F.batch_norm(flat, None, None, gain, training=True, eps=EPS).reshape_as(self.weight)


class ByVariance(Computed):
    def filters(self) -> Tensor:
        weight = self.weight
        mean = weight.mean((1, 2, 3), keepdim=True)
        return (weight - mean) / (weight.var((1, 2, 3), unbiased=False, keepdim=True) + EPS).sqrt() * self.gain


class ByVarMean(Computed):
    def filters(self) -> Tensor:
        var, mean = torch.var_mean(self.weight, (1, 2, 3), unbiased=False, keepdim=True)
        return (self.weight - mean) * torch.rsqrt(var + EPS) * self.gain


class Flattened(Computed):
    def filters(self) -> Tensor:
        flat = self.weight.flatten(1)
        return self.gain * F.normalize(flat, dim=1).view_as(self.weight)


class Scaled(Computed):
    """An equalised learning rate, as StyleGAN has it."""

    def filters(self) -> Tensor:
        return self.weight * self.factor


class Masked(Computed):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", (torch.rand(8, 12, 3, 3) > 0.3).to(torch.float64))

    def filters(self) -> Tensor:
        return self.weight * self.mask


def standardised(layer: Any, weight: Tensor) -> Tensor:
    centred = weight - weight.mean((1, 2, 3), keepdim=True)
    return centred / (centred.square().mean((1, 2, 3), keepdim=True) + EPS).sqrt() * layer.gain[FILTERS]


Formula = Callable[[Any, Tensor], Tensor]
WEIGHTS: dict[str, tuple[Callable[[], Computed], Formula, bool]] = {
    # the layer, what it makes of weights that are selected, and whether that is renormalised
    "by batch norm": (ByBatchNorm, lambda layer, w: standardised(layer, w) * layer.factor, True),
    "by variance": (ByVariance, standardised, True),
    "by var_mean": (ByVarMean, standardised, True),
    "length": (
        Flattened,
        lambda layer, w: layer.gain[FILTERS] * w / w.square().sum((1, 2, 3), keepdim=True).sqrt(),
        True,
    ),
    "scaled": (Scaled, lambda layer, w: w * layer.factor, False),
    "masked": (Masked, lambda layer, w: w * layer.mask[FILTERS][:, KEEP], False),
}


class Net(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.stem, self.layer, self.last = nn.Conv2d(3, 12, 3, padding=1), layer, nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(self.stem(x).relu()).sigmoid())  # type: ignore[no-any-return]


def ready(make: Callable[[], nn.Module]) -> tuple[Net, ChannelGraph, Tensor]:
    torch.manual_seed(0)
    net, images = Net(make()).double().eval(), torch.randn(IMAGES, dtype=torch.float64)
    return net, ChannelGraph.trace(net, (images,)), images


def expected(net: Any, formula: Formula, images: Tensor) -> Tensor:
    with torch.no_grad():
        x = F.conv2d(images, net.stem.weight[KEEP], net.stem.bias[KEEP], padding=1).relu()
        weight = formula(net.layer, net.layer.weight[FILTERS][:, KEEP])
        x = F.conv2d(x, weight, net.layer.bias[FILTERS], padding=1).sigmoid()
        return F.conv2d(x, net.last.weight[:, FILTERS], net.last.bias)


@pytest.mark.parametrize("name", WEIGHTS)
def test_cut_weight_is_computed_of_what_stays(name: str) -> None:
    make, formula, is_renormalised = WEIGHTS[name]
    net, graph, images = ready(make)
    keep = {"stem": KEEP, "layer": FILTERS}
    assert [group.frozen is None for group in graph.groups] == [True, True, False]
    assert (graph.group("stem").renormalised is not None) == is_renormalised
    assert graph.group("layer").renormalised is None
    wanted = expected(net, formula, images)
    (masked,) = silenced.Silenced(graph, net, keep)(images)
    assert (masked - wanted).abs().max() < 1e-12
    smaller = checked_cut(graph, net, keep, images)
    assert (output(smaller, images) - wanted).abs().max() < 1e-9
    again = ChannelGraph.trace(smaller, (images,))
    assert again.widths == {"stem": 5, "layer": 3, "last": 5}
    widths = {**graph.widths, "stem": 5, "layer": 3}
    for old, new in zip(graph.program.graph.nodes, again.program.graph.nodes, strict=True):
        if isinstance(new.meta.get("val"), Tensor):
            shape = tuple(graph.width_of(old.name, dim).at(widths) for dim in range(new.meta["val"].dim()))
            assert shape == new.meta["val"].shape, old.name


def test_inputs_of_grouped_standardised_filters_go_from_every_group() -> None:
    net, graph, images = ready(lambda: ByBatchNorm(groups=2))
    assert graph.widths == {"stem": 6, "layer": 4, "last": 5}
    smaller: Any = checked_cut(graph, net, {"stem": [0, 2, 5], "layer": [1, 3]}, images)
    assert smaller.layer.weight.shape == (4, 3, 3, 3)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.back = ByVariance(), nn.Conv2d(8, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.back(self.layer(x).relu()) + x)  # type: ignore[no-any-return]


def test_standardised_layer_that_is_used_twice_is_cut() -> None:
    net, graph, images = ready(Twice)
    assert [group.frozen is None for group in graph.groups] == [True, True, False]
    assert isinstance(checked_cut(graph, net, {"stem": KEEP, "layer.layer": FILTERS}, images), nn.Module)


def test_reference_over_all_inputs_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    net, graph, images = ready(ByBatchNorm)
    monkeypatch.setattr(silenced, "_NORMS", {})
    with pytest.raises(CutMismatchError, match="cutting the channel group 'stem'"):
        checked_cut(graph, net, {"stem": KEEP}, images)


FIXED: dict[str, Callable[[Any], Tensor]] = {
    "mean taken away": lambda layer: layer.weight - layer.weight.mean((1, 2, 3), keepdim=True),
    "number of inputs": lambda layer: layer.weight * layer.weight.shape[1] ** -0.5,
    "number of inputs in a statistic": lambda layer: (
        layer.weight / (layer.weight.var((1, 2, 3), keepdim=True) * layer.weight.shape[1] + EPS).sqrt()
    ),
    "shares of a sum": lambda layer: layer.weight.exp() / layer.weight.exp().sum(1, keepdim=True),
    "all filters together": lambda layer: layer.weight / layer.weight.norm(),
    "a factor for each input": lambda layer: layer.weight * torch.linspace(1, 2, 12)[:, None, None].double(),
    "inputs turned round": lambda layer: layer.weight.flip(1),
    "softmax": lambda layer: layer.weight.softmax(1),
    "filters and inputs along one axis": lambda layer: layer.weight.reshape(96, 3, 3).reshape(8, 12, 3, 3) * layer.gain,
    "read elsewhere": lambda layer: layer.weight * layer.gain + layer.weight.sum() * 1e-3,
}


class Other(Computed):
    def __init__(self, function: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.function = function

    def filters(self) -> Tensor:
        return self.function(self)


@pytest.mark.parametrize("name", FIXED)
def test_inputs_of_other_computed_weights_stay(name: str) -> None:
    net, graph, images = ready(lambda: Other(FIXED[name]))
    assert graph.group("stem").frozen is not None
    keep = {group.name: FILTERS for group in graph.groups if group.frozen is None}
    assert isinstance(checked_cut(graph, net, keep, images), nn.Module)


class TurnedOver(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem, self.last = nn.Linear(3, 6), nn.Linear(width, 2)
        self.matrix, self.bias = nn.Parameter(torch.randn(6, width)), nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.linear(self.stem(x), self.matrix.t(), self.bias).relu())  # type: ignore[no-any-return]


@pytest.mark.parametrize("width", [6, 5])
def test_matrix_that_is_only_turned_over_is_cut_along_both_axes(width: int) -> None:
    torch.manual_seed(0)
    net, x = TurnedOver(width).double().eval(), torch.randn((4, 3), dtype=torch.float64)
    graph = ChannelGraph.trace(net, (x,))
    assert {group.name for group in graph.groups if group.frozen is None} == {"stem", "matrix"}
    smaller = checked_cut(graph, net, {"stem": [0, 2, 3], "matrix": [1, 4]}, x)
    with torch.no_grad():
        made = F.linear(net.stem(x)[:, [0, 2, 3]], net.matrix[[0, 2, 3]].t(), net.bias).relu()[:, [1, 4]]
        assert (smaller(x) - F.linear(made, net.last.weight[:, [1, 4]], net.last.bias)).abs().max() <= 1e-12
