"""A training between two epochs as plain tensors, from which it goes on as if it had not been interrupted.

How it is kept on disk is ``aap_hw.prune.journal``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch gave: mean training loss, accuracy on the test images in percent, seconds spent."""

    epoch: int
    loss: float
    accuracy: float
    seconds: float


@dataclass(frozen=True)
class TrainState:
    """A training after some whole epochs: all that the rest of it depends on, besides its settings and images.

    Attributes
    ----------
    history
        Records of the epochs that are done.
    tensors
        ``model.NAME``, ``optimizer.NUMBER.NAME``, ``average.NAME`` of the weights' running average if there is one,
        and the states of both random generators: ``random.torch`` (dropout) and ``random.images`` (order and
        augmentation). Contiguous, and no memory of the model's.
    """

    history: tuple[EpochRecord, ...]
    tensors: dict[str, torch.Tensor]


def state_of(
    history: Sequence[EpochRecord],
    model: nn.Module,
    average: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> TrainState:
    """The state of a training between two epochs; ``average`` is the running average of the model's weights."""
    tensors = {f"model.{name}": tensor for name, tensor in copy_of(model).items()}
    if average is not None:
        tensors |= {f"average.{name}": tensor for name, tensor in copy_of(average).items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": torch.as_tensor(value).clone() for name, value in state.items()}
    tensors |= {"random.torch": torch.get_rng_state(), "random.images": generator.get_state()}
    return TrainState(tuple(history), {name: tensor.cpu().contiguous() for name, tensor in tensors.items()})


def take_up(
    state: TrainState,
    model: nn.Module,
    average: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> None:
    """Bring all that a training consists of to a state."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    weights: dict[str, dict[str, torch.Tensor]] = {"model": {}, "average": {}}
    slots: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in state.tensors.items():
        kind, _, rest = name.partition(".")
        if kind in weights:
            weights[kind][rest] = tensor
        elif kind == "optimizer":
            number, _, slot = rest.partition(".")
            if tensor.shape == parameters[int(number)].shape:
                # In the parameter's memory format: another order of summing would round differently.
                tensor = torch.empty_like(parameters[int(number)]).copy_(tensor)
            slots.setdefault(int(number), {})[slot] = tensor
    model.load_state_dict(weights["model"])
    if average is not None:
        average.load_state_dict(weights["average"])
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
    torch.set_rng_state(state.tensors["random.torch"])
    generator.set_state(state.tensors["random.images"])


def copy_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """A model's state, in memory of its own."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
