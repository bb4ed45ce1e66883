"""Attention as one kernel, of one operator or written out.

The result lies query by query, so that joining its heads needs no kernel.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch.fx import Node

from aap_hw.compile.families.products import MASKS, OPERANDS
from aap_hw.compile.families.slow import PLAIN
from aap_hw.compile.front.lengths import NoLength, TooManyWidths, quotient
from aap_hw.compile.front.network import Kernel
from aap_hw.compile.front.operands import Lengths, Operand, image_axes, images_among, images_of, length_of, matrices
from aap_hw.compile.front.rules.registry import Takes, rule
from aap_hw.compile.front.rules.writtenout import Attention, Mask
from aap_hw.compile.front.views import NoView, View
from aap_hw.compile.keys.key import KernelKey
from aap_hw.graph import WidthExpr
from aap_hw.graph.program.call import Call, shape_of
from aap_hw.graph.program.source import op_name, quoted

if TYPE_CHECKING:
    from aap_hw.compile.front.making import Partition


@rule("scaled_dot_product_attention", takes=Takes.ANYTHING)
def attention(partition: Partition, node: Node) -> None:
    """Attention as one operator."""
    call = Call(node)
    query, key, value, mask = (call[name] for name in ("query", "key", "value", "attn_mask"))
    ranks = {len(shape_of(each)) for each in (query, key, value)}
    if min(ranks) < 3 or len(ranks) > 1:
        raise partition.refused("attention with these operands has no kernel yet", node)
    masks = () if mask is None else (Mask(mask, len(shape_of(node))),)
    shared = shape_of(query)[-3] // shape_of(key)[-3] if call.get("enable_gqa") else 1
    attend(partition, Attention((node,), query, key, value, masks, call["scale"], call["is_causal"], shared=shared))


def attend(partition: Partition, found: Attention) -> None:
    """Add the kernel of attention."""
    node = found.nodes[-1]
    images = image_axes(partition, node)
    query, key, value = (
        Operand.of(partition, each, node, matrices(each, len(shape_of(node)), images))
        for each in (found.query, found.key, found.value)
    )
    if found.key_is_turned:
        key = key.turned
    if found.is_turned:
        value = value.turned
    operands = query, key, value
    try:
        axes = attention_lengths(partition, found)
        of_keys = axes if found.shared == 1 else axes.having(h=quotient(axes.axes["h"], WidthExpr(found.shared)))
        walks = {"query": axes.walk(query, "hld"), "key": of_keys.walk(key, "hsd"), "value": of_keys.walk(value, "hsv")}
        masks = [Operand.of(partition, each.node, node, matrices(each.node, each.rank, images)) for each in found.masks]
        for name, mask in zip(MASKS, masks, strict=False):
            walks[name] = axes.walk(mask, "hls") or "plain"
    except (NoLength, TooManyWidths) as problem:
        raise partition.refused("attention that can be cut in several ways has no kernel yet", node) from problem
    scale = 1.0 if found.scale is None and len(found.nodes) > 1 else found.scale
    width = axes.axes["d"]
    is_usual = scale is None or (not width.terms and math.isclose(scale, width.constant**-0.5))
    view = _by_query(partition, found)
    is_hiding = any(not each.node.meta["val"].dtype.is_floating_point for each in found.masks)
    known = ["constant" if mask.is_constant else "value" for mask in masks]
    attributes = {
        "shape": axes.shape,
        "scale": "" if is_usual else repr(float(scale or 1)),
        "shared": found.shared if found.shared > 1 else "",
        "causal": "1" if found.is_causal else "",
        "masked": "unseen" if is_hiding else "",
        "masked_by": known if "constant" in known else "",
        "made": "heads" if view is None else "",
        "constant": [name for name, each in zip(OPERANDS, operands, strict=True) if each.is_constant],
    }
    kernel = Kernel(
        node.name if view is None else view.name,
        KernelKey.make("attention", (), axes.batch, **attributes, **walks),
        tuple(each.name for each in (*operands, *masks) if not each.is_constant),
        (axes.read, axes.made),
        constants=tuple(each.name for each in (*operands, *masks) if each.is_constant),
        learned=tuple(each.name for each in (*operands, *masks) if each.is_learned),
        source=op_name(node) + quoted(node),
    )
    if view is None:
        partition.add(node, kernel, is_image=False)
    else:
        partition.add_moved(node, kernel, view)


def attention_lengths(partition: Partition, found: Attention) -> Lengths:
    """Lengths of attention's axes: heads, queries, keys, channels of queries and keys, and channels of values."""
    node, graph = found.nodes[-1], partition.graph
    images, heads, *_ = matrices(node, images=image_axes(partition, node))
    if not images and any(mask.rank > len(shape_of(node)) for mask in found.masks):
        # Which of the heads that lie among the images a mask of more axes is for cannot be told.
        raise TooManyWidths(graph.width_of(node.name, 0))
    lengths = {
        "h": length_of(partition, node, heads),
        "l": graph.width_of(node.name, -1 if found.is_turned else -2),
        "s": graph.width_of(found.key.name, -1 if found.key_is_turned else -2),
        "d": graph.width_of(found.query.name, -1),
        "v": graph.width_of(node.name, -2 if found.is_turned else -1),
    }
    return Lengths.of(partition, images_among(partition, node, images), lengths, made="hlv")


def _by_query(partition: Partition, found: Attention) -> View | None:
    """The result of attention as (N, queries, H, columns); None if its axes lie in that order anyway.

    Heads that lie among the images stay there.
    """
    node, rank = found.nodes[-1], len(shape_of(found.nodes[-1]))
    images, (queries, columns) = images_of(rank), (rank - 1, rank - 2) if found.is_turned else (rank - 2, rank - 1)
    order = [*range(images), queries, *range(images, rank - 2), columns]
    if order == list(range(rank)):
        return None
    lengths = partition.lengths_of(node)
    try:
        return View.of(f"{node.name}_by_query", lengths, shape_of(node), order, PLAIN)
    except NoView:
        return None
