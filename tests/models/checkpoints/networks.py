"""A small network, weights for it, and what becomes of a file that is said to hold them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from aap_hw.models.weights import WeightsFile, load_weights

State = dict[str, Tensor]


def network(classes: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, classes))


def weights(seed: int = 5) -> State:
    torch.manual_seed(seed)
    return {name: torch.rand_like(t) if t.is_floating_point() else t for name, t in network().state_dict().items()}


def loaded(path: Path, module: nn.Module | None = None) -> State:
    module = network() if module is None else module
    load_weights(module, WeightsFile.at(path), "mynet")
    return module.state_dict()


def are_equal(left: State, right: State) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def renamed(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}
