"""Runs a traced network over calibration images and sums the activations that its channel groups are read at.

Covers which nodes are observed and how images reach them. The formula of the score is in
`aap_hw.attention.sums`; where a group is read is decided by `aap_hw.graph`. Images must not influence each
other, as is the case in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from aap_hw.attention.products import products_of
from aap_hw.attention.sums import ActivationSums, check_score
from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph, WholeHeads
from aap_hw.graph.program.calling import Names
from aap_hw.graph.program.folding import fold_norms
from aap_hw.graph.program.inputs import Batch, Tensors

AXES = {1: "(N,)", 2: "(N, C)", 3: "(N, C, L)", 4: "(N, C, H, W)", 5: "(N, C, D, H, W)"}
_NO_IMAGES = "there are no calibration images to measure attention with; pass at least one"


def attention_scores(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    reduction: str = "mean",
    p: float = 1.0,
    graph: ChannelGraph | None = None,
    names: Names = (),
    heads: WholeHeads | None = None,
    distributed: bool = False,
) -> dict[str, NDArray[np.float64]]:
    """Attention of every channel of every group that may be cut.

    For one activation Y it is ``A_c = reduce_hw((mean over all images of |Y[c, h, w]|) ** p)``. A group that
    is read at several nodes gets the mean of their scores, and so does a channel of a group that is several
    channels of a node (as after a channel shuffle). These are the families of Automatic Attention Pruning (arXiv
    2303.08595); its published code takes the mean, and p = 1.

    Parameters
    ----------
    model
        The network. It is left as it is.
    batches
        Calibration images ``(N, C, H, W)``, or whatever the model takes, in its input format and all of one size; a
        tuple of tensors for several inputs. Batches may differ in length. They are gone through once and none is kept.
    reduction
        How the mean map of a channel is summarised over its pixels: ``"mean"``, ``"sum"`` or ``"max"``.
    p
        Exponent of each pixel of that map, positive.
    graph
        The channel graph of `model`, if there is one already: its traced network is run, with the weights
        that it shares with `model`. Otherwise the model is traced with the first batch.
    names, heads
        For that trace, see `ChannelGraph.trace`.
    distributed
        Several processes (`aap_hw.ranks`) show a part of the images each; all get the scores of all images.

    Returns
    -------
    dict
        Group name to float64 array of shape ``(width,)``.

    Raises
    ------
    UserError
        If there are no images, images do not fit the model, a score is not finite, or `reduction` or `p` is
        unknown.
    """
    check_score(reduction, p)
    return observed(model, batches, graph=graph, names=names, heads=heads, distributed=distributed).scores(reduction, p)


def observed(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    graph: ChannelGraph | None = None,
    names: Names = (),
    heads: WholeHeads | None = None,
    distributed: bool = False,
    with_maps: bool = True,
) -> AttentionObserver:
    """The sums of a network's activations over calibration images; see `attention_scores` and `AttentionObserver`."""
    observer = AttentionObserver(graph, with_maps) if graph is not None else None
    for batch in batches:
        if observer is None:
            inputs = _tensors(batch)
            if not len(inputs[0]):
                continue  # nothing can be traced with no image
            device = _device_of(model)
            example = tuple(each.to(device) for each in inputs)
            observer = AttentionObserver(ChannelGraph.trace(model, example, names, heads=heads), with_maps)
        observer.add(batch)
    if observer is None:
        raise UserError(_NO_IMAGES)
    if distributed:
        observer.gather()
    return observer


