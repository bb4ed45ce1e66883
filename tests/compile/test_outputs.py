"""A network that returns several tensors compiles to all of them, in PyTorch's order and laid out as PyTorch does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from aap_hw.compile.front.partition import partition
from aap_hw.compile.library.footprint import moments
from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph
from aap_hw.graph.program.outputs import output_names, output_tensors
from aap_hw.models.initialise import initialise
from tests.compile.running import assert_alike, compiled_outputs, randomise, target


class Pyramid(nn.Module):
    """Two maps, the first of which is read on, and scores; packed as given."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 9, 3, 2, 1), nn.Conv2d(9, 17, 3, 2, 1)
        self.head = nn.Linear(17, 5)

    def forward(self, x: Tensor) -> Any:
        one = F.relu(self.one(x))
        two = F.relu(self.two(one))
        return self.packed(x, one, two, self.head(two.mean((2, 3))))

    def packed(self, x: Tensor, one: Tensor, two: Tensor, scores: Tensor) -> Any:
        return {"maps": [one, two], "scores": scores}


class WithTheImage(Pyramid):
    def packed(self, x: Tensor, one: Tensor, two: Tensor, scores: Tensor) -> Any:
        return scores, x, one


class WithTheImageOtherwise(Pyramid):
    """The image with its channels last, in memory as it came nowhere."""

    def packed(self, x: Tensor, one: Tensor, two: Tensor, scores: Tensor) -> Any:
        last = x.permute(0, 2, 3, 1)
        return last, scores, x.flatten(2).transpose(1, 2), last.flatten(1), x.flatten(1), F.relu(x), x[:, :2]


class WithoutABatch(Pyramid):
    def packed(self, x: Tensor, one: Tensor, two: Tensor, scores: Tensor) -> Any:
        return (
            one.permute(0, 2, 3, 1).reshape(-1, 3),
            two.flatten(2).permute(2, 0, 1),
            scores.mean(),
            one.sum((1, 2, 3)),
        )


class Twice(Pyramid):
    def packed(self, x: Tensor, one: Tensor, two: Tensor, scores: Tensor) -> Any:
        return two, scores, two, two.flatten(1)


class WithNothing(Pyramid):
    def packed(self, x: Tensor, one: Tensor, two: Tensor, scores: Tensor) -> Any:
        return {"aux": None, "scores": scores, "map": one}


class InOneDictionary(Pyramid):
    def packed(self, x: Tensor, one: Tensor, two: Tensor, scores: Tensor) -> Any:
        return {"out": two}


class NamedAlike(Pyramid):
    def packed(self, x: Tensor, one: Tensor, two: Tensor, scores: Tensor) -> Any:
        return {"map": [one], "map_0": two}


class Gated(Pyramid):
    def packed(self, x: Tensor, one: Tensor, two: Tensor, scores: Tensor) -> Any:
        return two.mean((2, 3), keepdim=True), two * torch.sigmoid(two)


class UnderSeveralShapes(Pyramid):
    """What lies in memory once is turned into several orders, as an image of each shape."""

    def packed(self, x: Tensor, one: Tensor, two: Tensor, scores: Tensor) -> Any:
        other = one.permute(0, 2, 3, 1).reshape(2, 7, 15, 3).permute(0, 3, 1, 2)
        rows = self.head(two.flatten(2).transpose(1, 2)).softmax(2)
        pooled = F.max_pool1d(rows, 2), F.max_pool1d(rows.reshape(2, 10, 6), 2)
        return one, other, *pooled, F.layer_norm(one, one.shape[2:]), F.layer_norm(other, other.shape[2:])


PACKINGS = [Pyramid, WithTheImage, WithTheImageOtherwise, WithoutABatch, Twice, WithNothing, InOneDictionary, Gated]
PACKINGS += [UnderSeveralShapes]


@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("packing", PACKINGS, ids=lambda packing: packing.__name__)
def test_all_outputs_are_those_of_pytorch(packing: type[Pyramid], threads: int, tmp_path: Path) -> None:
    model, image = randomise(packing()), torch.randn(2, 3, 14, 10)
    with torch.no_grad():
        expected = output_tensors(model(image))
    assert_alike(compiled_outputs(model, image, tmp_path / "network.so", threads), expected)


