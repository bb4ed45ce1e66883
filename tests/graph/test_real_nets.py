"""The networks people use: cut equals silenced to 1e-9 in float64, widths are foretold, cuts of cuts work."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
import torchvision.models as tv
from torch import Tensor, nn

from aap_hw.graph import ChannelGraph
from aap_hw.models.cifar_resnet import CifarResNet
from tests.graph.ground_truth import (
    assert_cut_equals_silenced,
    cut_graph,
    output,
    random_keep,
    silenced,
    traced,
)


def vgg16_bn() -> nn.Module:
    """VGG-16 with 2 x 2 instead of 7 x 7 positions before its classifier: 800 MB less to copy around."""
    model = tv.vgg16_bn(init_weights=False)
    model.avgpool = nn.AdaptiveAvgPool2d(2)
    model.classifier[0] = nn.Linear(512 * 4, 4096)
    return model


SIZE = (1, 3, 64, 64)
NETS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    # name: how to build it, groups, of which frozen
    "resnet18": (tv.resnet18, 13, 1),
    "resnet20": (functools.partial(CifarResNet, 3), 13, 1),
    "small densenet": (functools.partial(tv.DenseNet, 4, (2, 3), 8, num_classes=10), 13, 1),
}
# With more layers, or with what small nets have, too.
SLOW: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "small shufflenet": (functools.partial(tv.ShuffleNetV2, [2, 2, 2], [8, 16, 32, 64, 32]), 12, 1),
    "mobilenet_v2": (tv.mobilenet_v2, 26, 1),
    "resnet50": (tv.resnet50, 38, 1),
    "vgg16_bn": (vgg16_bn, 16, 1),
    "resnet56": (functools.partial(CifarResNet, 9), 31, 1),
    "efficientnet_b0": (tv.efficientnet_b0, 41, 1),
}
each_net = pytest.mark.parametrize("name", [*NETS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])


@functools.lru_cache(maxsize=1)
def ready(name: str) -> tuple[nn.Module, ChannelGraph, Tensor]:
    torch.manual_seed(0)
    return traced((NETS | SLOW)[name][0](), SIZE)


@each_net
def test_cut_model_equals_silenced_model_and_every_width_is_foretold(name: str) -> None:
    model, graph, images = ready(name)
    _, groups, frozen = (NETS | SLOW)[name]
    assert len(graph.groups) == groups
    assert sum(group.frozen is not None for group in graph.groups) == frozen
    assert graph.unsupported_ops() == {}

    keep = random_keep(graph, seed=1)
    assert output(model, images).std() > 1e-3, "a network that outputs nothing proves nothing"
    assert (output(silenced(model, graph, keep), images) - output(model, images)).abs().max() > 1e-3
    smaller = assert_cut_equals_silenced(model, graph, images, keep)
    again = cut_graph(graph, smaller, keep, images)
    assert again.widths == graph.widths | {group: len(kept) for group, kept in keep.items()}
    assert_cut_equals_silenced(smaller, again, images, random_keep(again, seed=2))
