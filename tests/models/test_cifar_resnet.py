"""The CIFAR ResNets have the depth, size and parameter names under which their checkpoints are shared.

Sizes are those of table 6 of arXiv 1512.03385; the shortcut is compared with a convolution that does the
same.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from aap_hw.models.cifar_resnet import BasicBlock, CifarResNet


def norm_names(prefix):
    return {f"{prefix}.{part}" for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}


@pytest.mark.parametrize("blocks", [3, 9])
def test_parameter_names_are_those_of_shared_checkpoints(blocks):
    expected = {"conv1.weight", "linear.weight", "linear.bias"} | norm_names("bn1")
    for stage in (1, 2, 3):
        for block in range(blocks):
            prefix = f"layer{stage}.{block}"
            expected |= {f"{prefix}.conv1.weight", f"{prefix}.conv2.weight"}
            expected |= norm_names(f"{prefix}.bn1") | norm_names(f"{prefix}.bn2")
    assert set(CifarResNet(blocks).state_dict()) == expected


@pytest.mark.parametrize(("blocks", "depth", "millions"), [(3, 20, 0.27), (9, 56, 0.85)])
def test_depth_and_size_are_the_published_ones(blocks, depth, millions):
    model = CifarResNet(blocks)
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules()) == depth
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


def test_first_shapes_of_a_checkpoint():
    state = CifarResNet(3).state_dict()
    assert state["conv1.weight"].shape == (16, 3, 3, 3)
    assert state["layer2.0.conv1.weight"].shape == (32, 16, 3, 3)
    assert state["layer3.2.conv2.weight"].shape == (64, 64, 3, 3)
    assert state["linear.weight"].shape == (10, 64)


def test_shortcut_equals_a_strided_convolution_with_a_shifted_identity():
    block = BasicBlock(16, 32, stride=2)
    x = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    weight = torch.zeros(32, 16, 1, 1)
    weight[8 + torch.arange(16), torch.arange(16)] = 1.0
    assert torch.equal(block.shortcut(x), F.conv2d(x, weight, stride=2))


def test_exported_program_shows_the_shortcut_as_slice_and_pad():
    program = torch.export.export(CifarResNet(1).eval(), (torch.randn(1, 3, 32, 32),))
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert {"aten.slice.Tensor", "aten.pad.default"} <= targets
