"""Training a classifier on labelled samples.

What a round of pruning needs to recover accuracy, and what trains the embedded network: any settings of
`aap_hw.train.settings`, on a GPU where there is one, in one process or in several that train together
(`aap_hw.ranks`). The same seed and the same number of processes and threads give the same weights on a CPU.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from aap_hw import ranks
from aap_hw.errors import UserError
from aap_hw.graph.program.calling import called
from aap_hw.graph.program.inputs import Tensors
from aap_hw.graph.program.outputs import class_scores
from aap_hw.inputs import Inputs
from aap_hw.train.augment import Draws, blend, draw_share, training_batch
from aap_hw.train.checkpoint import EpochRecord, TrainState, copy_of, state_of, take_up
from aap_hw.train.evaluation import evaluate, flushed_denormals
from aap_hw.train.placing import laid_out, lay_out, move, placed
from aap_hw.train.samples import Samples
from aap_hw.train.settings import TrainSettings

BeforeEpoch = Callable[[int], None]
OnEpoch = Callable[[int, int, float, float, float], None]
OnStep = Callable[[int, float, float, float], None]
OnCheckpoint = Callable[[TrainState], None]
Batch = tuple[Tensors, torch.Tensor, float]


@dataclass(frozen=True)
class TrainResult:
    """Accuracy after the last epoch in percent, on the split that decides, and every epoch's record."""

    accuracy: float
    history: tuple[EpochRecord, ...]


def train(
    model: nn.Module,
    data: Samples,
    settings: TrainSettings,
    *,
    seed: int,
    inputs: Inputs,
    teacher: nn.Module | None = None,
    before_epoch: BeforeEpoch | None = None,
    on_epoch: OnEpoch | None = None,
    on_step: OnStep | None = None,
    resume_from: TrainState | None = None,
    on_checkpoint: OnCheckpoint | None = None,
) -> TrainResult:
    """Train `model` in place and leave it in eval mode.

    Parameters
    ----------
    seed
        Of the order of the images, the augmentation and dropout. The model's own initial weights are the
        caller's.
    inputs
        What the model takes; images are resized to it.
    teacher
        The network whose outputs are distilled, if the settings say so; usually the unpruned one.
    before_epoch
        Called before each epoch with the number of those that are done.
    on_epoch
        Called after each epoch with (epoch from 1, epochs, loss, accuracy in percent, seconds of that epoch).
    on_step
        Called after each batch with (epoch from 1, share of the epoch that is done, its loss so far, its seconds so
        far).
    resume_from
        Goes on from there, to the very weights that the training would have had uninterrupted; `model` may have any
        weights. After the last epoch's state nothing is left to do but to take its weights.
    on_checkpoint
        Called after each epoch, before `on_epoch`, with a state to resume from.

    Raises
    ------
    UserError : the loss, a weight or a batch norm statistic stops being a finite number, there is less than one batch
        of two images, the processes cannot share a batch evenly, or there is no teacher to distil.

    Notes
    -----
    Whatever ends training early (that error, Ctrl-C, an error in `on_epoch`) leaves the weights as they were
    after the last complete epoch.
    """
    _check(data, settings, inputs, teacher)
    good_state = copy_of(model)
    history: list[EpochRecord] = []
    complete = False
    device = ranks.device()
    try:
        # Dropout draws from torch's global generator: seed it for the training only.
        with flushed_denormals(), placed(model, device), torch.random.fork_rng():
            torch.manual_seed(seed)
            generator = torch.Generator().manual_seed(seed)
            course = _Course(model, data, settings, inputs, device, teacher)
            if resume_from is not None:
                take_up(resume_from, *course.parts, generator)
                good_state, history = copy_of(course.kept), list(resume_from.history)
            for epoch in range(len(history), settings.epochs):
                if before_epoch is not None:
                    before_epoch(epoch)
                started = time.perf_counter()
                loss = course.run_epoch(epoch, generator, on_step)
                if not all(bool(t.isfinite().all()) for t in model.state_dict().values()):
                    raise _diverged(settings, epoch, "a weight or statistic")
                accuracy = evaluate(course.kept, data, inputs, split=data.chosen_by)
                record = EpochRecord(epoch + 1, loss, accuracy, time.perf_counter() - started)
                good_state = copy_of(course.kept)
                history.append(record)
                if on_checkpoint is not None:
                    on_checkpoint(state_of(history, *course.parts, generator))
                if on_epoch is not None:
                    on_epoch(record.epoch, settings.epochs, loss, accuracy, record.seconds)
        complete = True
    finally:
        if not complete or settings.average:
            model.load_state_dict(good_state)
        model.to(memory_format=torch.contiguous_format)
        model.eval()
    return TrainResult(accuracy=history[-1].accuracy, history=tuple(history))


