"""How much a network's outputs depend on each channel group: what the widths of one are worth beside another's.

It does not matter what the outputs mean. Scores of classes, boxes, masks: each counts by how far it moves, in units of
how much it varies between samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph
from aap_hw.graph.program.inputs import Batch, Tensors, tensors_of
from aap_hw.graph.program.outputs import output_tensors
from aap_hw.graph.walk.labels import IntArray

# Random projections of the outputs that each sample is judged by.
DRAWS = 4
# An output that hardly varies is measured by this share of its size instead, or it would outweigh all others.
LEAST_VARIATION = 0.01

Sums = dict[str, Tensor]


def sensitivities(
    graph: ChannelGraph, samples: Batch, others: Mapping[str, Mapping[str, int]] | None = None
) -> dict[str, float]:
    """First-order change of the outputs if each channel of a group went, by the name of each group that may be cut.

    ``sum over channels of the mean over samples and draws of |sum over pixels of Y * dL/dY|`` (the criterion of
    Molchanov et al., 2017, equation 8), where L is a random projection of the outputs: the sum of all values, each
    divided by its spread and multiplied by a number from a normal distribution. Over many draws this is proportional to
    the norm of the change of all outputs. The spread of a value is the standard deviation of its channel over samples
    and places. A group that is observed at several nodes gets their mean.

    Parameters
    ----------
    samples
        Images (N, C, H, W), or whatever the graph was traced with; they are run one traced batch at a time.
    others
        Names of what else is asked for, such as the input: the nodes where it is read, and their axes of channels.

    Raises
    ------
    UserError : there are fewer samples than in one traced batch, or a gradient is not finite.
    """
    cuttable = [group for group in graph.groups if group.frozen is None]
    places = {g.name: {node: graph.positions_of(node, g.name) for node in g.observed} for g in cuttable}
    dims = {node: dim for nodes in places.values() for node, (dim, _) in nodes.items()}
    dims |= {node: dim for nodes in (others or {}).values() for node, dim in nodes.items()}
    network = graph.program.module(check_guards=False)
    batch = next(node.meta["val"].shape[0] for node in network.graph.nodes if node.op == "placeholder")
    inputs = tensors_of(samples)
    whole = len(inputs[0]) // batch * batch
    if not whole:
        raise UserError(f"{len(inputs[0])} calibration images are not a whole batch of {batch}; pass more")
    batches = [tuple(each[start : start + batch] for each in inputs) for start in range(0, whole, batch)]
    spreads = _spreads(network, batches)
    draw = torch.Generator().manual_seed(0)
    sums: Sums = {}
    with torch.enable_grad():
        for given in batches:
            watched = _Gradients(network, dims, sums)
            outputs = output_tensors(watched.run(*given))
            for number in range(DRAWS):
                loss = _projected(outputs, spreads, draw)
                if loss is not None and loss.requires_grad:
                    torch.autograd.grad(loss, watched.nothing, allow_unused=True, retain_graph=number < DRAWS - 1)
    found = {
        name: _mean([_of(sums.get(node), index) for node, (_, index) in at.items()]) for name, at in places.items()
    }
    found |= {name: _mean([_of(sums.get(node)) for node in at]) for name, at in (others or {}).items()}
    if not all(map(math.isfinite, found.values())):
        worst = next(name for name, value in found.items() if not math.isfinite(value))
        raise UserError(f"the gradients of group {worst} are not finite; check the weights and the images")
    return {name: value / (whole * DRAWS) for name, value in found.items()}


@torch.no_grad()
def _spreads(network: fx.GraphModule, batches: Sequence[Tensors]) -> list[Tensor | None]:
    """What each output's values are divided by, in a shape that fits them; None for outputs of whole numbers."""
    moments: list[_Moments | None] = []
    for given in batches:
        outputs = output_tensors(fx.Interpreter(network).run(*(each.clone() for each in given)))
        moments = moments or [_Moments(each) if _is_continuous(each) else None for each in outputs]
        for seen, output in zip(moments, outputs, strict=True):
            if seen is not None:
                seen.add(output)
    return [None if seen is None else seen.spread() for seen in moments]


def _is_continuous(output: Tensor) -> bool:
    return output.is_floating_point() and output.dim() > 0 and output.numel() > 0


class _Moments:
    """Sums of an output's values by channel, of which the first output is an example."""

    def __init__(self, output: Tensor) -> None:
        # Rows (N, L, C) of boxes or words have their channels last; all else has them behind the batch.
        is_rows = output.dim() == 3 and output.shape[2] < output.shape[1]
        self._others = [axis for axis in range(output.dim()) if axis != (2 if is_rows else 1)]
        self._count, self._sum, self._squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, output: Tensor) -> None:
        """Count the values of one more batch."""
        values = output.double()
        self._count += math.prod(output.shape[axis] for axis in self._others)
        self._sum = self._sum + values.sum(self._others, keepdim=True)
        self._squares = self._squares + values.square().sum(self._others, keepdim=True)

    def spread(self) -> Tensor:
        """Standard deviation by channel, or a share of the channel's size where that is more; 0 where all is 0."""
        square, mean = self._squares / self._count, self._sum / self._count
        variance = (square - mean.square()).clamp(min=0)
        return torch.maximum(variance, LEAST_VARIATION**2 * square).sqrt()


def _projected(outputs: Sequence[Tensor], spreads: Sequence[Tensor | None], draw: torch.Generator) -> Tensor | None:
    """A random projection of the outputs, or None if none of them depends on anything."""
    found: Tensor | None = None
    for output, spread in zip(outputs, spreads, strict=True):
        if spread is not None and output.requires_grad:
            direction = torch.randn(output.shape, generator=draw).to(output)
            direction = torch.where(spread > 0, direction / spread, 0.0).to(output.dtype)
            part = (output * direction).sum()
            found = part if found is None else found + part
    return found


class _Gradients(fx.Interpreter):
    """Runs a graph and adds up |value * gradient| of each channel at some nodes, as the gradients come.

    Attributes
    ----------
    nothing
        A zero that is added to what the network begins with, inputs or the embeddings of whole numbers: every value
        depends on it, and so has a gradient, whether weights need one or not.
    """

    def __init__(self, network: fx.GraphModule, dims: dict[str, int], sums: Sums) -> None:
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


def _of(sums: Tensor | None, index: IntArray | None = None) -> float:
    # What the loss does not depend on has no gradient.
    if sums is None:
        return 0.0
    return float(sums.sum() if index is None else sums.cpu().numpy()[index].sum())


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)
