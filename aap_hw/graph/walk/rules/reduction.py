"""Ops that take a mean, a maximum or the like over some axes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aap_hw.graph.program.call import Call
from aap_hw.graph.walk.labels import Labels
from aap_hw.graph.walk.rules.pointwise import pointwise
from aap_hw.graph.walk.rules.registry import Result, rule
from aap_hw.graph.walk.rules.spatial_gates import is_of_gate
from aap_hw.graph.walk.rules.statistics import is_of_norm, meets_factor

if TYPE_CHECKING:
    from aap_hw.graph.walk.labelling import Labelling

_SUMS = frozenset({"sum", "nansum"})


@rule(
    "mean",
    "sum",
    "nansum",
    "amax",
    "amin",
    "aminmax",
    "argmax",
    "argmin",
    "max",
    "min",
    "var",
    "std",
    "var_mean",
    "std_mean",
    "logsumexp",
    "prod",
    "linalg_vector_norm",
)
def reduce(state: Labelling, call: Call) -> Result:
    """Channels along a reduced axis are mixed and frozen, but for sums, norms and spatial gates; others pass.

    A sum reads them as a layer does whose weights are all one: it lacks the terms that are gone. One that is the same
    for every input, such as a count of ones, would be another number.
    """
    if call.get("other") is not None:  # the larger of two
        return pointwise(state, call)
    if len(call.tensors) != 1:
        return state.not_understood(call)
    labels = state.of(call.first)
    named = call.get("dim")
    if named is None or named == []:
        reduced = frozenset(range(labels.rank))
    else:
        reduced = frozenset(dim % labels.rank for dim in ([named] if isinstance(named, int) else named))
    is_within = len(labels.dims) == 1 and labels.dims <= reduced
    if is_within and is_of_norm(call):
        state.renormalise(labels, call)
        if meets_factor(call.node):
            state.doubt(call)  # which may be a count of channels
        return _each(call, [Labels.none(len(shape)) for shape in call.out_shapes])
    if len(labels.dims) == 1 and labels.dims == reduced and is_of_gate(call):
        state.renormalise(labels, call, "is reduced for a spatial gate")
        return _each(call, [Labels.none(len(shape)) for shape in call.out_shapes])
    if is_within and call.name in _SUMS and not state.is_constant(call.first):
        return Labels.none(len(call.out_shape))
    if reduced & labels.dims:
        state.freeze(labels, "is reduced together with other channels", call)
        return _each(call, [Labels.none(len(shape)) for shape in call.out_shapes])
    if call.get("keepdim", False):
        return _each(call, [labels for _ in call.out_shapes])
    stays = [dim for dim in range(labels.rank) if dim not in reduced]
    ids = labels.ids.reshape([labels.ids.shape[dim] for dim in stays])
    dims = frozenset(new for new, old in enumerate(stays) if old in labels.dims)
    return _each(call, [Labels(ids, dims) for _ in call.out_shapes])


@rule("softmax", "log_softmax", "_softmax", "_log_softmax", "cumsum", "cumprod")
def along_axis(state: Labelling, call: Call) -> Result:
    """The shape stays, but positions along one axis depend on each other."""
    labels = state.of(call.first)
    if call["dim"] % labels.rank in labels.dims:
        state.freeze(labels, "is normalised or accumulated over channels", call)
    return labels


def _each(call: Call, labels: list[Labels]) -> Result:
    return tuple(labels) if isinstance(call.node.meta["val"], (tuple, list)) else labels[0]