@pytest.mark.slow
def test_the_backbone_of_a_detector_is_cut_and_compiled(tmp_path: Path) -> None:
    detector = torchvision.models.detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    model, image = detector.backbone.eval(), torch.randn(1, 3, 96, 96)
    initialise(model, seed=0)
    graph = ChannelGraph.trace(model, (image,))
    smaller = graph.cut(model, {g.name: range((g.width + 1) // 2) for g in graph.groups if g.frozen is None})
    with torch.no_grad():
        whole, expected = output_tensors(model(image)), output_tensors(smaller(image))
    assert [each.shape for each in whole] == [each.shape for each in expected]
    assert len(expected) == 6
    actual = compiled_outputs(smaller, image, tmp_path / "network.so")
    for here, there in zip(actual, expected, strict=True):
        np.testing.assert_allclose(here, there.numpy(), rtol=0, atol=1e-4 * float(there.abs().max()))


def test_an_output_is_held_until_the_network_ends() -> None:
    model = randomise(Pyramid())
    network = partition(ChannelGraph.trace(model, (torch.zeros(1, 3, 14, 10),)))
    *_, last = moments(network, target())
    maps = 4 * (9 * 7 * 5 + 17 * 4 * 3)
    assert last.bytes_at(network.dense) >= maps


@pytest.mark.parametrize(
    ("packing", "names"),
    [
        (Pyramid, ["output_maps_0", "output_maps_1", "output_scores"]),
        (Twice, ["output_0", "output_1", "output_2", "output_3"]),
        (WithNothing, ["output_scores", "output_map"]),
        (InOneDictionary, ["logits"]),
        (NamedAlike, ["output_0", "output_1"]),
    ],
)
def test_outputs_are_called_what_the_code_calls_them(packing: type[Pyramid], names: list[str]) -> None:
    assert output_names(packing()(torch.zeros(1, 3, 8, 8))) == names


def test_network_that_returns_nothing_is_refused() -> None:
    class Silent(Pyramid):
        def packed(self, x: Tensor, one: Tensor, two: Tensor, scores: Tensor) -> Any:
            return None

    with pytest.raises(UserError, match="the network returns no tensor"):
        partition(ChannelGraph.trace(randomise(Silent()), (torch.zeros(1, 3, 8, 8),)))


def test_output_that_does_not_depend_on_the_image_is_refused_by_name() -> None:
    class WithAnchors(Pyramid):
        def __init__(self) -> None:
            super().__init__()
            self.anchors = nn.Parameter(torch.rand(4, 4))

        def packed(self, x: Tensor, one: Tensor, two: Tensor, scores: Tensor) -> Any:
            return scores, self.anchors

    with pytest.raises(UserError, match=r"returns anchors, which does not depend on the input.*; leave it out"):
        partition(ChannelGraph.trace(randomise(WithAnchors()), (torch.zeros(1, 3, 8, 8),)))


class Answer:
    """What PyTorch knows how to take apart, and not what the parts are called."""

    def __init__(self, boxes: Tensor, scores: Tensor) -> None:
        self.boxes, self.scores = boxes, scores


pytree.register_pytree_node(
    Answer, lambda answer: ([answer.boxes, answer.scores], None), lambda parts, _: Answer(*parts)
)


def test_outputs_of_an_unknown_type_are_numbered() -> None:
    returned = Answer(torch.zeros(1), torch.ones(1))
    assert [float(each) for each in output_tensors(returned)] == [0.0, 1.0]
    assert output_names(returned) == ["output_0", "output_1"]
    assert output_names({"out": torch.zeros(1)}) == ["logits"]


def test_output_whose_size_depends_on_the_image_is_refused() -> None:
    class Chosen(Pyramid):
        def packed(self, x: Tensor, one: Tensor, two: Tensor, scores: Tensor) -> Any:
            return scores, (scores > 0).nonzero()

    with pytest.raises(UserError, match=r"the size of what x.nonzero makes depends on the values of the input"):
        partition(ChannelGraph.trace(randomise(Chosen()), (torch.zeros(1, 3, 8, 8),)))


def test_network_that_branches_on_values_is_refused_with_advice() -> None:
    class Branching(Pyramid):
        def packed(self, x: Tensor, one: Tensor, two: Tensor, scores: Tensor) -> Any:
            return scores if scores.max() > 0 else one

    with pytest.raises(UserError, match="move that decision out of forward"):
        ChannelGraph.trace(randomise(Branching()), (torch.zeros(1, 3, 8, 8),))
