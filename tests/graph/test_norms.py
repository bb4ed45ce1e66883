"""Channels that a norm is taken over: cutting them is the whole network with the norm taken over those that stay.

The reference of each norm is its formula on the selected channels, written here once more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aap_hw.graph import ChannelGraph
from aap_hw.graph.check import silenced
from aap_hw.graph.check.self_check import CutMismatchError, checked_cut
from aap_hw.graph.cut import surgery
from tests.graph.ground_truth import IMAGES, output
from tests.graph.one_stem import KEEP, Reference, expected, made, ready

EPS = 1e-5


class Affine(nn.Module):
    """A norm with a weight and a bias for each of its channels."""

    def __init__(self, channels: int = 12) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(channels) + 0.5), nn.Parameter(torch.randn(channels))
        self.normalized_shape = (channels,)


class Written(Affine):
    def forward(self, x: Tensor) -> Tensor:
        u = x.mean(1, keepdim=True)
        s = (x - u).pow(2).mean(1, keepdim=True)
        x = (x - u) / torch.sqrt(s + EPS)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class ByVarMean(Affine):
    def forward(self, x: Tensor) -> Tensor:
        s, u = torch.var_mean(x, dim=1, unbiased=False, keepdim=True)
        return (x - u) * torch.rsqrt(s + EPS) * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)


class ByTwoStatistics(Affine):
    def forward(self, x: Tensor) -> Tensor:
        x = (x - x.mean(1, True)) / (x.var(1, unbiased=False, keepdim=True) + EPS) ** 0.5
        return x * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)


class OfItsShape(Affine):
    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, EPS)
        return x.permute(0, 3, 1, 2)


class OfTheTensor(Affine):
    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, EPS).permute(0, 3, 1, 2)


class OfItsImage(nn.Module):
    normalized_shape = (12, 8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, eps=EPS)


class OfItsTokens(nn.LayerNorm):
    """Over all tokens and their channels, which come last."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(2).mT).mT.unflatten(2, x.shape[2:])


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class RootMeanSquare(Affine):
    def forward(self, x: Tensor) -> Tensor:
        variance = x.to(x.dtype).pow(2).mean(1, keepdim=True)
        return self.weight[:, None, None] * (x * torch.rsqrt(variance + EPS))