class AttentionObserver:
    """Sums of activations for all groups of one channel graph that may be cut.

    Images are run in batches of exactly the size that the graph was traced with, because a traced network may
    contain that size (``x.view(8, -1)``); the last one is filled up with images that are not counted again.

    Parameters
    ----------
    graph
        The network's channel graph. Its program shares its weights with the traced model.
    with_maps
        As of `ActivationSums`: only `scores` needs the maps.

    Attributes
    ----------
    sums
        Running sums by node name.
    """

    def __init__(self, graph: ChannelGraph, with_maps: bool = True) -> None:
        cuttable = [group for group in graph.groups if group.frozen is None]
        for group in cuttable:
            if not group.observed:
                raise ValueError(f"the graph does not say where the attention of group {group.name} is read")
        self._positions: dict[str, dict[str, NDArray[np.int64]]] = {}
        self._dims: dict[str, int] = {}
        for group in cuttable:
            places = {node: graph.positions_of(node, group.name) for node in group.observed}
            self._positions[group.name] = {node: index for node, (_, index) in places.items()}
            self._dims |= {node: dim for node, (dim, _) in places.items()}
        self._products = {group.name: products_of(graph, group.name) for group in cuttable}
        for product in (each for found in self._products.values() for each in found):
            self._dims |= {operand.node: operand.dim for operand in product.operands}
        self.sums = {node: ActivationSums(with_maps) for node in self._dims}
        network = graph.program.module(check_guards=False)
        fold_norms(network, self._dims)
        self._network = up_to_last(network, self._dims)
        self._examples = _examples_of(self._network)

    def add(self, batch: Batch) -> None:
        """Run a batch of any length and add its activations.

        Raises
        ------
        UserError
            If it is not of the shapes and types that the graph was traced with.
        """
        device, size = _device_of(self._network), len(self._examples[0])
        given = _tensors(batch)
        _check(given, self._examples)
        inputs = [
            each.to(device=device, dtype=example.dtype) for each, example in zip(given, self._examples, strict=True)
        ]
        with torch.no_grad():
            for start in range(0, len(inputs[0]), size):
                parts = [each[start : start + size] for each in inputs]
                whole = torch.arange(size) % len(parts[0])  # the last ones again in place of those that are missing
                shown = [part[whole] for part in parts]
                Watcher(self._network, partial(self._see, images=len(parts[0]))).run(*shown)

    def _see(self, node: str, activation: object, images: int) -> None:
        if node not in self._dims:
            return
        dim, batch = self._dims[node], len(self._examples[0])
        if not isinstance(activation, Tensor) or dim == 0:
            raise ValueError(f"the first axis of node {node} is not that of the {batch} images")
        # Where code lays images side by side along it, or time, none can be told apart, and all count.
        counted = activation[:images] if len(activation) == batch else activation
        self.sums[node].add(counted.movedim(dim, 1))

    def gather(self) -> None:
        """Add up the sums of all processes that train together, each of which has shown other images."""
        for sums in self.sums.values():
            sums.gather()

    def scores(self, reduction: str = "mean", p: float = 1.0) -> dict[str, NDArray[np.float64]]:
        """Attention of every channel by group name, each of shape ``(width,)``; see `attention_scores`.

        Raises
        ------
        UserError
            If no image has been added, a score is not finite, or `reduction` or `p` is unknown.
        """
        check_score(reduction, p)
        scores = self._by_group(lambda sums: sums.scores(reduction, p))
        for group, found in scores.items():
            if not np.isfinite(found).all():
                raise UserError(
                    f"the attention of group {group} is not finite, because its activations are not, or "
                    f"become too large with p={p:g}; check the weights and how the images are normalised"
                )
        return scores

    def variances(self) -> dict[str, NDArray[np.float64]]:
        """Variance of every channel's activation over images and pixels by group name, each of shape ``(width,)``.

        Raises
        ------
        UserError
            If no image has been added, or a variance is not finite.
        """
        found = self._by_group(ActivationSums.variance)
        for group, variance in found.items():
            if not np.isfinite(variance).all():
                raise UserError(
                    f"the activations of group {group} are not finite; check the weights and how images are normalised"
                )
        return found

    def products(self) -> dict[str, NDArray[np.float64]]:
        """Variance that each channel adds to products with other activations, of the groups that have any.

        Of queries and keys that is ``sum over heads of scale^2 (V(q) E[k^2] + V(k) E[q^2])``, the variance of what the
        softmax gets: the other side is what reads a channel. Heads are taken to be alike.
        """
        return {
            group: np.sum([product.variance(self.sums) for product in products], axis=0)
            for group, products in self._products.items()
            if products
        }

    def _by_group(self, read: Callable[[ActivationSums], NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
        """What is read of each channel: the mean over the nodes and positions where a group is observed."""
        found = {}
        for group, positions in self._positions.items():
            if any(not self.sums[node].images for node in positions):
                raise UserError(_NO_IMAGES)
            values = [read(self.sums[node])[index].mean(axis=1) for node, index in positions.items()]
            found[group] = np.mean(values, axis=0)
        return found


class Watcher(fx.Interpreter):
    """Runs a graph and shows every value as soon as it exists, so that none has to be kept."""

    def __init__(self, network: fx.GraphModule, see: Callable[[str, object], None]) -> None:
        super().__init__(network)
        self._see = see

    def run_node(self, n: fx.Node) -> Any:
        """Compute a node and show its value."""
        value = super().run_node(n)
        self._see(n.name, value)
        return value


def up_to_last(network: fx.GraphModule, observed: Collection[str]) -> fx.GraphModule:
    """The part of a network that is needed to observe some nodes: all up to the last of them, and every input."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    missing = set(observed)
    for node in network.graph.nodes:
        if node.op == "output" or (not missing and node.op != "placeholder"):
            continue
        copies[node] = graph.node_copy(node, copies.__getitem__)
        if copies[node].name != node.name:
            raise ValueError(f"node {node.name} was renamed to {copies[node].name} when it was copied")
        missing.discard(node.name)
    if missing:
        raise ValueError(f"the network has no node named {min(missing)} to observe")
    graph.output(())
    return fx.GraphModule(network, graph)


def _examples_of(network: fx.GraphModule) -> Tensors:
    """The inputs that a network was traced with."""
    return tuple(node.meta["val"] for node in network.graph.nodes if node.op == "placeholder")


def _device_of(network: nn.Module) -> torch.device:
    return next((parameter.device for parameter in network.parameters()), torch.device("cpu"))


def _tensors(batch: object) -> Tensors:
    parts = batch if isinstance(batch, (tuple, list)) else (batch,)
    tensors = tuple(each for each in parts if isinstance(each, Tensor))
    if not tensors or len(tensors) < len(parts):
        raise UserError(
            "calibration batches must be floating point tensors of shape (N, C, H, W), or whatever else the network "
            f"takes, not {type(batch).__name__}"
        )
    return tensors


def _check(inputs: Tensors, examples: Tensors) -> None:
    """Raise UserError if a batch is not of the kinds and sizes that a graph was traced with."""
    given, wanted = ([_described(each) for each in tensors] for tensors in (inputs, examples))
    if given != wanted:
        raise UserError(
            f"calibration batches must be {' and '.join(wanted)}, normalised as for training, not {' and '.join(given)}"
        )
    for each, example in zip(inputs, examples, strict=True):
        if each.shape[1:] != example.shape[1:]:
            raise UserError(
                f"calibration images of shape {tuple(each.shape[1:])} do not fit the network, which was traced with "
                f"{tuple(example.shape[1:])}; bring all of them to one size"
            )


def _described(tensor: Tensor) -> str:
    kind = "floating point tensors" if tensor.is_floating_point() else f"{tensor.dtype} tensors".removeprefix("torch.")
    return f"{kind} of shape {AXES.get(tensor.dim(), f'with {tensor.dim()} axes')}"
