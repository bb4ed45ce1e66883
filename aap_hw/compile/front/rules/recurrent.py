"""Recurrent layers: each is a linear layer over all steps, a loop over the steps, and a concatenation of directions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch.fx import Node

from aap_hw.compile.families.convolution import POINTWISE
from aap_hw.compile.families.recurrent import GATES
from aap_hw.compile.families.slow import PLAIN
from aap_hw.compile.front.network import Kernel
from aap_hw.compile.front.rules.registry import Takes, rule
from aap_hw.compile.front.views import View
from aap_hw.compile.keys.key import KernelKey
from aap_hw.graph import WidthExpr
from aap_hw.graph.call import Call, shape_of

if TYPE_CHECKING:
    from aap_hw.compile.front.making import Partition

# Operators that make zeros, as first states are unless the caller gives them.
ZEROS = ("zeros", "new_zeros", "zeros_like")


@dataclass(frozen=True)
class Sequences:
    """How sequences lie: as (N, steps, C), or as (steps, N, C)."""

    samples: int
    steps: int
    steps_first: bool

    @property
    def lead(self) -> tuple[int, int]:
        """Lengths of the axes before the channels."""
        return (self.steps, self.samples) if self.steps_first else (self.samples, self.steps)

    def view(self, name: str, width: WidthExpr) -> View:
        """A value that holds the states of all steps."""
        lengths = [*map(WidthExpr, self.lead), width]
        return View.of(name, lengths, [*self.lead, width.constant], range(3), PLAIN)

    def key(self, op: str, **attributes: object) -> KernelKey:
        """The key of a kernel over the states of all steps."""
        return KernelKey.make(op, (self.lead[1], 1), self.lead[0], **attributes)


@rule(*GATES, takes=Takes.ANYTHING)
def recurrent(partition: Partition, node: Node) -> None:
    """All layers of one call, in one or both directions; the first states must be zero."""
    call = Call(node)
    if call.get("batch_first") is None or len(shape_of(call["input"])) != 3:
        raise partition.refused("a recurrent layer of packed sequences, or without a batch axis, has no kernel", node)
    states = call["hx"] if isinstance(call["hx"], list | tuple) else [call["hx"]]
    if any(Call(state).name not in ZEROS for state in states):
        raise partition.refused("a recurrent layer with a first state that is given has no kernel yet", node)
    first, second, _ = shape_of(call["input"])
    sequences = Sequences(second, first, True) if not call["batch_first"] else Sequences(first, second, False)
    layers = list(_layers(partition, node))
    value = partition.placement.value_in_order(call["input"], node)
    width = partition.graph.width_of(call["input"].name, -1)
    last: list[tuple[str, int, int]] = []
    for number, directions in enumerate(layers):
        made = []
        for direction, layer in enumerate(directions):
            name = f"{node.name}_layer_{number}_{direction}"
            made.append(layer.add(partition, name, value, width, sequences, is_backwards=direction == 1))
            last.append((name, layer.hidden, 0 if direction else sequences.steps - 1))
        value, width = made[0], WidthExpr(directions[0].hidden * len(directions))
        if len(directions) > 1:
            value = f"{node.name}_layer_{number}"
            partition.add_inner(Kernel(value, sequences.key("concat", parts=2), tuple(made), (width, width)))
    _hand_out(partition, node, sequences, sequences.view(value, width), last)


@dataclass(frozen=True)
class Layer:
    """One layer in one direction: names of its weights."""

    op: str
    hidden: int
    read: str | None
    fed_back: str | None
    read_bias: str | None
    fed_back_bias: str | None

    def add(
        self,
        partition: Partition,
        name: str,
        value: str,
        width: WidthExpr,
        sequences: Sequences,
        *,
        is_backwards: bool,
    ) -> str:
        """Add the layer's two kernels; returns the name of the states of all steps."""
        gates, hidden = WidthExpr(GATES[self.op] * self.hidden), WidthExpr(self.hidden)
        linear = sequences.key("conv2d", epilogue=("bias",), **POINTWISE)
        partition.add_inner(Kernel(f"{name}_read", linear, (value,), (width, gates), self.read, self.read_bias))
        order = "steps_first" if sequences.steps_first and sequences.samples > 1 else ""
        way = "backwards" if is_backwards else ""
        key = KernelKey.make(self.op, (sequences.steps, 1), sequences.samples, direction=way, order=order)
        kernel = Kernel(name, key, (f"{name}_read",), (gates, hidden), self.fed_back, self.fed_back_bias)
        return partition.add_inner(kernel)


def _layers(partition: Partition, node: Node) -> Iterator[list[Layer]]:
    """The directions of each layer, forwards first."""
    call, op = Call(node), Call(node).name
    each, directions = 4 if call["has_biases"] else 2, 2 if call["bidirectional"] else 1
    if len(call["params"]) != each * directions * call["num_layers"]:
        raise partition.refused("a recurrent layer with projections has no kernel yet", node)
    names = [partition.parameter(weight, node) for weight in call["params"]]
    for first in range(0, len(names), each * directions):
        layer = list[Layer]()
        for at in range(first, first + each * directions, each):
            read, fed_back, *biases = names[at : at + each]
            hidden = shape_of(call["params"][at + 1])[1]
            layer.append(Layer(op, hidden, read, fed_back, *(biases or (None, None))))
        yield layer


def _hand_out(
    partition: Partition, node: Node, sequences: Sequences, states: View, last: list[tuple[str, int, int]]
) -> None:
    """Place the results of a call: the states of all steps, and the last state of each layer and direction."""
    for user in node.users:
        match Call(user)["index"]:
            case 0:
                partition.placement.move(user, states)
            case 1 if len(last) == 1:
                view = _last_state(sequences, *last[0])
                partition.placement.move(user, replace(view, axes=((), *view.axes)))
            case 1 if all(Call(each).name == "select" and Call(each)["dim"] == 0 for each in user.users):
                for each in user.users:
                    partition.placement.move(each, _last_state(sequences, *last[Call(each)["index"]]))
                partition.absorb(*user.users)
            case _ if user.users:
                raise partition.refused("the last states of several layers, or a last cell, have no kernel yet", node)
        partition.absorb(user)


def _last_state(sequences: Sequences, name: str, hidden: int, step: int) -> View:
    """The last state (N, hidden) of one layer in one direction."""
    return sequences.view(name, WidthExpr(hidden)).selected(0 if sequences.steps_first else 1, step)