class _Course:
    """What a training keeps from step to step: the optimiser, the average of the weights, the teacher.

    Attributes
    ----------
    kept : the network that is evaluated and kept: the model itself, or the average of its weights.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Samples,
        settings: TrainSettings,
        inputs: Inputs,
        device: torch.device,
        teacher: nn.Module | None,
    ) -> None:
        self.model, self._data, self._settings = model, data, settings
        self._inputs, self._device = inputs, device
        self._layout = lay_out(model, inputs)
        self.optimizer = _optimizer(model, settings)
        self.average = None
        if settings.average:
            update = get_ema_multi_avg_fn(settings.average)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(model, multi_avg_fn=update, use_buffers=True)
        self._teacher = None
        if teacher is not None and settings.loss.distillation:
            self._teacher = copy.deepcopy(teacher).eval()
            move(self._teacher, device)
            self._layout_taught = lay_out(self._teacher, inputs)
        self._bf16 = settings.precision == "bf16" or (settings.precision == "auto" and bf16_helps(model, device))
        self._parallel = model
        if ranks.count() > 1:
            self._parallel = DistributedDataParallel(model, [device] if device.type == "cuda" else None)

    @property
    def parts(self) -> tuple[nn.Module, AveragedModel | None, torch.optim.Optimizer]:
        return self.model, self.average, self.optimizer

    @property
    def kept(self) -> nn.Module:
        return self.model if self.average is None else self.average.module

    def run_epoch(self, epoch: int, generator: torch.Generator, on_step: OnStep | None) -> float:
        """One pass over the shuffled training images; the mean loss. An incomplete last batch is left out."""
        settings = self._settings
        size = size_of_batch(self._data, settings)
        steps = self._data.count("train") // size
        batches = self._batches(size, steps, generator)
        # Decoding the next images meanwhile; those in memory take no time worth a thread.
        if self._data.crops_are_random:
            batches = _ahead(batches)
        self.model.train()
        began, total = time.perf_counter(), 0.0
        for step, (stored, labels, share) in enumerate(batches):
            rate = settings.learning_rate_at(epoch + (step + 1) / steps)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            loss = self._loss(stored, labels, share)
            value = float(ranks.summed(loss.detach().clone())) / ranks.count()
            if not math.isfinite(value):
                raise _diverged(settings, epoch, "the loss")
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            if settings.optimiser.clip_norm is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), settings.optimiser.clip_norm)
            self.optimizer.step()
            if self.average is not None:
                self.average.update_parameters(self.model)
            total += value
            if on_step is not None:
                on_step(epoch + 1, (step + 1) / steps, total / (step + 1), time.perf_counter() - began)
        # Every process has seen other images: the first one's statistics of batch norms hold for all.
        ranks.align([*self.model.buffers(), *(self.average.buffers() if self.average is not None else ())])
        return total / steps

    def _batches(self, size: int, steps: int, generator: torch.Generator) -> Iterator[Batch]:
        how, data = self._settings.augmentation, self._data
        order = torch.randperm(data.count("train"), generator=generator)
        mine = ranks.share_of(size)
        for step in range(steps):
            draws = Draws.of(size, how, generator, crops=data.crops_are_random)
            share = draw_share(how.mixup, generator)
            chosen = order[step * size : (step + 1) * size]
            yield *training_batch(data, chosen[mine], how, draws[mine]), share

    def _loss(self, stored: Tensors, labels: torch.Tensor, share: float) -> torch.Tensor:
        wanted, smoothing = self._settings.loss, self._settings.loss.label_smoothing
        shown = self._data.prepared(tuple(each.to(self._device) for each in stored), self._inputs)
        seen = laid_out(tuple(blend(each, share) for each in shown), self._layout)
        labels = labels.to(self._device)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            outputs = class_scores(called(self._parallel, seen, self._inputs.names))
            loss = F.cross_entropy(outputs, labels, label_smoothing=smoothing)
            if share < 1:
                other = F.cross_entropy(outputs, labels.flip(0), label_smoothing=smoothing)
                loss = share * loss + (1 - share) * other
            if self._teacher is not None:
                with torch.no_grad():
                    taught = class_scores(
                        called(self._teacher, laid_out(seen, self._layout_taught), self._inputs.names)
                    )
                loss = (1 - wanted.distillation) * loss + wanted.distillation * distance(
                    outputs, taught, wanted.temperature
                )
        return loss


def size_of_batch(data: Samples, settings: TrainSettings) -> int:
    """How many samples all processes take in a step."""
    size = min(settings.batch_size, data.count("train"))
    return size - size % ranks.count()


def share_of_batch(data: Samples, settings: TrainSettings) -> int:
    """How many samples this process takes in a step."""
    return size_of_batch(data, settings) // ranks.count()


def distance(outputs: torch.Tensor, taught: torch.Tensor, temperature: float) -> torch.Tensor:
    """How far outputs (N, classes) are from a teacher's: the divergence of their softened probabilities, times T^2.

    The factor keeps the gradient as large at every temperature (Hinton et al., arXiv 1503.02531, section 2).
    """
    mine, theirs = (F.log_softmax(each.float() / temperature, dim=1) for each in (outputs, taught))
    return temperature**2 * F.kl_div(mine, theirs, reduction="batchmean", log_target=True)


def bf16_helps(model: nn.Module, device: torch.device) -> bool:
    """Whether training is quicker in bf16.

    On a CPU with instructions for it, dense convolutions are quicker and depthwise ones much slower. On an Intel CPU
    that has AVX512-BF16 and no AMX, dense ones are slower, too (docs/DECISIONS.md).
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    cpu = Path("/proc/cpuinfo")
    words = set(cpu.read_text(encoding="utf-8").split()) if cpu.exists() else set()
    native = bool({"amx_bf16", "bf16"} & words) or ("avx512_bf16" in words and "GenuineIntel" not in words)
    return native and not any(isinstance(m, nn.Conv2d) and 1 < m.groups == m.in_channels for m in model.modules())


