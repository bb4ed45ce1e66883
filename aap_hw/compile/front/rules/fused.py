"""Trees of element-wise operators: each becomes one kernel, whatever is broadcast in it.

An operator is only recorded until something other than an element-wise operator asks for its value. An element-wise
reader with equally many values takes it into its own expression, so that nothing is computed twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch.fx import Node

from aap_hw.compile.families.expression import Expression, Term, depth_of, renamed, size_of, text_of, variables
from aap_hw.compile.families.fused import ALONE, AXES, PLANAR
from aap_hw.compile.front.aliases import readers_of, writes_in_place
from aap_hw.compile.front.network import Kernel
from aap_hw.compile.front.rules.arithmetic import NAMES, NoExpression, expression_of, simplified
from aap_hw.compile.front.rules.elementwise import Operand, emit_alone
from aap_hw.compile.front.rules.registry import Takes, rule
from aap_hw.compile.keys.key import KernelKey
from aap_hw.graph import WidthExpr
from aap_hw.graph.program.call import Call, shape_of
from aap_hw.graph.program.source import op_name

if TYPE_CHECKING:
    from aap_hw.compile.front.making import Partition

# Limits of one kernel: functions, operands, and operators ahead that are searched for other readers of a value.
MOST_FUNCTIONS, MOST_OPERANDS, MOST_AHEAD = 40, 8, 16
# Limit of nesting, beyond which TVM takes seconds; see `depth_of`.
DEEPEST = 9


@dataclass(frozen=True)
class Tree:
    """What a node computes, not yet a kernel.

    Attributes
    ----------
    expression : with operands by name.
    operands : by name.
    is_image : whether operands and result (N, C, ...) lie as (N, ..., C), and not in PyTorch's order.
    """

    expression: Expression
    operands: Mapping[str, Operand]
    is_image: bool

    def emit(self, partition: Partition, node: Node) -> None:
        """Add the kernel that makes the value of ``node``."""
        if not emit_alone(partition, node, self.expression, self.operands, is_image=self.is_image):
            _emit(partition, node, self)


@rule(*(name for name in NAMES if name not in ("max", "min")), takes=Takes.ANYTHING)
def element_wise(partition: Partition, node: Node) -> None:
    """An element-wise operator that no kernel took along."""
    try:
        read = expression_of(node)
    except NoExpression:
        raise partition.refused(f"{op_name(node)} with these operands has no kernel yet", node) from None
    tree = _tree(partition, node, read, with_waiting=True)
    is_large = size_of(tree.expression) > MOST_FUNCTIONS or len(tree.operands) > MOST_OPERANDS
    if is_large or depth_of(tree.expression) > DEEPEST:
        tree = _tree(partition, node, read, with_waiting=False)
    expression = tree.expression
    if isinstance(expression, Term) and expression.function in ("relu", "relu6"):
        (inner,) = expression.operands
        if isinstance(inner, str) and partition.is_rectified(tree.operands[inner].node, expression.function):
            expression = inner
    if isinstance(expression, str) and tree.operands[expression].shape == shape_of(node):
        partition.placement.place(node, tree.operands[expression].value, is_image=tree.is_image)
        return
    if not isinstance(expression, Term) or not any(not each.is_constant for each in tree.operands.values()):
        raise partition.refused(f"{op_name(node)} with these operands has no kernel yet", node)
    add(partition, node, tree)


def add(partition: Partition, node: Node, tree: Tree) -> None:
    """Have a tree make the value of a node: by a kernel of its own, or by that of its reader."""
    _geometry(partition, node, tree)  # refuses an unsupported tree before anything relies on it
    if _may_wait(partition, node):
        partition.placement.defer(node, tree, is_image=tree.is_image)
    else:
        tree.emit(partition, node)


def sum_of(
    partition: Partition, node: Node, product: str, alpha: float, added: Node | None, beta: float, behind: int = 0
) -> Tree:
    """A kernel's result, in the shape of a node and PyTorch's order of axes, times alpha plus a value times beta.

    The value is as if it had so many more axes ``behind`` its own.
    """
    own = Operand(node, product, shape_of(node))
    operands, expression = {own.name: own}, Term("mul", (own.name, float(alpha)))
    if added is not None and not partition.is_zero(added):
        other = _operand(partition, added, node, is_image=False)
        operands[other.name] = replace(other, shape=(*other.shape, *[1] * behind))
        expression = Term("add", (expression, Term("mul", (other.name, float(beta)))))
    return Tree(simplified(expression), operands, is_image=False)


def _tree(partition: Partition, node: Node, read: Expression, *, with_waiting: bool) -> Tree:
    """The tree of a node; if ``with_waiting``, operands that wait are replaced by their own expressions."""
    names = set(variables(read))
    sources = [source for source in node.all_input_nodes if source.name in names]
    varying = [source for source in sources if not partition.is_parameter(source)]
    rank = len(shape_of(node))
    # Not where another axis than an image's channels can be cut, as that of tokens that were turned.
    is_image = not any(partition.graph.width_of(node.name, axis).terms for axis in range(rank) if axis != 1) and any(
        partition.placement.is_image(source) and len(shape_of(source)) == rank for source in varying
    )
    operands: dict[str, Operand] = {}
    named: dict[str, Expression] = {}
    for source in sources:
        waiting = partition.placement.unmade(source)
        if partition.is_zero(source):
            named[source.name] = 0.0
        elif (
            with_waiting
            and isinstance(waiting, Tree)
            and waiting.is_image == is_image
            and math.prod(shape_of(source)) == math.prod(shape_of(node))
        ):
            named[source.name] = waiting.expression
            operands |= waiting.operands
        else:
            operand = _operand(partition, source, node, is_image)
            named[source.name] = operand.name
            operands[operand.name] = operand
    expression = simplified(renamed(read, named))
    used = set(variables(expression))
    return Tree(expression, {name: each for name, each in operands.items() if name in used}, is_image)


def _operand(partition: Partition, source: Node, node: Node, is_image: bool) -> Operand:
    call, shape, rank = Call(node), shape_of(source), len(shape_of(node))
    if partition.is_parameter(source):
        if call.name == "prelu" and source is call["weight"] and shape != (1,):
            shape = *shape, *[1] * (rank - 2)  # one for each channel, which is the second axis
        return Operand(source, partition.constant(source), shape, is_constant=True)
    if not is_image:
        return Operand(source, partition.placement.value_in_order(source, node), shape)
    if len(shape) == rank:
        return Operand(source, partition.placement.value_of(source, node), shape)
    padded = _padded(shape, rank)
    if len(shape) > 2 and min(padded[1], math.prod(padded[2:])) > 1:
        raise partition.refused(f"{op_name(node)} of tensors in several orders has no kernel yet", node)
    return Operand(source, partition.placement.value_in_order(source, node), shape)


def _may_wait(partition: Partition, node: Node) -> bool:
    """Whether only element-wise operators read a value, and they all lead to one of them."""
    if partition.is_stored(node) or (writes_in_place(node) and partition.memory.stale_after(node)):
        return False
    ahead = readers_of(node)
    for _ in range(MOST_AHEAD):
        if not all(_is_fused(partition, reader) for reader in ahead):
            return False
        if len(ahead) < 2:
            return bool(ahead)
        first = min(ahead, key=partition.memory.place_of)
        if shape_of(first) != shape_of(node):
            return False
        ahead = (ahead - {first}) | readers_of(first)
    return False


def _is_fused(partition: Partition, node: Node) -> bool:
    if node.op != "call_function" or partition.is_taken(node):
        return False
    try:
        expression_of(node)
    except NoExpression:
        return False
    return True


@dataclass(frozen=True)
class _Geometry:
    """The kernel that a tree becomes: its size, the order of its axes, the axes of its operands, and its width."""

    batch: int
    size: tuple[int, int]
    order: str
    axes: Mapping[str, str]
    width: WidthExpr


@dataclass(frozen=True)
class _Run:
    """Merged axes: their length, and the operands that are not broadcast along them."""

    length: int
    owners: frozenset[str]


def _geometry(partition: Partition, node: Node, tree: Tree) -> _Geometry:
    shape, rank = shape_of(node) or (1,), max(1, len(shape_of(node)))
    padded = {name: _padded(operand.shape, rank) for name, operand in tree.operands.items()}
    channels = 1 if tree.is_image else rank - 1
    varying = [axis for axis in range(len(shape_of(node))) if partition.graph.width_of(node.name, axis).terms]
    is_planar = bool(set(varying) - {channels})
    if is_planar and (len(varying) > 1 or tree.is_image):
        raise partition.refused(f"{op_name(node)} of values of which several axes can be cut has no kernel yet", node)
    channels = varying[0] if is_planar else channels
    before = range(channels if is_planar else min(1, rank - 1))
    between = [axis for axis in range(rank) if axis not in (*before, channels)]

    def merged(axes: Iterable[int]) -> list[_Run]:
        """Neighbouring axes, merged where all operands have them or all lack them."""
        runs: list[_Run] = []
        for axis in axes:
            owners = frozenset(name for name, own in padded.items() if own[axis] == shape[axis])
            if shape[axis] > 1 and runs and runs[-1].owners == owners:
                runs[-1] = _Run(runs[-1].length * shape[axis], owners)
            elif shape[axis] > 1:
                runs.append(_Run(shape[axis], owners))
        return runs

    def filled(runs: list[_Run], most: int) -> list[_Run]:
        if len(runs) > most:
            raise partition.refused(f"{op_name(node)} of such shapes has no kernel yet", node)
        return [*runs, *[_Run(1, frozenset())] * (most - len(runs))]

    width = partition.graph.width_of(node.name, channels)
    last = _Run(shape[channels], frozenset(name for name, own in padded.items() if own[channels] == shape[channels]))
    outer, inner = merged(before), merged(between)
    if len(outer) < 2 and len(inner) > 2 and not is_planar:  # what is an image's batch may be any axis
        alike = not width.terms and inner[-1].owners == last.owners
        if alike:
            last, inner = _Run(inner[-1].length * last.length, last.owners), inner[:-1]
            width = WidthExpr(last.length)
        if len(inner) > 2 and (not outer or outer[0].owners == inner[0].owners):
            first, *inner = inner
            outer = [_Run(first.length * (outer[0].length if outer else 1), first.owners)]
    runs = batch, height, columns = *filled(outer, 1), *filled(inner, 2)

    def axes_of(name: str) -> str:
        is_own = [name in run.owners for run in (*runs, last)]
        return "".join(axis for axis, is_there in zip(AXES, is_own, strict=True) if is_there) or ALONE

    axes = {name: axes_of(name) for name in padded}
    size = height.length, columns.length
    return _Geometry(batch.length, size, PLANAR if is_planar else AXES, axes, width)


def _emit(partition: Partition, node: Node, tree: Tree) -> None:
    """The kernel of a tree that has no shorter key."""
    geometry, order = _geometry(partition, node, tree), list(dict.fromkeys(variables(tree.expression)))
    read = [name for name in order if not tree.operands[name].is_constant]
    held = [name for name in order if tree.operands[name].is_constant]
    letters: dict[str, Expression] = {name: f"x{i}" for i, name in enumerate(read)}
    letters |= {name: f"c{i}" for i, name in enumerate(held)}
    key = KernelKey.make(
        "elementwise",
        geometry.size,
        geometry.batch,
        order="" if geometry.order == AXES else geometry.order,
        expr=text_of(renamed(tree.expression, letters)),
        reads=[geometry.axes[name] for name in read],
        constants=[geometry.axes[name] for name in held],
    )
    rank, constants = len(shape_of(node)), [tree.operands[name] for name in held]
    kernel = Kernel(
        node.name,
        key,
        tuple(tree.operands[name].value for name in read),
        (geometry.width, geometry.width),
        constants=tuple(each.value for each in constants),
        learned=tuple(each.value for each in constants if partition.is_learned(each.node)),
        channel_axis=1 - rank if tree.is_image else -1,
    )
    partition.add(node, kernel, is_image=tree.is_image)


def _padded(shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    return (1,) * (rank - len(shape)) + shape
