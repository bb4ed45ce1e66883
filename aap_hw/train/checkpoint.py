"""A training between two epochs, as tensors and as a file: it goes on from there as if it had not been interrupted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import nn

from aap_hw.errors import UserError
from aap_hw.files import write_atomic


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch gave: mean training loss, accuracy on the split that decides in percent, seconds spent."""

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

    def save(self, path: Path) -> None:
        """Write the state in place of an earlier one: whole, or not at all."""
        history = json.dumps([asdict(record) for record in self.history])
        write_atomic(path, safetensors.torch.save(self.tensors, {"history": history}))

    @classmethod
    def load(cls, path: Path, advice: str) -> TrainState | None:
        """The state in a file; None if there is none.

        Raises
        ------
        UserError : the file is damaged; ``advice`` is what to do then.
        """
        if not path.exists():
            return None
        try:
            with safetensors.safe_open(path, "pt") as file:
                history = json.loads(file.metadata()["history"])
            records = tuple(EpochRecord(**record) for record in history)
            return cls(records, safetensors.torch.load_file(path))
        except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError) as problem:
            raise UserError(f"the checkpoint {path} is damaged ({problem}); {advice}") from problem


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
