"""Proves that the noise that is foretold of rounding is what rounding makes of the outputs, in the unit of channels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from aap_hw.attention import Dependence, Rounded, dependence, sensitivities
from aap_hw.attention.projections import LEAST_VARIATION
from aap_hw.graph import ChannelGraph
from tests.graph.constructs.layers import MatrixAndBias

LAYERS = ("stem", "deep", "grouped", "up", "hand", "head")


class Net(nn.Module):
    """Dense, depthwise, grouped, transposed and linear layers, the first with a batch norm, the second beside a
    residual, and one as `torch.addmm`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24)
        self.deep = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.grouped = nn.Conv2d(24, 24, 1, groups=2)
        self.up = nn.ConvTranspose2d(24, 10, 2)
        self.hand, self.head = MatrixAndBias(20, 10), nn.Linear(20, 30)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(image)))
        x = x + torch.relu(self.deep(x))
        return self.head(torch.relu(self.hand(torch.relu(self.up(torch.relu(self.grouped(x)))).mean((2, 3)))))


def rounded(values: Tensor, precision: str, axis: int | None = None) -> Tensor:
    """Values with one step and a zero, or weights with a step for each index of an axis."""
    if precision != "int8":
        return values.to(getattr(torch, precision)).to(values.dtype)
    if axis is None:
        step = (values.max().clamp(min=0) - values.min().clamp(max=0)) / 255
    else:
        others = [at for at in range(values.dim()) if at != axis]
        step = values.abs().amax(others, keepdim=True) / 127
    return (values / step).round() * step


@contextmanager
def rounding(net: Net, layer: str, precision: str) -> Iterator[None]:
    """What a layer reads and its weights are rounded. The stem's weights hold the norm's factors meanwhile."""
    module = net.get_submodule(layer)
    hook = module.register_forward_pre_hook(lambda _, given: (rounded(given[0], precision),))
    exact = module.weight.data
    factor = torch.ones(())
    if layer == "stem" and precision != "int8":
        factor = (net.norm.weight / (net.norm.running_var + net.norm.eps).sqrt()).detach().reshape(-1, 1, 1, 1)
    module.weight.data = rounded(exact * factor, precision, 1 if layer in ("up", "hand") else 0) / factor
    yield
    module.weight.data = exact
    hook.remove()


def change(made: Tensor, exact: Tensor) -> float:
    """Mean square of the difference of some outputs, in units of their spreads, added up over the outputs."""
    spread = torch.maximum(exact.var(0, correction=0), LEAST_VARIATION**2 * exact.square().mean(0))
    return float(((made - exact).square().mean(0) / spread).sum())


@pytest.fixture(scope="module")
def known() -> tuple[Net, Tensor, Tensor, Dependence]:
    torch.manual_seed(0)
    net = Net()
    net.train()(3 * torch.randn(64, 3, 8, 8))  # the norm knows its statistics
    net.eval()
    images = torch.rand(128, 3, 8, 8) * torch.rand(128, 3, 1, 1)
    graph = ChannelGraph.trace(net, (images[:1],))
    read = {node.name: str(node.args[node.name == "addmm"]) for node in graph.program.graph.nodes if node.args}
    names = ("conv2d", "conv2d_1", "conv2d_2", "conv_transpose2d", "addmm", "linear")
    sites = {layer: Rounded([read[name]], [layer]) for layer, name in zip(LAYERS, names, strict=True)}
    with torch.no_grad():
        return net, images, net(images), dependence(net, graph, images, sites, ("int8", "bfloat16"))


@pytest.mark.parametrize("precision", ["int8", "bfloat16"])
@pytest.mark.parametrize("layer", [name for name in LAYERS if name != "deep"])
def test_rounding_moves_the_outputs_as_far_as_is_foretold(
    known: tuple[Net, Tensor, Tensor, Dependence], layer: str, precision: str
) -> None:
    net, images, exact, found = known
    with torch.no_grad(), rounding(net, layer, precision):
        made = net(images)
    # So many draws leave this error.
    assert found.noise[layer][precision] == pytest.approx(change(made, exact), rel=0.25)


def test_all_that_reads_a_value_reads_it_rounded(known: tuple[Net, Tensor, Tensor, Dependence]) -> None:
    net, images, exact, found = known

    def forward(image: Tensor) -> Tensor:
        x = rounded(torch.relu(net.norm(net.stem(image))), "int8")
        x = x + torch.relu(net.deep(x))
        return net.head(torch.relu(net.hand(torch.relu(net.up(torch.relu(net.grouped(x)))).mean((2, 3)))))

    with torch.no_grad(), rounding(net, "deep", "int8"):
        made = forward(images)
    assert found.noise["deep"]["int8"] == pytest.approx(change(made, exact), rel=0.25)


def test_what_is_rounded_at_once_adds_up_before_it_is_squared() -> None:
    """Twice the same layer side by side: errors are the same, so that their sum is twice as large."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(6, 3), nn.Linear(6, 3)
            self.other.load_state_dict(self.one.state_dict())

        def forward(self, x: Tensor) -> Tensor:
            return self.one(x) + self.other(x)

    torch.manual_seed(0)
    net, samples = Twice(), torch.randn(8, 6)
    graph = ChannelGraph.trace(net, (samples[:1],))
    sites = {"one": Rounded([], ["one"]), "both": Rounded([], ["one", "other"])}
    alone = dependence(net, graph, samples, {"one": sites["one"]}).noise["one"]["int8"]
    assert dependence(net, graph, samples, {"both": sites["both"]}).noise["both"]["int8"] == pytest.approx(4 * alone)


def test_a_group_that_is_rounded_away_costs_what_removing_it_does() -> None:
    """Numbers below 2^-25 are 0 in float16."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 1, 1, bias=False), nn.Conv2d(1, 4, 1), nn.Flatten())
    with torch.no_grad():
        net[0].weight *= 1e-9
    half = torch.randn(16, 2, 2, 2)
    images = torch.cat((half, -half))  # so that the mean of each channel is 0
    graph = ChannelGraph.trace(net, (images[:1],))
    value = next(node.name for node in graph.program.graph.nodes if node.op == "call_function")
    found = dependence(net, graph, images, {"all": Rounded([value], [])}, ["float16"])
    assert found.groups == pytest.approx(sensitivities(graph, images))
    assert found.rounding["all"]["float16"] == pytest.approx(found.groups["0"], rel=1e-4)
