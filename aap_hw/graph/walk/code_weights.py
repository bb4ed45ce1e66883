"""Weights that the model's own code computes from parameters, followed along what they read.

Weight standardisation (NFNet, BiT) brings each filter to a mean of 0 and a variance of 1. Filters go like any others:
the walk follows their axis through the code as it does everywhere, with the gains and biases that lie along it. An
input that goes changes the mean and variance of every filter, as a channel does that a norm is taken over, so that the
channels which such filters read are renormalised. Here the operators that compute weights are walked once more, with
labels along the axis of inputs; the rules are the same. Factors and masks pass, and change no other weight.

Nothing else may read what is followed. Filters and inputs may never run along one axis of a tensor, and no norm may be
taken over filters: a reference that leaves out both would have to know which comes first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch.export import ExportedProgram
from torch.fx import Node

from aap_hw.graph.program.call import Call, is_static, is_tensor, shape_of
from aap_hw.graph.walk.computed import is_assertion, weights_from
from aap_hw.graph.walk.labels import IntArray, Labels, parts_of
from aap_hw.graph.walk.rules import RULES, Result
from aap_hw.graph.walk.rules.pointwise import pointwise

if TYPE_CHECKING:
    from aap_hw.graph.walk.labelling import Labelling

_READERS = frozenset({"linear", "conv1d", "conv2d", "conv3d"})
# The axis of a weight that its inputs run along.
INPUTS = 1


@dataclass(frozen=True)
class CodeWeight:
    """A weight that the code computes.

    Parameters
    ----------
    weight
        What a layer reads.
    members
        The operators that compute it, in the order of the program.
    sources
        The parameters with inputs along the same axis that it is computed from.
    """

    weight: Node
    members: tuple[Node, ...]
    sources: tuple[Node, ...]


def code_weights(program: ExportedProgram, parameters: Mapping[str, str]) -> tuple[CodeWeight, ...]:
    """The weights of a program's layers that can be followed.

    Parameters
    ----------
    parameters
        Names of the parameters and buffers that placeholders stand for.
    """
    found: dict[Node, CodeWeight] = {}
    for weight, members, read in weights_from(program, parameters, _READERS):
        shape = shape_of(weight)
        sources = [
            each for each in read if len(shape_of(each)) == len(shape) and shape_of(each)[INPUTS] == shape[INPUTS] > 1
        ]
        if sources:
            found[weight] = CodeWeight(weight, tuple(sorted(members)), tuple(sorted(sources)))
    inside = {member for each in found.values() for member in each.members}
    return tuple(
        each
        for each in found.values()
        if all(user in inside or is_assertion(user) for source in each.sources for user in source.users)
    )


def label_inputs(state: Labelling, weight: CodeWeight) -> dict[Node, Result]:
    """Labels along the inputs of a weight, for all that it is computed from."""
    read = {source for member in weight.members for source in member.all_input_nodes}
    labels: dict[Node, Result] = {node: Labels.none(len(shape_of(node))) for node in read if is_tensor(node)}
    over_filters = {norm.node for norm in state.renormalised if norm.node not in state.across}
    followed: list[IntArray] = []
    for source in weight.sources:
        name = state.parameter_name(source)
        assert name is not None
        followed.append(state.parameter_axis(name, INPUTS, "in"))
        labels[source] = Labels.along(len(shape_of(source)), INPUTS, followed[-1])
    inner = state.inside_of_weights(labels)
    for node in weight.members:
        call = Call(node)
        function = RULES.get(call.name) or (pointwise if call.pointwise else None)
        labels[node] = function(inner, call) if function and is_static(node) else inner.not_understood(call)
    made = labels[weight.weight]
    is_apart = over_filters.isdisjoint(weight.members) and not any(
        one.dims & other.dims
        for node in weight.members
        for one, other in zip(parts_of(state.labels[node]), parts_of(labels[node]), strict=True)
    )
    if is_apart and isinstance(made, Labels) and made.dims == {INPUTS}:
        return labels
    for ids in followed:
        state.freeze(ids, "meets filters that the model computes", Call(weight.weight))
    return {}
