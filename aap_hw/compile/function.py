"""A kernel as compiled code: its PrimFunc, the arguments it takes, and how a PyTorch weight is packed for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from tvm import te, tirx
from tvm.s_tir import Schedule

Role = Literal["activation", "residual", "weight", "bias"]

# Relax's operator pattern "opaque": its fusion passes would otherwise merge kernels into ones that no table holds.
OPAQUE = 8


@dataclass(frozen=True)
class Argument:
    """One tensor that a kernel reads; activations are (N, H, W, C) or (N, C)."""

    role: Role
    shape: tuple[int, ...]


@dataclass(frozen=True)
class KernelFunction:
    """Scheduled code of one kernel at fixed widths.

    Attributes
    ----------
    code : the PrimFunc; its parameters are ``arguments`` followed by the output.
    arguments : in calling order; constants (weight, bias) last.
    output_shape : (N, H, W, C) or (N, C).
    pack : PyTorch weight (C_out, C_in, KH, KW) -> array of the weight argument's shape.
    """

    code: tirx.PrimFunc
    arguments: tuple[Argument, ...]
    output_shape: tuple[int, ...]
    pack: Callable[[np.ndarray], np.ndarray] | None = field(default=None, compare=False)


def primfunc(tensors: Sequence[te.Tensor]) -> tirx.PrimFunc:
    """The unscheduled PrimFunc of a tensor expression; the last tensor is the output."""
    return te.create_prim_func(list(tensors))


def scheduled_code(schedule: Schedule) -> tirx.PrimFunc:
    """The finished PrimFunc of a schedule: TVM's own passes leave it alone, and its caller names it."""
    code = schedule.mod["main"].without_attr("global_symbol")
    return code.with_attr({"tirx.is_scheduled": True, "op_pattern": OPAQUE})


def apply_epilogue(value: Any, steps: Sequence[str], bias: Any, residual: Any) -> Any:
    """Extend a scalar expression by the epilogue of a kernel key, in its order."""
    for step in steps:
        match step:
            case "bias":
                value = value + bias
            case "add":
                value = value + residual
            case "relu":
                value = te.max(value, tirx.const(0.0, "float32"))
            case "relu6":
                value = te.min(te.max(value, tirx.const(0.0, "float32")), tirx.const(6.0, "float32"))
            case _:
                raise ValueError(f"epilogue step {step!r} has no expression")
    return value
