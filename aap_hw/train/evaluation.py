"""A classifier's accuracy, and what evaluation and training share: device, memory layout, flushed denormals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from aap_hw import ranks
from aap_hw.activity import doing
from aap_hw.errors import UserError
from aap_hw.graph.program.calling import called
from aap_hw.graph.program.inputs import Tensors
from aap_hw.inputs import Inputs
from aap_hw.train.samples import Samples, Split

# Of images and weights, the fastest first.
LAYOUTS = torch.channels_last, torch.contiguous_format


@torch.no_grad()
@doing("finding the accuracy")
def evaluate(
    model: nn.Module,
    data: Samples,
    inputs: Inputs,
    *,
    split: Split = "test",
    batch_size: int = 250,
) -> float:
    """Share of the samples that the model classifies correctly, in percent; its mode and device are left as they were.

    Several processes evaluate a part each, and all get the figure for the whole.

    Raises
    ------
    UserError : not one of the images can be read.
    """
    mine = ranks.share_of(data.count(split))
    was_training = model.training
    model.eval()
    tally = torch.zeros(2, dtype=torch.int64)
    device = ranks.device()
    try:
        with flushed_denormals(), placed(model, device):
            layout = image_layout(model, inputs)
            for start in range(mine.start, mine.stop, batch_size):
                stored, labels = data.stored(split, range(start, min(start + batch_size, mine.stop)))
                if not len(labels):
                    continue
                shown = data.prepared(tuple(each.to(device) for each in stored), inputs)
                outputs = called(model, laid_out(shown, layout), inputs.names)
                right = int((outputs.argmax(1).cpu() == labels).sum())
                tally += torch.tensor([right, len(labels)])
    finally:
        model.train(was_training)
    correct, seen = ranks.summed(tally).tolist()
    if not seen:
        raise UserError(f"none of the {data.count(split)} {split} images can be read, so there is no accuracy")
    return float(100.0 * correct / seen)


def laid_out(batch: Tensors, layout: torch.memory_format) -> Tensors:
    """A batch with its images (N, C, H, W) in a layout, and everything else contiguous."""
    return tuple(
        each.contiguous(memory_format=layout if each.dim() == 4 else torch.contiguous_format) for each in batch
    )


def image_layout(model: nn.Module, inputs: Inputs) -> torch.memory_format:
    """The layout of images that a model is evaluated in: channels last, PyTorch's fastest, where its code allows that.

    A ``view`` after a convolution does not.
    """
    return next((layout for layout in LAYOUTS if runs_in(model, inputs, layout)), LAYOUTS[0])


@torch.no_grad()
def runs_in(model: nn.Module, inputs: Inputs, layout: torch.memory_format) -> bool:
    """Whether PyTorch runs a model on two images of zeros in a layout; its mode and its draws are left as they were."""
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            sample = tuple(each.to(device) for each in inputs.zeros(2))
            called(model, laid_out(sample, layout), inputs.names)
    except Exception:  # the model's code may raise anything at zeros, and its error shows where it is run in earnest
        return False
    finally:
        model.train(was_training)
    return True


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


@contextmanager
def placed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The model on a device, and back where it was afterwards."""
    before = next(model.parameters()).device
    move(model, device)
    try:
        yield
    finally:
        move(model, before)


def move(model: nn.Module, device: torch.device) -> None:
    """Put a model on a device, with the tensors that the code of exported programs makes there."""
    model.to(device)
    for part in model.modules():
        if isinstance(part, GraphModule):
            _aim(part, device)


def _aim(program: GraphModule, device: torch.device) -> None:
    def aimed(argument: Any) -> Any:
        return device if isinstance(argument, torch.device) else argument

    changed = False
    for node in program.graph.nodes:
        args, kwargs = tuple(map(aimed, node.args)), {name: aimed(each) for name, each in node.kwargs.items()}
        if (args, kwargs) != (node.args, node.kwargs):
            node.args, node.kwargs, changed = args, kwargs, True
    if changed:
        program.recompile()
