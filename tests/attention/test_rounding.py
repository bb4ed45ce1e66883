"""Proves that the noise that is foretold of rounding is the noise that rounding makes, and counts as attention does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from aap_hw.attention import layer_noise, observed, read_attention, rounding_share
from aap_hw.attention.rounding import LayerNoise
from aap_hw.graph import ChannelGraph


class Net(nn.Module):
    """Dense, depthwise, grouped and linear layers; the first two with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 48, 3, padding=1), nn.BatchNorm2d(48)
        self.deep = nn.Conv2d(48, 48, 3, padding=1, groups=48)
        self.grouped = nn.Conv2d(48, 48, 1, groups=2)
        self.head = nn.Linear(48, 20)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.deep(torch.relu(self.norm(self.stem(image)))))
        return self.head(torch.relu(self.grouped(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def known() -> tuple[Net, ChannelGraph, Tensor, dict[str, LayerNoise]]:
    torch.manual_seed(0)
    net = Net()
    net.train()(3 * torch.randn(64, 3, 12, 12))  # norms know their statistics
    net.eval()
    images = torch.randn(96, 3, 12, 12)
    graph = ChannelGraph.trace(net, (images[:2],))
    return net, graph, images, layer_noise(net, graph, images, "bfloat16")


def rounded(values: Tensor, step: Tensor | float | None) -> Tensor:
    return values.bfloat16().float() if step is None else (values / step).round() * step


@pytest.mark.parametrize("in_half", [False, True], ids=["int8", "bfloat16"])
@pytest.mark.parametrize("name", ["stem", "deep", "grouped", "head"])
def test_rounding_makes_the_noise_that_is_foretold(
    known: tuple[Net, ChannelGraph, Tensor, dict[str, LayerNoise]], name: str, in_half: bool
) -> None:
    net, _, images, noise = known
    read: dict[str, Tensor] = {}
    layer = net.get_submodule(name)
    hook = layer.register_forward_pre_hook(lambda _, given: read.update(x=given[0].detach()))
    with torch.no_grad():
        net(images)
        hook.remove()
        x, weight = read["x"], layer.weight.detach()
        rows = weight.flatten(1).abs().amax(1).reshape(-1, *[1] * (weight.dim() - 1))
        step = float(x.max().clamp(min=0) - x.min().clamp(max=0)) / 255
        exact = layer(x)
        layer.weight.data = rounded(weight, None if in_half else rows / 127)
        made = layer(rounded(x, None if in_half else step)) - exact
        layer.weight.data = weight
        exact = exact - layer.bias.reshape(-1, *[1] * (exact.dim() - 2))
    scale = torch.ones(len(weight))
    if name == "stem":
        scale = (net.norm.weight / (net.norm.running_var + net.norm.eps).sqrt()).detach()
    inner = made[:, :, 1:-1, 1:-1] if made.dim() == 4 else made  # the padding is not rounded
    by_output = inner.movedim(1, 0).flatten(1).square().mean(1)
    foretold = noise[name].half_noise if in_half else noise[name].noise
    # The errors of the head's 960 weights, whose inputs hardly vary, do not average out.
    assert float((by_output * scale**2).sum()) == pytest.approx(foretold, rel=0.3 if name == "head" else 0.15)
    assert noise[name].is_depthwise == (name == "deep")


def test_signal_is_what_read_attention_tells() -> None:
    torch.manual_seed(1)
    net, images = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.ReLU()), torch.randn(8, 3, 9, 9)
    graph = ChannelGraph.trace(net, (images[:2],))
    scores = read_attention(net, graph, observed(net, [images], graph=graph).variances())
    assert layer_noise(net, graph, images)["2"].signal == pytest.approx(float(np.sum(scores["0"])), rel=1e-6)


def test_shares_are_means_side_by_side_and_sums_one_behind_the_other() -> None:
    one, other = LayerNoise("a", 1, 10.0, 1.0, False), LayerNoise("b", 1, 30.0, 1.0, False)
    deep = LayerNoise("c", 1, 5.0, 1.0, True)
    layers = {"one": one, "other": other, "deep": deep}
    assert rounding_share(layers, ["one", "other"]) == pytest.approx(2 / 40)
    assert rounding_share({"one": replace(one, half_noise=0.5)}, ["one"], in_half=True) == pytest.approx(0.5 / 10)
    assert rounding_share(layers, ["one", "other", "deep", "unknown"]) == pytest.approx(2 / 40 + 1 / 5)
    assert rounding_share({"all": LayerNoise("d", 1, 1.0, 7.0, False)}, ["all"]) == 1.0
