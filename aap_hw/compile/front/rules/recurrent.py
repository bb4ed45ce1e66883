"""Recurrent layers: each is a linear layer over all steps, a loop over the steps, and a concatenation of directions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch.fx import Node

from aap_hw.compile.families.convolution import POINTWISE
from aap_hw.compile.families.recurrent import GATES
from aap_hw.compile.families.slow import PLAIN
from aap_hw.compile.front.copies import copied, strided_copy, value_or_copy
from aap_hw.compile.front.lengths import total
from aap_hw.compile.front.network import Kernel
from aap_hw.compile.front.operands import NOWHERE
from aap_hw.compile.front.rules.registry import Takes, rule
from aap_hw.compile.front.views import View
from aap_hw.compile.keys.key import KernelKey
from aap_hw.graph import WidthExpr
from aap_hw.graph.program.call import Call, shape_of

if TYPE_CHECKING:
    from aap_hw.compile.front.making import Partition


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

    def view(self, name: str, width: WidthExpr, channels: int) -> View:
        """A value that holds the states of all steps, ``channels`` wide if nothing is cut."""
        lengths = [*map(WidthExpr, self.lead), width]
        return View.of(name, lengths, [*self.lead, channels], range(3), PLAIN)

    def key(self, op: str, **attributes: object) -> KernelKey:
        """The key of a kernel over the states of all steps."""
        return KernelKey.make(op, (self.lead[1], 1), self.lead[0], **attributes)


@rule(*GATES, takes=Takes.ANYTHING)
def recurrent(partition: Partition, node: Node) -> None:
    """All layers of one call, in one or both directions."""
    call = Call(node)
    if call.get("batch_first") is None or len(shape_of(call["input"])) != 3:
        raise partition.refused("a recurrent layer of packed sequences, or without a batch axis, has no kernel", node)
    states = call["hx"] if isinstance(call["hx"], list | tuple) else [call["hx"]]
    given = [] if all(map(partition.is_zero, states)) else states
    if any(map(partition.is_void, given)):
        raise partition.refused("a recurrent layer of which one first state is left out has no kernel yet", node)
    with_cells = call.name == "lstm" and any(Call(user)["index"] == 2 and user.users for user in node.users)
    first, second, _ = shape_of(call["input"])
    layers = list(_layers(partition, node))
    if with_cells and any(layer.projection is not None for directions in layers for layer in directions):
        raise partition.refused("a recurrent layer with projections whose last cells are read has no kernel yet", node)
    sequences = Sequences(second, first, True) if not call["batch_first"] else Sequences(first, second, False)
    value = value_or_copy(partition, call["input"], node)
    width, channels = partition.graph.width_of(call["input"].name, -1), shape_of(call["input"])[-1]
    last: list[Last] = []
    for number, directions in enumerate(layers):
        made = []
        for direction, layer in enumerate(directions):
            name = f"{node.name}_layer_{number}_{direction}"
            first_ones = [_first(partition, state, node, len(last)) for state in given]
            how = Way(direction == 1, with_cells, tuple(first_ones))
            whole = layer.add(partition, name, value, width, sequences, how)
            last.append(
                Last(whole, sequences, layer.channels, layer.width, 0 if direction else sequences.steps - 1, with_cells)
            )
            is_read = with_cells and (len(directions) > 1 or number + 1 < len(layers))
            made.append(last[-1].states_alone(partition, node) if is_read else whole)
        value, width = made[0], total(*(each.width for each in directions))
        channels = directions[0].channels * len(directions)
        if len(directions) > 1:
            value = f"{node.name}_layer_{number}"
            partition.add_inner(Kernel(value, sequences.key("concat", parts=2), tuple(made), (width, width)))
    is_one = with_cells and len(layers[-1]) == 1
    _hand_out(partition, node, last[-1].states() if is_one else sequences.view(value, width, channels), last)


@rule(*(f"{op}_cell" for op in GATES), takes=Takes.ANYTHING)
def cell(partition: Partition, node: Node) -> None:
    """One step of one layer, whose state the network hands on by itself."""
    call = Call(node)
    op, vectors = call.name.removesuffix("_cell"), call["input"]
    states = call["hx"] if isinstance(call["hx"], list | tuple) else [call["hx"]]
    given = [] if all(map(partition.is_zero, states)) else states
    if len(shape_of(vectors)) != 2 or any(map(partition.is_void, given)):
        raise partition.refused("a recurrent layer without a batch axis or a first state has no kernel yet", node)
    samples, hidden = shape_of(vectors)[0], shape_of(call["w_hh"])[1]
    units = partition.graph.width_of(call["w_hh"].name, 1)
    results = {Call(user)["index"]: user for user in node.users} if op == "lstm" else {0: node}
    weights = (partition.parameter(call[name], node) for name in ("w_ih", "w_hh", "b_ih", "b_hh"))
    first_ones = tuple(value_or_copy(partition, state, node) for state in given)
    layer, sequences, how = (
        Layer(op, hidden, units, units, *weights),
        Sequences(samples, 1, False),
        Way(False, 1 in results, first_ones),
    )
    value, width = value_or_copy(partition, vectors, node), partition.graph.width_of(vectors.name, -1)
    name = layer.add(partition, f"{node.name}_layer", value, width, sequences, how)
    last = Last(name, sequences, hidden, units, 0, how.with_cells)
    for index, result in results.items():
        partition.placement.move(result, last.cell() if index else last.state())
    if op == "lstm":
        partition.absorb(*results.values())


def _first(partition: Partition, states: Node, node: Node, number: int) -> str:
    """Name of the first state (N, C) of one layer and direction, of those of all."""
    view = partition.placement.view_of(states, node).selected(0, number)
    if view.kind == PLAIN and view.is_everything(range(2)):
        return view.name
    return copied(partition, f"{node.name}_{states.name}_{number}", states, view)


@dataclass(frozen=True)
class Way:
    """How a layer goes: from which step on, whether it makes its last cells, and from which states on, if not zeros."""

    is_backwards: bool
    with_cells: bool
    first: tuple[str, ...]


@dataclass(frozen=True)
class Layer:
    """One layer in one direction: names of its weights, and how wide it is.

    Attributes
    ----------
    channels, width : of its states, if nothing is cut and as a width.
    units : hidden units of each gate.
    projection : the weight that makes states of the hidden units, if they are not the same.
    learned : its name again if it is a parameter of the model, not computed from others.
    """

    op: str
    channels: int
    width: WidthExpr
    units: WidthExpr
    read: str | None
    fed_back: str | None
    read_bias: str | None = None
    fed_back_bias: str | None = None
    projection: str | None = None
    learned: str | None = None

    def add(
        self,
        partition: Partition,
        name: str,
        value: str,
        width: WidthExpr,
        sequences: Sequences,
        how: Way,
    ) -> str:
        """Add its two kernels; returns the name of the states of all steps, and of the last cells behind them."""
        gates = total(*[self.units] * GATES[self.op])
        linear = sequences.key("conv2d", epilogue=("bias",), **POINTWISE)
        partition.add_inner(Kernel(f"{name}_read", linear, (value,), (width, gates), self.read, self.read_bias))
        order = "steps_first" if sequences.steps_first and sequences.samples > 1 else ""
        key = KernelKey.make(
            self.op,
            (sequences.steps, 1),
            sequences.samples,
            direction="backwards" if how.is_backwards else "",
            order=order,
            first="given" if how.first else "",
            cells="last" if how.with_cells else "",
            states="projected" if self.projection else "",
        )
        kernel = Kernel(
            name,
            key,
            (f"{name}_read", *how.first),
            (gates, self.width),
            self.fed_back,
            self.fed_back_bias,
            constants=(self.projection,) if self.projection else (),
            learned=(self.learned,) if self.learned else (),
        )
        return partition.add_inner(kernel)


def _layers(partition: Partition, node: Node) -> Iterator[list[Layer]]:
    """The directions of each layer, forwards first."""
    call, op = Call(node), Call(node).name
    directions = 2 if call["bidirectional"] else 1
    each = len(call["params"]) // (directions * call["num_layers"])
    for first in range(0, len(call["params"]), each * directions):
        layer = list[Layer]()
        for at in range(first, first + each * directions, each):
            weights = call["params"][at : at + each]
            read, fed_back, *others = [partition.parameter(weight, node) for weight in weights]
            biases, projections = (others[:2], others[2:]) if call["has_biases"] else ([None, None], others)
            learned = projections if partition.is_learned(weights[-1]) else []
            channels, width = shape_of(weights[1])[1], partition.graph.width_of(weights[1].name, 1)
            units = partition.graph.width_of(weights[-1].name, 1) if projections else width
            layer.append(Layer(op, channels, width, units, read, fed_back, *biases, *projections, *learned))
        yield layer


@dataclass(frozen=True)
class Last:
    """Where the last state of one layer in one direction is, and its last cell: in the states of all steps.

    Attributes
    ----------
    name, sequences : what holds these states, and how they lie.
    hidden, width : their channels, if nothing is cut and as a width.
    step : the one that is the last.
    has_cells : whether the last cells lie behind them.
    """

    name: str
    sequences: Sequences
    hidden: int
    width: WidthExpr
    step: int
    has_cells: bool

    def _whole(self) -> View:
        """All rows that there are, with those of the cells."""
        rows = math.prod(self.sequences.lead) + self.has_cells * self.sequences.samples
        return View.of(self.name, [WidthExpr(rows), self.width], (rows, self.hidden), range(2), PLAIN)

    def states(self) -> View:
        """(N, steps, hidden), or the steps first."""
        rows = math.prod(self.sequences.lead)
        view = self._whole().sliced(0, NOWHERE, WidthExpr(rows), rows)
        shape = *self.sequences.lead, self.hidden
        return view.reshaped([*map(WidthExpr, self.sequences.lead), self.width], shape)

    def states_alone(self, partition: Partition, node: Node) -> str:
        """Name of a copy of them without the cells."""
        kernel = strided_copy(partition, f"{self.name}_states", next(iter(node.users)), [self.states()], range(3))
        assert kernel is not None
        return partition.add_inner(kernel)

    def state(self) -> View:
        """(N, hidden) of the last step."""
        return self.states().selected(0 if self.sequences.steps_first else 1, self.step)

    def cell(self) -> View:
        """(N, hidden) behind the last step."""
        samples = self.sequences.samples
        start = WidthExpr(math.prod(self.sequences.lead))
        return self._whole().sliced(0, start, WidthExpr(samples), samples)


def _hand_out(partition: Partition, node: Node, states: View, last: Sequence[Last]) -> None:
    """Say where the states of all steps are, and the last state and cell of each layer and direction."""
    for user in node.users:
        partition.absorb(user)
        if (index := Call(user)["index"]) == 0:
            partition.placement.move(user, states)
            continue
        if not user.users:
            continue
        views = [each.state() if index == 1 else each.cell() for each in last]
        whole = [replace(view, axes=((), *view.axes)) for view in views]
        if len(last) == 1:
            partition.placement.move(user, whole[0])
        elif all(Call(each).name == "select" and Call(each)["dim"] == 0 for each in user.users):
            for each in user.users:
                partition.placement.move(each, views[Call(each)["index"]])
            partition.absorb(*user.users)
        else:
            kernel = strided_copy(partition, user.name, user, whole, range(3), 0)
            assert kernel is not None
            partition.add(user, kernel, is_image=False)
