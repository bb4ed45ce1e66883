"""Mistakes in what is asked of a channel graph are told in one sentence."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph
from tests.graph import nets
from tests.graph.ground_truth import IMAGES


@functools.cache
def ready() -> tuple[nn.Module, ChannelGraph]:
    model = nets.InPlaceResidual()
    return model, ChannelGraph.trace(model, (torch.zeros(IMAGES),))


@pytest.mark.parametrize(
    ("keep", "sentence"),
    [
        ({"stem.1": [0]}, "no channel group 'stem.1'; did you mean 'stem.0'?"),
        ({"head.linear": [0, 1]}, "'head.linear' cannot be cut: it reaches the network's output"),
        ({"stem.0": []}, "'stem.0' must keep at least one of its 8 channels"),
        ({"stem.0": np.array([], dtype=np.int64)}, "'stem.0' must keep at least one of its 8 channels"),
        ({"a": [0, 12]}, "channel 12 of 'a' does not exist: it has channels 0 to 11"),
        ({"a": [0, -1]}, "channel -1 of 'a' does not exist"),
        ({"a": [3, 0, 3]}, "channel 3 of 'a' is listed twice"),
        ({"a": [0, 1.5]}, "channels of 'a' to keep must be whole numbers"),
        ({"a": np.ones(12, dtype=bool)}, "channels of 'a' to keep must be whole numbers"),
        ({"a": 5}, "channels of 'a' to keep must be whole numbers"),
        ({"a": "012"}, "channels of 'a' to keep must be whole numbers"),
    ],
)
def test_a_wrong_plan_is_refused(keep: dict[str, list[int]], sentence: str) -> None:
    model, graph = ready()
    with pytest.raises(UserError) as error:
        graph.cut(model, keep)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_indices_may_be_in_any_order_and_of_any_integer_type() -> None:
    model, graph = ready()
    reference = graph.cut(model, {"a": [2, 5, 7]})
    for indices in (np.array([7, 2, 5], dtype=np.int32), (5, np.int64(7), 2), torch.tensor([7, 5, 2])):
        other = graph.cut(model, {"a": indices})
        for name, tensor in reference.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name])


def test_another_model_is_refused() -> None:
    model, graph = ready()
    with pytest.raises(UserError, match=r"is not the one that was traced: its parameter 'a\.weight' is of shape"):
        graph.cut(graph.cut(model, {"a": [0, 1]}), {"stem.0": [0]})
    with pytest.raises(UserError, match=r"'stem\.0\.weight' does not exist"):
        graph.cut(nn.Linear(3, 4), {})


def test_unknown_nodes_and_axes_are_refused() -> None:
    _, graph = ready()
    with pytest.raises(UserError, match=r"no node 'conv2d_9'; did you mean 'conv2d"):
        graph.width_of("conv2d_9")
    with pytest.raises(UserError, match="node 'conv2d' has 4 axes, so there is no axis 4"):
        graph.width_of("conv2d", 4)
    with pytest.raises(UserError, match="node 'output' does not yield one tensor"):
        graph.width_of("output")
    with pytest.raises(UserError, match="channels of 'a' do not run along one axis of node 'x'"):
        graph.positions_of("x", "a")


def test_a_model_that_cannot_be_exported_is_refused_and_left_as_it_was() -> None:
    class Undecided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) if x.sum() > 0 else x

    model = Undecided()
    with pytest.raises(UserError, match="cannot trace this Undecided") as error:
        ChannelGraph.trace(model, (torch.zeros(IMAGES),))
    assert "\n" not in str(error.value)
    assert model.training
    with pytest.raises(UserError, match="must be a tuple"):
        ChannelGraph.trace(model, torch.zeros(IMAGES))  # type: ignore[arg-type]
