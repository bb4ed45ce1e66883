"""How a model and its batches lie where they are computed: device, memory layout, and its mode meanwhile.

Images and weights are channels last, PyTorch's fastest layout, wherever the model's code allows that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from aap_hw.graph.program.calling import called
from aap_hw.graph.program.inputs import Tensors
from aap_hw.inputs import Inputs

# Of images and weights, the fastest first.
LAYOUTS = torch.channels_last, torch.contiguous_format


@contextmanager
def in_evaluation(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, and each of its modules in its own mode again afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():  # outer ones first, as they pass their mode on
            if module.training != mode:
                module.train(mode)


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
    """Whether PyTorch runs a model on two images of zeros in a layout; modes and draws are left as they were."""
    device = next(model.parameters()).device
    try:
        with in_evaluation(model), torch.random.fork_rng([device] if device.type == "cuda" else []):
            sample = tuple(each.to(device) for each in inputs.zeros(2))
            called(model, laid_out(sample, layout), inputs.names)
    except Exception:  # the model's code may raise anything at zeros, and its error shows where it is run in earnest
        return False
    return True


def lay_out(model: nn.Module, inputs: Inputs) -> torch.memory_format:
    """Keep the weights as images come, channels last where the model's code allows that; the layout of images.

    Weights of three dimensions stay as they are.
    """
    if any(parameter.dim() > 4 for parameter in model.parameters()):
        return image_layout(model, inputs)
    for layout in LAYOUTS:
        model.to(memory_format=layout)
        if runs_in(model, inputs, layout):
            return layout
    model.to(memory_format=LAYOUTS[0])
    return LAYOUTS[0]


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
