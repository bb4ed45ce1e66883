"""Proves that whole networks, as published and cut to odd widths, compile to what PyTorch computes.

The networks are the zoo's and others of torchvision at small inputs, with batch norms whose statistics and affine
parts differ from channel to channel. VGG-16's classifier needs 224 x 224 pixels: its features are tried, and a
classifier like it. Where blocks differ in nothing but how many channels they read, some of a network stand for all: the
shallow ones have each kind of block that the published ones have. What still takes long to compile is marked slow.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from aap_hw.graph import ChannelGraph
from aap_hw.models import zoo
from aap_hw.models.initialise import calibrate_batch_norm, initialise
from tests.compile.running import assert_compiled_equals_pytorch, randomise

NETWORKS = [
    ("mobilenetv2", 64),
    ("resnet18", 64),
    ("resnet20", 32),
    ("shufflenet_v2_x1_0", 64),
    ("shallow_efficientnet", 64),
    ("mnasnet1_0", 64),
    ("squeezenet1_1", 64),
    ("small_densenet", 32),
    *[
        pytest.param(name, side, marks=pytest.mark.slow)
        for name, side in [
            ("resnet50", 64),
            ("vgg16_bn", 64),
            ("shallow_densenet", 64),
            ("mobilenet_v3_large", 64),
            ("googlenet", 64),
            ("inception_v3", 96),
        ]
    ],
]


@functools.cache
def network(name: str) -> nn.Module:
    """A calibrated network whose batch norms also scale and shift; shared, so leave it as it is."""
    if name in zoo.names():
        model = zoo.build(name).module
    else:
        model = untrained(name)
        initialise(model, seed=0)
        for module in model.modules():
            if isinstance(module, torchvision.ops.SqueezeExcitation):
                # With weights of full size gates are open or shut, and which of the two hangs on the last digit.
                module.fc2.weight.data *= 0.05
        calibrate_batch_norm(model, (3, 96, 96), seed=0)
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.copy_(0.5 + torch.rand(module.weight.shape, generator=generator))
            module.bias.data.copy_(0.5 * torch.randn(module.bias.shape, generator=generator))
    features = model.features if name == "vgg16_bn" else model
    assert isinstance(features, nn.Module)
    return features.eval()


def untrained(name: str) -> nn.Module:
    models = torchvision.models
    match name:
        case "small_densenet":
            return models.DenseNet(growth_rate=10, block_config=(3, 2), num_init_features=18, num_classes=12)
        case "shallow_densenet":  # DenseNet-121 has (6, 12, 24, 16) layers
            return models.DenseNet(growth_rate=32, block_config=(1, 2, 12, 1), num_init_features=64)
        case "shallow_efficientnet":  # up to two blocks in a stage, of which the second has a shortcut; B0 has four
            stages, last = models.efficientnet._efficientnet_conf("efficientnet_b0", width_mult=1.0, depth_mult=0.5)
            return models.EfficientNet(stages, dropout=0.2, last_channel=last)
        case "shallow_shufflenet":  # ShuffleNetV2 has (4, 8, 4)
            return models.ShuffleNetV2([3, 2, 2], [24, 116, 232, 464, 1024])
    own = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    module: nn.Module = torchvision.models.get_model(name, weights=None, **own)
    return module


def image(side: int, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(4))


def cut_to_odd_widths(model: nn.Module, example: torch.Tensor, seed: int) -> nn.Module:
    """Keep 20 to 60 % of each group, channels that are anywhere in it; of every other group an odd number."""
    random = np.random.default_rng(seed)
    graph = ChannelGraph.trace(model, (example,))
    keep = {}
    for number, group in enumerate(graph.groups):
        if not group.frozen:
            width = int(group.width * random.uniform(0.2, 0.6))
            width = width | 1 if number % 2 else max(4, width // 4 * 4)
            keep[group.name] = random.permutation(group.width)[:width].tolist()
    assert keep
    return graph.cut(model, keep)


@pytest.mark.parametrize(("name", "side"), NETWORKS)
def test_compiled_network_equals_pytorch(name: str, side: int, tmp_path: Path) -> None:
    assert_compiled_equals_pytorch(network(name), image(side), tmp_path)


@pytest.mark.parametrize(
    ("name", "side"),
    [("mobilenetv2", 32), ("resnet18", 32), ("resnet20", 32), ("shallow_shufflenet", 32), ("small_densenet", 32)],
)
def test_network_cut_to_odd_widths_equals_pytorch(name: str, side: int, tmp_path: Path) -> None:
    whole, example = network(name), image(side)
    assert_compiled_equals_pytorch(cut_to_odd_widths(whole, example, seed=5), example, tmp_path)


def test_two_threads_and_a_batch_of_two_equal_pytorch(tmp_path: Path) -> None:
    assert_compiled_equals_pytorch(network("resnet20"), image(32, batch=2), tmp_path, threads=2)


def small_vgg() -> nn.Module:
    """VGG's shape in small: its classifier reads the whole feature map, channel by channel."""
    features = [nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    classifier = [nn.Linear(12 * 6 * 4, 20), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(20, 7)]
    return randomise(nn.Sequential(*features, nn.AdaptiveAvgPool2d((6, 4)), nn.Flatten(), *classifier))


def test_classifier_on_the_whole_feature_map_equals_pytorch_also_when_cut(tmp_path: Path) -> None:
    whole, example = small_vgg(), torch.randn(2, 3, 12, 8)
    assert_compiled_equals_pytorch(whole, example, tmp_path)
    assert_compiled_equals_pytorch(cut_to_odd_widths(whole, example, seed=6), example, tmp_path)
