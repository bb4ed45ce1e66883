"""Images between a convolution and a depthwise one are pitched, no others, and networks compute the same with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from aap_hw.compile.front.partition import partition
from aap_hw.graph import ChannelGraph
from aap_hw.graph.program.outputs import output_tensors
from tests.compile.running import assert_alike, assert_compiled_equals_pytorch, compiled_outputs, randomise

WIDTH = 12


class Pieces(nn.Module):
    """Convolutions between as many channels, and a function that puts some of them together."""

    def __init__(self, together: Callable[[Pieces, Tensor], Tensor | tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, WIDTH, 3, 2, 1)
        self.depthwise = nn.Conv2d(WIDTH, WIDTH, 3, 1, 1, groups=WIDTH)
        self.again = nn.Conv2d(WIDTH, WIDTH, 5, 2, 2, groups=WIDTH)
        self.pointwise, self.last = nn.Conv2d(WIDTH, WIDTH, 1), nn.Conv2d(WIDTH, WIDTH, 3, 1, 1)
        self.grouped = nn.Conv2d(WIDTH, 2 * WIDTH, 3, 1, 1, groups=WIDTH // 3)
        self.linear, self.wide = nn.Linear(WIDTH, WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.whole = nn.Conv2d(WIDTH, WIDTH, (8, 6), groups=WIDTH)
        self.of_two = nn.Conv2d(2 * WIDTH, 2 * WIDTH, 3, 1, 1, groups=2 * WIDTH)
        self.narrow = nn.Conv2d(2 * WIDTH, WIDTH, 1)
        self.together = together

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.together(self, torch.relu(self.first(x)))


def as_rows(m: Pieces, x: Tensor) -> Tensor:
    return m.linear(m.depthwise(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


def with_a_shortcut(m: Pieces, x: Tensor) -> Tensor:
    return m.pointwise(m.depthwise(x)) + x  # type: ignore[no-any-return]


def as_other_channels(m: Pieces, x: Tensor) -> Tensor:
    return m.wide(m.depthwise(x).permute(0, 2, 3, 1).reshape(1, -1, 2 * WIDTH))  # type: ignore[no-any-return]


def with_a_pixel_returned(m: Pieces, x: Tensor) -> tuple[Tensor, ...]:
    return m.pointwise(pixel := m.whole(x)), pixel


def of_two_groups(m: Pieces, x: Tensor) -> Tensor:
    return m.narrow(m.of_two(torch.cat([m.pointwise(x), m.last(x)], 1)))  # type: ignore[no-any-return]


CASES: dict[str, tuple[Callable[[Pieces, Tensor], Tensor | tuple[Tensor, ...]], list[str]]] = {
    "between two convolutions": (lambda m, x: m.last(m.depthwise(x)), ["output", "input+output", "input"]),
    "two in a row": (lambda m, x: m.again(m.depthwise(x)), ["output", "input+output", "input"]),
    "two readers": (lambda m, x: m.depthwise(x) + m.pointwise(x), ["output", "input", "input"]),
    "no depthwise": (lambda m, x: m.last(m.pointwise(x)), ["", "", ""]),
    "returned too": (lambda m, x: (m.pointwise(d := m.depthwise(x)), d), ["output", "input", ""]),
    "added too": (with_a_shortcut, ["", "output", "input"]),
    "pooled": (lambda m, x: m.depthwise(torch.max_pool2d(x, 2)), ["", ""]),
    "as rows": (as_rows, ["output", "input+output", "input"]),
    "as rows of other channels": (as_other_channels, ["output", "input", ""]),
    "in groups": (lambda m, x: m.grouped(m.depthwise(x)), ["output", "input+output", "input"]),
    "its one pixel returned too": (with_a_pixel_returned, ["output", "input", ""]),
    "of two groups": (of_two_groups, ["", "", "", "", ""]),
}


SLOW = {"two in a row", "no depthwise", "added too", "as rows", "its one pixel returned too"}  # close to others


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow) if case in SLOW else case for case in CASES]
)
def test_only_images_between_a_convolution_and_a_depthwise_one_are_pitched(case: str, tmp_path: Path) -> None:
    together, expected = CASES[case]
    model, image = randomise(Pieces(together)), torch.randn(1, 3, 16, 12)
    network = partition(ChannelGraph.trace(model, (image,)))
    convolutions = [kernel.key for kernel in network.kernels if kernel.key.op in ("conv2d", "depthwise_conv2d")]
    assert [key.attribute("pitched") for key in convolutions] == expected
    with torch.no_grad():
        expected_outputs = output_tensors(model(image))
    assert_alike(compiled_outputs(model, image, tmp_path / "network.so"), expected_outputs)


def test_two_images_a_call_and_two_threads_compute_what_pytorch_computes(tmp_path: Path) -> None:
    model = randomise(Pieces(lambda m, x: m.pointwise(m.again(m.depthwise(m.pointwise(x))))))
    assert_compiled_equals_pytorch(model, torch.randn(2, 3, 40, 36), tmp_path, threads=2)
