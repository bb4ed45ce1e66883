"""Several inputs, several outputs, heads that are there in training only: no head loses an output, all still fits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from aap_hw.graph import ChannelGraph
from aap_hw.graph.walk.labelling import Labelling
from tests.graph.ground_truth import random_keep, silenced
from tests.graph.nets import Head, conv

IMAGES = (2, 3, 8, 8)


class WithAuxiliaryHead(nn.Module):
    """A second head on the trunk, in training only; its own hidden layer is not the evaluated network's business."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = conv(3, 8), conv(8, 10), Head(10)
        self.auxiliary = nn.Sequential(conv(8, 6), Head(6))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.stem(x)
        y = self.head(self.body(x))
        return (y, self.auxiliary(x)) if self.training else y


class TwoInputsAndOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = conv(3, 8), conv(2, 8)
        self.body, self.box, self.kind = conv(8, 10), nn.Conv2d(10, 4, 1), nn.Conv2d(10, 5, 1)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        z = self.body(self.left(x) + self.right(y))
        return {"box": self.box(z), "kind": self.kind(z)}


def test_a_network_with_an_auxiliary_head_still_trains_after_a_cut() -> None:
    model = WithAuxiliaryHead()
    graph = ChannelGraph.trace(model, (torch.zeros(IMAGES),))
    assert model.training
    frozen = {group.name: group.frozen for group in graph.groups if group.frozen}
    assert set(frozen) == {"head.linear", "auxiliary.0.0", "auxiliary.1.linear"}
    assert frozen["auxiliary.0.0"] is not None
    assert "in training only" in frozen["auxiliary.0.0"]
    smaller = graph.cut(model, {"stem.0": [1, 4, 6], "body.0": [0, 2]}).train()
    main, auxiliary = smaller(torch.randn(IMAGES))
    (main.sum() + auxiliary.sum()).backward()
    assert main.shape == auxiliary.shape == (2, 4)
    assert smaller.auxiliary[0][0].weight.grad.shape == (6, 3, 3, 3)


class FailsInTraining(WithAuxiliaryHead):
    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if self.training:
            raise ValueError("no targets were given")
        return super().forward(x)


def test_only_what_fails_in_the_models_own_training_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = ChannelGraph.trace(FailsInTraining(), (torch.zeros(IMAGES),))
    assert [group.name for group in graph.groups if group.frozen is None] == ["stem.0", "body.0"]

    def faulty(*_: object) -> None:
        raise KeyError("a fault of a rule")

    monkeypatch.setattr(Labelling, "add_training", faulty)
    with pytest.raises(KeyError, match="a fault of a rule"):
        ChannelGraph.trace(WithAuxiliaryHead(), (torch.zeros(IMAGES),))


def test_several_inputs_and_outputs_are_cut_in_between() -> None:
    torch.manual_seed(0)
    model = TwoInputsAndOutputs().double().eval()
    inputs = torch.randn(IMAGES, dtype=torch.float64), torch.randn((2, 2, 8, 8), dtype=torch.float64)
    graph = ChannelGraph.trace(model, inputs)
    assert {group.name for group in graph.groups if group.frozen} == {"box", "kind"}
    keep = random_keep(graph, seed=1)
    expected, actual = silenced(model, graph, keep)(*inputs), graph.cut(model, keep)(*inputs)
    for name, value in expected.items():
        assert (value - actual[name]).abs().max() <= 1e-9
