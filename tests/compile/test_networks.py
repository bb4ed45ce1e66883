"""Proves that whole networks, as published and cut to odd widths, compile to what PyTorch computes.

A network with residual sums, one with depthwise convolutions and one with concatenations run every day, whole or cut.
The others take long to compile and are marked slow. The networks are the zoo's and others of torchvision at small
inputs, with batch norms whose statistics and affine parts differ from channel to channel. VGG-16's classifier needs
224 x 224 pixels: its features are tried, and a classifier like it. Where blocks differ in nothing but how many channels
they read, some of a network stand for all: the shallow ones have each kind of block that the published ones have.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.compile.networks import cut_to_odd_widths, image, network
from tests.compile.running import assert_compiled_equals_pytorch, randomise

NETWORKS = [
    ("mobilenetv2", 64),
    ("resnet20", 32),
    *[
        pytest.param(name, side, marks=pytest.mark.slow)
        for name, side in [
            ("small_densenet", 32),
            ("resnet18", 64),
            ("shufflenet_v2_x1_0", 64),
            ("shallow_efficientnet", 64),
            ("mnasnet1_0", 64),
            ("squeezenet1_1", 64),
            ("resnet50", 64),
            ("vgg16_bn", 64),
            ("shallow_densenet", 64),
            ("mobilenet_v3_large", 64),
            ("googlenet", 64),
            ("inception_v3", 96),
        ]
    ],
]


@pytest.mark.parametrize(("name", "side"), NETWORKS)
def test_compiled_network_equals_pytorch(name: str, side: int, tmp_path: Path) -> None:
    assert_compiled_equals_pytorch(network(name), image(side), tmp_path)


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("small_densenet", 32),
        *[
            pytest.param(name, 32, marks=pytest.mark.slow)
            for name in ("mobilenetv2", "resnet18", "resnet20", "shallow_shufflenet")
        ],
    ],
)
def test_network_cut_to_odd_widths_equals_pytorch(name: str, side: int, tmp_path: Path) -> None:
    whole, example = network(name), image(side)
    assert_compiled_equals_pytorch(cut_to_odd_widths(whole, example, seed=5), example, tmp_path)


@pytest.mark.slow
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
