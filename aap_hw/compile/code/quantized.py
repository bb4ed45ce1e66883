"""What a quantised kernel holds of a model, and the arrays that its code reads of that.

A key says nothing of scales and zero points, so that one kernel serves all layers of its key: they are arguments.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, auto

import numpy as np

from aap_hw.compile.families.elementwise import ACTIVATIONS
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.keys.precision import Scale
from aap_hw.errors import UserError

LARGEST = 255
GATED = {"silu", "hardswish"}
"""Functions of x that are x times a gate."""
LEAST_STEP = 0.001
"""The smallest step of an output of these that kernels for all CPUs can make."""
MOST_STEPS = 2.0**29
"""Larger sums of steps are not told from this one."""
# Operators of which the output does not have a step in proportion to that of the input.
CURVED = {"mul", "scale_channels", "quantize", "elementwise", *ACTIVATIONS}
# Steps of an epilogue under which the size of a step of the output can be divided out beforehand.
HOMOGENEOUS = {"bias", "add", "relu", "affine"}
# Functions that only cut values off, which uint8 does anyway. So they cost nothing at the end of an epilogue.
CLIPS = {"relu", "relu6"}


@dataclass(frozen=True)
class Quantized:
    """What a quantised kernel holds of a model.

    Attributes
    ----------
    read : scales of the tensors that it reads, in calling order; none for a float32 tensor.
    made : scale of what it makes; None if that is float32.
    weight : int8, in PyTorch's order.
    weight_scales : float32, one an output channel; without a weight, the factors of a normalisation.
    bias : float32, one an output channel.
    constants : float32, those that an expression names, in order, each in its argument's shape.
    """

    read: tuple[Scale, ...] = ()
    made: Scale | None = None
    weight: np.ndarray | None = None
    weight_scales: np.ndarray | None = None
    bias: np.ndarray | None = None
    constants: tuple[np.ndarray, ...] = ()


class Number(IntEnum):
    """Places in the array of those numbers that hold for a whole kernel."""

    ZERO_READ = 0
    STEP_READ = auto()
    ZERO_ADDED = auto()
    STEP_ADDED = auto()
    STEPS_MADE = auto()  # a unit, in steps of the output, if the sums are no such steps already
    ZERO_MADE = auto()
    LOWEST = auto()
    HIGHEST = auto()


def clip_of(key: KernelKey) -> str:
    """The last step of the epilogue if the bounds of what is made can do its work, or nothing."""
    *_, last = ["", *key.epilogue]
    return last if last in CLIPS and key.types.made == "uint8" else ""


def unclipped(key: KernelKey) -> tuple[str, ...]:
    """The epilogue without that step."""
    return key.epilogue[:-1] if clip_of(key) else key.epilogue


def made_in_steps(key: KernelKey) -> bool:
    """Whether sums become steps of the output at once, since no function of real numbers follows."""
    return key.types.made == "uint8" and key.op not in CURVED and HOMOGENEOUS.issuperset(unclipped(key))


def unit_of(key: KernelKey, model: Quantized) -> float:
    """What the epilogue counts in: steps of the output or, where a function of real numbers follows, in ones."""
    return model.made.scale if model.made is not None and made_in_steps(key) else 1.0


def numbers_of(key: KernelKey, model: Quantized) -> np.ndarray:
    """The array of those numbers that hold for a whole kernel."""
    numbers, unit = np.zeros(len(Number), np.float32), unit_of(key, model)
    places = (Number.ZERO_READ, Number.STEP_READ), (Number.ZERO_ADDED, Number.STEP_ADDED)
    for (zero, step), scale in zip(places, model.read, strict=False):
        numbers[zero], numbers[step] = scale.zero_point, scale.scale / unit
    if model.made is not None:
        zero_point, clip = model.made.zero_point, clip_of(key)
        cut = np.rint(6 / model.made.scale) if clip == "relu6" else LARGEST
        numbers[Number.STEPS_MADE], numbers[Number.ZERO_MADE] = 1 / model.made.scale, zero_point
        numbers[Number.LOWEST] = 0 if clip else -zero_point
        numbers[Number.HIGHEST] = min(LARGEST - zero_point, cut)
    return numbers


def channel_constants(
    key: KernelKey, model: Quantized, order: np.ndarray, shift: int = 0, reached: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """What the sum of each channel begins with (kinds, channels), int32; its factor and offset (2, channels), float32.

    ``order`` says which channel is at each place. A sum begins with minus the zero point times the sum of its weights.
    Where the kernel subtracts ``shift`` from all that it reads, so does this. Then ``sum * factor + offset`` is what
    the epilogue goes on with. ``reached``, (kinds, taps), says which weights of a channel there are in each kind of
    windows, if some lack any.

    Raises
    ------
    UserError : sums could overflow.
    """
    assert model.weight is not None
    assert model.weight_scales is not None
    weight, unit = model.weight.reshape(len(model.weight), -1).astype(np.int64), unit_of(key, model)
    sizes = LARGEST * np.abs(weight).sum(axis=1)
    if sizes.max(initial=0) > np.iinfo(np.int32).max:
        raise UserError(f"the kernel {key} cannot add up its products in 32 bits: one output has too many of them")
    # May overflow, as may sums on their way. Those at the end do not, and so are right.
    parts = weight.sum(axis=1)[None] if reached is None else reached.astype(np.int64) @ weight.T
    starts = ((shift - model.read[0].zero_point) * parts).astype(np.int32)
    factors = model.read[0].scale * model.weight_scales.astype(np.float64) / unit
    offsets = np.zeros(len(weight)) if model.bias is None else model.bias.astype(np.float64) / unit
    if made_in_steps(key):  # larger numbers of steps are cut off whatever they are, but would not fit an int32
        steepest = np.maximum(MOST_STEPS / np.maximum(sizes, 1), 2 * LARGEST)
        factors = np.clip(factors, -steepest, steepest)
        offsets = np.clip(offsets, -MOST_STEPS, MOST_STEPS)
    return starts[:, order], np.stack([factors, offsets]).astype(np.float32)[:, order]


def normalisation_of(key: KernelKey, model: Quantized) -> np.ndarray:
    """Factor and summand of each channel (2, channels), float32, in the unit of the epilogue."""
    assert model.weight_scales is not None
    assert model.bias is not None
    return np.stack([model.weight_scales, model.bias / unit_of(key, model)]).astype(np.float32)


def scales_of(key: KernelKey, model: Quantized) -> np.ndarray:
    """Zero point and step of each tensor that a kernel reads, the step in the unit of its epilogue: (tensors, 2)."""
    unit = unit_of(key, model)
    return np.array([(scale.zero_point, scale.scale / unit) for scale in model.read], np.float32)
