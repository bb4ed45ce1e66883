"""Products of values that the network computes: of matrices, and attention, also where it is written out.

Operands are read where they lie: transposes, splits and permutations of heads before them cost nothing. What attention
makes lies query by query, so that its heads are joined already.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch.fx import Node

from aap_hw.compile.families.slow import PLAIN
from aap_hw.compile.front.lengths import NoLength, TooManyWidths, product
from aap_hw.compile.front.network import Kernel
from aap_hw.compile.front.operands import Lengths, Operand, matrices
from aap_hw.compile.front.rules.elementwise import with_activation
from aap_hw.compile.front.rules.registry import Takes, rule
from aap_hw.compile.front.rules.writtenout import Attention, attention_at
from aap_hw.compile.front.views import NoView, View
from aap_hw.compile.keys.key import KernelKey
from aap_hw.graph import WidthExpr
from aap_hw.graph.call import Call, shape_of
from aap_hw.graph.source import op_name, quoted

if TYPE_CHECKING:
    from aap_hw.compile.front.partition import Partition


@rule("matmul", "bmm", "mm", takes=Takes.ANYTHING)
def matmul(partition: Partition, node: Node) -> None:
    """A product of matrices, or the whole of the attention that begins with it."""
    left, right = [each for each in node.args if isinstance(each, Node)]
    if (found := attention_at(partition, node)) is not None:
        partition.absorb(*found.nodes)
        partition.wait(found.nodes[-1], lambda: attend(partition, found))
        return
    rank = len(shape_of(node))
    if min(len(shape_of(left)), len(shape_of(right))) < 2 or any(map(partition.is_parameter, (left, right))):
        raise partition.refused(f"{op_name(node)} with these operands has no kernel yet", node)
    operands = [Operand.of(partition, each, node, matrices(each, rank)) for each in (left, right)]
    lengths = {
        "h": _joined(partition, node),
        "m": partition.graph.width_of(node.name, -2),
        "k": partition.graph.width_of(left.name, -1),
        "n": partition.graph.width_of(node.name, -1),
    }
    try:
        axes = Lengths.of(partition, shape_of(node)[0] if rank > 2 else 1, lengths, made="hmn")
        walks = {
            name: axes.walk(*each)
            for name, each in zip(("left", "right"), zip(operands, ("hmk", "hkn"), strict=True), strict=True)
        }
    except TooManyWidths as problem:
        raise partition.refused(f"{op_name(node)} that can be cut in several ways has no kernel yet", node) from problem
    last, steps = with_activation(partition, node)
    key = KernelKey.make("matmul", (), axes.batch, shape=axes.shape, epilogue=steps, **walks)
    names = tuple(operand.name for operand in operands)
    kernel = Kernel(last.name, key, names, (axes.read, axes.made), source=op_name(node) + quoted(node))
    partition.add(last, kernel, is_image=False)


@rule("scaled_dot_product_attention", takes=Takes.ANYTHING)
def attention(partition: Partition, node: Node) -> None:
    """Attention as one operator."""
    call = Call(node)
    query, key, value, mask = (call[name] for name in ("query", "key", "value", "attn_mask"))
    ranks = {len(shape_of(each)) for each in (query, key, value)}
    if any(map(partition.is_parameter, (query, key, value))) or min(ranks) < 3 or len(ranks) > 1 or call["dropout_p"]:
        raise partition.refused("attention with these operands has no kernel yet", node)
    attend(partition, Attention((node,), query, key, value, mask, call["scale"], call["is_causal"]))


def attend(partition: Partition, found: Attention) -> None:
    """Add the kernel of attention."""
    node, graph = found.nodes[-1], partition.graph
    query, key, value = (
        Operand.of(partition, each, node, matrices(each, len(shape_of(node))))
        for each in (found.query, found.key, found.value)
    )
    if found.key_is_turned:
        key = key.turned
    if found.is_turned:
        value = value.turned
    queries, columns = (-1, -2) if found.is_turned else (-2, -1)
    lengths = {
        "h": _joined(partition, node),
        "l": graph.width_of(node.name, queries),
        "s": graph.width_of(found.key.name, -1 if found.key_is_turned else -2),
        "d": graph.width_of(found.query.name, -1),
        "v": graph.width_of(node.name, columns),
    }
    try:
        axes = Lengths.of(partition, shape_of(node)[0], lengths, made="hlv")
        walks = {"query": axes.walk(query, "hld"), "key": axes.walk(key, "hsd"), "value": axes.walk(value, "hsv")}
        masked: list[Operand] = []
        if found.mask is not None:
            masked = [Operand.of(partition, found.mask, node, matrices(found.mask, len(shape_of(node))))]
            walks["mask"] = axes.walk(masked[0], "hls") or "plain"
    except TooManyWidths as problem:
        raise partition.refused("attention that can be cut in several ways has no kernel yet", node) from problem
    scale = 1.0 if found.scale is None and len(found.nodes) > 1 else found.scale
    is_usual = scale is None or (math.isclose(scale, lengths["d"].constant ** -0.5) and not lengths["d"].terms)
    view = _by_query(partition, node, queries, columns)
    attributes = {
        "shape": axes.shape,
        "scale": "" if is_usual else repr(float(scale or 1)),
        "causal": "1" if found.is_causal else "",
        "masked": "unseen" if found.mask is not None and not found.mask.meta["val"].dtype.is_floating_point else "",
        "masked_by": "constant" if masked and masked[0].is_constant else "",
        "made": "heads" if view is None else "",
    }
    kernel = Kernel(
        node.name if view is None else view.name,
        KernelKey.make("attention", (), axes.batch, **attributes, **walks),
        tuple(each.name for each in (query, key, value, *masked) if not each.is_constant),
        (axes.read, axes.made),
        constants=tuple(each.name for each in masked if each.is_constant),
        source=op_name(node) + quoted(node),
    )
    if view is None:
        partition.add(node, kernel, is_image=False)
    else:
        partition.add_moved(node, kernel, view)


def _joined(partition: Partition, node: Node) -> WidthExpr:
    """How many heads there are, over all axes that they have."""
    heads = WidthExpr(1)
    try:
        for dim in range(1, len(shape_of(node)) - 2):
            heads = product(heads, partition.graph.width_of(node.name, dim))
    except NoLength as problem:
        raise partition.refused(f"{op_name(node)} that can be cut in several ways has no kernel yet", node) from problem
    if len(shape_of(node)) > 2 and partition.graph.width_of(node.name, 0).terms:
        raise partition.refused(f"{op_name(node)} of as many images as channels has no kernel yet", node)
    return heads


def _by_query(partition: Partition, node: Node, queries: int, columns: int) -> View | None:
    """What attention makes, if it lies as (N, queries, H, columns); that is nothing new where there is one head."""
    rank = len(shape_of(node))
    order = [0, queries % rank, *range(1, rank - 2), columns % rank]
    if order == list(range(rank)):
        return None
    lengths = [partition.graph.width_of(node.name, dim) for dim in range(rank)]
    try:
        return View.of(f"{node.name}_by_query", lengths, shape_of(node), order, PLAIN)
    except NoView:
        return None
