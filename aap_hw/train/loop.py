"""Training and evaluating an image classifier on labelled images held in memory.

One process, one device, SGD with momentum: what a round of pruning needs to recover accuracy, and what trains
the embedded network. The same seed and the same number of threads give the same weights. It does not cover
several processes, distillation or other optimisers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from aap_hw.errors import UserError
from aap_hw.train.data import InputShape, LabelledImages, Split

OnEpoch = Callable[[int, int, float, float, float], None]
OnCheckpoint = Callable[["TrainState"], None]


@dataclass(frozen=True)
class TrainSettings:
    """How to train.

    Parameters
    ----------
    epochs, batch_size
        Passes over the training images, and images per step.
    learning_rate
        Its highest value, reached after the warm-up.
    schedule, steps, step_factor
        ``"cosine"`` falls to zero at the end; ``"step"`` is multiplied by `step_factor` at each epoch in
        `steps`.
    warmup_epochs
        Length of the linear rise from zero; fractions count.
    momentum, nesterov, weight_decay
        Of the optimiser. The decay applies to all parameters.
    label_smoothing
        Share of the target spread over all classes.
    precision
        What convolutions and products compute in while training: ``"fp32"``, or ``"bf16"`` by autocast. Weights stay
        in fp32, and so does evaluation.
    flip, crop_padding
        Augmentation: mirror half of the images; shift by at most so many pixels of the stored image (0: not
        at all).

    Raises
    ------
    UserError
        If a value cannot be trained with.
    """

    epochs: int = 30
    batch_size: int = 128
    learning_rate: float = 0.1
    schedule: Literal["cosine", "step"] = "cosine"
    steps: tuple[int, ...] = ()
    step_factor: float = 0.1
    warmup_epochs: float = 1.0
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    precision: Literal["fp32", "bf16"] = "fp32"
    flip: bool = True
    crop_padding: int = 2

    def __post_init__(self) -> None:
        rules = (
            (self.epochs >= 1, f"epochs is {self.epochs}; give at least 1"),
            (self.batch_size >= 2, f"batch_size is {self.batch_size}; batch norm needs at least 2"),
            (self.learning_rate > 0, f"learning_rate is {self.learning_rate}; give a positive number"),
            (self.schedule in ("cosine", "step"), f"schedule is {self.schedule!r}; give 'cosine' or 'step'"),
            (self.warmup_epochs >= 0, f"warmup_epochs is {self.warmup_epochs}; give 0 or more"),
            (0 <= self.momentum < 1, f"momentum is {self.momentum}; give 0 up to below 1"),
            (self.weight_decay >= 0, f"weight_decay is {self.weight_decay}; give 0 or more"),
            (self.momentum > 0 or not self.nesterov, "nesterov needs a momentum above 0; set nesterov=False"),
            (
                0 <= self.label_smoothing < 1,
                f"label_smoothing is {self.label_smoothing}; give 0 up to below 1",
            ),
            (self.precision in ("fp32", "bf16"), f"precision is {self.precision!r}; give 'fp32' or 'bf16'"),
            (self.crop_padding >= 0, f"crop_padding is {self.crop_padding}; give 0 or more pixels"),
        )
        for holds, complaint in rules:
            if not holds:
                raise UserError(f"training settings: {complaint}")

    def learning_rate_at(self, epoch: float) -> float:
        """Learning rate at a moment, counted in epochs from the start (1.5: half way through the second)."""
        rate = self.learning_rate
        if epoch < self.warmup_epochs:
            return rate * epoch / self.warmup_epochs
        if self.schedule == "step":
            return rate * self.step_factor ** sum(epoch >= step for step in self.steps)
        remaining = max(self.epochs - self.warmup_epochs, 1e-9)
        return rate * 0.5 * (1 + math.cos(math.pi * min((epoch - self.warmup_epochs) / remaining, 1.0)))


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch gave: mean training loss, accuracy on the test images in percent, seconds spent."""

    epoch: int
    loss: float
    accuracy: float
    seconds: float


