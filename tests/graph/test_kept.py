"""What a forward pass keeps for the next one is cut along, or made anew by the cut network, before or after a run."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aap_hw.graph import ChannelGraph
from tests.graph.constructs.base import Construct
from tests.graph.ground_truth import (
    IMAGES,
    assert_cut_equals_silenced,
    assert_widths_follow,
    lively,
    output,
    random_keep,
)


class FactorThatIsNoParameter(Construct):
    def layers(self) -> None:
        self.factor = torch.linspace(0.5, 2, 12, dtype=torch.float64)[None, :, None, None]

    def between(self, x: Tensor) -> Tensor:
        return x * self.factor


class BlurThatIsNoParameter(Construct):
    """One filter for each channel; a tensor that the code keeps makes no channels of its own."""

    def layers(self) -> None:
        self.count, self.filters = 12, torch.linspace(0, 1, 108, dtype=torch.float64).reshape(12, 1, 3, 3)

    def between(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.filters, padding=1, groups=self.count)


class MaskForASize(Construct):
    """Kept until an image of another size comes; channels do not matter to the code that decides."""

    def layers(self) -> None:
        self.mask: Tensor | None = None

    def between(self, x: Tensor) -> Tensor:
        if self.mask is None or self.mask.shape[1:] != x.shape[2:]:
            self.mask = torch.ones_like(x[0]) * torch.linspace(0, 1, x.shape[3], dtype=x.dtype)
        return x * self.mask


class PositionsInADictionary(Construct):
    def layers(self) -> None:
        self.known: dict[str, dict[int, Tensor]] = {"columns": {}}

    def between(self, x: Tensor) -> Tensor:
        positions = self.known["columns"]
        if x.shape[3] not in positions:
            positions[x.shape[3]] = torch.linspace(0, 1, x.shape[3], dtype=x.dtype).expand(x.shape[1], 1, -1).clone()
        return x + positions[x.shape[3]]


class GridForAShape(Construct):
    """As YOLO's head does it: channels are part of the shape."""

    shape_seen: tuple[int, ...] | None = None
    grid = torch.empty(0)

    def between(self, x: Tensor) -> Tensor:
        if self.shape_seen != x.shape:
            self.shape_seen, self.grid = x.shape, torch.linspace(0, 1, x.shape[3], dtype=x.dtype)
        return x + self.grid


class FrequenciesOfChannels(Construct):
    """What the code makes for fewer channels is not a part of what it made for all."""

    frozen = ("stem.0",)

    def layers(self) -> None:
        self.codes: Tensor | None = None

    def between(self, x: Tensor) -> Tensor:
        if self.codes is None or self.codes.shape[0] != x.shape[1]:
            self.codes = torch.linspace(0, 1, x.shape[1], dtype=x.dtype)[:, None, None]
        return x + self.codes


KEEPING = [
    FactorThatIsNoParameter,
    BlurThatIsNoParameter,
    MaskForASize,
    PositionsInADictionary,
    GridForAShape,
    FrequenciesOfChannels,
]


@pytest.mark.parametrize(
    "when", ["fresh", pytest.param("after a run", marks=pytest.mark.slow), "after a run at another size"]
)
@pytest.mark.parametrize("kind", KEEPING, ids=lambda kind: kind.__name__)
def test_cut_equals_masked_whenever_it_was_run(kind: type[Construct], when: str) -> None:
    torch.manual_seed(0)
    fresh = kind()
    model = copy.deepcopy(fresh)
    _, images = lively(model, IMAGES)  # runs it
    if when == "fresh":
        fresh.load_state_dict(model.state_dict())
        model = fresh.double().eval()
    if when == "after a run at another size":
        output(model, torch.zeros(2, 3, 10, 12, dtype=images.dtype))
    graph = ChannelGraph.trace(model, (images,))
    # What was kept before the trace stays, so that its values do not depend on the width.
    is_frozen = when == "fresh" and bool(kind.frozen)
    assert {group.name for group in graph.groups if group.frozen} == {*kind.frozen[:is_frozen], "head.linear"}
    if is_frozen:
        reason = str(graph.group("stem.0").frozen)
        assert reason.startswith("meets values that the model's code makes anew for fewer channels ('+', ")
    keep = random_keep(graph, seed=1)
    smaller = assert_cut_equals_silenced(model, graph, images, keep)
    assert_widths_follow(graph, smaller, keep, images)
    if not kind.frozen:
        larger = torch.randn(2, 3, 10, 12, dtype=images.dtype)
        assert_cut_equals_silenced(model, graph, larger, keep)


class ParametersInLists(Construct):
    """Some for a penalty that only training asks for, and one that the network reads from there."""

    def layers(self) -> None:
        self.inner = nn.Conv2d(12, 12, 1)
        self.penalised = {"weights": [self.inner.weight, self.stem[0].weight]}
        self.read = [self.inner.bias]

    def between(self, x: Tensor) -> Tensor:
        return self.inner(x).relu() + self.read[0][:, None, None]


def test_a_parameter_that_is_also_in_a_list_stays_one() -> None:
    torch.manual_seed(0)
    model, images = lively(ParametersInLists(), IMAGES)
    graph = ChannelGraph.trace(model, (images,))
    keep = random_keep(graph, seed=1)
    smaller = assert_cut_equals_silenced(model, graph, images, keep)
    assert smaller.penalised["weights"][0] is smaller.inner.weight
    assert smaller.penalised["weights"][1] is smaller.stem[0].weight
    assert smaller.read[0] is smaller.inner.bias
    assert smaller.inner.weight.shape[:2] == (len(keep["inner"]), len(keep["stem.0"]))
    assert model.penalised["weights"][0] is model.inner.weight
