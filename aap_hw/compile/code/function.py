"""A kernel as compiled code: its PrimFunc, the arguments it takes, and how a PyTorch weight is packed for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from tvm import tirx

from aap_hw.compile.code.expressions import ACTIVATIONS
from aap_hw.compile.code.functions import after_step
from aap_hw.compile.code.quantized import Quantized
from aap_hw.compile.families import Shape
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.keys.precision import FLOAT32

Role = Literal["activation", "residual", "weight", "bias", "constant", "literal"]
# What a model keeps for a kernel; literals belong to its code.
CONSTANTS: tuple[Role, ...] = ("weight", "bias", "constant")

# Relax's operator pattern "opaque": its fusion passes would otherwise merge kernels into ones that no table holds.
OPAQUE = 8


@dataclass(frozen=True)
class Argument:
    """One tensor that a kernel reads; activations are (N, H, W, C) or (N, C), or any other on the slow path.

    With ``any_width`` the code takes any number of channels, and that of ``shape`` is an example.
    """

    role: Role
    shape: tuple[int, ...]
    any_width: bool = False
    type: str = FLOAT32


@dataclass(frozen=True)
class KernelFunction:
    """Scheduled code of one kernel at fixed widths.

    Attributes
    ----------
    code : the PrimFunc; its parameters are ``arguments`` followed by the output.
    arguments : in calling order; constants last.
    output_shape : (N, H, W, C) or (N, C), or any other on the slow path.
    output_type : name of the type of its values.
    pack : PyTorch weight (C_out, C_in, KH, KW) -> array of the weight argument's shape.
    literals : values of the arguments that belong to the code, not to the model.
    quantized : of a quantised kernel, all its constant arguments, in order, from what it holds of a model.
    """

    code: tirx.PrimFunc
    arguments: tuple[Argument, ...]
    output_shape: tuple[int, ...]
    output_type: str = FLOAT32
    pack: Callable[[np.ndarray], np.ndarray] | None = field(default=None, compare=False)
    literals: tuple[np.ndarray, ...] = field(default=(), compare=False)
    quantized: Callable[[Quantized], tuple[np.ndarray, ...]] | None = field(default=None, compare=False)


def activations(key: KernelKey, *shapes: Shape, any_width: bool = False) -> list[Argument]:
    """Tensors that a kernel reads, in calling order."""
    roles: list[Role] = ["activation", *["residual"] * (len(shapes) - 1)]  # type: ignore[list-item]
    return [Argument(role, shape, any_width, key.types.read) for role, shape in zip(roles, shapes, strict=True)]


def factors(key: KernelKey, channels: int) -> list[Argument]:
    """The factor and summand of every channel into which batch normalisations are folded.

    They are stored like the weight and bias of a convolution with one weight for each channel.
    """
    return [Argument("weight", (channels,), type=key.types.sum), Argument("bias", (channels,), type=key.types.sum)]


def unpacked(arguments: Sequence[Argument]) -> Callable[[np.ndarray], np.ndarray] | None:
    """The packing of a weight that a kernel reads unchanged; None if there is no weight among the arguments."""
    return (lambda weight: weight) if any(argument.role == "weight" for argument in arguments) else None


def apply_epilogue(
    value: Any,
    steps: Sequence[str],
    bias: Any,
    residual: Any,
    activations: Mapping[str, Callable[[Any], Any]] = ACTIVATIONS,
) -> Any:
    """Extend a scalar expression by the epilogue of a kernel key, in its order."""
    for step in steps:
        match step:
            case "bias":
                value = value + bias
            case "add":
                value = value + residual
            case _ if step in activations:
                value = activations[step](value)
            case _:
                value = after_step(step, value)
    return value
