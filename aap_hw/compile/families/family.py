"""What a kernel key means: the questions that every family of kernels answers, and who answers for a key.

The answers are numbers and hold for every device. To add a family, write its file in this folder, and one of the same
name in `front.rules`, `code`, `cpu` and `gpu` where it needs one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.errors import UserError
from aap_hw.registry import Registry

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Family:
    """The meaning of some kernels.

    Attributes
    ----------
    output
        Shape of what a kernel makes, as it lies in memory: (N, H, W, C) unless the family says otherwise.
    multiply_accumulates
        Multiply-accumulate operations of one call.
    constants
        How many numbers of the model a kernel holds, before any of them is packed.
    weight
        Shape of the weight in PyTorch's order, if the kernels have one: (C_out, C_in / groups, KH, KW).
    taken
        Shapes of the constants that a kernel reads unpacked, in order; None if there are no such constants.
    reads_first
        Whether PyTorch's order is (C_in, C_out / groups, KH, KW) instead.
    is_pitched
        Whether there may be gaps between the pixels that a kernel reads and makes; see `pitch`.
    keeps_range
        Whether the output stays within the range of the values read and zero, as a maximum does.
    """

    output: Callable[[Address], Shape]
    multiply_accumulates: Callable[[Address], int]
    constants: Callable[[Address], int]
    weight: Callable[[Address], Shape] | None = None
    taken: Callable[[Address], list[Shape]] | None = None
    reads_first: bool = False
    is_pitched: bool = False
    keeps_range: bool = False


FAMILIES: Registry[Family] = Registry()
"""Families by operator; all operators of the slow path have one."""


def nothing(_: Address) -> int:
    """The answer of kernels without multiply-accumulates, or without constants."""
    return 0


def family_of(key: KernelKey) -> Family:
    """The family that a key belongs to.

    Raises
    ------
    UserError : there is none in this version.
    """
    family = FAMILIES.get(key.op.partition(".")[0])
    if family is None:
        raise UserError(f"the kernel {key} is not known to this version; update aap-hw or profile the device again")
    return family


def image_shape(key: KernelKey, channels: int) -> Shape:
    """(N, H, W, C) of a kernel's input; a vector is an image of one pixel."""
    return key.batch, *key.image, channels


def output_pixels(key: KernelKey) -> int:
    """Values that a kernel makes for each channel of its output width, over the whole batch."""
    return math.prod(family_of(key).output(Address(key, (1, 1))))


def multiply_accumulates(address: Address) -> int:
    """Multiply-accumulate operations of one call; none where a width of 0 removes the kernel."""
    family = family_of(address.key)
    return family.multiply_accumulates(address) if all(address.widths) else 0


def weight_shape(address: Address) -> Shape:
    """Shape of a kernel's weight in PyTorch's order."""
    weight = family_of(address.key).weight
    if weight is None:
        raise ValueError(f"{address.key} has no weight")
    return weight(address)


def bias_elements(address: Address) -> int:
    """Numbers in the bias of a kernel that has a weight."""
    family = family_of(address.key)
    taken = family.taken(address) if family.taken is not None else []
    return family.constants(address) - weight_elements(address) - sum(map(math.prod, taken))


def weight_elements(address: Address) -> int:
    """Numbers in a kernel's weight, without its bias; 0 if it has no weight."""
    return math.prod(weight_shape(address)) if family_of(address.key).weight is not None else 0
