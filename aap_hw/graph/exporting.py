"""A model as the program that `torch.export` makes of it, or in one sentence the line of its code that has none.

What can be told without running anything is told in `readiness`; what the program means is for `labelling`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from aap_hw.errors import UserError
from aap_hw.foreign import DETAILS, is_raised_by_user, own_line, reason
from aap_hw.graph.inlining import inline_regions
from aap_hw.graph.outputs import plain

# What PyTorch raises where code asks for the value of a tensor, by type and by a part of the message.
_VALUES_ASKED = ("GuardOnDataDependentSymNode", "DataDependentOutputException", "DynamicOutputShapeException")
_OUTSIDE_ASKED = (".numpy() is not supported", "data pointer of Tensor", ".tolist()", "array_interface")


def traced(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> ExportedProgram:
    """Export a model as it runs in eval mode.

    Raises
    ------
    UserError
        If its code cannot be followed, or fails.
    """
    try:
        return export(model, inputs)
    except UserError:
        raise
    except Exception as error:
        raise UserError(_why_not(model, error, inputs)) from error


def export(model: nn.Module, inputs: tuple[torch.Tensor, ...], training: bool = False) -> ExportedProgram:
    """Export in eval mode or in training, and put every module's training flag back; raises whatever PyTorch does."""
    flags = [(module, module.training) for module in model.modules()]
    returned = model.register_forward_hook(lambda _, __, output: plain(output))
    model.train(training)
    try:
        with _quiet():
            program = torch.export.export(model, inputs, strict=False)
    finally:
        returned.remove()
        for module, flag in flags:
            module.training = flag
    inline_regions(program)
    return program


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep PyTorch from telling on standard error what only its developers can do something about."""
    before, said = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stderr(said), warnings.catch_warnings(action="ignore"):
            yield
    except Exception as error:
        if not hasattr(error, "partial_fx_graph"):  # which is what has been said
            sys.stderr.write(said.getvalue())
        raise
    else:
        sys.stderr.write(said.getvalue())
    finally:
        logging.disable(before)


def _why_not(model: nn.Module, error: Exception, inputs: tuple[Any, ...]) -> str:
    what, where = f"cannot trace this {type(model).__name__}", own_line(error)
    if type(error).__name__ in _VALUES_ASKED or "data-dependent" in str(error):
        return (
            f"{what}: its code looks at the values of an image{where}, and a compiled network is the same for all "
            "images; what decides by the values of an image belongs behind the network"
        )
    if any(part in str(error) for part in _OUTSIDE_ASKED):
        return (
            f"{what}: its code hands the values of an image to what is not PyTorch{where}; write that part with "
            "tensors, or do it behind the network"
        )
    if is_raised_by_user(error):
        return f"{what}: its code raised {reason(error)}{where}"
    if (failure := _fails_anyway(model, inputs)) is not None:
        return f"{what}: it does not run on this input: {reason(failure)}{own_line(failure)}"
    return f"{what}: it runs, but its code cannot be followed{where}; write that part in another way, or {DETAILS}"


@torch.no_grad()
def _fails_anyway(model: nn.Module, inputs: tuple[Any, ...]) -> Exception | None:
    """What the model raises when it is called as usual."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        model.eval()(*inputs)
    except Exception as error:
        return error
    finally:
        for module, flag in flags:
            module.training = flag
    return None
