"""How to train, as values: the optimiser, its learning rate over time, augmentation, and what the loss is made of."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, field
from typing import Literal

import pydantic

from aap_hw.errors import UserError
from aap_hw.files import read_text
from aap_hw.train.defaults import EPOCHS, LEARNING_RATE
from aap_hw.validation import require

# What sentences about wrong values begin with.
TRAINING = "training settings"


@pydantic.with_config(pydantic.ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class Optimiser:
    """What turns gradients into steps.

    Parameters
    ----------
    name
        ``"sgd"`` or ``"adamw"``.
    momentum, nesterov
        Of SGD.
    weight_decay
        Applies to all parameters.
    clip_norm
        Gradients are scaled down to this norm, all of them together; None leaves them.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        require(
            TRAINING,
            (self.name in ("sgd", "adamw"), f"the optimiser is {self.name!r}; give 'sgd' or 'adamw'"),
            (0 <= self.momentum < 1, f"momentum is {self.momentum}; give 0 up to below 1"),
            (self.momentum > 0 or not self.nesterov, "nesterov needs a momentum above 0; set nesterov=False"),
            (
                0 <= self.weight_decay < math.inf,
                f"weight_decay is {self.weight_decay}; give a finite number, 0 or more",
            ),
            (
                self.clip_norm is None or 0 < self.clip_norm < math.inf,
                f"clip_norm is {self.clip_norm}; give a positive, finite norm",
            ),
        )


@pydantic.with_config(pydantic.ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class Schedule:
    """The learning rate over time, as a factor of its highest value.

    Parameters
    ----------
    kind
        ``"cosine"`` falls to zero at the end; ``"step"`` is multiplied by `factor` at each epoch in `steps`.
    warmup_epochs
        Length of the linear rise from zero, which takes half of the training at most; fractions count.
    """

    kind: Literal["cosine", "step"] = "cosine"
    steps: tuple[int, ...] = ()
    factor: float = 0.1
    warmup_epochs: float = 1.0

    def __post_init__(self) -> None:
        require(
            TRAINING,
            (self.kind in ("cosine", "step"), f"the schedule is {self.kind!r}; give 'cosine' or 'step'"),
            (0 < self.factor < math.inf, f"factor is {self.factor}; give a positive, finite number"),
            (
                0 <= self.warmup_epochs < math.inf,
                f"warmup_epochs is {self.warmup_epochs}; give a finite number, 0 or more",
            ),
        )

    def at(self, epoch: float, epochs: int) -> float:
        """The factor at a moment, counted in epochs from the start (1.5: half way through the second)."""
        warmup_epochs = min(self.warmup_epochs, epochs / 2)
        if epoch < warmup_epochs:
            return epoch / warmup_epochs
        if self.kind == "step":
            return float(self.factor ** sum(epoch >= step for step in self.steps))
        return 0.5 * (1 + math.cos(math.pi * min((epoch - warmup_epochs) / (epochs - warmup_epochs), 1.0)))


@pydantic.with_config(pydantic.ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class Augmentation:
    """How training images are varied.

    Parameters
    ----------
    flip
        Mirror half of them.
    crop_padding
        Shift by at most so many pixels of the stored image (0: not at all). Images that are read from files each time
        are cropped to random parts instead.
    mixup
        Blend each with another one, by a share drawn from Beta(mixup, mixup); 0 does not (Zhang et al., 2018).
    """

    flip: bool = True
    crop_padding: int = 2
    mixup: float = 0.0

    def __post_init__(self) -> None:
        require(
            TRAINING,
            (self.crop_padding >= 0, f"crop_padding is {self.crop_padding}; give 0 or more pixels"),
            (0 <= self.mixup < math.inf, f"mixup is {self.mixup}; give a finite number, 0 or more"),
        )


@pydantic.with_config(pydantic.ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class Loss:
    """What is minimised.

    Parameters
    ----------
    label_smoothing
        Share of the target spread over all classes.
    distillation
        Share of the loss that is the distance to the unpruned network's outputs (Hinton et al., 2015); the rest is that
        to the labels.
    temperature
        What both outputs are divided by for that distance.
    """

    label_smoothing: float = 0.0
    distillation: float = 0.0
    temperature: float = 4.0

    def __post_init__(self) -> None:
        require(
            TRAINING,
            (0 <= self.label_smoothing < 1, f"label_smoothing is {self.label_smoothing}; give 0 up to below 1"),
            (0 <= self.distillation <= 1, f"distillation is {self.distillation}; give 0 to 1"),
            (0 < self.temperature < math.inf, f"temperature is {self.temperature}; give a positive, finite number"),
        )


@pydantic.with_config(pydantic.ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class TrainSettings:
    """How to train.

    Parameters
    ----------
    epochs, batch_size
        Passes over the training images, and images per step (of all processes together).
    learning_rate
        Its highest value, reached after the warm-up.
    optimiser, schedule, augmentation, loss
        See the class of the same name.
    average
        Share that the running average of the weights keeps of itself at each step, such as 0.999; the average is what
        is evaluated and kept. 0 keeps the weights themselves.
    precision
        What convolutions and products compute in: ``"fp32"``, ``"bf16"`` by autocast, or ``"auto"``: bf16 where the
        device has instructions for it and the network no depthwise convolution, which are slower in it. Weights stay in
        fp32, and so does evaluation.

    Raises
    ------
    UserError : a value cannot be trained with.
    """

    epochs: int = EPOCHS
    batch_size: int = 128
    learning_rate: float = LEARNING_RATE
    optimiser: Optimiser = field(default_factory=Optimiser)
    schedule: Schedule = field(default_factory=Schedule)
    augmentation: Augmentation = field(default_factory=Augmentation)
    loss: Loss = field(default_factory=Loss)
    average: float = 0.0
    precision: Literal["fp32", "bf16", "auto"] = "fp32"

    def __post_init__(self) -> None:
        require(
            TRAINING,
            (1 <= self.epochs < math.inf, f"epochs is {self.epochs}; give at least 1"),
            (2 <= self.batch_size < math.inf, f"batch_size is {self.batch_size}; batch norm needs at least 2"),
            (
                0 < self.learning_rate < math.inf,
                f"learning_rate is {self.learning_rate}; give a positive, finite number",
            ),
            (0 <= self.average < 1, f"average is {self.average}; give 0 up to below 1"),
            (self.precision in ("fp32", "bf16", "auto"), f"precision is {self.precision!r}; give fp32, bf16 or auto"),
        )

    @classmethod
    def read(cls, path: str) -> TrainSettings:
        """Read a TOML file with these names as keys, and tables for the groups.

        Raises
        ------
        UserError : it is missing or no TOML, or a key or value is not known.
        """
        try:
            values = tomllib.loads(read_text(path, TRAINING))
            return pydantic.TypeAdapter(cls).validate_python(values)
        except tomllib.TOMLDecodeError as problem:
            raise UserError(f"{path} is no TOML file: {problem}") from problem
        except pydantic.ValidationError as failure:
            first = failure.errors(include_url=False)[0]
            key = ".".join(map(str, first["loc"]))
            raise UserError(f"{path}: {key}: {first['msg'].lower()} (it is {first['input']!r})") from failure

    def learning_rate_at(self, epoch: float) -> float:
        """Learning rate at a moment, counted in epochs from the start."""
        return self.learning_rate * self.schedule.at(epoch, self.epochs)
