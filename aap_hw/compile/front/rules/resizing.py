"""Interpolation to any size, and adaptive pooling to sizes whose windows differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch.fx import Node

from aap_hw.compile.families.resizing import taps_of
from aap_hw.compile.front.rules.registry import Takes, rule
from aap_hw.graph.program.call import Call, shape_of
from aap_hw.graph.program.source import op_name

if TYPE_CHECKING:
    from aap_hw.compile.front.making import Partition

# How each operator resizes; an argument says whether corners are aligned.
WAYS = {
    **{f"upsample_nearest{rank}d": "nearest" for rank in (1, 2)},
    **{f"_upsample_nearest_exact{rank}d": "nearest_exact" for rank in (1, 2)},
    "upsample_linear1d": "linear",
    "upsample_bilinear2d": "linear",
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
        named = [call.get(name) for name in ("scales_h", "scales_w", "scales")]
        factors = [factor for factor in named if factor is not None]
    resized(partition, node, call.first, how, [float(factor) for factor in factors])


def resized(partition: Partition, node: Node, image: Node, how: str, factors: Sequence[float] = ()) -> None:
    """Add the kernel that resizes an image (N, C, H, W), or (N, C, L) as an image of one row."""
    (height, width), (made_height, made_width) = ((1, *shape_of(each)[2:])[-2:] for each in (image, node))
    factors = [1.0, *factors][-2:] if factors else []
    sizes = list(zip((height, width), (made_height, made_width), strict=True))
    plain = [taps_of(how, *axis, None) for axis in sizes]
    taps = [taps_of(how, *axis, factor) for axis, factor in zip(sizes, factors, strict=True)] if factors else plain
    if math.prod(each.terms for each in taps) > MOST_TERMS:
        raise partition.refused(f"{op_name(node)} over so many pixels has no kernel yet", node)
    # Factors that follow from the sizes are left out, so that the key is the same.
    is_plain = all(
        np.array_equal(a.places, b.places) and np.array_equal(a.weights, b.weights)
        for a, b in zip(taps, plain, strict=True)
    )
    partition.emit(
        node,
        "resize",
        image,
        [partition.placement.value_of(image, node)],
        how=how,
        to=(made_height, made_width),
        factors="" if is_plain else ",".join(map(repr, factors)),
    )
