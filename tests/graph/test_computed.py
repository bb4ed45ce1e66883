"""Weights that are computed are cut exactly, filters and inputs, and what computes them stays if it can."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from aap_hw.graph import ChannelGraph
from aap_hw.graph.check.self_check import checked_cut
from tests.graph.ground_truth import lively, output


class Positive(nn.Module):
    """Values one by one."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.softplus(x)

    def right_inverse(self, y: Tensor) -> Tensor:
        return y.abs()


class Centred(nn.Module):
    """Takes away what all filters and inputs have in common, so that no part of it can go by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean()


def positive(layer: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(layer, "weight", Positive())


def centred(layer: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(layer, "weight", Centred())


def twice(layer: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(positive(layer), "weight", Centred())


def pruned(layer: nn.Module) -> nn.Module:
    return prune.l1_unstructured(layer, "weight", amount=0.4)


KINDS: dict[Callable[[nn.Module], nn.Module], bool | list[bool]] = {
    # whether the parametrisation stays when the layer is cut
    parametrizations.weight_norm: True,
    parametrizations.spectral_norm: False,
    # The matrices of a kernel of two dimensions are its pixels, of which none is cut.
    parametrizations.orthogonal: [True, True, True, False, False],
    torch.nn.utils.weight_norm: True,
    torch.nn.utils.spectral_norm: False,
    positive: True,
    centred: False,
    twice: False,
    pruned: True,
}


class Net(nn.Module):
    """Computed weights in layers of all kinds: dense, transposed, grouped, along a line, linear."""

    def __init__(self, norm: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.stem = norm(nn.Conv2d(3, 8, 3, padding=1))
        self.grouped = norm(nn.Conv2d(8, 8, 3, padding=1, groups=2))
        self.depthwise = norm(nn.Conv2d(8, 8, 3, padding=1, groups=8))
        self.up = norm(nn.ConvTranspose2d(8, 6, 2, stride=2))
        self.line = norm(nn.Conv1d(6, 7, 3, bias=False))
        self.linear, self.head = norm(nn.Linear(7, 10)), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.grouped(torch.relu(self.stem(x))))
        x = torch.relu(self.up(torch.relu(self.depthwise(x)))).flatten(2)
        return self.head(torch.tanh(self.linear(torch.relu(self.line(x)).mean(2))))


def masked(model: nn.Module, keep: dict[str, list[int]]) -> Callable[[Tensor], Tensor]:
    """The whole network, written out, in which the outputs of layers that are not kept are zero."""

    def run(x: Tensor) -> Tensor:
        handles = []
        for name, kept in keep.items():

            def zero(module: nn.Module, _: object, made: Tensor, kept: list[int] = kept) -> Tensor:
                mask = torch.zeros(made.shape[1], dtype=made.dtype)
                mask[kept] = 1
                return made * mask.reshape(-1, *[1] * (made.dim() - 2))

            handles.append(model.get_submodule(name).register_forward_hook(zero))
        try:
            return output(model, x)
        finally:
            for handle in handles:
                handle.remove()

    return run


KEEP = {"stem": [1, 2], "grouped": [0, 3, 1], "up": [0, 2, 5], "line": [1, 2, 3, 6], "linear": [9, 0, 4, 5]}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("norm", KINDS, ids=lambda norm: f"{norm.__module__.rpartition('.')[2]}.{norm.__name__}")
@pytest.mark.parametrize(
    "trained", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["in evaluation", "in training"]
)
def test_cut_equals_masked(norm: Callable[[nn.Module], nn.Module], trained: bool) -> None:
    torch.manual_seed(0)
    model, images = lively(Net(norm), (2, 3, 6, 6))
    graph = ChannelGraph.trace(model, (images,))
    assert {group.name: group.width for group in graph.groups if group.frozen is None} == {
        "stem": 4, "grouped": 4, "up": 6, "line": 7, "linear": 10,
    }  # fmt: skip
    # Both groups of a grouped convolution lose the same channels.
    stem, grouped = ([*each, *(number + 4 for number in each)] for each in (KEEP["stem"], KEEP["grouped"]))
    expected = masked(model, {**KEEP, "stem": stem, "grouped": grouped, "depthwise": grouped})(images)
    before = output(model, images)
    smaller = graph.cut(model.train(trained), KEEP).eval()
    model.eval()
    assert torch.equal(output(model, images), before)
    assert (expected - before).abs().max() > 1e-4
    assert (output(smaller, images) - expected).abs().max() <= 1e-9
    shapes = [tuple(smaller.get_submodule(name).weight.shape[:2]) for name in KEEP]
    assert shapes == [(4, 3), (6, 2), (6, 3), (4, 3), (4, 4)]
    is_computed = [
        parametrize.is_parametrized(layer) or len(layer._forward_pre_hooks) > 0
        for layer in (smaller.get_submodule(name) for name in KEEP)
    ]
    stays = KINDS[norm]
    assert is_computed == (stays if isinstance(stays, list) else [stays] * len(KEEP))
    checked_cut(graph, model, KEEP, images)
    again = ChannelGraph.trace(smaller, (images,))
    assert {group.name for group in again.groups if group.frozen is None} == KEEP.keys()
    smaller.train()(images).sum().backward()
    assert all(each.grad is not None for each in smaller.parameters())


class Doubtful(nn.Module):
    """Code of which only a trial cut tells that it follows."""

    def __init__(self) -> None:
        super().__init__()
        self.a = parametrizations.spectral_norm(nn.Conv2d(3, 8, 3, padding=1))
        self.b = parametrizations.weight_norm(nn.Conv2d(8, 6, 1))
        self.c = parametrizations.weight_norm(nn.Conv2d(12, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.a(x))
        b = torch.relu(self.b(a.view(a.shape[0], a.shape[1], *a.shape[2:])))
        return self.c(torch.cat([b[:, : b.shape[1]], b.reshape(b.shape)], 1))


def test_a_trial_cut_is_not_surprised_by_weights_that_are_computed_no_longer() -> None:
    torch.manual_seed(0)
    model, images = lively(Doubtful(), (2, 3, 6, 6))
    graph = ChannelGraph.trace(model, (images,))
    keep = {"a": [0, 3, 4], "b": [1, 2, 5]}
    assert {group.name for group in graph.groups if group.frozen is None} == keep.keys()
    smaller = graph.cut(model, keep)
    assert (output(smaller, images) - masked(model, keep)(images)).abs().max() <= 1e-9