@dataclass(frozen=True)
class TrainResult:
    """Accuracy after the last epoch in percent, and every epoch's record."""

    accuracy: float
    history: tuple[EpochRecord, ...]


@dataclass(frozen=True)
class TrainState:
    """A training after some whole epochs: all that the rest of it depends on, besides its settings and images.

    Attributes
    ----------
    history
        Records of the epochs that are done.
    tensors
        ``model.NAME``, ``optimizer.NUMBER.NAME``, and the states of both random generators: ``random.torch``
        (dropout) and ``random.images`` (order and augmentation). Contiguous, and no memory of the model's.
    """

    history: tuple[EpochRecord, ...]
    tensors: dict[str, torch.Tensor]


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Numbers below about 1e-38 count as zero inside; they make a CPU network up to ten times slower."""
    smallest = torch.tensor([torch.finfo(torch.float32).tiny])
    already_flushed = bool((smallest / 2 == 0).item())
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(already_flushed)


def augment(images: torch.Tensor, *, flip: bool, padding: int, generator: torch.Generator) -> torch.Tensor:
    """Mirror each image with probability one half and shift it by up to `padding` pixels, filling with zeros.

    Parameters
    ----------
    images
        Of shape (n, C, H, W) and any type; not changed.
    """
    n, _, height, width = images.shape
    rows, columns = torch.arange(height).expand(n, -1), torch.arange(width).expand(n, -1)
    if flip:
        mirrored = torch.rand(n, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, width - 1 - columns, columns)
    if padding:
        images = F.pad(images, (padding,) * 4)
        rows = rows + torch.randint(2 * padding + 1, (n, 1), generator=generator)
        columns = columns + torch.randint(2 * padding + 1, (n, 1), generator=generator)
    # One gather of all images: (n, 1, 1) picks the image, (n, H, 1) its rows, (n, 1, W) its columns.
    picked = images.movedim(1, 3)[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return picked.movedim(3, 1)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    data: LabelledImages,
    input_shape: InputShape,
    *,
    split: Split = "test",
    batch_size: int = 250,
) -> float:
    """Share of the images that the model classifies correctly, in percent; its mode is left as it was."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    correct = seen = 0
    try:
        with flushed_denormals():
            for start in range(0, data.count(split), batch_size):
                images, labels = data.batch(split, range(start, min(start + batch_size, data.count(split))))
                inputs = data.normalise(images.to(device), input_shape)
                outputs = model(inputs.contiguous(memory_format=torch.channels_last))
                correct += int((outputs.argmax(1).cpu() == labels).sum())
                seen += len(labels)
    finally:
        model.train(was_training)
    return 100.0 * correct / max(seen, 1)


