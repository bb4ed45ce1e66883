"""What the graph tests compare against, independent of surgery: networks with silenced channels."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from aap_hw.graph import ChannelGraph
from aap_hw.graph.program.copying import copied
from aap_hw.graph.program.exporting import traced as traced_program

IMAGES = (2, 3, 8, 8)


def lively(model: nn.Module, shape: tuple[int, ...], seed: int = 0) -> tuple[nn.Module, Tensor]:
    """`model` in float64 and eval mode with batch norms that do something, and images for it."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(shape, generator=generator, dtype=torch.float64)
    model = model.double()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None
            with torch.no_grad():
                module.weight.copy_(0.5 + torch.rand(module.weight.shape, generator=generator))
                module.bias.copy_(torch.randn(module.bias.shape, generator=generator) / 4)
        elif isinstance(module, nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        batch = shape[0] if shape[0] > 1 else 4  # statistics of one image's 1 x 1 maps would be undefined
        model.train()(torch.randn((batch, *shape[1:]), generator=generator, dtype=torch.float64))
    return model.eval(), images


def traced(model: nn.Module, shape: tuple[int, ...]) -> tuple[nn.Module, ChannelGraph, Tensor]:
    model, images = lively(model, shape)
    return model, ChannelGraph.trace(model, (images,)), images


def silenced(model: nn.Module, graph: ChannelGraph, keep: Mapping[str, Sequence[int]]) -> nn.Module:
    """The whole network, in which nothing reads the channels that `keep` leaves out."""
    model = copy.deepcopy(model)
    tensors = dict(model.named_parameters())
    for name, kept in keep.items():
        group = graph.group(name)
        gone = np.setdiff1d(np.arange(group.width), kept)
        for axis in group.axes:
            places = torch.from_numpy(axis.index[gone].ravel())
            layer, is_computed, _ = axis.parameter.partition(".parametrizations.")
            if axis.role == "in" and is_computed:  # zeros in what the weight is computed from would change the rest
                module = model.get_submodule(layer)
                module.register_forward_pre_hook(lambda _, args, places=places: (args[0].index_fill(1, places, 0.0),))
            elif axis.role == "in":
                with torch.no_grad():
                    tensors[axis.parameter].index_fill_(axis.dim, places, 0.0)
    return model


def random_keep(graph: ChannelGraph, seed: int, least: float = 0.3) -> dict[str, list[int]]:
    """Some channels of every group that can be cut, but for channels that a norm is taken over.

    Of those, silencing does not tell what a cut network computes: see `test_norms`.
    """
    random = np.random.default_rng(seed)
    keep = {}
    for group in graph.groups:
        if group.frozen is None and group.renormalised is None:
            width = int(random.integers(max(1, int(least * group.width)), group.width + 1))
            keep[group.name] = random.permutation(group.width)[:width].tolist()
    return keep


def output(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images)


def assert_cut_equals_silenced(
    model: nn.Module, graph: ChannelGraph, images: Tensor, keep: Mapping[str, Sequence[int]]
) -> nn.Module:
    smaller = graph.cut(model, keep)
    expected = output(silenced(model, graph, keep), images)
    assert (output(smaller, images) - expected).abs().max() <= 1e-9
    return smaller


def assert_widths_follow(
    graph: ChannelGraph, smaller: nn.Module, keep: Mapping[str, Sequence[int]], images: Tensor
) -> None:
    """Export the cut model: every axis of every tensor must be as long as the uncut graph foretold."""
    _assert_foretold(graph, traced_program(copied(smaller), (images,)), keep)


def cut_graph(
    graph: ChannelGraph, smaller: nn.Module, keep: Mapping[str, Sequence[int]], images: Tensor
) -> ChannelGraph:
    """The graph of the cut model, along which it can be cut again; its widths are as `assert_widths_follow` asserts."""
    again = ChannelGraph.trace(smaller, (images,))
    _assert_foretold(graph, again.program, keep)
    return again


def _assert_foretold(graph: ChannelGraph, program: ExportedProgram, keep: Mapping[str, Sequence[int]]) -> None:
    widths = graph.widths | {name: len(kept) for name, kept in keep.items()}
    before, after = list(graph.program.graph.nodes), list(program.graph.nodes)
    assert [node.target for node in before] == [node.target for node in after]
    for old, new in zip(before, after, strict=True):
        if isinstance(new.meta.get("val"), torch.Tensor):
            for dim, size in enumerate(new.meta["val"].shape):
                assert graph.width_of(old.name, dim).at(widths) == size, (old.name, dim)
