"""What the dense kernels with weights share on a CPU: weights in slices, the loops over slices, and storing a tile.

A slice is the weights that one register tile needs: those of a few vectors of output channels, side by side in memory.
Which pixels a tile computes, and which values of the image each weight multiplies, is in the module of each operator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code.convolution import weighted_arguments
from aap_hw.compile.code.function import KernelFunction, apply_epilogue
from aap_hw.compile.cpu.emit import Steps, Tensor, kernel_code, lane_loop, loop
from aap_hw.compile.cpu.kernels import Packing
from aap_hw.compile.cpu.tiles import Tile
from aap_hw.compile.families import Shape, weight_elements
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.keys.precision import BYTES, HALVES
from aap_hw.compile.keys.target import CpuTarget
from aap_hw.errors import UserError


def weighted_kernel(
    address: Address, image: Shape, packed: Packing, output: Shape, body: Callable[..., None]
) -> KernelFunction:
    """A kernel whose loops ``body`` writes over flat buffers: image, perhaps a residual, weights, bias and output.

    If the weights are in half precision, ``body`` gets them and the image as they are.
    """
    arguments, made = weighted_arguments(address, image, packed.shape, packed.type), address.key.types.made
    raw = ("activation", "weight") if packed.type in HALVES else ()
    tensors = [Tensor(a.role, a.shape, a.type, is_raw=a.role in raw) for a in arguments]
    code = kernel_code([*tensors, Tensor("output", output, made)], body)
    return KernelFunction(code, tuple(arguments), output, made, packed.pack)


def channels_of_group(address: Address, groups: int) -> tuple[int, int]:
    """Channels that one group reads and makes.

    Raises
    ------
    UserError : the groups do not divide the widths.
    """
    width_in, width_out = address.width_in, address.width_out
    if width_in % groups or width_out % groups:
        raise UserError(
            f"the kernel {address.key} cannot have {width_in} -> {width_out} channels: its groups do not divide them"
        )
    return width_in // groups, width_out // groups


def slices_of(dense: np.ndarray, groups: int, made: int, kernel: Sequence[int], tile: Tile) -> list[np.ndarray]:
    """Slices (*kernel, channels read, channels of a tile) of a weight (channels made, channels read, *kernel).

    They are in the order of their channels, group by group. The last slice of a group may overlap the one before.
    """
    filters = np.moveaxis(dense.reshape(groups, made, -1, *kernel), (1, 2), (-1, -2))
    deep = Steps(made, tile.channels)
    return [group[..., s : s + tile.channels] for group in filters for s in map(deep.start, range(deep.count))]


def weights_outermost(address: Address, image: Shape, target: CpuTarget) -> bool:
    """Keep a tile's weights in cache and stream the image past them where the weights are the larger of the two."""
    weights = weight_elements(address)
    return weights > math.prod(image) or weights * BYTES[address.key.types.weight] > target.l2_bytes // 2


def first_channel(number: Any, groups: int, made: int, deep: Steps) -> tuple[Any, Any]:
    """Which group a slice belongs to, and the first channel that it makes, counted over all groups."""
    group, part = (0, number) if groups == 1 else (number // deep.count, number % deep.count)
    return group, T.bind(group * made + deep.start(part))


def slice_loops(
    slices: int, places: int, compute_tile: Callable[[Any, Any], None], target: CpuTarget, *, slices_outermost: bool
) -> None:
    """Call ``compute_tile(slice, place)`` for all slices at all places, in one order or the other."""
    if slices_outermost:
        with loop(slices * places, target) as i:
            compute_tile(T.bind(i // places), T.bind(i % places))
    else:
        with loop(places, target) as place, T.serial(0, slices) as number:
            compute_tile(number, place)


def store_tile(
    key: KernelKey,
    tile: Tile,
    sums: Callable[..., Any],
    channel: Any,
    tensors: tuple[Sequence[Any], Any, Any],
    place_made: Callable[[int, Any], Any],
    place_added: Callable[[int, Any], Any] | None = None,
    steps: Sequence[str] | None = None,
) -> None:
    """Bring the sums of a tile, whose first channel is ``channel``, through the epilogue into memory.

    ``tensors`` are the residual, if there is one, the bias and the output. Channel c of pixel p lies at
    ``place_made(p, c)`` in the output, and in the residual at the same place unless ``place_added`` is given. ``steps``
    are what is left of the epilogue, if that is not all of it.
    """
    residual, bias, output = tensors
    steps = key.epilogue if steps is None else steps
    for v in range(tile.vectors):
        for p in range(tile.pixels):
            c = channel + v * tile.lanes
            at = T.bind(place_made(p, c))
            with lane_loop(tile.lanes) as i:
                added = residual[0][(place_added(p, c) if place_added else at) + i] if residual else None
                T.buffer_store(output, apply_epilogue(sums(p, v, i), steps, bias[c + i], added), [at + i])


def offset(indices: Sequence[Any], strides: Sequence[Any]) -> Any:
    """How far from the first value of a block the one at some indices lies."""
    return sum(index * stride for index, stride in zip(indices, strides, strict=True))
