"""New tensors of one number: first states of recurrent code, padding, sums before the first term.

Such a tensor has no channels of its own. Whatever channels it meets can go from it as well, if the code then makes it
shorter, which a trial tells. The axis is the one along which it meets channels or a layer reads it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aap_hw.graph.program.call import Call
from aap_hw.graph.walk.labels import Labels
from aap_hw.graph.walk.rules.registry import Result, rule

if TYPE_CHECKING:
    from aap_hw.graph.walk.labelling import Labelling

# Those that get the number behind the shape.
NUMBERED = frozenset({"full", "new_full"})
FILLED = NUMBERED | {"zeros", "ones", "new_zeros", "new_ones"}


@rule(*FILLED)
def filled(state: Labelling, call: Call) -> Result:
    """Positions of their own along the axis that meets channels; of `new_zeros`, only the type of the source counts."""
    rank, axes = len(call.out_shape), state.axes_met(call.node)
    if len(axes) != 1:
        return Labels.none(rank)
    (dim,) = axes
    ids = state.ties.new_atoms(call.out_shape[dim])
    state.length(call, dim, ids.size, ids)
    return Labels.along(rank, dim, ids)