def _check(data: Samples, settings: TrainSettings, inputs: Inputs, teacher: nn.Module | None) -> None:
    if data.count("train") < max(2, ranks.count()):
        raise UserError(f"there are {data.count('train')} training samples; give at least 2, and one for each process")
    if settings.batch_size % ranks.count():
        raise UserError(
            f"batches of {settings.batch_size} samples cannot be shared evenly by {ranks.count()} processes; "
            "choose a multiple"
        )
    if settings.augmentation.mixup and not all(one.is_float for one in inputs.each):
        raise UserError(f"inputs of whole numbers ({inputs.text}) cannot be blended; leave mixup out of the training")
    if settings.loss.distillation and teacher is None:
        raise UserError("distillation needs the unpruned network as its teacher; give one, or set distillation=0")


def _optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    how = settings.optimiser
    if how.name == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=how.weight_decay)
    return torch.optim.SGD(
        model.parameters(),
        lr=settings.learning_rate,
        momentum=how.momentum,
        nesterov=how.nesterov,
        weight_decay=how.weight_decay,
    )


def _ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same, each made by a thread while the one before is used."""
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(next, batches, None)
        while (batch := pending.result()) is not None:
            pending = pool.submit(next, batches, None)
            yield batch


def _diverged(settings: TrainSettings, epoch: int, what: str) -> UserError:
    kept = f"the weights are those after epoch {epoch}" if epoch else "the weights are as they were before training"
    return UserError(
        f"training diverged in epoch {epoch + 1} of {settings.epochs}: {what} is no longer a finite number; "
        f"{kept}; try a learning rate below {settings.learning_rate:g}"
    )
