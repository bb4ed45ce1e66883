"""Steps of an epilogue: operators behind a kernel that read nothing but its value and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.fx import Node

from aap_hw.compile.families.elementwise import ACTIVATIONS
from aap_hw.compile.families.expression import Expression, Term, depth_of, renamed, size_of, text_of, variables
from aap_hw.compile.front.aliases import readers_of, writes_in_place
from aap_hw.compile.front.rules.arithmetic import NoExpression, expression_of, simplified
from aap_hw.graph.program.call import Call, shape_of

if TYPE_CHECKING:
    from aap_hw.compile.front.making import Partition

# Most functions in a step: its code is repeated for every register of a kernel's tile.
MOST_FUNCTIONS = 8
DEEPEST = 7
# The variable of a step.
VALUE = "x"


@dataclass(frozen=True)
class Step:
    """Operators as one step of an epilogue.

    Attributes
    ----------
    nodes : the operators, in order; the last one's value is the result.
    text : the name of a function, or an expression in ``x``.
    """

    nodes: tuple[Node, ...]
    text: str


def step_behind(partition: Partition, node: Node) -> Step | None:
    """The longest chain behind a value that is one step and has no other readers; a named activation ends it."""
    found: Step | None = None
    known: dict[str, Expression] = {node.name: VALUE}
    open_values, taken = {node}, list[Node]()
    if partition.is_stored(node):
        return None
    while readers := {user for value in open_values for user in readers_of(value) if user not in taken}:
        follower = min(readers, key=partition.memory.place_of)
        if follower.op != "call_function" or partition.is_taken(follower):
            break
        if writes_in_place(follower) and partition.memory.stale_after(follower):
            break
        try:
            read = expression_of(follower)
        except NoExpression:
            break
        if not set(variables(read)) <= known.keys():
            break
        expression = simplified(renamed(read, known))
        if size_of(expression) > MOST_FUNCTIONS or depth_of(expression) > DEEPEST:
            break
        known[follower.name] = expression
        taken.append(follower)
        open_values.add(follower)
        is_closed = all(user in taken for value in open_values - {follower} for user in readers_of(value))
        if is_closed and isinstance(expression, Term) and follower.meta["val"].dtype == torch.float32:
            is_bare = expression.operands == (VALUE,)
            found = Step(tuple(taken), expression.function if is_bare else text_of(expression))
            if found.text in ACTIVATIONS:
                break
        if partition.is_stored(follower):
            break
    return found


def factor_of(partition: Partition, node: Node, this: Node, axis: int) -> str | None:
    """The constant that ``node`` multiplies each channel of ``this`` by, if it is such a product."""
    return _of_channels(partition, node, this, axis) if Call(node).name == "mul" else None


def summand_of(partition: Partition, node: Node, this: Node, axis: int) -> str | None:
    """The constant that ``node`` adds to each channel of ``this``, if it is such a sum."""
    is_sum = Call(node).name == "add" and Call(node)["alpha"] == 1
    return _of_channels(partition, node, this, axis) if is_sum else None


def is_of_channels(own: Sequence[int], shape: Sequence[int], axis: int) -> bool:
    """Whether a tensor of one shape has one number for each channel of another shape, and no more."""
    each_channel = [1] * len(shape)
    each_channel[axis] = shape[axis]
    return [1] * (len(shape) - len(own)) + list(own) == each_channel


def _of_channels(partition: Partition, node: Node, this: Node, axis: int) -> str | None:
    """The only other operand of ``node``, if it is a constant with a number for each channel of ``this``."""
    others = [each for each in node.all_input_nodes if each is not this]
    if len(others) != 1 or not partition.is_parameter(others[0]):
        return None
    if writes_in_place(node) and (Call(node).first is not this or partition.memory.stale_after(node)):
        return None
    is_fit = is_of_channels(shape_of(others[0]), shape_of(this), axis) and shape_of(node) == shape_of(this)
    return partition.constant(others[0]) if is_fit else None


def turns_to_image(node: Node) -> bool:
    """Whether an operator permutes rows (N, ..., C) to (N, C, ...)."""
    call = Call(node)
    if call.name not in ("permute", "transpose"):
        return False
    rank = len(shape_of(node))
    order = list(range(rank))
    if call.name == "permute":
        order = [dim % rank for dim in call["dims"]]
    else:
        left, right = call["dim0"] % rank, call["dim1"] % rank
        order[left], order[right] = right, left
    return order == [0, rank - 1, *range(1, rank - 1)]
