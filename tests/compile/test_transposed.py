"""Proves that transposed convolutions equal PyTorch's in float64, of any geometry, and touch no other memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from aap_hw.compile.cpu.narrow import is_narrow
from aap_hw.compile.families import family_of, multiply_accumulates, weight_shape
from aap_hw.compile.front.partition import partition
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.target import device_target
from aap_hw.compile.library.build import build_kernel
from aap_hw.compile.library.folding import filters_first
from aap_hw.graph import ChannelGraph
from tests.compile.assembly import TARGETS, assembly, multiplying_loops
from tests.compile.random_kernels import random_tensors, reference, wrong_kernels
from tests.compile.running import assert_compiled_equals_pytorch, call, randomise, target
from tests.compile.transposed import Transposed, kernels

GPU = device_target({"kind": "cuda", "arch": "sm_80"}, 1)


def usual(width_in: int, width_out: int, kernel: int, stride: int, padding: int, beyond: int = 0) -> Transposed:
    geometry = [(each, each) for each in (kernel, stride, padding)]
    return Transposed(width_in, width_out, (4, 5), *geometry, beyond=(beyond, beyond), epilogue=("bias", "relu"))


USUAL = [(2, 2, 0, 0), (4, 2, 1, 0), (3, 2, 1, 1), (9, 3, 4, 2), (2, 3, 0, 1), (1, 2, 0, 0), (5, 1, 2, 0)]
KINDS = [
    *[usual(*widths, *how) for how in USUAL[:4] for widths in ((17, 37), (24, 1), (5, 3))],
    *[usual(*widths, *how) for how, widths in zip(USUAL[4:], ((40, 16), (17, 2), (5, 7)), strict=True)],
    *[replace(usual(13, 13, *how), depthwise=True, batch=2) for how in USUAL[1:4]],
    replace(usual(6, 15, *USUAL[1]), groups=3),
]


def test_the_usual_transposed_convolutions_equal_pytorch_in_both_ways_of_computing_them() -> None:
    assert {is_narrow(case.address(), target()) for case in KINDS} == {True, False}
    assert wrong_kernels(KINDS) == []


@pytest.mark.slow
@settings(max_examples=1, derandomize=True, database=None, phases=[Phase.generate])
@given(cases=st.lists(kernels(), min_size=12, max_size=12, unique=True))
def test_random_transposed_convolutions_equal_pytorch(cases: list[Transposed]) -> None:
    assert wrong_kernels(cases) == []


@pytest.mark.parametrize("case", [usual(9, 7, 4, 2, 1), replace(usual(5, 5, 3, 2, 1, 1), depthwise=True)], ids=repr)
def test_a_gpu_computes_the_same(case: Transposed) -> None:
    tensors = random_tensors(case)
    images = {role: tensors[role].transpose(0, 2, 3, 1) for role in ("activation", "residual")}
    actual = call(build_kernel(case.address(), GPU), **{**tensors, **images}).transpose(0, 3, 1, 2)
    expected, tolerance = reference(case, tensors)
    assert (abs(actual - expected) <= tolerance).all()


@pytest.mark.slow  # test_assembly reads such a loop, too
def test_the_inner_loops_leave_the_stack_alone() -> None:
    cases = [usual(64, 64, 4, 2, 1), usual(56, 1, 9, 2, 4, 1), replace(usual(96, 96, 4, 2, 1), depthwise=True)]
    for case in cases:
        for cpu, processor in TARGETS.items():
            larger = replace(case, size=(24, 32)).address()
            loops = multiplying_loops(assembly(build_kernel(larger, processor).code, processor))
            assert loops, (case, cpu)
            assert [spill for loop in loops for spill in loop.spills] == [], (case, cpu)


def test_batch_norm_is_folded_along_the_channels_that_are_made(tmp_path: Path) -> None:
    class Grown(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers = [
                nn.Conv2d(3, 6, 1),
                nn.ConvTranspose2d(6, 8, 3, 2, 1, 1, bias=False),
                nn.ConvTranspose2d(8, 6, 2, 1, groups=2),
                nn.ConvTranspose2d(6, 6, 4, 2, 1, groups=6),
            ]
            norms = [nn.BatchNorm2d(layer.out_channels) for layer in layers]
            self.grown = nn.Sequential(*[nn.Sequential(*pair, nn.ReLU6()) for pair in zip(layers, norms, strict=True)])
            self.last, self.other = nn.ConvTranspose2d(6, 5, 3, 1, 1), nn.ConvTranspose2d(6, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.grown(x)
            return F.relu(self.last(x) + self.other(x))

    model, image = randomise(Grown()), torch.randn(2, 3, 5, 4)
    network = partition(ChannelGraph.trace(model, (image,)))
    found = [(kernel.key.op, "+".join(kernel.key.epilogue)) for kernel in network.kernels]
    assert found == [
        ("conv2d", "bias+relu6"),
        ("conv_transpose2d", "bias+relu6"),
        ("conv_transpose2d", "bias+relu6"),
        ("depthwise_conv_transpose2d", "bias+relu6"),
        ("conv_transpose2d", "bias"),
        ("conv_transpose2d", "bias+add+relu"),
        ("to_nchw", ""),
    ]
    assert_compiled_equals_pytorch(model, image, tmp_path)


@pytest.mark.parametrize(("groups", "depthwise"), [(1, False), (3, False), (6, True)])
def test_shapes_and_counts_are_pytorchs(groups: int, depthwise: bool) -> None:
    layer = nn.ConvTranspose2d(6, 6 if depthwise else 9, 3, 2, 1, 1, groups)
    case = replace(usual(6, 6 if depthwise else 9, 3, 2, 1, 1), depthwise=depthwise, groups=1 if depthwise else groups)
    address = Address(case.key(), (6, layer.out_channels))
    assert weight_shape(address) == tuple(layer.weight.shape)
    assert family_of(address.key).output(address) == (1, *layer(torch.zeros(1, 6, 4, 5)).shape[2:], layer.out_channels)
    assert multiply_accumulates(address) == 4 * 5 * layer.weight.numel()
    if not depthwise:
        first = filters_first(layer.weight.detach(), groups).numpy()
        assert first.shape == (9, 6 // groups, 3, 3)
        assert np.array_equal(first[-1, -1], layer.weight[-1, -1].detach())