class RootMeanSquare2d(nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Length(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 7 * F.normalize(x, dim=1)


class GlobalResponse(Affine):
    def forward(self, x: Tensor) -> Tensor:
        response = x.norm(p=2, dim=(2, 3), keepdim=True)
        share = response / (response.mean(dim=1, keepdim=True) + 1e-6)
        return torch.addcmul(self.bias.view(1, -1, 1, 1), self.weight.view(1, -1, 1, 1), x * share) + x


class GlobalLayer(Affine):
    """As Conv-TasNet has it: means of means, and the weight before the division."""

    def __init__(self, *axes: tuple[int, ...]) -> None:
        super().__init__()
        self.axes = axes

    def mean(self, x: Tensor) -> Tensor:
        return x.mean(dim=self.axes[0], keepdim=True).mean(dim=self.axes[1], keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        mean = self.mean(x)
        var = self.mean(torch.pow(x - mean, 2))
        weight, bias = self.weight.view(-1, 1, 1), self.bias.view(-1, 1, 1)
        return weight * (x - mean) / torch.pow(var + EPS, 0.5) + bias


class OneGroup(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, 1, eps=EPS)


def layer_norm(norm: Any, x: Tensor, axes: tuple[int, ...] = (1,)) -> Tensor:
    centred = x - x.sum(axes, keepdim=True) / np.prod([x.shape[axis] for axis in axes])
    scaled = (
        centred / (centred.square().sum(axes, keepdim=True) / np.prod([x.shape[axis] for axis in axes]) + EPS).sqrt()
    )
    if getattr(norm, "weight", None) is None:
        return scaled
    shape = (-1, *norm.weight.shape[1:]) if norm.weight.dim() > 1 else (-1, 1, 1)
    return scaled * norm.weight[KEEP].view(shape) + norm.bias[KEEP].view(shape)


def root_mean_square(norm: Any, x: Tensor) -> Tensor:
    return x / (x.square().sum(1, keepdim=True) / len(KEEP) + EPS).sqrt() * norm.weight[KEEP].view(-1, 1, 1)


def global_response(norm: Any, x: Tensor) -> Tensor:
    lengths = x.square().sum((2, 3), keepdim=True).sqrt()
    share = lengths / (lengths.sum(1, keepdim=True) / len(KEEP) + 1e-6)
    return norm.bias[KEEP].view(-1, 1, 1) + norm.weight[KEEP].view(-1, 1, 1) * (x * share) + x


def whole_image(norm: Any, x: Tensor) -> Tensor:
    return layer_norm(norm, x, (1, 2, 3))


def all_tokens(norm: Any, x: Tensor) -> Tensor:
    weight, bias = (each.mT[KEEP].unflatten(1, (8, 8)) for each in (norm.weight, norm.bias))
    return layer_norm(None, x, (1, 2, 3)) * weight + bias


NORMS: dict[str, tuple[Callable[[], nn.Module], Reference, str]] = {
    # the norm, what it computes of some of its channels, and a word of what is said of it
    "layer": (lambda: LayerNorm2d(12), layer_norm, "F.layer_norm"),
    "layer without weights": (lambda: LayerNorm2d(12, elementwise_affine=False), layer_norm, "F.layer_norm"),
    "layer of a whole image": (lambda: nn.LayerNorm((12, 8, 8)), whole_image, "nn.LayerNorm 'norm'"),
    "layer of all tokens": (lambda: OfItsTokens((64, 12)), all_tokens, "F.layer_norm"),
    "layer of its image's shape": (OfItsImage, whole_image, "F.layer_norm"),
    "layer of its shape": (OfItsShape, layer_norm, "F.layer_norm"),
    "layer of the tensor": (OfTheTensor, layer_norm, "F.layer_norm"),
    "layer written out": (Written, layer_norm, "x.mean"),
    "layer by var_mean": (ByVarMean, layer_norm, "torch.var_mean"),
    "layer by mean and var": (ByTwoStatistics, layer_norm, "x.mean"),
    "root mean square": (lambda: RootMeanSquare2d(12, eps=EPS), root_mean_square, "F.rms_norm"),
    "root mean square written out": (RootMeanSquare, root_mean_square, "x.mean"),
    "length": (Length, lambda _, x: 7 * x / x.square().sum(1, keepdim=True).sqrt(), "F.normalize"),
    "global response": (GlobalResponse, global_response, "x.mean"),
    "layer of means of means": (lambda: GlobalLayer((1,), (2, 3)), whole_image, "x.mean"),
    "layer of means of means of images": (lambda: GlobalLayer((2, 3), (1,)), whole_image, "x.mean"),
    "one group": (lambda: nn.GroupNorm(1, 12), whole_image, "nn.GroupNorm 'norm'"),
    "one group without a layer": (OneGroup, whole_image, "F.group_norm"),
}


@pytest.mark.parametrize("name", NORMS)
def test_cut_norm_is_taken_over_the_channels_that_stay(name: str) -> None:
    make, formula, word = NORMS[name]
    net, graph, images = ready(make)
    stem = graph.group("stem")
    assert stem.frozen is None
    assert (stem.renormalised or "").startswith("is normalised over (")
    assert word in (stem.renormalised or "")
    assert graph.group("last").renormalised is None
    (masked,) = silenced.Silenced(graph, net, {"stem": KEEP})(images)
    wanted = expected(net, formula, images)
    assert (masked - wanted).abs().max() < 1e-12
    smaller = checked_cut(graph, net, {"stem": KEEP}, images)
    assert (output(smaller, images) - wanted).abs().max() < 1e-9
    again = ChannelGraph.trace(smaller, (images,))
    assert again.widths == {"stem": 5, "last": 5}
    assert isinstance(checked_cut(again, smaller, {"stem": [1, 2]}, images), nn.Module)


@pytest.mark.parametrize("name", NORMS)
def test_norm_over_all_channels_is_another(name: str) -> None:
    """Guards the test above: what is compared differs from what silencing alone would compute."""
    make, formula, _ = NORMS[name]
    net, images = made(make)
    with torch.no_grad():
        gone = [channel for channel in range(12) if channel not in KEEP]
        net.last.weight[:, gone] = 0
    assert (output(net, images) - expected(net, formula, images)).abs().max() > 1e-3


def test_attributes_of_a_cut_norm_are_those_of_its_weights() -> None:
    for make, shape in ((lambda: LayerNorm2d(12), (5,)), (lambda: nn.LayerNorm((12, 8, 8)), (5, 8, 8))):
        net, graph, _ = ready(make)
        assert graph.cut(net, {"stem": KEEP}).norm.normalized_shape == shape
    net, graph, _ = ready(lambda: nn.GroupNorm(1, 12))
    norm = graph.cut(net, {"stem": KEEP}).norm
    assert (norm.num_groups, norm.num_channels) == (1, 5)


def test_of_several_groups_whole_ones_stay_and_keep_their_statistics() -> None:
    net, graph, images = ready(lambda: nn.GroupNorm(4, 12))
    assert (graph.widths["stem"], graph.group("stem").renormalised) == (4, None)
    keep, channels = {"stem": [0, 2]}, [0, 1, 2, 6, 7, 8]
    with torch.no_grad():
        x = net.stem(images)[:, channels].unflatten(1, (2, 3))
        x = layer_norm(None, x, (2, 3, 4)).flatten(1, 2) * net.norm.weight[channels].view(-1, 1, 1)  # type: ignore
        x = (x + net.norm.bias[channels].view(-1, 1, 1)).sigmoid()  # type: ignore[index]
        wanted = F.conv2d(x, net.last.weight[:, channels], net.last.bias)
    (masked,) = silenced.Silenced(graph, net, keep)(images)
    assert (masked - wanted).abs().max() < 1e-12
    smaller = checked_cut(graph, net, keep, images)
    assert (output(smaller, images) - wanted).abs().max() < 1e-9
    assert (smaller.norm.num_groups, smaller.norm.num_channels) == (2, 6)


@pytest.mark.parametrize("fault", ["weight", "reference"])
def test_fault_in_a_norm_is_noticed(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, graph, images = ready(lambda: LayerNorm2d(12))
    real = surgery._shorten

    def shifted(places: Any, name: str, dim: int, removed: Any) -> None:
        real(places, name, dim, (removed + 1) % 12 if name == "norm.weight" else removed)

    if fault == "weight":
        monkeypatch.setattr(surgery, "_shorten", shifted)
    else:
        monkeypatch.setattr(silenced, "_NORMS", {})
    with pytest.raises(CutMismatchError, match="cutting the channel group 'stem'"):
        checked_cut(graph, net, {"stem": KEEP}, images)


NO_NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean taken away": lambda x: x - x.mean(1, keepdim=True),
    "gate": lambda x: x * x.mean(1, keepdim=True).sigmoid(),
    "product with a mean": lambda x: x * x.mean(1, keepdim=True),
    "square without a root": lambda x: x / (x.pow(2).mean(1, keepdim=True) + 1),
    "inverse square": lambda x: x * (x.pow(2).mean(1, keepdim=True) + 1).reciprocal(),
    "fourth power": lambda x: x / (x.pow(4).mean(1, keepdim=True) + 1).sqrt(),
    "root of a product of statistics": lambda x: x / (x.pow(2).mean(1, True) * x.pow(2).mean(1, True)).sqrt(),
    "mean of something else": lambda x: x / (x.exp().mean(1, keepdim=True) + 1),
    "norm that is read elsewhere": lambda x: x / x.norm(dim=1, keepdim=True) + x.norm(dim=1, keepdim=True),
    "statistic that is kept": lambda x: (lambda s: x / s + s)(x.std(1, keepdim=True)),
    "square of a statistic": lambda x: (lambda s: x / (s * s + 1))(x.norm(dim=1, keepdim=True)),
    "statistic over itself": lambda x: x + (lambda s: s / s)(x.std(1, keepdim=True)),
    "spread over more than the mean": lambda x: (x - x.mean(1, True)) / (x.var((1, 2, 3), keepdim=True) + 1).sqrt(),
    "spread of what is centred over more": lambda x: (
        lambda y: y / (y.pow(2).mean((1, 2, 3), keepdim=True) + 1).sqrt()
    )(x - x.mean(1, keepdim=True)),
    "largest": lambda x: x / x.amax(1, keepdim=True),
    "number of channels": lambda x: F.normalize(x, dim=1) * x.shape[1] ** 0.5,
    "two groups without a layer": lambda x: F.group_norm(x, 2),
    "groups of one layer for two values": (lambda norm: lambda x: norm(norm(x).relu()))(
        nn.GroupNorm(2, 12, affine=False)
    ),
}


class Other(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize("name", NO_NORMS)
def test_other_reductions_over_channels_leave_them_alone(name: str) -> None:
    _, graph, _ = ready(lambda: Other(NO_NORMS[name]))
    assert graph.group("stem").frozen is not None


SUMS: dict[str, Callable[[Tensor], Tensor]] = {
    "over a number": lambda x: x / (x.square().sum(1, keepdim=True) / 12 + 1).sqrt(),
    "of products": lambda x: x + torch.tanh((x * x.cos()).sum(1, keepdim=True)),
    "of everything": lambda x: x * x.square().sum((1, 2, 3), keepdim=True).log1p(),
    "of a softmax that is written out": lambda x: (lambda e: e / e.sum(dim=1, keepdim=True))(x.exp()),
}


@pytest.mark.parametrize("name", SUMS)
def test_sums_over_channels_lack_the_terms_of_those_that_are_gone(name: str) -> None:
    net, graph, images = ready(lambda: Other(SUMS[name]))
    assert graph.group("stem").renormalised is None
    smaller = checked_cut(graph, net, {"stem": KEEP}, images)
    wanted = expected(net, lambda norm, x: norm(x), images)
    assert (output(smaller, images) - wanted).abs().max() < 1e-9


class Tokens(nn.Module):
    """As vision transformers begin: patches, a token more, positions, a block with layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.first = nn.Conv2d(3, 12, 4, stride=4), nn.Parameter(torch.randn(1, 1, 12))
        self.positions, self.scale = nn.Parameter(torch.randn(1, 5, 12)), nn.Parameter(torch.rand(12))
        self.norm1, self.fc1, self.fc2 = nn.LayerNorm(12), nn.Linear(12, 16), nn.Linear(16, 12)
        self.norm2, self.head = nn.LayerNorm(12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(len(x), -1, -1), x], 1) + self.positions
        x = x + self.scale * self.fc2(F.gelu(self.fc1(self.norm1(x))))
        return self.head(self.norm2(x)[:, 0])  # type: ignore[no-any-return]


def test_stream_of_a_transformer_is_cut_with_its_positions() -> None:
    torch.manual_seed(0)
    net, images = Tokens().double(), torch.randn(IMAGES, dtype=torch.float64)
    graph = ChannelGraph.trace(net, (images,))
    assert graph.widths == {"patches": 12, "fc1": 16, "head": 4}
    assert [group.frozen is None for group in graph.groups] == [True, True, False]
    assert [group.renormalised is not None for group in graph.groups] == [True, False, False]
    inner = [0, 1, 5, 8, 9, 15]
    smaller = checked_cut(graph, net, {"patches": KEEP, "fc1": inner}, images)
    with torch.no_grad():
        x = F.conv2d(images, net.patches.weight[KEEP], net.patches.bias[KEEP], stride=4).flatten(2).mT
        x = torch.cat([net.first[..., KEEP].expand(2, 1, 5), x], 1) + net.positions[..., KEEP]
        y = F.layer_norm(x, (5,), net.norm1.weight[KEEP], net.norm1.bias[KEEP])
        y = F.gelu(F.linear(y, net.fc1.weight[inner][:, KEEP], net.fc1.bias[inner]))
        x = x + net.scale[KEEP] * F.linear(y, net.fc2.weight[KEEP][:, inner], net.fc2.bias[KEEP])
        x = F.layer_norm(x, (5,), net.norm2.weight[KEEP], net.norm2.bias[KEEP])[:, 0]
        wanted = F.linear(x, net.head.weight[:, KEEP], net.head.bias)
    assert (output(smaller, images) - wanted).abs().max() < 1e-9


@pytest.mark.filterwarnings("error")
def test_norms_without_weights_know_how_many_channels_they_get() -> None:
    torch.manual_seed(0)
    norms = nn.InstanceNorm2d(12), nn.GroupNorm(1, 12, affine=False)
    batch_norm = nn.BatchNorm2d(12, affine=False, track_running_stats=False)
    model = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), *norms, batch_norm, nn.Conv2d(12, 2, 1)).eval()
    images = torch.randn(IMAGES)
    smaller = checked_cut(ChannelGraph.trace(model, (images,)), model, {"0": KEEP}, images)
    assert smaller(images).shape[1] == 2
    assert [smaller[place].num_features for place in (1, 3)] == [len(KEEP)] * 2  # type: ignore[index]
    assert smaller[2].num_channels == len(KEEP)  # type: ignore[index]
    assert norms[0].num_features == 12
