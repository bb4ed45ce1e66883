"""How values within a network move its outputs, to first order, whatever the outputs mean.

Scores of classes, boxes, masks: each counts by how far it moves, in units of how much it varies between samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from aap_hw.attention.observer import Watcher
from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph
from aap_hw.graph.program.call import Call
from aap_hw.graph.program.folding import fold_norms
from aap_hw.graph.program.inputs import Batch, tensors_of
from aap_hw.graph.program.outputs import output_tensors

# Random projections of the outputs: in all, and for each sample, at least. Samples differ more than projections do.
PROJECTIONS, OF_EACH = 32, 2
# An output that hardly varies is measured by this share of its size instead, or it would outweigh all others.
LEAST_VARIATION = 0.01

See = Callable[[str, object], None]
OnGradient = Callable[[Tensor, Tensor], None]
Watch = Callable[[fx.Interpreter, fx.Node, Tensor], Sequence[OnGradient]]


class Projections:
    """Random projections of a network's outputs for some samples.

    A projection is the sum of all values that are returned, each divided by its spread and multiplied by a number from
    a normal distribution. Over many draws, the mean square of its change is the sum of the squares by which all these
    values change. The spread of a value is the standard deviation of its channel over samples and places.

    Parameters
    ----------
    samples
        Images (N, C, H, W), or whatever the graph was traced with; they are run one traced batch at a time.
    watched
        Names of the nodes whose values are needed. Batch norms are taken into the convolutions before them elsewhere.
    see
        Called with each node's name and value while the outputs' spreads are found, so before any gradient.

    Attributes
    ----------
    count
        Samples times projections of each.

    Raises
    ------
    UserError : there are fewer samples than in one traced batch.
    """

    def __init__(
        self, graph: ChannelGraph, samples: Batch, watched: Collection[str], see: See = lambda *_: None
    ) -> None:
        self._network, inputs = graph.program.module(check_guards=False), tensors_of(samples)
        fold_norms(self._network, watched)
        whole = len(inputs[0]) // graph.batch * graph.batch
        if not whole:
            raise UserError(f"{len(inputs[0])} calibration images are not a whole batch of {graph.batch}; pass more")
        starts = range(0, whole, graph.batch)
        self._batches = [tuple(each[start : start + graph.batch] for each in inputs) for start in starts]
        self._draws = projections_of_each(whole)
        self.count = whole * self._draws
        self._spreads = self._found_spreads(see)

    def follow(self, watch: Watch, drawn: Callable[[], None] = lambda: None) -> None:
        """Take the gradients of all projections.

        Parameters
        ----------
        watch
            Is given the interpreter, a node and its value, as soon as that is there. What it returns is called with the
            value, as it was then, and its gradient by each draw.
        drawn
            Called when all gradients by one draw have been given.
        """
        draw = torch.Generator().manual_seed(0)
        with torch.enable_grad():
            for given in self._batches:
                network = _Gradients(self._network, watch)
                outputs = output_tensors(network.run(*given))
                # The network's own reference to its outputs, whose history leads to the hooks and back to the network:
                # a cycle through PyTorch's C++ that Python never frees.
                network.env.clear()
                for number in range(self._draws):
                    loss = _projected(outputs, self._spreads, draw)
                    if loss is not None and loss.requires_grad:
                        torch.autograd.grad(
                            loss, network.nothing, allow_unused=True, retain_graph=number < self._draws - 1
                        )
                        drawn()

    @torch.no_grad()
    def _found_spreads(self, see: See) -> list[Tensor | None]:
        """What each output's values are divided by, in a shape that fits them; None for outputs of whole numbers."""
        moments: list[_Moments | None] = []
        for given in self._batches:
            outputs = output_tensors(Watcher(self._network, see).run(*(each.clone() for each in given)))
            moments = moments or [_Moments(each) if _is_continuous(each) else None for each in outputs]
            for seen, output in zip(moments, outputs, strict=True):
                if seen is not None:
                    seen.add(output)
        return [None if seen is None else seen.spread() for seen in moments]


def projections_of_each(samples: int) -> int:
    """How many random projections of its outputs each of so many samples is judged by."""
    return max(OF_EACH, math.ceil(PROJECTIONS / samples))


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
    """Runs a graph and lets its values be watched, which then have gradients.

    Attributes
    ----------
    nothing
        A zero that is added to what the network begins with, inputs or the embeddings of whole numbers: every value
        depends on it, and so has a gradient, though no weight needs one.
    """

    def __init__(self, network: fx.GraphModule, watch: Watch) -> None:
        super().__init__(network)
        self._watch = watch
        self._values: dict[fx.Node, Tensor] = {}
        self.nothing = torch.zeros((), requires_grad=True)
        self._depending: set[fx.Node] = set()

    def run_node(self, n: fx.Node) -> Any:
        """Compute a node and let it be watched."""
        for changing in Call(n).written if n.op == "call_function" else ():
            self._save(self.env[changing])
        value = super().run_node(n)
        if n.op == "get_attr":  # no weight needs a gradient
            return value.detach() if isinstance(value, Tensor) else value
        depends = any(source in self._depending for source in n.all_input_nodes)
        if not depends and isinstance(value, Tensor) and value.is_floating_point():
            # A new tensor, so that a network may change its input in place.
            value, depends = value + self.nothing, True
        if depends:
            self._depending.add(n)
        if isinstance(value, Tensor) and value.requires_grad and (calls := self._watch(self, n, value)):
            self._values[n] = value.detach()
            value.register_hook(partial(self._tell, n, calls))  # type: ignore[no-untyped-call]
        return value

    def _tell(self, node: fx.Node, calls: Sequence[OnGradient], gradient: Tensor) -> None:
        for call in calls:
            call(self._values[node], gradient)

    def _save(self, changing: Tensor) -> None:
        """Copy the values that an operator is about to overwrite. To copy all would take as long as to compute them."""
        memory = changing.untyped_storage().data_ptr()
        for node, value in self._values.items():
            if value.untyped_storage().data_ptr() == memory:
                self._values[node] = value.clone()
