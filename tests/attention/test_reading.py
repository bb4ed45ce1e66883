"""Read attention is the variance that a channel adds to its readers' outputs, by hand and by what must not matter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from aap_hw import ChannelGraph
from aap_hw.attention import observed, read_attention


class Net(nn.Module):
    """A group with two readers, one that is read flattened, and one that is read depthwise on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.left = nn.Conv2d(6, 4, 3, padding=1, bias=False)
        self.right = nn.Conv2d(6, 4, 1)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.linear = nn.Linear(4 * 36, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(self.left(x) + self.right(x))
        return self.linear(torch.flatten(torch.relu(self.depthwise(x)), 1))  # type: ignore[no-any-return]


def images() -> torch.Tensor:
    return torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def scores(model: nn.Module) -> dict[str, NDArray[np.float64]]:
    graph = ChannelGraph.trace(model, (torch.zeros(1, 3, 6, 6),))
    return read_attention(model, graph, observed(model, [images()[:3], images()[3:]], graph=graph).variances())


def test_it_is_the_variance_times_the_squared_weights_of_all_readers() -> None:
    model = net()
    with torch.no_grad():
        read = torch.relu(model.first(images())).double()
    variance = read.var(dim=(0, 2, 3), correction=0)
    weights = sum(layer.weight.detach().double().square().sum((0, 2, 3)) for layer in (model.left, model.right))
    assert scores(model)["first"] == pytest.approx((variance * weights).numpy(), rel=1e-5)


def test_pixels_of_a_flattened_channel_count_together() -> None:
    model = net()
    with torch.no_grad():
        inner = torch.relu(model.left(f := torch.relu(model.first(images()))) + model.right(f))
        outer = torch.relu(model.depthwise(inner))
    variance = (inner.double().var((0, 2, 3), correction=0) + outer.double().var((0, 2, 3), correction=0)) / 2
    expected = model.linear.weight.detach().double().reshape(5, 4, 36).square().sum((0, 2)) * variance
    assert scores(model)["left"] == pytest.approx(expected.numpy(), rel=1e-5)


def test_batch_normalisation_behind_a_reader_counts_like_weights_that_it_is_folded_into() -> None:
    class Normalised(Net):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(4)
            self.norm.weight.data = torch.tensor([1.0, -2.0, 0.5, 0.0])
            assert self.norm.running_var is not None
            self.norm.running_var.copy_(torch.tensor([4.0, 0.5, 1.0, 9.0]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.first(x))
            x = torch.relu(self.norm(self.left(x)) + self.right(x))
            return self.linear(torch.flatten(torch.relu(self.depthwise(x)), 1))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    normalised = Normalised().eval()
    folded = net()
    folded.load_state_dict(normalised.state_dict(), strict=False)
    with torch.no_grad():
        assert normalised.norm.running_var is not None
        factor = normalised.norm.weight / (normalised.norm.running_var + normalised.norm.eps).sqrt()
        folded.left.weight *= factor[:, None, None, None]
    assert scores(normalised)["first"] == pytest.approx(scores(folded)["first"], rel=1e-5)


def test_a_loud_channel_that_never_changes_counts_for_nothing() -> None:
    model = net()
    with torch.no_grad():
        model.first.weight[2] = 0
        model.first.bias[2] = 50  # type: ignore[index]
    assert scores(model)["first"][2] == pytest.approx(0, abs=1e-9)


def test_a_channel_made_louder_and_read_more_quietly_counts_the_same() -> None:
    model = net()
    before = scores(model)["first"]
    with torch.no_grad():
        model.first.weight[1] *= 8
        model.first.bias[1] *= 8  # type: ignore[index]
        for reader in (model.left, model.right):
            reader.weight[:, 1] /= 8
    assert scores(model)["first"] == pytest.approx(before, rel=1e-5)


def test_a_network_that_reads_nothing_of_a_group_scores_it_zero() -> None:
    model = net()
    with torch.no_grad():
        model.left.weight.zero_()
        model.right.weight.zero_()
    assert scores(model)["first"].tolist() == [0.0] * 6
