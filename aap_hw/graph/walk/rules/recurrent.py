"""Recurrent layers and cells: a hidden unit goes with its gates, its state, and what it is fed back to.

All layers and both directions of one `nn.LSTM`, `nn.GRU` or `nn.RNN` have the same number of units, so the same units
of each go together. A unit of a layer with projections goes by itself, the projected states are another group.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import nn
from torch.fx import Node

from aap_hw.graph.program.call import Call, shape_of
from aap_hw.graph.walk.labels import IntArray, Labels
from aap_hw.graph.walk.rules.registry import Result, rule

if TYPE_CHECKING:
    from aap_hw.graph.walk.labelling import Labelling

_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


@rule(*_GATES)
def layers(state: Labelling, call: Call) -> Result:
    """States of all steps, then the last ones of each layer and direction."""
    module = _module(state, call.get("params"))
    if call.get("batch_first") is None or len(shape_of(call["input"])) != 3 or not isinstance(module, nn.RNNBase):
        return state.not_understood(call)
    directions = 2 if call["bidirectional"] else 1
    biases, projects = 2 * bool(call["has_biases"]), bool(module.proj_size)
    each = 2 + biases + projects
    weights = list(call["params"])
    incoming, units, made = state.channels(call["input"], 2, call), None, None
    for layer in range(call["num_layers"]):
        states = []
        for direction in range(directions):
            at = (layer * directions + direction) * each
            read, fed_back, *others = weights[at : at + each]
            own = _unit(state, call, incoming, read, fed_back, others[:biases])
            handed_on = own
            if projects:
                state.tie(own, state.parameter_axis(_name(state, others[-1]), 1, "in"), call)
                handed_on = state.parameter_axis(_name(state, others[-1]), 0, "out")
                state.produced(call.node, handed_on)
            state.tie(handed_on, state.parameter_axis(_name(state, fed_back), 1, "in"), call)
            units, made = own if units is None else units, handed_on if made is None else made
            state.tie(own, units, call)
            state.tie(handed_on, made, call)
            states.append(handed_on)
        incoming = np.concatenate(states)
    assert units is not None
    assert made is not None
    _given(state, call, [made, units])
    results = (Labels.along(3, 2, incoming), Labels.along(3, 2, made), Labels.along(3, 2, units))
    return results[: len(call.out_shapes)]


@rule(*(f"{op}_cell" for op in _GATES))
def cell(state: Labelling, call: Call) -> Result:
    """The next state, and the next cell of an LSTM."""
    names = ("w_ih", "w_hh", "b_ih", "b_hh")
    read, fed_back, *biases = [call[name] for name in names if isinstance(call[name], Node)]
    is_whole = isinstance(_module(state, [read, fed_back, *biases]), nn.RNNCellBase)
    if len(shape_of(call["input"])) != 2 or not is_whole:
        return state.not_understood(call)
    units = _unit(state, call, state.channels(call["input"], 1, call), read, fed_back, biases)
    state.tie(units, state.parameter_axis(_name(state, fed_back), 1, "in"), call)
    _given(state, call, [units, units])
    labels = Labels.along(2, 1, units)
    return (labels, labels) if len(call.out_shapes) > 1 else labels


def _unit(
    state: Labelling, call: Call, incoming: IntArray, read: Node, fed_back: Node, biases: Iterable[Node]
) -> IntArray:
    """Hidden units of one layer in one direction: its gates are rows of the weights, one gate behind the other."""
    gates = _GATES[call.name.removesuffix("_cell")]
    name = _name(state, read)
    state.tie(incoming, state.parameter_axis(name, 1, "in"), call)
    rows = state.parameter_axis(name, 0, "out")
    by_gate = rows.reshape(gates, -1)
    state.tie(by_gate, by_gate[:1], call)
    state.tie(rows, state.parameter_axis(_name(state, fed_back), 0, "out"), call)
    for bias in biases:
        state.tie(rows, state.parameter_axis(_name(state, bias), 0, "bias"), call)
    units: IntArray = by_gate[0]
    state.produced(call.node, units)
    return units


def _given(state: Labelling, call: Call, channels: Sequence[IntArray]) -> None:
    """First states are as wide as what the layer makes."""
    first = call["hx"] if isinstance(call["hx"], (list, tuple)) else [call["hx"]]
    for node, ids in zip(first, channels, strict=False):
        dim = len(shape_of(node)) - 1
        state.tie(state.channels(node, dim, call), ids, call)


def _module(state: Labelling, weights: Sequence[Node] | None) -> nn.Module | None:
    """The module that holds all the weights of a call."""
    names = [state.parameter_name(weight) for weight in weights or ()]
    owners = {id(state.owner(name)): state.owner(name) for name in names if name is not None and name not in state.kept}
    return next(iter(owners.values())) if len(owners) == 1 and None not in names else None


def _name(state: Labelling, weight: Node) -> str:
    name = state.parameter_name(weight)
    assert name is not None
    return name
