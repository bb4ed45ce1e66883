"""Scores from weights, scales and gradients equal those computed by hand, for every group that may be cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from aap_hw import ChannelGraph
from aap_hw.attention.alternatives import ALTERNATIVES, batch_norm_scale, taylor, weight_l1
from aap_hw.errors import UserError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)
        self.second = nn.Conv2d(6, 8, 1)
        self.linear = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.depthwise(torch.relu(self.norm(self.first(x)))))
        return self.linear(torch.relu(self.second(x)).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.fixture
def net() -> tuple[Net, ChannelGraph]:
    torch.manual_seed(0)
    model = Net().eval()
    with torch.no_grad():
        model.norm.weight.normal_()
    return model, ChannelGraph.trace(model, (torch.zeros(1, 3, 6, 6),))


def batches(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(4, 3, 6, 6), torch.randint(5, (4,))) for _ in range(count)]


def test_weight_magnitude_is_the_mean_over_the_layers_that_make_the_channel(net: tuple[Net, ChannelGraph]) -> None:
    model, graph = net
    scores = weight_l1(model, graph)
    first = model.first.weight.abs().sum((1, 2, 3)) + model.depthwise.weight.abs().sum((1, 2, 3))
    assert scores["first"] == pytest.approx((first / 2).detach().numpy(), rel=1e-5)
    assert scores["second"] == pytest.approx(model.second.weight.abs().sum((1, 2, 3)).detach().numpy(), rel=1e-5)


def test_scale_of_the_normalisation_counts_where_there_is_one(net: tuple[Net, ChannelGraph]) -> None:
    model, graph = net
    scores = batch_norm_scale(model, graph)
    assert scores["first"] == pytest.approx(model.norm.weight.abs().detach().numpy(), rel=1e-6)
    assert scores["second"] == pytest.approx(weight_l1(model, graph)["second"])


def test_taylor_is_the_squared_first_order_change_of_the_loss_over_all_batches(net: tuple[Net, ChannelGraph]) -> None:
    model, graph = net
    expected = np.zeros(8)
    for images, labels in batches(3):
        model.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        assert model.second.weight.grad is not None
        expected += ((model.second.weight * model.second.weight.grad).sum((1, 2, 3)) ** 2).detach().numpy()
    model.zero_grad()
    scores = taylor(model, graph, batches(3))
    assert scores["second"] == pytest.approx(expected, rel=1e-4)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_taylor_needs_images(net: tuple[Net, ChannelGraph]) -> None:
    with pytest.raises(UserError, match="no calibration images"):
        taylor(*net, [])


@pytest.mark.parametrize("name", ALTERNATIVES)
def test_scores_are_of_the_groups_that_may_be_cut_and_leave_the_model_as_it_is(
    net: tuple[Net, ChannelGraph], name: str
) -> None:
    model, graph = net
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    scores = ALTERNATIVES[name](model, graph, batches(1))
    assert {key: value.shape for key, value in scores.items()} == {
        group.name: (group.width,) for group in graph.groups if group.frozen is None
    }
    assert all(np.isfinite(value).all() and (value >= 0).all() for value in scores.values())
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
