"""Interpolation to any size, and adaptive pooling to sizes whose windows differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.fx import Node

from aap_hw.compile.families.resizing import taps_of
from aap_hw.compile.families.spelt.resizing import forgets_factor
from aap_hw.compile.front.network import Kernel
from aap_hw.compile.front.rules.registry import Takes, rule
from aap_hw.compile.keys.key import KernelKey
from aap_hw.graph.program.call import Call, shape_of
from aap_hw.graph.program.source import op_name

if TYPE_CHECKING:
    from aap_hw.compile.front.making import Partition

# How each operator resizes; an argument says whether corners are aligned.
WAYS = {
    **{f"upsample_nearest{rank}d": "nearest" for rank in (1, 2, 3)},
    **{f"_upsample_nearest_exact{rank}d": "nearest_exact" for rank in (1, 2, 3)},
    "upsample_linear1d": "linear",
    "upsample_bilinear2d": "linear",
    "upsample_trilinear3d": "linear",
    "upsample_bicubic2d": "cubic",
    "_upsample_bilinear2d_aa": "smooth_linear",
    "_upsample_bicubic2d_aa": "smooth_cubic",
}
# Most input pixels for one output pixel; a kernel with more would be slow in any case.
MOST_TERMS = 256


@rule(*WAYS, takes=Takes.ROWS)
def interpolation(partition: Partition, node: Node) -> None:
    """Nearest, linear or cubic, by a size or by factors."""
    call = Call(node)
    how = WAYS[call.name] + ("_corners" if call.get("align_corners") else "")
    factors = call.get("scale_factors")
    if factors is None:
        named = [call.get(name) for name in ("scales_d", "scales_h", "scales_w", "scales")]
        factors = [factor for factor in named if factor is not None]
    if call.name == "upsample_nearest2d":
        sizes = list(zip(shape_of(call.first)[2:], shape_of(node)[2:], strict=True))
        kept = zip(sizes, factors, strict=False)  # there may be none
        factors = [made / size if forgets_factor(size, made) else factor for (size, made), factor in kept]
    resize = resized_volume if len(shape_of(node)) == 5 else resized
    resize(partition, node, call.first, how, [float(factor) for factor in factors])


def resized(partition: Partition, node: Node, image: Node, how: str, factors: Sequence[float] = ()) -> None:
    """Add the kernel that resizes an image (N, C, H, W), or (N, C, L) as an image of one row."""
    before, after = ((1, *shape_of(each)[2:])[-2:] for each in (image, node))
    scales = [1.0, *factors][-2:] if factors else []
    attributes = _attributes(partition, node, how, before, after, scales)
    partition.emit(node, "resize", image, [partition.placement.value_of(image, node)], **attributes)


def resized_volume(partition: Partition, node: Node, volume: Node, how: str, factors: Sequence[float] = ()) -> None:
    """Add the kernels that resize a volume (N, C, D, H, W): first each plane, then across the planes."""
    (batch, _, depth, *plane), (made_depth, *made) = shape_of(volume), shape_of(node)[2:]
    value, width = partition.placement.value_of(volume, node), partition.graph.width_of(volume.name)
    in_planes = _attributes(partition, node, how, (plane[0], plane[1]), (made[0], made[1]), factors[1:])
    across = (depth, math.prod(made)), (made_depth, math.prod(made))
    of_planes = _attributes(partition, node, how, *across, [factors[0], 1.0] if factors else [])
    if depth == made_depth and not of_planes["factors"]:
        partition.emit(node, "resize", volume, [value], size=tuple(plane), batch=batch * depth, **in_planes)
        return
    if plane != made or in_planes["factors"]:
        key = KernelKey.make("resize", tuple(plane), batch * depth, **in_planes)
        value = partition.add_inner(Kernel(f"{node.name}_planes", key, (value,), (width, width)))
    partition.emit(node, "resize", volume, [value], size=across[0], **of_planes)


def _attributes(
    partition: Partition, node: Node, how: str, before: Sequence[int], after: Sequence[int], factors: Sequence[float]
) -> dict[str, Any]:
    """What a key says of how an image is resized; factors that follow from the sizes are left out: the key is the same.

    Raises
    ------
    NoKernel : an output pixel is made of too many.
    """
    sizes = list(zip(before, after, strict=True))
    plain = [taps_of(how, *axis, None) for axis in sizes]
    taps = [taps_of(how, *axis, factor) for axis, factor in zip(sizes, factors, strict=True)] if factors else plain
    if math.prod(each.terms for each in taps) > MOST_TERMS:
        raise partition.refused(f"{op_name(node)} over so many pixels has no kernel yet", node)
    is_plain = all(
        np.array_equal(a.places, b.places) and np.array_equal(a.weights, b.weights)
        for a, b in zip(taps, plain, strict=True)
    )
    return {"how": how, "to": tuple(after), "factors": "" if is_plain else ",".join(map(repr, factors))}
