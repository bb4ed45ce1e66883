"""The exported program without what a plan removes computes what the model does when nothing reads it."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph
from aap_hw.graph.check.self_check import checked_cut
from aap_hw.graph.check.silenced import Silenced
from tests.graph import nets
from tests.graph.ground_truth import IMAGES, output, random_keep, silenced, traced


@pytest.mark.parametrize("net", nets.SOUND, ids=lambda net: net.__name__)
def test_program_without_channels_is_the_model_that_does_not_read_them(net: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model, graph, images = traced(net(), IMAGES)
    for keep in (random_keep(graph, 5), {}):
        (found,) = Silenced(graph, model, keep)(images)
        assert (found - output(silenced(model, graph, keep), images)).abs().max() < 1e-12


class Branch(nn.Module):
    """Adds what a branch makes, which is not zero where its channels are; one of them makes no numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.outer = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 1), nn.Conv2d(8, 6, 1)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).sigmoid_()
        return self.head(x + self.outer(self.inner(x).log().exp()))  # type: ignore[no-any-return]


def test_removed_branch_adds_nothing_and_what_is_gone_may_be_no_number() -> None:
    torch.manual_seed(0)
    model, images = Branch().double(), torch.rand(IMAGES, dtype=torch.float64)
    with torch.no_grad():
        for place, bias in enumerate((-9.0, 5.0, 5.0, -9.0, 5.0, 5.0, 5.0, 5.0)):
            model.inner.bias[place] = bias
    graph = ChannelGraph.trace(model, (images,))
    assert output(model, images).isnan().all()
    keep = {"stem": [0, 2, 3], "inner": [1, 2, 5, 7]}
    with torch.no_grad():
        x = model.stem(images).sigmoid()[:, keep["stem"]]
        y = F.conv2d(x, model.inner.weight[keep["inner"]][:, keep["stem"]], model.inner.bias[keep["inner"]])
        y = F.conv2d(y, model.outer.weight[keep["stem"]][:, keep["inner"]], model.outer.bias[keep["stem"]])
        head = model.head.weight[:, keep["stem"]], model.head.bias
    (found,) = Silenced(graph, model, keep)(images)
    assert (found - F.conv2d(x + y, *head)).abs().max() < 1e-12
    (found,) = Silenced(graph, model, keep | {"inner": []})(images)
    assert (found - F.conv2d(x, *head)).abs().max() < 1e-12


class Latents(nn.Module):
    """A table that layers read, as a parameter or as a tensor that the code keeps, beside the residual."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.scale = how, 0.3
        self.latents: Tensor = torch.randn(1, 4, 8)
        if how != "kept":
            self.latents = nn.Parameter(self.latents)
        self.embed, self.q, self.k, self.v = nn.Linear(3, 8), nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        z = self.latents if self.how == "as it is" else self.latents.expand(len(x), -1, -1)
        z = z + (self.q(z) @ self.k(x).mT * self.scale).softmax(-1) @ self.v(x)
        return self.head(z.mean(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("how", ["expanded", "as it is", "kept"])
def test_what_is_gone_of_a_table_reaches_no_layer_that_reads_it(how: str) -> None:
    torch.manual_seed(0)
    model, x = Latents(how).eval(), torch.randn(2, 5, 3)
    graph = ChannelGraph.trace(model, (x,))
    (group,) = [each for each in graph.groups if ("latents", 2) in {(axis.parameter, axis.dim) for axis in each.axes}]
    assert group.frozen is None
    keep = {group.name: [0, 2, 3, 7]}
    smaller = checked_cut(graph, model, keep, x)
    assert torch.equal(smaller.latents, model.latents[..., keep[group.name]])  # type: ignore[arg-type]


class ThroughViews(nn.Module):
    """Layers read what is not zero where channels are gone: one gate for all of them, and filters of another layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate, self.after = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 1, 1), nn.Conv2d(8, 7, 1)
        self.w, self.u = nn.Parameter(torch.randn(6, 7)), nn.Parameter(torch.randn(5, 6))
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.linear(self.after(self.gate(x).expand_as(x)).movedim(1, 3), self.w)
        return self.head(y) + F.linear(self.w.T, self.u).mean()  # type: ignore[no-any-return]


def test_layers_do_not_read_what_is_gone_through_views() -> None:
    torch.manual_seed(0)
    model, images = ThroughViews().eval(), torch.randn(IMAGES)
    graph = ChannelGraph.trace(model, (images,))
    free = {group.name: group.width for group in graph.groups if group.frozen is None}
    assert free == {"stem": 8, "gate": 1, "w": 6}, graph.groups
    assert isinstance(checked_cut(graph, model, {"stem": [0, 3, 5], "w": [1, 2, 5]}, images), nn.Module)


def test_weights_are_those_that_the_model_has_now() -> None:
    torch.manual_seed(0)
    model, graph, images = traced(nets.Concat(), IMAGES)
    trained = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(1.5)
    (found,) = Silenced(graph, trained, {})(images)
    assert (found - output(trained, images)).abs().max() < 1e-12
    assert (found - output(model, images)).abs().max() > 1e-3


class Moody(nn.Module):
    """Computes something else whenever it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.calls = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.b(self.a(x)) * self.calls  # type: ignore[no-any-return]


def test_network_that_is_not_its_program_is_refused() -> None:
    model, images = Moody(), torch.rand(IMAGES)
    graph = ChannelGraph.trace(model, (images,))
    for _ in range(3):
        model(images)
    with pytest.raises(UserError, match=r"computes something else than the program .* by 0.5 of an output's largest"):
        checked_cut(graph, model, {"a": [0, 1]}, images)