def train(
    model: nn.Module,
    data: LabelledImages,
    settings: TrainSettings,
    *,
    seed: int,
    input_shape: InputShape,
    on_epoch: OnEpoch | None = None,
    resume_from: TrainState | None = None,
    on_checkpoint: OnCheckpoint | None = None,
) -> TrainResult:
    """Train `model` in place and leave it in eval mode.

    Parameters
    ----------
    seed
        Of the order of the images, the augmentation and dropout. The model's own initial weights are the
        caller's.
    input_shape
        (C, H, W) that the model takes; images are resized to it.
    on_epoch
        Called after each epoch with (epoch from 1, epochs, loss, accuracy in percent, seconds of that epoch).
    resume_from
        Goes on from there, to the very weights that the training would have had uninterrupted; `model` may have any
        weights. After the last epoch's state nothing is left to do but to take its weights.
    on_checkpoint
        Called after each epoch, before `on_epoch`, with a state to resume from.

    Raises
    ------
    UserError
        If the loss, a weight or a batch norm statistic stops being a finite number, or there is less than one
        batch of two images.

    Notes
    -----
    Whatever ends training early (that error, Ctrl-C, an error in `on_epoch`) leaves the weights as they were
    after the last complete epoch.
    """
    if data.count("train") < 2:
        raise UserError(f"there are {data.count('train')} training images; give at least 2")
    good_state = _copy_state(model)
    history: list[EpochRecord] = []
    complete = False
    model.to(memory_format=torch.channels_last)
    try:
        # Dropout draws from torch's global generator: seed it for the training only.
        with flushed_denormals(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            generator = torch.Generator().manual_seed(seed)
            optimizer = torch.optim.SGD(
                model.parameters(),
                lr=settings.learning_rate,
                momentum=settings.momentum,
                nesterov=settings.nesterov,
                weight_decay=settings.weight_decay,
            )
            if resume_from is not None:
                _take_up(resume_from, model, optimizer, generator)
                good_state, history = _copy_state(model), list(resume_from.history)
            for epoch in range(len(history), settings.epochs):
                started = time.perf_counter()
                loss = _train_epoch(model, data, settings, optimizer, generator, epoch, input_shape)
                if not all(bool(t.isfinite().all()) for t in model.state_dict().values()):
                    raise _diverged(settings, epoch, "a weight or statistic")
                accuracy = evaluate(model, data, input_shape)
                record = EpochRecord(epoch + 1, loss, accuracy, time.perf_counter() - started)
                good_state = _copy_state(model)
                history.append(record)
                if on_checkpoint is not None:
                    on_checkpoint(_state(history, good_state, optimizer, generator))
                if on_epoch is not None:
                    on_epoch(record.epoch, settings.epochs, loss, accuracy, record.seconds)
        complete = True
    finally:
        if not complete:
            model.load_state_dict(good_state)
        model.to(memory_format=torch.contiguous_format)
        model.eval()
    return TrainResult(accuracy=history[-1].accuracy, history=tuple(history))


def _train_epoch(
    model: nn.Module,
    data: LabelledImages,
    settings: TrainSettings,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    epoch: int,
    input_shape: InputShape,
) -> float:
    """One pass over the shuffled training images; the mean loss. An incomplete last batch is left out."""
    device = next(model.parameters()).device
    count = data.count("train")
    batch_size = min(settings.batch_size, count)
    batches = count // batch_size
    order = torch.randperm(count, generator=generator)
    model.train()
    total = 0.0
    for step in range(batches):
        rate = settings.learning_rate_at(epoch + (step + 1) / batches)
        for group in optimizer.param_groups:
            group["lr"] = rate
        chosen = order[step * batch_size : (step + 1) * batch_size]
        images, labels = data.batch("train", chosen)
        picked = augment(images, flip=settings.flip, padding=settings.crop_padding, generator=generator)
        inputs = data.normalise(picked.to(device), input_shape).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            loss = F.cross_entropy(model(inputs), labels.to(device), label_smoothing=settings.label_smoothing)
        value = loss.item()
        if not math.isfinite(value):
            raise _diverged(settings, epoch, "the loss")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += value
    return total / batches


def _state(
    history: Sequence[EpochRecord],
    weights: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> TrainState:
    tensors = {f"model.{name}": tensor for name, tensor in weights.items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": torch.as_tensor(value).clone() for name, value in state.items()}
    tensors |= {"random.torch": torch.get_rng_state(), "random.images": generator.get_state()}
    return TrainState(tuple(history), {name: tensor.contiguous() for name, tensor in tensors.items()})


def _take_up(state: TrainState, model: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    weights: dict[str, torch.Tensor] = {}
    slots: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in state.tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "model":
            weights[rest] = tensor
        elif kind == "optimizer":
            number, _, slot = rest.partition(".")
            if tensor.shape == parameters[int(number)].shape:
                # In the parameter's memory format: another order of summing would round differently.
                tensor = torch.empty_like(parameters[int(number)]).copy_(tensor)
            slots.setdefault(int(number), {})[slot] = tensor
    model.load_state_dict(weights)
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
    torch.set_rng_state(state.tensors["random.torch"])
    generator.set_state(state.tensors["random.images"])


def _copy_state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _diverged(settings: TrainSettings, epoch: int, what: str) -> UserError:
    kept = f"the weights are those after epoch {epoch}" if epoch else "the weights are as they were before training"
    return UserError(
        f"training diverged in epoch {epoch + 1} of {settings.epochs}: {what} is no longer a finite number; "
        f"{kept}; try a learning rate below {settings.learning_rate:g}"
    )
