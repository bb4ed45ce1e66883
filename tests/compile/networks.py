"""Networks of the zoo and others of torchvision, as published and cut to odd widths."""

from __future__ import annotations

import functools

import numpy as np
import torch
import torchvision
from torch import nn

from aap_hw.graph import ChannelGraph
from aap_hw.models import zoo
from aap_hw.models.initialise import calibrate_batch_norm, initialise


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
