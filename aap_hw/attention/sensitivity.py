"""How much a network's outputs depend on each channel group: what the widths of one are worth beside another's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor, fx

from aap_hw.attention.projections import OnGradient, Projections
from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph
from aap_hw.graph.groups.observed import ACTIVATIONS
from aap_hw.graph.program.call import Call, is_tensor, shape_of
from aap_hw.graph.program.inputs import Batch
from aap_hw.graph.walk.labels import IntArray


def sensitivities(graph: ChannelGraph, samples: Batch) -> dict[str, float]:
    """First-order change of the outputs if each channel of a group went, by the name of each group that may be cut.

    ``sum over channels of the mean over samples and draws of |sum over pixels of Y * dL/dY|`` (the criterion of
    Molchanov et al., 2017, equation 8), where L is a random projection of the outputs
    (`aap_hw.attention.projections`). Over many draws this is proportional to the norm of the change of all outputs.

    A group that is observed at several nodes gets their mean. Those that are sums of a residual stream are added up
    instead: each block reads another one, and a channel that is removed is missing in all of them.

    Parameters
    ----------
    samples
        Images (N, C, H, W), or whatever the graph was traced with; they are run one traced batch at a time.

    Raises
    ------
    UserError : there are fewer samples than in one traced batch, or a gradient is not finite.
    """
    changes = GroupChanges(graph)
    projections = Projections(graph, samples, changes.dims)
    projections.follow(changes.watch)
    return changes.sensitivities(projections.count)


class GroupChanges:
    """Adds up how far the outputs move if channels of groups go, as gradients come.

    Attributes
    ----------
    dims
        The axis of channels of each node that is watched.
    means
        The mean of each channel of those nodes. With them, `variance` is known as well.
    """

    def __init__(self, graph: ChannelGraph) -> None:
        groups = [group for group in graph.groups if group.frozen is None]
        self._sums = {node.name for node in graph.program.graph.nodes if _is_sum(node)}
        self._places: dict[str, dict[str, IntArray]] = {}
        self.dims: dict[str, int] = {}
        for group in groups:
            found = {node: graph.positions_of(node, group.name) for node in group.observed}
            self._places[group.name] = {node: index for node, (_, index) in found.items()}
            self.dims |= {node: dim for node, (dim, _) in found.items()}
        self.means: Mapping[str, Tensor] = {}
        self._whole: dict[str, Tensor] = {}
        self._varying: dict[str, Tensor] = {}

    def watch(self, _: fx.Interpreter, node: fx.Node, __: Tensor) -> Sequence[OnGradient]:
        """As of `Projections.follow`."""
        if node.name not in self.dims:
            return ()
        name, dim = node.name, self.dims[node.name]
        mean = self.means.get(name)

        def add(value: Tensor, gradient: Tensor) -> None:
            change = _by_channel(value * gradient, dim)
            _add(self._whole, name, change.abs())
            if mean is not None:
                _add(self._varying, name, (change - mean * _by_channel(gradient, dim)).square())

        return (add,)

    def sensitivities(self, count: int) -> dict[str, float]:
        """Sensitivity of each group, of so many samples and draws."""
        found = self._by_group(self._whole)
        if not all(map(math.isfinite, found.values())):
            worst = next(name for name, value in found.items() if not math.isfinite(value))
            raise UserError(f"the gradients of group {worst} are not finite; check the weights and the images")
        return {name: value / count for name, value in found.items()}

    def variances(self, count: int) -> dict[str, float]:
        """Mean square of the change if what varies of a channel went, added up over each group's channels."""
        return {name: value / count for name, value in self._by_group(self._varying).items()}

    def _by_group(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        found = {}
        for name, at in self._places.items():
            of_nodes = {node: _of(sums.get(node), index) for node, index in at.items()}
            others = [value for node, value in of_nodes.items() if node not in self._sums]
            found[name] = math.fsum(value for node, value in of_nodes.items() if node in self._sums)
            found[name] += math.fsum(others) / max(1, len(others))
        return found


def _is_sum(node: fx.Node) -> bool:
    """Whether a node is the sum of two equally shaped values, or an activation or norm of one."""
    while node.op == "call_function" and is_tensor(node):
        call = Call(node)
        if call.name == "add":
            return [shape_of(each) for each in call.tensors] == [shape_of(node)] * 2
        if call.name not in ACTIVATIONS | {"batch_norm"}:
            return False
        node = call.first
    return False


def _by_channel(values: Tensor, dim: int) -> Tensor:
    """Sums over places (N, C)."""
    return (values.movedim(dim, 1).flatten(2).sum(2) if values.dim() > 2 else values).double()


def _add(sums: dict[str, Tensor], name: str, of_samples: Tensor) -> None:
    by_channel = of_samples.sum(0)
    sums[name] = sums[name] + by_channel if name in sums else by_channel


def _of(sums: Tensor | None, index: IntArray) -> float:
    # What the loss does not depend on has no gradient.
    return 0.0 if sums is None else float(sums.cpu().numpy()[index].sum())
