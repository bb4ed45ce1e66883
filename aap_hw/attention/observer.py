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

from aap_hw.attention.sums import ActivationSums, check_score
from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph

_NO_IMAGES = "there are no calibration images to measure attention with; pass at least one"


def attention_scores(
    model: nn.Module,
    batches: Iterable[Tensor],
    *,
    reduction: str = "mean",
    p: float = 1.0,
    graph: ChannelGraph | None = None,
    distributed: bool = False,
) -> dict[str, NDArray[np.float64]]:
    """Attention of every channel of every group that may be cut.

    For one activation Y it is ``A_c = reduce_hw((mean over all images of |Y[c, h, w]|) ** p)``. A group that
    is read at several nodes gets the mean of their scores, and so does a channel of a group that is several
    channels of a node (as after a channel shuffle).

    Parameters
    ----------
    model
        The network, with one input of shape ``(N, C, H, W)``. It is left as it is.
    batches
        Calibration images in the model's input format, all of one size; batches may differ in length. They
        are gone through once and none is kept.
    reduction, p
        As in `ActivationSums.scores`.
    graph
        The channel graph of `model`, if there is one already: its traced network is run, with the weights
        that it shares with `model`. Otherwise the model is traced with the first batch.
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
    return observed(model, batches, graph=graph, distributed=distributed).scores(reduction, p)


def observed(
    model: nn.Module, batches: Iterable[Tensor], *, graph: ChannelGraph | None = None, distributed: bool = False
) -> AttentionObserver:
    """The sums of a network's activations over calibration images; see `attention_scores`."""
    observer = AttentionObserver(graph) if graph is not None else None
    for batch in batches:
        _check_images(batch)
        if observer is None and not len(batch):
            continue  # nothing can be traced with no image
        if observer is None:
            observer = AttentionObserver(ChannelGraph.trace(model, (batch.to(_device_of(model)),)))
        observer.add(batch)
    if observer is None:
        raise UserError(_NO_IMAGES)
    if distributed:
        observer.gather()
    return observer


class AttentionObserver:
    """Sums of activations for all groups of one channel graph that may be cut.

    Images are run in batches of exactly the size that the graph was traced with, because a traced network may
    contain that size (``x.view(8, -1)``); the last one is filled up with zeros that are not counted.

    Parameters
    ----------
    graph
        The network's channel graph. Its program shares its weights with the traced model.

    Attributes
    ----------
    sums
        Running sums by node name.
    """

    def __init__(self, graph: ChannelGraph) -> None:
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
        self.sums = {node: ActivationSums() for node in self._dims}
        self._network = up_to_last(graph.program.module(check_guards=False), self._dims)
        self._input = _input_of(self._network)

    def add(self, images: Tensor) -> None:
        """Run images of shape ``(N, C, H, W)`` and add their activations.

        Raises
        ------
        UserError
            If they are not floating point images of the size that the graph was traced with.
        """
        _check_images(images)
        batch, *size = self._input.shape
        if list(images.shape[1:]) != size:
            raise UserError(
                f"calibration images of shape {tuple(images.shape[1:])} do not fit the network, which was "
                f"traced with {tuple(size)}; resize all images to one size"
            )
        images = images.to(device=_device_of(self._network), dtype=self._input.dtype)
        with torch.no_grad():
            for start in range(0, len(images), batch):
                part = images[start : start + batch]
                missing = part.new_zeros(batch - len(part), *size)
                Watcher(self._network, partial(self._see, images=len(part))).run(torch.cat([part, missing]))

    def _see(self, node: str, activation: object, images: int) -> None:
        if node not in self._dims:
            return
        dim, batch = self._dims[node], self._input.shape[0]
        if not isinstance(activation, Tensor) or dim == 0 or activation.shape[0] != batch:
            raise ValueError(f"the first axis of node {node} is not that of the {batch} images")
        self.sums[node].add(activation[:images].movedim(dim, 1))

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
    """The part of a network that is needed to observe some nodes: all up to the last of them."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    missing = set(observed)
    for node in network.graph.nodes:
        if node.op == "output" or (not missing and node.op != "placeholder"):
            break
        copies[node] = graph.node_copy(node, copies.__getitem__)
        if copies[node].name != node.name:
            raise ValueError(f"node {node.name} was renamed to {copies[node].name} when it was copied")
        missing.discard(node.name)
    if missing:
        raise ValueError(f"the network has no node named {min(missing)} to observe")
    graph.output(())
    return fx.GraphModule(network, graph)


def _input_of(network: fx.GraphModule) -> Tensor:
    inputs = [node for node in network.graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        raise UserError(f"attention needs a network with one input, the images; this one has {len(inputs)}")
    example = inputs[0].meta["val"]
    assert isinstance(example, Tensor)
    return example


def _device_of(network: nn.Module) -> torch.device:
    return next((parameter.device for parameter in network.parameters()), torch.device("cpu"))


def _check_images(images: object) -> None:
    if not isinstance(images, Tensor) or images.dim() != 4 or not images.is_floating_point():
        what = type(images).__name__
        if isinstance(images, Tensor):
            what = f"{images.dtype} of shape {tuple(images.shape)}"
        raise UserError(
            f"calibration batches must be floating point tensors of shape (N, C, H, W), normalised as for "
            f"training, not {what}"
        )
