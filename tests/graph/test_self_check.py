"""A cut that is wrong is noticed, whatever is wrong about it, and the group to blame is named; a right one passes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from aap_hw.graph import ChannelGraph, surgery
from aap_hw.graph.self_check import CutMismatchError, checked_cut
from tests.graph.ground_truth import lively


class Net(nn.Module):
    """Three groups: one alone, one behind a residual, one of a depthwise convolution's."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 12, 1), nn.BatchNorm2d(12), nn.ReLU())
        self.third = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.ReLU())
        self.fourth = nn.Sequential(nn.Conv2d(12, 10, 1), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(10, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.first(x))
        x = self.fourth(x + self.third(x))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


KEEP = {"first.0": [0, 2, 3, 7], "second.0": [1, 2, 5, 6, 11], "fourth.0": [0, 1, 2, 9]}


@pytest.fixture(scope="module")
def traced() -> tuple[nn.Module, ChannelGraph, torch.Tensor]:
    model, images = lively(Net(), (2, 3, 8, 8))
    model = model.float()
    return model, ChannelGraph.trace(model, (images.float(),)), images.float()


def test_right_cut_passes_and_nothing_else_changes(traced: tuple[nn.Module, ChannelGraph, torch.Tensor]) -> None:
    model, graph, images = traced
    model.train()
    before = copy.deepcopy(model.state_dict())
    smaller = checked_cut(graph, model, KEEP, images)
    expected = graph.cut(model, KEEP).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in smaller.state_dict().items())
    assert all(tensor.dtype == expected[name].dtype for name, tensor in smaller.state_dict().items())
    assert model.training
    assert smaller.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model.eval()


def shifted(parameter: str, dim: int) -> Callable[[str, int, Any], Any]:
    """Surgery that takes the neighbour of every channel out of one axis."""
    return lambda name, at, removed: (removed + 1) % 8 if (name, at) == (parameter, dim) else removed


WRONG: dict[str, tuple[Callable[[str, int, Any], Any], str]] = {
    "columns of a reader": (shifted("second.0.weight", 1), "first.0"),
    "filters": (shifted("first.0.weight", 0), "first.0"),
    "bias": (shifted("first.0.bias", 0), "first.0"),
    "scale of a batch norm": (shifted("first.1.weight", 0), "first.0"),
    "variances of a batch norm": (shifted("first.1.running_var", 0), "first.0"),
    "depthwise filters": (shifted("third.0.weight", 0), "second.0"),
    "columns behind the residual": (shifted("fourth.0.weight", 1), "second.0"),
    "one filter too many": (
        lambda name, at, removed: removed[1:] if (name, at) == ("fourth.0.weight", 0) else removed, "fourth.0"
    ),
}  # fmt: skip


def cut_wrongly(monkeypatch: pytest.MonkeyPatch, fault: Callable[[str, int, Any], Any]) -> None:
    real = surgery._shorten

    def faulty(smaller: nn.Module, name: str, dim: int, removed: Any) -> None:
        real(smaller, name, dim, np.unique(fault(name, dim, removed)))

    monkeypatch.setattr(surgery, "_shorten", faulty)


@pytest.mark.parametrize("what", WRONG)
def test_wrong_cut_names_its_group(
    traced: tuple[nn.Module, ChannelGraph, torch.Tensor], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, graph, images = traced
    fault, group = WRONG[what]
    cut_wrongly(monkeypatch, fault)
    with pytest.raises(CutMismatchError, match=f"cutting the channel group '{group}' .*--skip '{group}'") as found:
        checked_cut(graph, model, KEEP, images)
    assert found.value.mismatch.group == group
    assert found.value.mismatch.difference > 1e-4
    rest = {name: channels for name, channels in KEEP.items() if name != group}
    assert isinstance(checked_cut(graph, model, rest, images), nn.Module)


class BesideLargeOnes(Net):
    """Its scores are returned beside values that are far larger, and beside truth values."""

    def forward(self, x: torch.Tensor) -> Any:
        scores = super().forward(x)
        return {"boxes": 1e12 * x.mean((2, 3)), "scores": scores, "are_positive": scores > 0, "endless": x / 0}


def test_fault_in_small_outputs_is_noticed_beside_large_and_infinite_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = lively(BesideLargeOnes(), (2, 3, 8, 8))
    graph = ChannelGraph.trace(model, (images,))
    assert isinstance(checked_cut(graph, model, KEEP, images), nn.Module)
    fault, group = WRONG["filters"]
    cut_wrongly(monkeypatch, fault)
    with pytest.raises(CutMismatchError, match=f"cutting the channel group '{group}'"):
        checked_cut(graph, model, KEEP, images)


def test_fault_of_several_groups_together_is_noticed(
    traced: tuple[nn.Module, ChannelGraph, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, graph, images = traced
    real = surgery.cut

    def faulty(whole: nn.Module, keep: Any, *others: Any) -> nn.Module:
        keep = list(keep)
        smaller = real(whole, keep, *others)
        if len(keep) > 1:
            with torch.no_grad():
                smaller.get_parameter("head.bias").add_(1e-3)
        return smaller

    monkeypatch.setattr(surgery, "cut", faulty)
    with pytest.raises(CutMismatchError, match="cutting several channel groups together") as found:
        checked_cut(graph, model, KEEP, images)
    assert found.value.mismatch.group is None
