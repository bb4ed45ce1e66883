"""A cut that is wrong is noticed, whatever is wrong about it, and the group to blame is named; a right one passes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph
from aap_hw.graph.check.rounding import reference
from aap_hw.graph.check.self_check import CutMismatchError, checked_cut
from aap_hw.graph.cut import surgery
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
    torch.manual_seed(0)
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


class Float32Net(Net):
    """As `Net`, but float32 is named, in one of the ways in which people do."""

    def __init__(self) -> None:
        super().__init__()
        self.constant = torch.linspace(0.5, 1.5, 8)
        self.blur = torch.ones(1, 1, 3, 3) / 9
        self.scale = np.float32(0.3)
        self.table = [torch.rand(1, 12, 1, 1)]


class Casts(Float32Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.float() / 2)


class CastsInTheMiddle(Float32Net):
    """Runs in double precision, but rounds on the way."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.first(x))
        x = torch.nn.functional.normalize(x.to(torch.float32), dim=(2, 3)).type_as(x)
        return self.head(self.fourth(x + self.third(x)).mean((2, 3)))  # type: ignore[no-any-return]


class FillsFloat32(Float32Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        padded = torch.zeros(len(x), 3, 10, 10, dtype=torch.float32)
        padded[:, :, 1:-1, 1:-1] = x
        return super().forward(padded)


class SamplesAGrid(Float32Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        line = torch.linspace(-1, 1, 8)
        grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)[None]
        x = torch.nn.functional.grid_sample(x, grid.expand(len(x), 8, 8, 2) * 0.9, align_corners=True)
        return super().forward(x)


class BlursByAConstant(Float32Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([torch.nn.functional.conv2d(each, self.blur, padding=1) for each in x.split(1, 1)], 1)
        return super().forward(x * self.constant * self.scale)


GRIDS: dict[int, torch.Tensor] = {}


class KeepsOutside(Float32Net):
    """Keeps a grid of its input's type in a dictionary of its file, as others are kept by hooks."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[3] not in GRIDS:
            GRIDS[x.shape[3]] = torch.linspace(0, 1, x.shape[3], dtype=x.dtype)
        return super().forward(x + GRIDS[x.shape[3]])


def test_what_a_network_keeps_outside_of_it_is_as_it_was() -> None:
    torch.manual_seed(0)
    model, images, maps = KeepsOutside().eval(), torch.randn(2, 3, 8, 8), list[torch.Tensor]()
    model.first.register_forward_hook(lambda module, inputs, output: maps.append(output))
    model(images)
    (before,) = maps
    GRIDS.clear()
    checked_cut(ChannelGraph.trace(model, (images,)), model, KEEP, images)
    assert not GRIDS
    assert [id(each) for each in maps] == [id(before)]
    assert model(images).dtype == torch.float32


NAMES_FLOAT32 = (Casts, CastsInTheMiddle, FillsFloat32, SamplesAGrid, BlursByAConstant)


@pytest.mark.parametrize(
    "kind",
    [NAMES_FLOAT32[0], *(pytest.param(kind, marks=pytest.mark.slow) for kind in NAMES_FLOAT32[1:])],
    ids=lambda kind: kind.__name__,
)
def test_networks_that_name_float32_are_checked_in_it(kind: type[Net], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, images = kind().eval(), torch.randn(2, 3, 8, 8)
    graph = ChannelGraph.trace(model, (images[:1],))
    assert {group.name for group in graph.groups if group.frozen is None} == KEEP.keys()
    smaller = checked_cut(graph, model, KEEP, images)
    assert {tensor.dtype for tensor in smaller.parameters()} == {torch.float32}
    for what in ("columns of a reader", "filters", "depthwise filters", "variances of a batch norm"):
        if what.startswith("variances"):  # statistics that are all alike would hide it
            model.first[1].running_var.uniform_(0.5, 2)  # type: ignore[union-attr,operator]
        fault, group = WRONG[what]
        with monkeypatch.context() as patch:
            cut_wrongly(patch, fault)
            with pytest.raises(CutMismatchError, match=f"cutting the channel group '{group}'") as found:
                checked_cut(graph, model, KEEP, images)
        assert found.value.mismatch.difference > 1e-5


def in_other_order(model: nn.Module, seed: int) -> nn.Module:
    """An equal network that differs by rounding alone: what its filters make is added up in another order."""
    permuted, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for made, read in ((("first.0", "first.1"), "second.0"), (("fourth.0",), "head")):
            order = torch.randperm(len(model.get_submodule(made[0]).weight), generator=generator)
            for name in made:
                for tensor in (*permuted.get_submodule(name).parameters(), *permuted.get_submodule(name).buffers()):
                    if tensor.dim():
                        tensor.copy_(tensor[order].clone())
            weight = permuted.get_submodule(read).weight
            weight.copy_(weight[:, order].clone())
    return permuted


@pytest.mark.parametrize("kind", NAMES_FLOAT32, ids=lambda kind: kind.__name__)
def test_tolerance_is_above_rounding_and_far_below_a_channel(kind: type[Net]) -> None:
    torch.manual_seed(0)
    model, images = kind().eval(), torch.randn(8, 3, 8, 8)
    torch.nn.init.zeros_(model.head.bias)  # it is larger than the sums, and their last digits would be lost in it
    whole = reference(lambda: copy.deepcopy(model), [images])
    assert whole.precision == torch.float32
    permuted = [in_other_order(model, seed) for seed in range(3)]
    rounding = [(model(images) - each(images)).abs().max().item() for each in permuted]
    assert 0 < max(rounding) < 1e-5
    assert [whole.difference(each) for each in permuted] == [0, 0, 0]
    assert max(whole.tolerances) < 1e-4


def test_double_precision_stays_where_nothing_is_rounded() -> None:
    class Plain(Float32Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x * self.constant + torch.arange(8).float() * self.scale) * torch.tensor([0.1])

    whole = reference(lambda: Plain().eval(), [torch.randn(2, 3, 8, 8)])
    assert (whole.precision, whole.tolerances) == (torch.float64, [1e-8])


class Decides(Float32Net):
    """Returns what depends on the last digit alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = super().forward(x.float())
        return (scores * 1e7).sin()


class Refuses(Float32Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > 1:
            raise ValueError("one image at a time")
        return super().forward(x)


def test_networks_that_rounding_changes_completely_are_refused() -> None:
    model, images = Decides().eval(), torch.randn(2, 3, 8, 8)
    graph = ChannelGraph.trace(model, (images,))
    with pytest.raises(
        UserError, match="rounding to float32 alone changes what the network computes too much for a wrong cut"
    ):
        checked_cut(graph, model, KEEP, images)


def test_images_are_shown_as_many_at_a_time_as_the_network_was_traced_with() -> None:
    model, images = Refuses().eval(), torch.randn(2, 3, 8, 8)
    graph = ChannelGraph.trace(model, (images[:1],))
    assert isinstance(checked_cut(graph, model, KEEP, images), nn.Module)
    with pytest.raises(
        UserError, match=r"fails on inputs of 2x3x8x8: ValueError: one image at a time \(test_self_check\.py:\d+: raise"
    ):
        reference(lambda: model, [images])
