"""A model as the program that `torch.export` makes of it, or in one sentence the line of its code that has none.

A model is run once before it is exported, so that whatever it caches between calls (a grid for the size of its last
input) is there and has values. The program is then the same whether or not the model was called before. Exporting alone
would leave tensors without values in such caches, some of which all models share. All of this is done to copies
(`copying`), as running a model changes it.

Checks that run nothing are in `readiness`; `labelling` finds out what the program means.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any, TextIO

import torch
from torch import nn
from torch.export import ExportedProgram

from aap_hw.errors import UserError
from aap_hw.foreign import DETAILS, is_raised_by_user, own_line, reason
from aap_hw.graph.program.assignments import spell_out_assignments
from aap_hw.graph.program.calling import Names, arguments, called
from aap_hw.graph.program.composites import spell_out_composites
from aap_hw.graph.program.conversions import leave_out_conversions
from aap_hw.graph.program.einsums import spell_out_einsums
from aap_hw.graph.program.expansions import leave_out_expansions
from aap_hw.graph.program.inlining import inline_regions
from aap_hw.graph.program.inputs import Tensors
from aap_hw.graph.program.joins import leave_out_joins
from aap_hw.graph.program.outputs import plain
from aap_hw.graph.program.slices import name_modules_of_slices
from aap_hw.graph.program.temperatures import move_temperatures
from aap_hw.graph.program.tracer import exported, helped
from aap_hw.graph.program.unpooling import spell_out_unpooling

# What PyTorch raises where code asks for the value of a tensor, by type and by a part of the message.
_VALUES_ASKED = ("GuardOnDataDependentSymNode", "DataDependentOutputException", "DynamicOutputShapeException")
# What PyTorch writes about a program in which a call fails, as the trial cut of one may.
_OF_PROGRAM = "Call using an FX-traced Module"
_OUTSIDE_ASKED = (".numpy() is not supported", "data pointer of Tensor", ".tolist()", "array_interface")


def traced(model: nn.Module, inputs: Tensors, names: Names = ()) -> ExportedProgram:
    """Run and export a model in eval mode.

    Raises
    ------
    UserError
        If its code cannot be followed, or fails.
    """
    try:
        run(model.eval(), inputs, names)
    except Exception as error:
        is_refusal = is_raised_by_user(error) and not isinstance(error, RuntimeError)  # which PyTorch raises, too
        did = "its code raised" if is_refusal else "it does not run on this input:"
        raise UserError(f"cannot trace this {type(model).__name__}: {did} {reason(error)}{own_line(error)}") from error
    try:
        return _program(model, inputs, names)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"cannot trace this {type(model).__name__}: {_why_not(error)}") from error


def export(model: nn.Module, inputs: Tensors, names: Names = (), training: bool = False) -> ExportedProgram:
    """Run and export a model in eval mode or in training; raises whatever PyTorch or its code does."""
    run(model.train(training), inputs, names)
    return _program(model, inputs, names)


def run(model: nn.Module, inputs: Tensors, names: Names = ()) -> Any:
    """What a model returns, whose code may write into its inputs; raises whatever PyTorch or its code does."""
    with _quiet(), torch.no_grad():
        return called(model, [each.clone() for each in inputs], names)


def _program(model: nn.Module, inputs: Tensors, names: Names) -> ExportedProgram:
    by_place, by_name = arguments(inputs, names)
    returned = model.register_forward_hook(lambda _, __, output: plain(output))
    try:
        with _quiet(), helped():
            program = exported(model, tuple(by_place), by_name)
    finally:
        returned.remove()
    inline_regions(program)
    name_modules_of_slices(program, model)
    leave_out_conversions(program)
    leave_out_joins(program)
    leave_out_expansions(program)
    spell_out_einsums(program)
    spell_out_composites(program)
    move_temperatures(program)
    spell_out_unpooling(program)
    spell_out_assignments(program)
    return program


class _Held(io.StringIO):
    """Holds what this thread writes until it is known whether it is for the user; other threads write as usual."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream, self._thread = stream, threading.get_ident()

    def write(self, text: str) -> int:
        return super().write(text) if threading.get_ident() == self._thread else self._stream.write(text)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep PyTorch's messages to its own developers off standard error."""
    before, said = logging.root.manager.disable, _Held(sys.stderr)
    logging.disable(logging.ERROR)
    is_for_developers = False
    try:
        with contextlib.redirect_stderr(said), warnings.catch_warnings(action="ignore"):
            yield
    except Exception as error:
        is_for_developers = hasattr(error, "partial_fx_graph") or _OF_PROGRAM in said.getvalue()
        raise
    finally:
        logging.disable(before)
        if not is_for_developers:
            sys.stderr.write(said.getvalue())


def _why_not(error: Exception) -> str:
    """What is in the way of a model that runs."""
    where = own_line(error)
    if type(error).__name__ in _VALUES_ASKED or "data-dependent" in str(error):
        return (
            f"its code depends on the values of a tensor{where}, but a compiled network is one fixed program; move "
            "that decision out of forward: behind the network, or into __init__ if the tensor is the model's own"
        )
    if any(part in str(error) for part in _OUTSIDE_ASKED):
        return (
            f"its code passes the values of a tensor to code outside PyTorch{where}; write that part with tensors, or "
            "move it out of forward"
        )
    if is_raised_by_user(error):
        return f"its code raised {reason(error)}{where}"
    return f"it runs, but its code cannot be followed{where}; write that part in another way, or {DETAILS}"
