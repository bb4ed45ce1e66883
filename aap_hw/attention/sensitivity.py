"""How much a network's answer depends on each channel group: what the widths of one are worth beside another's."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph
from aap_hw.graph.inputs import Batch, tensors_of
from aap_hw.graph.labels import IntArray
from aap_hw.graph.outputs import output_tensors


def sensitivities(graph: ChannelGraph, samples: Batch) -> dict[str, float]:
    """First-order change of the loss if all channels of a group went one by one, by the name of each that may be cut.

    ``sum over channels of the mean over images of |sum over pixels of Y * dL/dY|`` (Molchanov et al., 2017,
    equation 8), where L is the cross-entropy of the network's outputs with its own answer: no labels are needed, and
    for a network that is mostly right it makes no difference. A group that is observed at several nodes gets their
    mean. Of several outputs it is not known which are scores: then all groups are worth the same, 1.

    Parameters
    ----------
    samples
        Images (N, C, H, W), or whatever the graph was traced with; they are run one traced batch at a time.

    Raises
    ------
    UserError : there are fewer images than in one traced batch, or a gradient is not finite.
    """
    cuttable = [group for group in graph.groups if group.frozen is None]
    places = {g.name: {node: graph.positions_of(node, g.name) for node in g.observed} for g in cuttable}
    dims = {node: dim for nodes in places.values() for node, (dim, _) in nodes.items()}
    network = graph.program.module(check_guards=False)
    batch = next(node.meta["val"].shape[0] for node in network.graph.nodes if node.op == "placeholder")
    inputs = tensors_of(samples)
    whole = len(inputs[0]) // batch * batch
    if not whole:
        raise UserError(f"{len(inputs[0])} calibration images are not a whole batch of {batch}; pass more")
    sums: dict[str, Tensor] = {}
    with torch.enable_grad():
        for start in range(0, whole, batch):
            watched = _Gradients(network, dims, sums)
            outputs = output_tensors(watched.run(*(each[start : start + batch] for each in inputs)))
            if len(outputs) != 1 or outputs[0].dim() < 2:
                return dict.fromkeys(places, 1.0)
            loss = F.cross_entropy(outputs[0], outputs[0].argmax(1), reduction="sum")
            if loss.requires_grad:
                torch.autograd.grad(loss, watched.nothing, allow_unused=True)
    found = {
        name: _mean([_of(sums.get(node), index) for node, (_, index) in at.items()]) for name, at in places.items()
    }
    if not all(map(math.isfinite, found.values())):
        worst = next(name for name, value in found.items() if not math.isfinite(value))
        raise UserError(f"the gradients of group {worst} are not finite; check the weights and the images")
    return {name: value / whole for name, value in found.items()}


class _Gradients(fx.Interpreter):
    """Runs a graph and adds up |value * gradient| of each channel at some nodes, as the gradients come.

    Attributes
    ----------
    nothing
        A zero that is added to what the network begins with, inputs or the embeddings of whole numbers: every value
        depends on it, and so has a gradient, whether weights need one or not.
    """

    def __init__(self, network: fx.GraphModule, dims: dict[str, int], sums: dict[str, Tensor]) -> None:
        super().__init__(network)
        self._dims, self._sums = dims, sums
        self.nothing = torch.zeros((), requires_grad=True)
        self._depending: set[fx.Node] = set()

    def run_node(self, n: fx.Node) -> Any:
        """Compute a node; if it is observed, note what its gradient will say."""
        value = super().run_node(n)
        depends = any(source in self._depending for source in n.all_input_nodes)
        if not depends and n.op != "get_attr" and isinstance(value, Tensor) and value.is_floating_point():
            # A new tensor, so that a network may change its input in place.
            value, depends = value + self.nothing, True
        if depends:
            self._depending.add(n)
        if n.name in self._dims and isinstance(value, Tensor) and value.requires_grad:
            # A copy: a later operation may work in place.
            name, dim, before = n.name, self._dims[n.name], value.detach().clone()

            def add(gradient: Tensor) -> None:
                products = (
                    (before * gradient).movedim(dim, 1).flatten(2).sum(2) if before.dim() > 2 else before * gradient
                )
                by_channel = products.double().abs().sum(0)
                self._sums[name] = self._sums[name] + by_channel if name in self._sums else by_channel

            value.register_hook(add)  # type: ignore[no-untyped-call]
        return value


def _of(sums: Tensor | None, index: IntArray) -> float:
    # What the loss does not depend on has no gradient.
    return 0.0 if sums is None else float(sums.cpu().numpy()[index].sum())


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)
