"""Operators that move channels: concatenation, splitting and shuffling."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch.fx import Node

from aap_hw.compile.front.network import Kernel
from aap_hw.compile.front.rules.adaptive import largest_of_windows
from aap_hw.compile.front.rules.elementwise import has_running_statistics, normalization_of, with_activation
from aap_hw.compile.front.rules.movement import moved, part, side_by_side
from aap_hw.compile.front.rules.pooling import pooled
from aap_hw.compile.front.rules.registry import Takes, rule
from aap_hw.compile.keys.key import KernelKey
from aap_hw.graph import WidthExpr
from aap_hw.graph.program.call import Call, shape_of

if TYPE_CHECKING:
    from aap_hw.compile.front.making import Partition


@rule("cat", "concat", "concatenate", takes=Takes.ANYTHING)
def concatenation(partition: Partition, node: Node) -> None:
    """Concatenation of channels, with a shuffle, or a normalisation and activation, if that is its only reader."""
    call = Call(node)
    parts, rank = list(call["tensors"]), len(shape_of(node))
    is_float = all(part.meta["val"].dtype == torch.float32 for part in parts)
    is_constant = any(map(partition.is_parameter, parts))
    if rank not in (2, 4) or call["dim"] % rank != 1 or not is_float or is_constant:
        side_by_side(partition, node, parts, call["dim"] % rank)
        return
    if any(map(partition.placement.is_moved, parts)) and side_by_side(partition, node, parts, 1, at_any_cost=False):
        return
    inputs = [partition.placement.value_of(part, node) for part in parts]
    width, follower = partition.graph.width_of(node.name), partition.next_alone(node)
    shuffle = shuffle_at(partition, follower, node) if follower is not None else None
    widths = {partition.graph.width_of(part.name) for part in parts}
    if shuffle is not None and shuffle.groups == len(parts) and len(widths) == 1:
        partition.absorb(*shuffle.nodes)
        partition.emit(shuffle.last, "interleave", parts[0], inputs, width_in=width, parts=len(parts))
    elif follower is not None and Call(follower).name == "batch_norm" and has_running_statistics(follower):
        partition.absorb(follower)
        normalization = normalization_of(partition, follower)
        last, steps = with_activation(partition, follower)
        partition.emit(
            last,
            "concat",
            parts[0],
            inputs,
            width_in=width,
            normalization=normalization,
            parts=len(parts),
            epilogue=("affine", *steps),
        )
    else:
        last, steps = with_activation(partition, node)
        partition.emit(last, "concat", parts[0], inputs, width_in=width, parts=len(parts), epilogue=steps)


SPLITS = ("chunk", "split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "tensor_split")


@rule(*SPLITS, "unbind", takes=Takes.ANYTHING)
def split(partition: Partition, node: Node) -> None:
    """Nothing yet: each piece that is read is a value of its own."""


@rule("getitem", takes=Takes.ANYTHING)
def piece(partition: Partition, node: Node) -> None:
    """One piece of a split.

    For the first piece of an image, the last, and one behind equal pieces, the two widths of a key say where it begins.
    Any other takes two kernels: one for the rest behind the pieces before it, and one for the beginning of that rest.
    """
    call, graph = Call(node), partition.graph
    pieces, index = call["self"], call["index"]
    name = Call(pieces).name
    if name.startswith("adaptive_max_pool") and index == 0:
        largest_of_windows(partition, node, Call(pieces))
        return
    if name == "max_pool2d_with_indices" and index == 0:
        pooled(partition, node, Call(pieces))
        return
    if name not in (*SPLITS, "unbind"):
        raise partition.refused("this result has no kernel yet", node)
    image = Call(pieces).first
    dim = Call(pieces)["dim"] % len(shape_of(image))
    if name == "unbind":
        moved(partition, node, lambda view: view.selected(dim, index % shape_of(image)[dim]), image)
        return
    sizes = [value.shape[dim] for value in pieces.meta["val"]]
    places = [slice(stop - size, stop) for size, stop in zip(sizes, accumulate(sizes), strict=True)]
    rank = len(shape_of(image))
    if dim != 1 or not (rank == 2 or (rank == 4 and partition.placement.is_image(image))):
        part(partition, node, image, dim, range(shape_of(image)[dim])[places[index]])
        return
    # Explicit sizes may be equal by chance, and differ in a cut network.
    is_even = Call(pieces).name != "split_with_sizes"
    if index in (0, len(sizes) - 1):
        emit_slice(partition, node, image, "last" if index else "first")
    elif is_even and len({graph.width_of(image.name, 1, place) for place in places[: index + 1]}) == 1:
        emit_slice(partition, node, image, str(index))
    else:
        rest = graph.width_of(image.name, 1, slice(places[index].start, None))
        behind = _add_rest(partition, node, image, rest)
        partition.emit(node, "channel_slice", image, [behind], width_in=rest, side="first")


def _add_rest(partition: Partition, node: Node, image: Node, rest: WidthExpr) -> str:
    """Add a kernel that takes the last channels of an image for ``node``; returns the name of what it makes."""
    shape, width = shape_of(image), partition.graph.width_of(image.name)
    key = KernelKey.make("channel_slice", shape[2:], shape[0], side="last")
    inputs = (partition.placement.value_of(image, node),)
    return partition.add_inner(Kernel(f"{node.name}_rest", key, inputs, (width, rest)))


def emit_slice(partition: Partition, node: Node, image: Node, side: str) -> None:
    """The first or the last channels of an image, or those behind some pieces of the same width."""
    partition.emit(node, "channel_slice", image, [partition.placement.value_of(image, node)], side=side)


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(partition: Partition, node: Node) -> None:
    """The shuffle as one operator."""
    image = Call(node).first
    inputs = [partition.placement.value_of(image, node)]
    partition.emit(node, "channel_shuffle", image, inputs, groups=int(Call(node)["groups"]))


@dataclass(frozen=True)
class Shuffle:
    """The operators that a channel shuffle is written as, in order."""

    nodes: tuple[Node, ...]
    groups: int

    @property
    def last(self) -> Node:
        """The operator whose value is the shuffled image."""
        return self.nodes[-1]


def shuffle_at(partition: Partition, node: Node, image: Node) -> Shuffle | None:
    """The shuffle that begins with ``node``: (N, C, H, W) to (N, G, C/G, H, W), axes 1 and 2 exchanged, and back."""
    reshapes = ("view", "reshape", "flatten", "unflatten")
    if Call(node).name not in reshapes:
        return None
    before, split_shape = shape_of(image), shape_of(node)
    if len(before) != 4 or len(split_shape) != 5:
        return None
    groups = split_shape[1]
    if split_shape != (before[0], groups, before[1] // groups, *before[2:]):
        return None
    nodes = [node]
    exchanged = False
    while (follower := partition.next_alone(nodes[-1])) is not None:
        call = Call(follower)
        nodes.append(follower)
        if call.name == "transpose" and not exchanged and {call["dim0"] % 5, call["dim1"] % 5} == {1, 2}:
            exchanged = True
        elif call.name in reshapes:
            return Shuffle(tuple(nodes), groups) if exchanged and shape_of(follower) == before else None
        elif call.name not in ("contiguous", "clone"):
            return None
    return None
